"""dense_block against float64, forward and backward, in training and evaluation, and its one buffer."""

import copy
import itertools

import pytest
import torch
from torch import nn

from cnnfast import ops, reference

from .support import (
    ACTIVATIONS,
    LAYOUTS,
    allocations,
    assert_near,
    doubles,
    gradients,
    in_layout,
    needs_extension,
    poison,
)

LISTS = ("weights", "biases", "bn_weights", "bn_biases")


class Block:
    """A block's arguments: growths and kernels per layer, over images of `channels`."""

    def __init__(self, channels=5, growths=(7, 6, 9), kernels=None, size=(9, 8), batch=3):
        self.input = torch.randn(batch, channels, *size) + 0.3
        self.weights, self.channels = [], []
        for growth, kernel in zip(growths, kernels or [(3, 3)] * len(growths), strict=True):
            scale = (channels * kernel[0] * kernel[1]) ** 0.5
            self.weights.append(torch.randn(growth, channels, *kernel) / scale)
            self.channels.append(channels)
            channels += growth
        self.biases = [torch.rand(growth) for growth in growths]
        self.bn_weights = [torch.rand(count) + 0.5 for count in self.channels]
        self.bn_biases = [torch.rand(count) - 0.5 for count in self.channels]
        self.means = [torch.rand(count) - 0.5 for count in self.channels]
        self.vars = [torch.rand(count) + 0.5 for count in self.channels]

    @property
    def tensors(self):
        return [self.input, *(t for name in LISTS for t in getattr(self, name))]

    def arguments(self, tensors):
        """The positional arguments for these in place of `tensors`."""
        layers, lists = len(self.weights), list(tensors[1:])
        return [tensors[0], *(lists[i * layers : (i + 1) * layers] for i in range(4))]

    def require_gradients(self):
        for tensor in self.tensors:
            if tensor is not None:
                tensor.requires_grad_()
        return self


def no_averages(block):
    return [[None] * len(block.weights)] * 2


def check(block, training=True, activation="relu", cotangent=None, eps=1e-5, relative=5e-5):
    given = [[m.clone() for m in block.means], [v.clone() for v in block.vars]]
    averages = no_averages(block) if training else given
    exact = doubles(block.tensors)
    exact_averages = averages if training else [doubles(given[0]), doubles(given[1])]
    options = {"eps": eps, "activation": activation}
    truth = reference.dense_block(*block.arguments(exact), *exact_averages, **options)
    poison(truth.shape, block.input.shape)
    output = ops.dense_block(*block.arguments(block.tensors), *averages, **options)
    assert_near(output, truth, 2e-5)
    if not any(t is not None and t.requires_grad for t in block.tensors):
        return
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    found = gradients(output, cotangent, block.tensors)
    expected = gradients(truth, cotangent, exact)
    for place, (tensor, own, true) in enumerate(zip(block.tensors, found, expected, strict=True)):
        assert (own is None) == (true is None), place
        if own is not None:
            assert own.dtype == tensor.dtype and own.shape == tensor.shape, place
            assert_near(own, true, relative)


def smooth(block, **options):
    """With an activation without kinks: rounding cannot choose another side of one."""
    check(block.require_gradients(), activation="sigmoid", **options)


BLOCKS = {
    "notes": {"channels": 3, "growths": (10, 10), "size": (8, 8), "batch": 4},
    "odd": {},
    "one_layer": {"growths": (4,)},
    "vectors": {"channels": 16, "growths": (32, 16), "size": (6, 5)},
    "kernels": {"growths": (4, 5, 3), "kernels": [(1, 1), (5, 3), (1, 7)]},
    "one_channel": {"channels": 1, "growths": (1, 1, 1, 1)},
    "one_image": {"batch": 1, "size": (20, 18)},
    "many_images": {"batch": 37, "channels": 9, "size": (13, 11)},
    "one_pixel": {"size": (1, 1), "batch": 6},
    "one_column": {"size": (11, 1), "batch": 2},
    "one_row": {"size": (1, 12), "batch": 1},
    "large_images": {"batch": 2, "channels": 33, "size": (41, 43), "growths": (3, 18)},
}


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("name", BLOCKS)
def test_dense_block(name, training):
    smooth(Block(**BLOCKS[name]), training=training)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_dense_block_activation(activation, training):
    block = Block(size=(5, 6)).require_gradients()
    check(block, training, activation, relative=1e-4)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_block_layout(layout, training):
    block = Block(size=(6, 5))
    block.input = in_layout(block.input, layout)
    block.weights = [in_layout(weight, layout) for weight in block.weights]
    smooth(block, training=training, cotangent=in_layout(torch.randn(3, 27, 6, 5), layout))


