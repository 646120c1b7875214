"""Requests of worker.py: gradients of convolutions, and batch norm in front of them and behind."""

import json

import torch
import torch.nn.functional as F
from worker_support import (
    CASES,
    GEOMETRY,
    STUB,
    below_autograd,
    bits_of,
    error_of,
    launches,
    near,
    normalised,
    operands,
    set_knob,
)


def gradients():
    """Of input and weight: every case, every layout, in the strides of either; counts launches."""
    for case in CASES:
        x, w, _, _, dy, options = operands(case)
        options = GEOMETRY | options
        exact = [t.double() for t in (x, w, dy)]
        of_input = torch.nn.grad.conv2d_input(exact[0].shape, exact[1], exact[2], **options)
        of_weight = torch.nn.grad.conv2d_weight(exact[0], exact[1].shape, exact[2], **options)
        buffer = torch.full((dy.shape[0], dy.shape[1] + 16, *dy.shape[2:]), torch.nan).to(dy.dtype)
        buffer = buffer.contiguous(memory_format=torch.channels_last)
        buffer[:, 8 : 8 + dy.shape[1]] = dy
        images = (x, x.contiguous())
        for grad in (dy, dy.contiguous(), buffer[:, 8 : 8 + dy.shape[1]]):
            for weight in (w, w.contiguous(memory_format=torch.channels_last)):
                for image in images:
                    for name, truth, like, launched in (
                        ("conv2d_input_grad", of_input, image, 1),
                        ("conv2d_weight_grad", of_weight, weight, 2),
                    ):
                        for _ in range(2):  # where several kernels serve, the first call times them
                            before = STUB.stub_launches()
                            found = below_autograd(name, grad, image, weight, **options)
                        assert STUB.stub_launches() == before + launched, (case, name)
                        assert found.stride() == like.stride(), (case, name)
                        near(found, truth)
        assert below_autograd("conv2d_input_grad", dy[:0], x[:0], w, **options).shape == x[:0].shape
        assert not below_autograd("conv2d_weight_grad", dy[:0], x[:0], w, **options).any()
    print(json.dumps(launches()))


def parts_of_a_weight_gradient():
    """Enough pixels for several parts: their sum is that of all."""
    x = torch.randn(4, 16, 65, 33).half().contiguous(memory_format=torch.channels_last)
    w = torch.randn(8, 16, 1, 1).half()
    dy = (torch.randn(4, 8, 65, 33) / 16).half().contiguous(memory_format=torch.channels_last)
    found = below_autograd("conv2d_weight_grad", dy, x, w, **GEOMETRY)
    near(found, torch.nn.grad.conv2d_weight(x.double(), w.shape, dy.double()))
    product, _ = launches()[-2:]
    assert int(product[2]) > 2, "one part alone"


def prologue():
    """Batch norm and ReLU in front of a convolution, by given statistics and by the batch's: one launch."""
    for case in CASES:
        x, w, bias, _, residual, options = operands(case)
        channels = x.shape[1]
        weight, shift, mean = torch.randn(3, channels)
        var = torch.rand(channels) + 0.5
        for given, added in ((True, None), (True, residual), (False, residual)):
            statistics = (mean, var) if given else (None, None)
            arguments = (x, w, bias, weight, shift, *statistics, added)
            below_autograd("bn_act_conv2d", *arguments, **options)
            before = STUB.stub_launches()
            found, *of_batch = below_autograd("bn_act_conv2d", *arguments, **options)
            assert STUB.stub_launches() == before + 1
            if not given:
                var_mean = torch.var_mean(x.double(), (0, 2, 3), correction=0)
                [near(a, b) for a, b in zip(of_batch[::-1], var_mean, strict=True)]
                statistics = of_batch
            activated = normalised(x, *statistics, weight, shift).to(x.dtype)
            truth = F.conv2d(activated.double(), w.double(), bias.double(), **options)
            near(found, truth if added is None else truth + added.double())
            assert found.is_contiguous(memory_format=torch.channels_last)
    text = error_of(lambda: below_autograd("bn_act_conv2d", x, w, pre_activation="sigmoid", **options))
    assert "Triton kernels have no pre-activation sigmoid" in text, text
    text = error_of(lambda: below_autograd("bn_act_conv2d", x, w, pre_activation="none", **options))
    assert "PRE_RELU is not 1" in text, text


