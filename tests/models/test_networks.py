"""Every network: shapes, programs (script, trace, compile, export), copies, and that it learns."""

import copy
import io
import pickle

import fill
import pytest
import torch
from torch.nn import functional as F

import cnnfast
from cnnfast.benchmarking.plain import INPUT_SHAPES

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning"),
    pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning"),
]


@pytest.fixture(params=cnnfast.models.list_models())
def net_and_shape(request):
    return cnnfast.models.get_model(request.param).eval(), INPUT_SHAPES[request.param]


def assert_close(own, true):
    torch.testing.assert_close(own, true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("batch", [0, 1, 5])
def test_network_output_shape(net_and_shape, batch):
    net, shape = net_and_shape
    assert net(torch.rand(batch, *shape)).shape == (batch, 1000 if shape[0] == 3 else 10)


def test_network_scripts_saves_and_loads(net_and_shape):
    net, shape = net_and_shape
    scripted = torch.jit.script(net)
    file = io.BytesIO()
    torch.jit.save(scripted, file)
    file.seek(0)
    loaded = torch.jit.load(file)
    for batch in (1, 4):
        input = torch.rand(batch, *shape)
        assert_close(loaded(input), net(input))


def test_network_scripted_trains_alike(net_and_shape):
    net, shape = net_and_shape
    net = net.train()
    scripted = torch.jit.script(copy.deepcopy(net))
    input, labels = torch.rand(4, *shape), torch.tensor([1, 2, 3, 4])
    for module in (net, scripted):
        torch.manual_seed(1)  # dropout
        F.cross_entropy(module(input), labels).backward()
    for own, true in zip(scripted.parameters(), net.parameters(), strict=True):
        torch.testing.assert_close(own.grad, true.grad, rtol=1e-4, atol=1e-5)


def test_network_traces(net_and_shape):
    net, shape = net_and_shape
    traced = torch.jit.trace(net, torch.rand(2, *shape))
    input = torch.rand(3, *shape)
    assert_close(traced(input), net(input))


def test_network_traces_in_training(net_and_shape):
    """Statistics of the batch, running averages and dropout are part of the trace."""
    net, shape = net_and_shape
    input = torch.rand(3, *shape)
    traced = torch.jit.trace(copy.deepcopy(net).train(), input, check_trace=False)
    traced.load_state_dict(net.state_dict())
    outputs = []
    for module in (traced, net.train()):
        torch.manual_seed(1)
        outputs.append(module(input))
    assert_close(*outputs)
    for own, true in zip(traced.buffers(), net.buffers(), strict=True):
        torch.testing.assert_close(own, true, rtol=1e-4, atol=1e-5)


def test_network_fx_traces(net_and_shape):
    net, shape = net_and_shape
    input = torch.rand(3, *shape)
    assert_close(torch.fx.symbolic_trace(net)(input), net(input))


def test_network_compiles_without_graph_breaks(net_and_shape):
    net, shape = net_and_shape
    compiled = torch.compile(net, fullgraph=True, backend="aot_eager")
    input = torch.rand(2, *shape)
    assert_close(compiled(input), net(input))
    net.train()
    torch.manual_seed(1)
    compiled(input).square().sum().backward()  # a graph of its own for training, without a break


@pytest.mark.slow
def test_residual_net_compiles_with_inductor():
    net = cnnfast.models.get_model("residual_net").eval()
    compiled = torch.compile(net, fullgraph=True)
    for batch in (2, 3):
        input = torch.rand(batch, 1, 28, 28)
        assert_close(compiled(input), net(input))


def test_network_exports_with_a_dynamic_batch(net_and_shape):
    net, shape = net_and_shape
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(net, (torch.rand(2, *shape),), dynamic_shapes=({0: batch},))
    for size in (1, 5):
        input = torch.rand(size, *shape)
        assert_close(program.module()(input), net(input))


def test_network_copies_and_pickles(net_and_shape):
    net, shape = net_and_shape
    input = torch.rand(2, *shape)
    expected = net(input)
    for copied in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(copied(input), expected)


def test_network_input_layout_does_not_matter(net_and_shape):
    net, shape = net_and_shape
    input = torch.rand(3, *shape)
    expected = net(input)
    assert_close(net(input.contiguous(memory_format=torch.channels_last)), expected)
    assert_close(net(torch.cat([input, input], dim=3)[..., : shape[2]]), expected)


def test_network_gives_a_gradient_for_its_input_in_eval_mode(net_and_shape):
    net, shape = net_and_shape
    input = torch.rand(2, *shape, requires_grad=True)
    net(input).sum().backward()
    assert input.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["lenet", "residual_net"])
def test_network_learns_eight_images(name):
    net = cnnfast.models.get_model(name).train()
    if name == "lenet":  # stacked sigmoids hardly let a gradient through at the default's small weights
        for parameter in net.parameters():
            if parameter.dim() > 1:
                torch.nn.init.xavier_uniform_(parameter, gain=4.0)
    images, labels = torch.from_numpy(fill.input_values((8, 1, 28, 28))).float(), torch.arange(8)
    optimiser = torch.optim.Adam(net.parameters(), lr=0.003)
    losses = []
    for _ in range(120):
        losses.append(F.cross_entropy(net(images), labels))
        optimiser.zero_grad()
        losses[-1].backward()
        optimiser.step()
    assert losses[-1] < 0.1 * losses[0]


def test_lenet_takes_flat_images_too():
    net = cnnfast.models.get_model("lenet").eval()
    images = torch.rand(3, 1, 28, 28)
    for input in (images.flatten(1), images[:, 0]):
        assert_close(net(input), net(images))
    with pytest.raises(RuntimeError, match=r"\[49, 1, 32, 32\]"):
        net(torch.rand(49, 1, 32, 32))