@pytest.mark.parametrize("shape", [(2, 6, 1, 1), (1, 6, 7, 1)], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_block_layout_of_small_images(layout, shape):
    block = Block(6, (3, 2), size=shape[2:], batch=shape[0])
    block.input = in_layout(block.input, layout)
    smooth(block, cotangent=in_layout(torch.randn(shape[0], 11, *shape[2:]), layout))


def test_dense_block_expanded_cotangent():
    smooth(Block(), cotangent=torch.ones(1).expand(3, 27, 9, 8))


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("absent", [("biases",), ("bn_weights",), ("bn_biases",), LISTS[1:]], ids=str)
def test_dense_block_parts(absent, training):
    block = Block()
    for name in absent:
        getattr(block, name)[:] = [None] * 3
    smooth(block, training=training)


def test_dense_block_parts_of_some_layers():
    block = Block()
    block.biases[0] = block.bn_weights[1] = block.bn_biases[2] = None
    smooth(block)


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("wanted", [(0,), (1,), (3,), (4,), (7, 11), (9,), (10,), (2, 12)], ids=str)
def test_dense_block_gradients_only_where_wanted(wanted, training):
    block = Block(size=(5, 4))
    for place in wanted:
        block.tensors[place].requires_grad_()
    check(block, training, "sigmoid")


def test_dense_block_eps():
    smooth(Block(), eps=0.3)


def test_dense_block_batch_of_zero():
    for training in (True, False):
        block = Block(batch=0).require_gradients()
        averages = no_averages(block) if training else [block.means, block.vars]
        before = [t.clone() for t in averages[0] if t is not None]
        output = ops.dense_block(*block.arguments(block.tensors), *averages, training=training)
        assert output.shape == (0, 27, 9, 8)
        output.sum().backward()
        assert block.input.grad.shape == block.input.shape
        assert all(w.grad.shape == w.shape for w in block.weights)
        assert all(map(torch.equal, before, [t for t in averages[0] if t is not None]))


def test_dense_block_batch_of_zero_leaves_running_averages():
    block = Block(batch=0)
    before = [t.clone() for t in [*block.means, *block.vars]]
    ops.dense_block(*block.arguments(block.tensors), block.means, block.vars, training=True)
    assert all(map(torch.equal, before, [*block.means, *block.vars]))


def test_dense_block_mean_far_from_zero():
    """A variance as E[x²] - E[x]² would be all rounding error here, and so would its gradient."""
    block = Block(batch=4, size=(16, 16), growths=(4, 5))
    block.input = block.input * 0.1 + 100.0
    smooth(block, relative=2e-2)


def test_dense_block_constant_channel():
    """Variance zero: the shift, not NaN."""
    block = Block()
    block.input[:, 2] = 1.5
    output = ops.dense_block(*block.arguments(block.tensors), *no_averages(block), training=True)
    assert output.isfinite().all()


def test_dense_block_keeps_nan():
    block = Block()
    block.input[1, 2, 3, 3] = float("nan")
    for averages, training in ((no_averages(block), True), ([block.means, block.vars], False)):
        arguments = [*block.arguments(block.tensors), *averages, training]
        assert torch.equal(ops.dense_block(*arguments).isnan(), reference.dense_block(*arguments).isnan())


class Layer(nn.Module):
    def __init__(self, channels, growth, **options):
        super().__init__()
        self.bn = nn.BatchNorm2d(channels, **options)
        self.conv = nn.Conv2d(channels, growth, 3, padding=1)


def run_layers(layers, input):
    """What a module would do with its children."""
    convs, norms = [layer.conv for layer in layers], [layer.bn for layer in layers]
    return ops.dense_block(
        input,
        [conv.weight for conv in convs],
        [conv.bias for conv in convs],
        [bn.weight for bn in norms],
        [bn.bias for bn in norms],
        [bn.running_mean for bn in norms],
        [bn.running_var for bn in norms],
        norms[0].training,
        norms[0].momentum,
        norms[0].eps,
    )


def run_plain(layers, input):
    for layer in layers:
        input = torch.cat([input, layer.conv(torch.relu(layer.bn(input)))], 1)
    return input


@pytest.mark.parametrize("tracks", [True, False], ids=["tracks", "tracks_nothing"])
def test_dense_block_against_modules(tracks):
    """Several steps of training, then evaluation: running averages of every layer follow."""
    layers = nn.ModuleList(
        Layer(5 + 4 * i, 4, momentum=0.3, eps=1e-3, track_running_stats=tracks) for i in range(3)
    )
    exact = copy.deepcopy(layers).double()
    for _ in range(3):
        input = torch.randn(3, 5, 7, 6)
        assert_near(run_layers(layers, input), run_plain(exact, input.double()), 2e-5)
    for layer, true in zip(layers, exact, strict=True):
        if tracks:
            assert_near(layer.bn.running_mean, true.bn.running_mean)
            assert_near(layer.bn.running_var, true.bn.running_var)
    layers.eval(), exact.eval()
    input = torch.randn(2, 5, 7, 6)
    assert_near(run_layers(layers, input), run_plain(exact, input.double()), 2e-5)


@needs_extension
def test_dense_block_statistics_of_every_channel():
    block = Block()
    output, mean, var = torch.ops.cnnfast.dense_block(*block.arguments(block.tensors), [], [])
    assert_near(mean, output.double().mean((0, 2, 3)))
    assert_near(var, output.double().var((0, 2, 3), correction=0))
    output, mean, var = torch.ops.cnnfast.dense_block(
        *block.arguments(block.tensors), block.means, block.vars
    )
    assert mean.shape == var.shape == (0,)


@needs_extension
def test_dense_block_is_the_same_for_any_number_of_threads():
    """Images are worked on a few at a time by one thread, or all together by all."""
    for size in ((13, 11), (40, 40)):
        block = Block(channels=33, batch=5, size=size).require_gradients()
        before = torch.get_num_threads()
        results = []
        try:
            for threads in (1, 2, 3, 7):
                torch.set_num_threads(threads)
                output = ops.dense_block(*block.arguments(block.tensors), *no_averages(block))
                results.append(output)
        finally:
            torch.set_num_threads(before)
        assert all(torch.equal(result, results[0]) for result in results[1:])


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
def test_dense_block_output_is_channels_last_memory_of_its_own(layout):
    block = Block()
    block.input = in_layout(block.input, layout)
    output = ops.dense_block(*block.arguments(block.tensors), *no_averages(block))
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(output[:, :5], block.input)
    assert output.untyped_storage().data_ptr() != block.input.untyped_storage().data_ptr()


@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
@pytest.mark.parametrize("activation", ["none", "sigmoid"])
def test_dense_block_gradcheck(activation, training):
    block = Block(2, (3, 2), [(3, 3), (1, 3)], (4, 3), 2)
    tensors = [t.detach().double().requires_grad_() for t in block.tensors]
    averages = no_averages(block) if training else [doubles(block.means), doubles(block.vars)]

    def run(*tensors):
        return ops.dense_block(*block.arguments(tensors), *averages, activation=activation)

    assert torch.autograd.gradcheck(run, tensors)


@needs_extension
def test_dense_block_second_derivative_is_an_error():
    block = Block().require_gradients()
    output = ops.dense_block(*block.arguments(block.tensors), *no_averages(block))
    (first,) = torch.autograd.grad(output.square().sum(), block.input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::dense_block"):
        torch.autograd.grad(first.sum(), block.input)


def test_dense_block_arguments_are_left_alone():
    block = Block()
    before = [t.clone() for t in [*block.tensors, *block.means, *block.vars]]
    ops.dense_block(*block.arguments(block.tensors), *no_averages(block), training=True)
    ops.dense_block(*block.arguments(block.tensors), block.means, block.vars)
    assert all(map(torch.equal, before, [*block.tensors, *block.means, *block.vars]))


def test_dense_block_in_a_compiled_function_with_running_averages():
    layers = nn.ModuleList(Layer(5 + 4 * i, 4) for i in range(2))
    other = copy.deepcopy(layers)
    compiled = torch.compile(
        lambda input: run_layers(layers, input), fullgraph=True, backend="aot_eager", dynamic=True
    )
    for batch in (2, 5):
        input = torch.randn(batch, 5, 7, 6)
        torch.testing.assert_close(compiled(input), run_layers(other, input))
    torch.testing.assert_close(layers[1].bn.running_var, other[1].bn.running_var)


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_dense_block_scripts_with_running_averages():
    scripted = torch.jit.script(ops.dense_block)
    block = Block()
    other = copy.deepcopy(block)
    for training, activation in itertools.product((True, False), ACTIVATIONS):
        options = {"training": training, "activation": activation}
        own = scripted(*block.arguments(block.tensors), block.means, block.vars, **options)
        true = ops.dense_block(*other.arguments(other.tensors), other.means, other.vars, **options)
        torch.testing.assert_close(own, true)
    for own, true in zip(block.means + block.vars, other.means + other.vars, strict=True):
        torch.testing.assert_close(own, true)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_dense_block_float32_norms_beside_narrow_images(dtype):
    """Autocast's mixture: batch norm keeps float32 parameters and averages."""
    block = Block()
    arguments = block.arguments(block.tensors)
    narrow = [arguments[0].to(dtype), *([t.to(dtype) for t in a] for a in arguments[1:3]), *arguments[3:]]
    for averages in (no_averages(block), [block.means, block.vars]):
        truth = reference.dense_block(*block.arguments(doubles(block.tensors)), *map(doubles, averages))
        output = ops.dense_block(*narrow, *averages)
        assert output.dtype == dtype
        assert_near(output, truth, 3e-2)


@needs_extension
@pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])
def test_dense_block_has_one_buffer_and_one_gradient_buffer(training):
    """No concatenation runs; nothing of the output's size is allocated beside the two buffers."""
    block = Block(16, (8, 8, 32), size=(16, 16), batch=4)
    block.input = block.input.contiguous(memory_format=torch.channels_last)
    block.require_gradients()
    averages = no_averages(block) if training else [block.means, block.vars]
    cotangent = torch.randn(4, 64, 16, 16).contiguous(memory_format=torch.channels_last)
    output_bytes = cotangent.numel() * 4
    with allocations() as forward:
        output = ops.dense_block(*block.arguments(block.tensors), *averages)
    with allocations() as backward:
        torch.autograd.grad(output, block.tensors, cotangent)
    assert not [name for name in forward.operators + backward.operators if "cat" in name]
    assert [size for size in forward.sizes if size >= output_bytes] == [output_bytes]
    assert [size for size in backward.sizes if size >= output_bytes] == [output_bytes]