def statistics():
    """A convolution gives the statistics of what it stores: one launch, and one or two that join parts."""
    more = {"many": ((2, 32, 65, 67), (16, 32, 1, 1), {})}  # more than 128 parts: a tree of two levels
    CASES.update(more)
    for case in CASES:
        x, w, bias, _, residual, options = operands(case)
        gain, shift = torch.randn(2, w.shape[0])
        arguments = (x, w, bias, gain, shift, residual)
        joins = 2 if case in more else 1
        for activation in ("relu", "none"):
            below_autograd("conv2d_batch_norm", *arguments, activation=activation, **options)
            before = STUB.stub_launches()
            y, conv, mean, var = below_autograd(
                "conv2d_batch_norm", *arguments, activation=activation, **options
            )
            assert STUB.stub_launches() == before + 1 + joins, case
            near(conv, F.conv2d(x.double(), w.double(), **options))
            true_var, true_mean = torch.var_mean(conv.double(), (0, 2, 3), correction=0)
            near(mean, true_mean + bias.double())
            near(var, true_var)
            truth = F.batch_norm(conv.double(), None, None, gain.double(), shift.double(), True)
            truth = truth + residual.double()
            near(y, torch.relu(truth) if activation == "relu" else truth)
        arguments = (x, w, gain, shift, residual)
        below_autograd("conv2d_batch_norm_relu", *arguments, **options)
        before = STUB.stub_launches()
        y, conv, mean, var, positive = below_autograd("conv2d_batch_norm_relu", *arguments, **options)
        assert STUB.stub_launches() == before + 1 + joins, case
        near(y, torch.relu(truth))
        near(mean, true_mean)
        near(var, true_var)
        assert torch.equal(positive, bits_of(y)), case


def refused_gradients():
    """What no kernel serves is an error that says why; an operator without Triton kernels goes on."""
    x, w, bias, _, dy, options = operands("pointwise")
    options = GEOMETRY | options
    for name in ("conv2d_input_grad", "conv2d_weight_grad"):
        text = error_of(
            lambda name=name: below_autograd(name, *(t.bfloat16() for t in (dy, x, w)), **options)
        )
        assert f"cnnfast::{name}: CNNFAST_BACKEND=triton cannot serve this call" in text, text
        text = error_of(lambda name=name: below_autograd(name, dy[:, :8], x, w, **options))
        assert "grad_output has shape" in text, text
    torch.backends.cudnn.allow_tf32 = True
    text = error_of(lambda: below_autograd("conv2d_input_grad", dy.float(), x.float(), w.float(), **options))
    assert "PRECISION is not ieee" in text, text
    y, *_ = below_autograd("batch_norm2d", x.float())
    torch.testing.assert_close(y, F.batch_norm(x.float(), None, None, training=True))
    assert STUB.stub_launches() == 0
    set_knob("FAIL_LAUNCH", 1)
    text = error_of(lambda: below_autograd("conv2d_weight_grad", dy, x, w, **options))
    assert "launch of Triton kernel weight_grad-float16-aligned-pointwise-64x64 failed" in text, text


def gradients_fall_back():
    x, w, _, _, dy, options = operands("padded")
    options = GEOMETRY | options
    truth = torch.nn.grad.conv2d_input(x.shape, w.double(), dy.double(), **options)
    for _ in range(2):
        near(below_autograd("conv2d_input_grad", dy, x, w, **options), truth)
    print(STUB.stub_launches())
