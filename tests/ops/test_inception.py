"""inception against float64, forward and backward, and that nothing is copied for its concatenation."""

import itertools

import pytest
import torch

from cnnfast import ops, reference
from cnnfast.ops.inception import conv_stage, encode_branches, pool_stage

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


class Block:
    """Branches of stages over images of `channels`; `widths` are the convolutions' output channels."""

    def __init__(self, channels, branches, widths, size=(9, 8)):
        self.channels, self.branches, self.widths, self.size = channels, branches, widths, size

    @property
    def words(self):
        return encode_branches(self.branches)

    def shapes(self):
        """Of the weights, in order."""
        widths = iter(self.widths)
        for branch in self.branches:
            channels = self.channels
            for kind, _, height, width, *_, option in branch:
                if kind == 0:
                    out = next(widths)
                    yield out, channels // option, height, width
                    channels = out

    def weights(self):
        return [torch.randn(shape) / (shape[1] * shape[2] * shape[3]) ** 0.5 for shape in self.shapes()]

    def biases(self):
        return [torch.rand(width) + 0.5 for width in self.widths]

    def input(self, batch=2):
        return torch.randn(batch, self.channels, *self.size)


def notes_inception(activation="relu"):
    """1×1 | 1×1→3×3 | 1×1→5×5 | max pooling→1×1, with channel counts that no vector divides."""
    return Block(
        19,
        [
            [conv_stage(1, activation=activation)],
            [conv_stage(1, activation=activation), conv_stage(3, padding=1, activation=activation)],
            [conv_stage(1, activation=activation), conv_stage(5, padding=2, activation=activation)],
            [pool_stage("max", 3, 1, 1), conv_stage(1, activation=activation)],
        ],
        [7, 9, 17, 5, 3, 4],
    )


def notes_inception_a():
    """1×1 | 1×1→5×5 | 1×1→3×3→3×3 | average pooling→1×1, no activation."""
    double = [conv_stage(1), conv_stage(3, padding=1), conv_stage(3, padding=1)]
    branches = [
        [conv_stage(1)],
        [conv_stage(1), conv_stage(5, padding=2)],
        double,
        [pool_stage("avg", 3, 1, 1), conv_stage(1)],
    ]
    return Block(10, branches, [16, 16, 24, 16, 24, 24, 24], (12, 12))


BLOCKS = {
    "notes": notes_inception(),
    "notes_a": notes_inception_a(),
    "one_branch": Block(5, [[conv_stage(3, padding=1, activation="relu")]], [6]),
    "stride2": Block(
        6,
        [
            [conv_stage(3, 2, 1, activation="relu")],
            [pool_stage("max", 3, 2, 1)],
            [pool_stage("avg", 3, 2, 1, count_include_pad=False), conv_stage(1, activation="sigmoid")],
        ],
        [5, 9],
        (11, 13),
    ),
    "through": Block(6, [[], [conv_stage((1, 3), 1, (0, 1))], []], [5]),
    "groups": Block(6, [[conv_stage(3, 1, 1, 2)], [conv_stage(3, 1, 1, 6)]], [4, 6]),
    "pooling_activations": Block(
        17,
        [
            [pool_stage("avg", 3, 1, 1, activation="relu")],
            [pool_stage("max", 3, 1, 1, activation="sigmoid"), conv_stage(1), pool_stage("max", 3, 1, 1)],
        ],
        [5],
    ),
    "shrinking": Block(3, [[conv_stage(3), conv_stage(3)], [conv_stage(5)]], [4, 5, 6], (5, 6)),
    "one_pixel": Block(3, [[conv_stage(3, 1, 1)], [conv_stage(1)], []], [4, 5], (1, 1)),
    "one_column": Block(3, [[conv_stage(3, 1, 1)], [conv_stage(1)], []], [4, 5], (7, 1)),
}


def check(block, input, weights, biases, cotangent=None, relative=2e-5):
    exact_input, *exact = doubles([input, *weights, *biases])
    exact_weights, exact_biases = exact[: len(weights)], exact[len(weights) :]
    truth = reference.inception(exact_input, exact_weights, exact_biases, block.words)
    poison(truth.shape, input.shape)
    output = ops.inception(input, weights, biases, block.words)
    assert_near(output, truth)
    tensors, exact = [input, *weights, *biases], [exact_input, *exact]
    if not any(t is not None and t.requires_grad for t in tensors):
        return
    cotangent = torch.randn(truth.shape) if cotangent is None else cotangent
    cotangent = cotangent * ((output > 0) == (truth > 0))  # at a kink rounding may choose another side
    found, expected = gradients(output, cotangent, tensors), gradients(truth, cotangent, exact)
    for tensor, own, true in zip(tensors, found, expected, strict=True):
        assert (own is None) == (true is None)
        if own is not None:
            assert own.dtype == tensor.dtype
            assert_near(own, true, relative)