def doubled_output_of(block):
    """A function of the block whose gradient at the block's output is made by the backward pass alone."""
    output = ops.dense_block(*block.arguments(block.tensors), *no_averages(block))
    return output, (output * 2).square().sum()


def channels_last_block(dtype=torch.float32):
    block = Block(16, (8, 8, 32), size=(16, 16), batch=4)
    block.input = block.input.to(dtype).contiguous(memory_format=torch.channels_last)
    block.weights = [weight.to(dtype) for weight in block.weights]
    return block.require_gradients()


@needs_extension
def test_dense_block_uses_up_a_gradient_that_nobody_else_holds():
    output, loss = doubled_output_of(channels_last_block())
    with allocations() as backward:
        loss.backward()
    assert [name for name in backward.operators if "dense_block" in name] == [
        "cnnfast::dense_block_backward_"
    ]


@needs_extension
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("keep", ["hook", "retain_grad", "view"])
def test_dense_block_leaves_a_gradient_that_is_kept(keep, dtype):
    """A hook's list, a view in it and .grad still hold the gradient when the block adds to its own."""
    block = channels_last_block(dtype)
    expected = torch.autograd.grad(doubled_output_of(block)[1], block.tensors)
    output, loss = doubled_output_of(block)
    kept = []
    if keep == "hook":
        output.register_hook(kept.append)
    elif keep == "view":
        output.register_hook(lambda grad: kept.append(grad[:2]))
    else:
        output.retain_grad()
    loss.backward()
    gradient = output.grad if keep == "retain_grad" else kept[0]
    assert torch.equal(gradient, 8 * output.detach()[: len(gradient)])
    assert all(torch.equal(t.grad, e) for t, e in zip(block.tensors, expected, strict=True))


