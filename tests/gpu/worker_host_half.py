"""Requests of worker.py: csrc/cuda on the host (test_host_half.py)."""

import os

import torch
import torch.nn.functional as F
from worker_support import (
    CASES,
    FAKE,
    STUB,
    below_autograd,
    bits_of,
    call,
    channels_last,
    check,
    error_of,
    expected,
    launches,
    near,
    normalised,
    operands,
    two_backends,
)


def where_written(record: list[str], manifest_names: list[str]) -> dict[str, int]:
    """Parameters of a launch of conv2d by name: pointers are 8 bytes, numbers 4."""
    raw, at, values = bytes.fromhex(record[10]), 0, {}
    for name in manifest_names:
        size = 8 if name.endswith("_ptr") or name.endswith("_scratch") else 4
        at = (at + size - 1) // size * size
        values[name] = int.from_bytes(raw[at : at + size], "little")
        at += size
    return values


def conv_launches() -> list[dict[str, int]]:
    """Parameters of every launch of a convolution, by what the stub was told of the kernels."""
    names = {}
    for line in open(os.environ["STUB_KERNELS"]):
        hash_of_code, kernel, _, _, parameters = line.split()
        names.setdefault(kernel, set()).add(parameters)
    found = []
    for record in launches():
        if record[0] != "conv2d_kernel":
            continue
        length = len(bytes.fromhex(record[10]))
        for parameters in names["conv2d"]:
            sizes = [8 if n.endswith(("_ptr", "_scratch")) else 4 for n in parameters.split(",")]
            end = 0
            for size in sizes:
                end = (end + size - 1) // size * size + size
            if end == length:
                found.append(where_written(record, parameters.split(",")))
                break
    return found


def written_into(output, record: dict[str, int]) -> int:
    """The first channel of `output` that a launch wrote, or -1 where it wrote elsewhere."""
    distance = record["y_ptr"] - output.data_ptr()
    inside = 0 <= distance < output.shape[1] * output.element_size()
    return distance // output.element_size() if inside and record["y_stride"] == output.shape[1] else -1


def inception_writes_slices(backend: str):
    """Four branches, six convolutions and a pooling."""
    kinds = {"conv": 0, "max": 1}

    def stage(kind, size, padding, option):
        activation = 1 if kind == "conv" else 0
        return [kinds[kind], activation, size, size, 1, 1, padding, padding, option]

    branches = [
        [stage("conv", 1, 0, 1)],
        [stage("conv", 1, 0, 1), stage("conv", 3, 1, 1)],
        [stage("conv", 1, 0, 1), stage("conv", 5, 2, 1)],
        [stage("max", 3, 1, 0), stage("conv", 1, 0, 1)],
        [stage("max", 3, 1, 0)],
    ]
    words = [len(branches)]
    for branch in branches:
        words += [len(branch), *(number for one in branch for number in one)]
    x = channels_last(torch.randn(2, 32, 6, 7).half())
    sizes = ((16, 32, 1), (24, 32, 1), (32, 24, 3), (8, 32, 1), (16, 8, 5), (8, 32, 1))
    weights = [channels_last((torch.randn(o, i, k, k) / (i * k * k) ** 0.5).half()) for o, i, k in sizes]
    biases = [torch.randn(o).half() for o, *_ in sizes]
    below_autograd("inception", x, weights, biases, words)  # settles what has to be timed
    before, streams, joined = len(conv_launches()), FAKE.host_streams(), FAKE.host_joined()
    output, *stages = below_autograd("inception", x, weights, biases, words)
    records = conv_launches()[before:]

    def conv(i, image):
        pad = weights[i].shape[2] // 2
        y = F.conv2d(image.double(), weights[i].double(), biases[i].double(), padding=pad)
        return torch.relu(y).half()

    pooled = F.max_pool2d(x, 3, 1, 1)
    truth = torch.cat(
        [conv(0, x), conv(2, conv(1, x)), conv(4, conv(3, x)), conv(5, pooled), pooled], 1
    ).double()
    near(output, truth)
    # Every branch ran in a stream of its own, and was joined.
    assert FAKE.host_streams() - streams == FAKE.host_joined() - joined == len(branches)
    if backend != "triton":
        assert not records
        return
    places = sorted(written_into(output, record) for record in records)
    assert places == [-1, -1, 0, 16, 48, 64], places  # two stages inside branches, four last ones
    assert len(stages) == 3


