"""torch.jit, torch.compile and torch.export on frozen networks."""

import io

import pytest
import torch
from fuse.networks import NETWORKS, images, make
from torch import nn

import cnnfast

from .support import needs_extension

pytestmark = [
    needs_extension,
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
CASES = pytest.mark.parametrize("name", NETWORKS)


def frozen_net(name):
    return cnnfast.freeze(make(name), images(name))


def reloaded(script):
    stream = io.BytesIO()
    torch.jit.save(script, stream)
    stream.seek(0)
    return torch.jit.load(stream)


@CASES
def test_freeze_scripts_and_traces(name):
    frozen, x = frozen_net(name), images(name, 5)
    assert torch.equal(reloaded(torch.jit.script(frozen))(x), frozen(x))
    assert torch.equal(reloaded(torch.jit.trace(frozen, images(name), check_trace=False))(x), frozen(x))


@pytest.mark.parametrize("name", ["lenet", "resnet"])
def test_freeze_compiles_without_graph_breaks(name):
    torch._dynamo.reset()
    frozen = frozen_net(name)
    compiled = torch.compile(frozen, fullgraph=True, backend="aot_eager", dynamic=True)
    for batch in (2, 5):
        x = images(name, batch)
        assert torch.equal(compiled(x), frozen(x))


@CASES
def test_freeze_exports_with_dynamic_batch(name):
    frozen, x = frozen_net(name), images(name, 7)
    program = torch.export.export(frozen, (images(name),), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(x), frozen(x))


@pytest.mark.parametrize("name", ["resnet", "branches", "preactivation"])
def test_freeze_exports_with_dynamic_image_size(name):
    frozen = frozen_net(name)
    dims = {2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    program = torch.export.export(frozen, (images(name),), dynamic_shapes=(dims,))
    x = torch.randn(3, NETWORKS[name][1][0], 23, 18)
    assert torch.equal(program.module()(x), frozen(x))


@CASES
def test_freeze_shapes_without_data(name):
    """What torch.compile is told about an output agrees with what comes, sizes and strides."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    frozen, x = frozen_net(name), images(name, 4)
    real = frozen(x)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        fake = frozen(mode.from_tensor(x))
    assert fake.shape == real.shape and fake.stride() == real.stride() and fake.dtype == real.dtype


def test_freeze_inside_a_scripted_network():
    outer = nn.Sequential(frozen_net("lenet"), nn.Softmax(1))
    x = images("lenet")
    assert torch.equal(reloaded(torch.jit.script(outer))(x), outer(x))


def test_freeze_script_refuses_gradients():
    script = torch.jit.script(frozen_net("lenet"))
    with pytest.raises(RuntimeError, match="cnnfast.fuse"):
        script(images("lenet").requires_grad_())