BAD = {
    "input_rank": ({"input": (3, 8, 9)}, ["input", "4", "[3, 8, 9]"]),
    "channels": ({"weights": (7, 6, 3, 3)}, ["layer 1", "12 channels", "[7, 6, 3, 3]", "6"]),
    "weight_rank": ({"weights": (7, 12, 3)}, ["layer 1", "weight", "[7, 12, 3]"]),
    "even_kernel": ({"weights": (7, 12, 3, 2)}, ["layer 1", "odd", "[7, 12, 3, 2]"]),
    "weight_dtype": ({"weights": torch.randn(7, 12, 3, 3).double()}, ["layer 1", "weight", "Double"]),
    "bias_size": ({"biases": (7,)}, ["layer 1", "bias", "6", "[7]"]),
    "bias_dtype": ({"biases": torch.randn(6).half()}, ["layer 1", "bias", "Half"]),
    "bn_weight_size": ({"bn_weights": (5,)}, ["layer 1", "bn_weight", "12", "[5]"]),
    "bn_bias_size": ({"bn_biases": (5,)}, ["layer 1", "bn_bias", "12", "[5]"]),
    "bn_weight_dtype": ({"bn_weights": torch.randn(12).double()}, ["layer 1", "bn_weight", "Double"]),
    "mean_size": ({"means": (5,)}, ["layer 1", "mean", "12", "[5]"]),
    "var_size": ({"vars": (5,)}, ["layer 1", "var", "12", "[5]"]),
    "var_missing": ({"vars": None}, ["layer 1", "means", "vars", "every layer"]),
    "activation": ({"activation": "softplus"}, ["activation", "none", "relu", "sigmoid", "softplus"]),
    "integers": ({"input": torch.ones(3, 5, 9, 8).int()}, ["input", "floating", "Int"]),
    "no_layer": ({"layers": 0}, ["weights", "at least one layer"]),
    "few_biases": ({"biases_count": 2}, ["biases", "2", "3"]),
}