def dense_block_writes_slices(backend: str):
    """Layers read all channels so far where they lie and write their own behind them."""
    growth, layers, x = 16, 3, channels_last(torch.randn(2, 16, 6, 5).half())
    inputs = [16 + growth * i for i in range(layers)]
    weights = [channels_last((torch.randn(growth, c, 3, 3) / (9 * c) ** 0.5).half()) for c in inputs]
    gains, shifts = ([torch.randn(c) for c in inputs] for _ in range(2))
    none = [None] * layers
    for given in (False, True):
        means = [torch.randn(c) for c in inputs] if given else none
        spreads = [torch.rand(c) + 0.5 for c in inputs] if given else none
        arguments = (x, weights, none, gains, shifts, means, spreads)
        below_autograd("dense_block", *arguments)
        before = len(conv_launches())
        output, mean, var = below_autograd("dense_block", *arguments)
        records = conv_launches()[before:]
        truth = x
        for i in range(layers):
            statistics = (
                (means[i], spreads[i])
                if given
                else torch.var_mean(truth.double(), (0, 2, 3), correction=0)[::-1]
            )
            activated = normalised(truth, *statistics, gains[i], shifts[i]).half()
            y = F.conv2d(activated.double(), weights[i].double(), padding=1).half()
            truth = torch.cat([truth, y], 1)
        near(output, truth.double())
        if not given:
            # Of what the block stored: its rounding may differ from the plain computation's.
            true_var, true_mean = torch.var_mean(output.double(), (0, 2, 3), correction=0)
            near(mean, true_mean)
            near(var, true_var)
        if backend != "triton":
            assert not records
            continue
        assert [written_into(output, record) for record in records] == inputs
        # The input of a convolution is the block's own memory: neither concatenated nor activated apart.
        for record in records:
            assert record["x_stride"] == output.shape[1] and record["x_ptr"] == output.data_ptr()


def dense_block_gradients():
    """The block's backward by emulated kernels, both forms, against autograd of the plain computation."""
    growth, layers = 5, 3
    x = channels_last(torch.randn(2, 6, 4, 5))
    inputs = [6 + growth * i for i in range(layers)]
    weights = [torch.randn(growth, c, 3, 3) / (9 * c) ** 0.5 for c in inputs]
    gains, shifts = ([torch.randn(c) for c in inputs] for _ in range(2))
    none = [None] * layers
    for given in (False, True):
        means = [torch.randn(c) for c in inputs] if given else none
        spreads = [torch.rand(c) + 0.5 for c in inputs] if given else none
        leaves = [t.double().requires_grad_() for t in (x, *weights, *gains, *shifts)]
        parts = [leaves[1 + i * layers : 1 + (i + 1) * layers] for i in range(3)]
        truth = leaves[0]
        for i in range(layers):
            statistics = (means[i].double(), spreads[i].double()) if given else (None, None)
            activated = F.relu(F.batch_norm(truth, *statistics, parts[1][i], parts[2][i], not given))
            truth = torch.cat([truth, F.conv2d(activated, parts[0][i], padding=1)], 1)
        cotangent = torch.randn(truth.shape)
        wanted = torch.autograd.grad(truth, leaves, cotangent.double())
        output, mean, var = below_autograd("dense_block", x, weights, none, gains, shifts, means, spreads)
        near(output, truth.detach())
        mask = [True] * (1 + layers) + [False] * layers + [True] * (2 * layers)
        for name in ("dense_block_backward", "dense_block_backward_"):
            grad = channels_last(cotangent.clone())
            found = below_autograd(
                name, grad, output, weights, gains, shifts, means, spreads, mean, var, 1e-5, "relu", mask
            )
            assert torch.equal(grad, cotangent) == (name == "dense_block_backward"), "whose memory is used up"
            flat = [found[0], *found[1], *found[3], *found[4]]
            for actual, truth_of in zip(flat, wanted, strict=True):
                torch.testing.assert_close(actual.double(), truth_of, rtol=1e-4, atol=1e-4)