def trainable(tensors):
    return [None if t is None else t.requires_grad_() for t in tensors]


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize("name", BLOCKS)
def test_inception(name, batch):
    block = BLOCKS[name]
    check(block, *trainable([block.input(batch)]), trainable(block.weights()), trainable(block.biases()))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_inception_activation(activation):
    block = notes_inception(activation)
    check(block, *trainable([block.input()]), trainable(block.weights()), trainable(block.biases()))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["notes", "through", "one_pixel"])
def test_inception_layout(name, layout):
    block = BLOCKS[name]
    input = in_layout(block.input(), layout).requires_grad_()
    shape = reference.inception(input, block.weights(), block.biases(), block.words).shape
    cotangent = in_layout(torch.randn(shape), layout)
    check(block, input, trainable(block.weights()), trainable(block.biases()), cotangent)


def test_inception_expanded_cotangent():
    block = BLOCKS["notes"]
    input, weights = block.input().requires_grad_(), trainable(block.weights())
    check(block, input, weights, [None] * 6, torch.ones(1).expand(2, 31, 9, 8))


def test_inception_without_some_biases():
    block = BLOCKS["notes"]
    biases = [bias if i % 2 else None for i, bias in enumerate(trainable(block.biases()))]
    check(block, *trainable([block.input()]), trainable(block.weights()), biases)


@pytest.mark.parametrize("wanted", [(0,), (1,), (2,), (3, 10), (6, 7), (12,)], ids=str)
def test_inception_gradients_only_where_wanted(wanted):
    block = BLOCKS["notes"]
    tensors = [block.input(), *block.weights(), *block.biases()]
    for place in wanted:
        tensors[place].requires_grad_()
    check(block, tensors[0], tensors[1:7], tensors[7:])


def test_inception_batch_of_zero():
    block = BLOCKS["notes"]
    input, weights = block.input(0).requires_grad_(), trainable(block.weights())
    output = ops.inception(input, weights, block.biases(), block.words)
    assert output.shape == (0, 31, 9, 8)
    output.sum().backward()
    assert input.grad.shape == input.shape
    assert all(torch.equal(w.grad, torch.zeros_like(w)) for w in weights)


@needs_extension
@pytest.mark.parametrize("layout", LAYOUTS)
def test_inception_output_is_channels_last_memory_of_its_own(layout):
    block = Block(4, [[]], [])
    input = in_layout(block.input(), layout)
    output = ops.inception(input, [], [], block.words)
    assert torch.equal(output, input)
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert output.untyped_storage().data_ptr() != input.untyped_storage().data_ptr()


def test_inception_keeps_nan_in_its_branch():
    block = Block(2, [[conv_stage(1)], [pool_stage("max", 3, 1, 1)]], [3], (5, 5))
    input = block.input()
    input[0, 1, 2, 2] = float("nan")
    output = ops.inception(input, block.weights(), block.biases(), block.words)
    truth = reference.inception(input, block.weights(), block.biases(), block.words)
    assert torch.equal(output.isnan(), truth.isnan())


@pytest.mark.parametrize("name", ["notes", "stride2", "through", "groups", "pooling_activations"])
def test_inception_gradcheck(name):
    block = BLOCKS[name]
    size = (5, 4)
    block = Block(block.channels if name == "groups" else 3, block.branches, block.widths, size)
    input = torch.randperm(2 * block.channels * 20).view(2, block.channels, *size) / 10.0  # no ties
    tensors = [input, *block.weights(), *block.biases()]
    tensors = [t.detach().double().requires_grad_() for t in tensors]
    convolutions = len(block.widths)

    def run(input, *rest):
        return ops.inception(input, rest[:convolutions], rest[convolutions:], block.words)

    assert torch.autograd.gradcheck(run, tensors, fast_mode=True)


