"""What the tests of modules share: the plain twin of a fused layer, and a comparison of their training."""

import torch
from torch import nn

import cnnfast.nn as fast

ACTIVATIONS = {"none": nn.Identity, "relu": nn.ReLU, "sigmoid": nn.Sigmoid}


class Plain(nn.Module):
    """The layers that a fused module stands for, one after another."""

    def __init__(self, conv, bn, activation):
        super().__init__()
        self.conv, self.bn, self.activation = conv, bn, ACTIVATIONS[activation]()

    def forward(self, input, residual=None):
        output = self.bn(self.conv(input))
        return self.activation(output if residual is None else output + residual)


def plain(layer):
    """Plain PyTorch twin of a fused convolution with parameters of its own, of the same values."""
    old = layer.conv
    conv = nn.Conv2d(
        old.in_channels,
        old.out_channels,
        old.kernel_size,
        old.stride,
        old.padding,
        old.dilation,
        old.groups,
        old.bias is not None,
        old.padding_mode,
    )
    bn = nn.Identity()
    if isinstance(layer, fast.ConvBNAct2d):
        own = layer.bn
        bn = nn.BatchNorm2d(own.num_features, own.eps, own.momentum, own.affine, own.track_running_stats)
    twin = Plain(conv, bn, layer.activation)
    twin.load_state_dict(layer.state_dict())
    return twin


def close(own, true, relative=5e-5):
    """Largest error relative to the largest true value; integers must be equal."""
    assert own.shape == true.shape
    if not true.is_floating_point():
        assert torch.equal(own, true)
        return
    error = (own.double() - true.double()).abs()
    limit = relative * true.double().abs().max().clamp(min=1e-3)
    assert (error <= limit).all(), f"error {error.max():.3g} above {limit:.3g}"


def assert_same_training(layer, twin, input, residual=None, steps=2):
    """Outputs, gradients of everything and running averages over a few steps of SGD; then evaluation."""
    inputs = [t for t in (input, residual) if t is not None]
    modules = layer.train(), twin.double().train()
    optimisers = [torch.optim.SGD(module.parameters(), lr=0.02, momentum=0.5) for module in modules]
    for _ in range(steps):
        _assert_same_step(*modules, inputs)
        for optimiser in optimisers:
            optimiser.step()
        for own, true in zip(*(module.state_dict().values() for module in modules), strict=True):
            close(own, true, 2e-4)
    with torch.no_grad():
        close(layer.eval()(*inputs), twin.eval()(*(t.double() for t in inputs)), 2e-4)


def _assert_same_step(layer, twin, inputs):
    own_inputs = [t.clone().requires_grad_() for t in inputs]
    true_inputs = [t.double().requires_grad_() for t in inputs]
    own, true = layer(*own_inputs), twin(*true_inputs)
    close(own, true)
    cotangent = torch.randn(own.shape) * (true.abs() > 1e-4)  # clear of kinks that rounding could cross
    for module, output in ((layer, own), (twin, true)):
        module.zero_grad()
        output.backward(cotangent.to(output.dtype))
    for a, b in zip(own_inputs, true_inputs, strict=True):
        close(a.grad, b.grad)
    largest = max(p.grad.abs().max() for p in twin.parameters())
    for a, b in zip(layer.parameters(), twin.parameters(), strict=True):
        if b.grad.abs().max() < 1e-9 * largest:  # a bias in front of a batch norm: truly zero
            assert a.grad.abs().max() <= 1e-4 * largest
        else:
            close(a.grad, b.grad)