def normalised_convolutions():
    """conv2d_batch_norm, bn_act_conv2d and their gradients by emulated kernels."""
    x, w = channels_last(torch.randn(2, 5, 6, 7)), torch.randn(6, 5, 3, 3) / 6
    residual = channels_last(torch.randn(2, 6, 6, 7))
    gain, shift = torch.randn(2, 6)
    options = {"padding": [1, 1]}
    leaves = [t.double().requires_grad_() for t in (x, w, gain, shift, residual)]
    conv = F.conv2d(leaves[0], leaves[1], padding=1)
    truth = F.relu(F.batch_norm(conv, None, None, leaves[2], leaves[3], True) + leaves[4])
    bias = torch.randn(6)
    y, found_conv, mean, var = below_autograd(
        "conv2d_batch_norm", x, w, bias, gain, shift, residual, activation="relu", **options
    )
    near(y, truth.detach())
    near(found_conv, conv.detach())
    true_var, true_mean = torch.var_mean(conv.detach(), (0, 2, 3), correction=0)
    near(mean, true_mean + bias.double())
    near(var, true_var)
    mean = mean - bias
    *bits, positive = below_autograd("conv2d_batch_norm_relu", x, w, gain, shift, residual, **options)
    near(bits[0], truth.detach())
    assert torch.equal(positive, bits_of(bits[0]))
    cotangent = torch.randn(y.shape)
    wanted = torch.autograd.grad(truth, leaves, cotangent.double())
    geometry = ([1, 1], [1, 1], [1, 1], 1)
    found = below_autograd(
        "conv2d_batch_norm_backward", cotangent, x, w, gain, found_conv, mean, var, y, *geometry,
        1e-5, "relu", [True, True, False, True, True, True],
    )  # fmt: skip
    for i, place in enumerate((0, 1, 3, 4, 5)):
        torch.testing.assert_close(found[place].double(), wanted[i], rtol=1e-4, atol=1e-4)

    gain, shift = torch.randn(2, 5)
    leaves = [t.double().requires_grad_() for t in (x, w, gain, shift, residual)]
    activated = F.relu(F.batch_norm(leaves[0], None, None, leaves[2], leaves[3], True))
    truth = F.conv2d(activated, leaves[1], padding=1) + leaves[4]
    y, mean, var = below_autograd("bn_act_conv2d", x, w, None, gain, shift, None, None, residual, **options)
    near(y, truth.detach())
    wanted = torch.autograd.grad(truth, leaves, cotangent.double())
    found = below_autograd(
        "bn_act_conv2d_backward", cotangent, x, w, gain, shift, mean, var, *geometry, 1e-5, "relu", True,
        [True, True, False, True, True, True],
    )  # fmt: skip
    for i, place in enumerate((0, 1, 3, 4, 5)):
        torch.testing.assert_close(found[place].double(), wanted[i], rtol=1e-4, atol=1e-4)


def convolutions_and_their_last_pass():
    """conv2d as ATen's convolution and one emulated pass, with everything that the pass does."""
    for case in CASES:
        x, w, bias, scale, residual, options = operands(case)
        for b, s, r in (
            (bias, scale, residual),
            (bias, None, None),
            (None, scale, None),
            (None, None, residual),
        ):
            check(call(x, w, b, s, r, **options), expected(x, w, b, s, r, options))
            y = call(x, w, b, s, r, activation="none", **options)
            torch.testing.assert_close(torch.relu(y), expected(x, w, b, s, r, options), rtol=2e-3, atol=2e-3)
            assert (y < 0).any()
    assert STUB.stub_launches() == 0
    text = error_of(lambda: call(x, w, activation="gelu", **options))
    assert "CNNFAST_BACKEND=cuda cannot serve this call: the CUDA kernels have no form for" in text, text


def two_backends_on_the_host():
    """Operators that ATen and csrc/cuda have, in float32: forced, and as measured."""
    single = {}
    for name, (arguments, truth) in two_backends().items():
        arguments = [
            t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in arguments
        ]
        single[name] = (arguments, truth)
    for name, (arguments, truth) in single.items():
        for _ in range(2):
            found = below_autograd(name, *arguments)
            near(found if isinstance(found, torch.Tensor) else found[0], truth.detach())
    rows = torch.ops.cnnfast.backend_times()
    timed = {row.split()[0] for row in rows if "\tcuda\t" in row}
    assert timed == (set() if os.environ["CNNFAST_BACKEND"] == "cuda" else set(single)), rows