@needs_extension
def test_inception_second_derivative_is_an_error():
    block = BLOCKS["notes"]
    input = block.input().requires_grad_()
    output = ops.inception(input, block.weights(), block.biases(), block.words)
    (first,) = torch.autograd.grad(output.square().sum(), input, create_graph=True)
    with pytest.raises(RuntimeError, match="cnnfast::inception"):
        torch.autograd.grad(first.sum(), input)


def test_inception_arguments_are_left_alone():
    block = BLOCKS["through"]
    tensors = [block.input(), *block.weights(), *block.biases()]
    before = [t.clone() for t in tensors]
    ops.inception(tensors[0], tensors[1:2], tensors[2:], block.words)
    assert all(map(torch.equal, tensors, before))


class Module(torch.nn.Module):
    def __init__(self, block):
        super().__init__()
        self.weights = torch.nn.ParameterList(block.weights())
        self.bias = torch.nn.Parameter(block.biases()[0])
        self.words = block.words

    def forward(self, input):
        biases = [self.bias, *[None] * (len(self.weights) - 1)]
        return ops.inception(input, list(self.weights), biases, self.words)


def test_inception_in_a_compiled_module_with_its_backward():
    module = Module(BLOCKS["notes"])
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5):
        input = BLOCKS["notes"].input(batch).requires_grad_()
        (own,), (true,) = (torch.autograd.grad(m(input).square().sum(), [input]) for m in (compiled, module))
        torch.testing.assert_close(own, true)


@needs_extension
def test_inception_copies_nothing_for_the_concatenation():
    """Neither a concatenation runs, nor is there an allocation of the output's size beside the output."""
    block = Block(8, BLOCKS["notes"].branches, [32, 8, 32, 8, 32, 32], (16, 16))
    input = block.input(4).contiguous(memory_format=torch.channels_last).requires_grad_()
    weights, biases = trainable(block.weights()), trainable(block.biases())
    cotangent = torch.randn(4, 128, 16, 16).contiguous(memory_format=torch.channels_last)
    output_bytes = cotangent.numel() * 4

    with allocations() as forward:
        output = ops.inception(input, weights, biases, block.words)
    with allocations() as backward:
        torch.autograd.grad(output, [input, *weights, *biases], cotangent)
    assert not [name for name in forward.operators + backward.operators if "cat" in name]
    assert [size for size in forward.sizes if size >= output_bytes] == [output_bytes]
    assert not [size for size in backward.sizes if size >= output_bytes]
    assert forward.sizes and backward.sizes


BAD = {
    "input_rank": ({"input": (3, 8, 9)}, ["input", "4", "[3, 8, 9]"]),
    "channels": ({"w1": (9, 18, 1, 1)}, ["branch 1, stage 0", "19 channels", "[9, 18, 1, 1]"]),
    "channels_between": ({"w2": (17, 8, 3, 3)}, ["branch 1, stage 1", "9 channels", "[17, 8, 3, 3]"]),
    "kernel": ({"w4": (3, 5, 3, 3)}, ["branch 2, stage 1", "[5, 5]", "[3, 5, 3, 3]"]),
    "weight_rank": ({"w0": (7, 19, 1)}, ["branch 0, stage 0", "weight", "[7, 19, 1]"]),
    "weight_dtype": ({"w0": torch.randn(7, 19, 1, 1).double()}, ["branch 0, stage 0", "Float", "Double"]),
    "bias_size": ({"b5": (5,)}, ["branch 3, stage 1", "bias", "4", "[5]"]),
    "bias_dtype": ({"b5": torch.randn(4).half()}, ["branch 3, stage 1", "bias", "Half"]),
    "too_few_weights": ({"weights": 5}, ["6 convolutions", "5 weights", "6 biases"]),
    "too_few_biases": ({"biases": 5}, ["6 convolutions", "6 weights", "5 biases"]),
    "no_branch": ({"branches": [0]}, ["at least one branch"]),
    "empty_branches": ({"branches": []}, ["branches", "0"]),
    "short_branches": ({"branches": [1, 1, 0, 0, 1]}, ["branches", "5", "[1, 1, 0, 0, 1]"]),
    "long_branches": ({"branches": [1, 0, 7, 7]}, ["branches", "2", "[1, 0, 7, 7]"]),
    "negative_count": ({"branches": [-1]}, ["branches", "-1"]),
    "kind": ({"stage": [3, 0, 1, 1, 1, 1, 0, 0, 1]}, ["branch 0, stage 0", "kind", "3"]),
    "activation": ({"stage": [0, 3, 1, 1, 1, 1, 0, 0, 1]}, ["branch 0, stage 0", "activation", "3"]),
    "stride": ({"stage": [0, 0, 1, 1, 0, 1, 0, 0, 1]}, ["branch 0, stage 0", "stride", "[0, 1]"]),
    "groups": ({"stage": [0, 0, 1, 1, 1, 1, 0, 0, 0]}, ["branch 0, stage 0", "groups", "0"]),
    "pool_option": ({"stage": [1, 0, 1, 1, 1, 1, 0, 0, 1]}, ["branch 0, stage 0", "max pooling", "1"]),
    "pool_padding": ({"pool": [2, 0, 3, 3, 1, 1, 2, 2, 1]}, ["branch 3, stage 0", "padding", "[2, 2]"]),
    "pool_size": ({"pool": pool_stage("max", 12, 1)}, ["branch 3, stage 0", "[12, 12]", "[2, 19, 9, 8]"]),
    "image_sizes": ({"stage": conv_stage(1, 2)}, ["branch 1", "9 x 8", "branch 0", "5 x 4"]),
    "integers": ({"input": torch.ones(2, 19, 9, 8).int()}, ["input", "floating", "Int"]),
}