@needs_extension
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("change, words", BAD.values(), ids=BAD.keys())
def test_dense_block_bad_argument(change, words, device):
    block = Block()
    for name, value in change.items():
        value = torch.randn(value) if isinstance(value, tuple) else value
        if name == "input":
            block.input = value
        elif name in (*LISTS, "means", "vars"):
            getattr(block, name)[1] = value
    lists = [getattr(block, name) for name in (*LISTS, "means", "vars")]
    lists = [[t if t is None else t.to(device) for t in a[: change.get("layers", 3)]] for a in lists]
    lists[1] = lists[1][: change.get("biases_count", 3)]
    with pytest.raises(RuntimeError) as error:
        ops.dense_block(block.input.to(device), *lists, activation=change.get("activation", "relu"))
    message = str(error.value).splitlines()[0]
    assert message.startswith("cnnfast::dense_block: "), message
    missing = [word for word in words if word not in message]
    assert not missing, f"{message!r} does not name {missing}"


def test_dense_block_one_value_per_channel_is_an_error():
    block = Block(size=(1, 1), batch=1)
    before = [mean.clone() for mean in block.means]
    with pytest.raises((RuntimeError, ValueError), match="more than (one|1) value"):
        ops.dense_block(*block.arguments(block.tensors), block.means, block.vars, training=True)
    assert all(map(torch.equal, before, block.means))
    assert ops.dense_block(*block.arguments(block.tensors), block.means, block.vars).shape == (1, 27, 1, 1)