@needs_extension
@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("change, words", BAD.values(), ids=BAD.keys())
def test_inception_bad_argument(change, words, device):
    block = notes_inception()
    tensors = {"input": block.input()}
    tensors |= {f"w{i}": w for i, w in enumerate(block.weights())}
    tensors |= {f"b{i}": b for i, b in enumerate(block.biases())}
    block.branches[0][0] = change.get("stage", block.branches[0][0])
    block.branches[3][0] = change.get("pool", block.branches[3][0])
    for name in tensors.keys() & change.keys():
        value = change[name]
        tensors[name] = torch.randn(value) if isinstance(value, tuple) else value
    tensors = {name: tensor.to(device) for name, tensor in tensors.items()}
    weights = [tensors[f"w{i}"] for i in range(change.get("weights", 6))]
    biases = [tensors[f"b{i}"] for i in range(change.get("biases", 6))]
    with pytest.raises(RuntimeError) as error:
        ops.inception(tensors["input"], weights, biases, change.get("branches", block.words))
    message = str(error.value).splitlines()[0]
    assert message.startswith("cnnfast::inception: "), message
    missing = [word for word in words if word not in message]
    assert not missing, f"{message!r} does not name {missing}"


def test_encode_branches():
    stages = [[], [pool_stage("avg", 3, padding=1), conv_stage((1, 5), 2, (0, 2), 3, "sigmoid")]]
    assert encode_branches(stages) == [2, 0, 2, *[2, 0, 3, 3, 3, 3, 1, 1, 1], *[0, 2, 1, 5, 2, 2, 0, 2, 3]]
    assert pool_stage("max", 2, activation="relu") == [1, 1, 2, 2, 2, 2, 0, 0, 0]
    assert pool_stage("avg", 2, count_include_pad=False)[-1] == 0


@pytest.mark.parametrize("make", [lambda: conv_stage(1, activation="gelu"), lambda: pool_stage("min", 2)])
def test_stage_of_an_unknown_kind_is_an_error(make):
    with pytest.raises(ValueError, match="gelu|min"):
        make()


@needs_extension
def test_inception_does_not_depend_on_what_branches_stand_beside():
    """Every branch alone gives, bit by bit, its slice of the whole."""
    block = BLOCKS["notes"]
    input, weights, biases = block.input(), block.weights(), block.biases()
    whole = ops.inception(input, weights, biases, block.words)
    channel = 0
    for places, branch in zip(((0,), (1, 2), (3, 4), (5,)), block.branches, strict=True):
        own, shift = [weights[p] for p in places], [biases[p] for p in places]
        alone = ops.inception(input, own, shift, encode_branches([branch]))
        assert torch.equal(whole[:, channel : channel + alone.size(1)], alone)
        channel += alone.size(1)
    assert channel == whole.size(1)


@pytest.mark.parametrize("batch, size", [*itertools.product((1, 7), ((1, 1), (3, 17)))], ids=str)
def test_inception_odd_sizes(batch, size):
    block = Block(5, notes_inception().branches, [3, 2, 5, 3, 7, 1], size)
    check(block, *trainable([block.input(batch)]), trainable(block.weights()), trainable(block.biases()))
