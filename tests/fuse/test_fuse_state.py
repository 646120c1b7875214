"""A fused network shares the original's tensors, keeps its keys and class, and gives everything back."""

import copy
import io
import pickle
import warnings

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.fuse import FusedModule

from .networks import NETWORKS, NotesNet, ResNet, images, make

CASES = pytest.mark.parametrize("name", NETWORKS)


@CASES
def test_fuse_shares_tensors_and_keys(name):
    model = make(name)
    fused = cnnfast.fuse(model)
    ours, theirs = fused.state_dict(keep_vars=True), model.state_dict(keep_vars=True)
    assert list(ours) == list(theirs)
    assert all(ours[key] is theirs[key] for key in ours)


@CASES
def test_fuse_state_dict_strict_both_ways(name):
    model, other = make(name), make(name)
    fused = cnnfast.fuse(copy.deepcopy(model))
    fused.load_state_dict(other.state_dict(), strict=True)
    model.load_state_dict(fused.state_dict(), strict=True)
    wanted = other.state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in model.state_dict().items())


def test_fuse_leaves_model_untouched():
    model = make("resnet")
    before = {name: (type(module), dict(module.__dict__)) for name, module in model.named_modules()}
    modules = dict(model.named_modules())
    fused = cnnfast.fuse(model)
    fused.eval()
    fused.stem[0].weight = nn.Parameter(torch.zeros(8, 3, 3, 3))
    assert dict(model.named_modules()) == modules
    for name, module in model.named_modules():
        cls, attributes = before[name]
        assert type(module) is cls and module.__dict__ == attributes
    assert model.training and model.stem[0].weight.abs().max() > 0


@pytest.mark.parametrize("assign", [False, True])
def test_fuse_follows_load_state_dict(assign):
    model, other = make("resnet").eval(), make("resnet").eval()
    fused = cnnfast.fuse(model)
    x = images("resnet")
    fused(x)
    fused.load_state_dict(other.state_dict(), assign=assign)
    torch.testing.assert_close(fused(x), other(x), rtol=0, atol=1e-4)


def test_fuse_follows_replaced_parameter_and_buffer():
    model = make("resnet").eval()
    fused = cnnfast.fuse(model)
    x = images("resnet")
    fused(x)
    fused.stem[0].weight = nn.Parameter(torch.randn(8, 3, 3, 3))
    fused.stem[1].running_mean = torch.randn(8)
    fused.fc.bias = None
    wanted = make("resnet").eval()
    wanted.fc.bias = None
    wanted.load_state_dict(fused.state_dict())
    torch.testing.assert_close(fused(x), wanted(x), rtol=0, atol=1e-4)


def test_fuse_repack_follows_writes_through_data():
    model = make("resnet").eval()
    fused = cnnfast.fuse(model)
    x = images("resnet")
    fused(x)
    fused.stem[0].weight.data.mul_(2)
    fused.repack()
    torch.testing.assert_close(fused(x), model(x), rtol=0, atol=1e-4)


@CASES
def test_unfuse_gives_original_bits(name):
    model = make(name).eval()
    back = cnnfast.fuse(model).unfuse()
    assert [(n, type(m)) for n, m in back.named_modules()] == [(n, type(m)) for n, m in model.named_modules()]
    x = images(name)
    assert torch.equal(back(x), model(x))
    assert all(a is b for a, b in zip(back.parameters(), model.parameters(), strict=True))
    assert not [key for module in back.modules() for key in vars(module) if "cnnfast" in key]
    assert str(back) == str(model)


def test_unfuse_holds_present_parameters():
    fused = cnnfast.fuse(make("resnet"))
    fused.fc.weight = nn.Parameter(torch.ones(5, 12))
    assert fused.unfuse().fc.weight is fused.fc.weight


def test_fuse_again_after_unfuse_or_without():
    model = make("resnet").eval()
    fused = cnnfast.fuse(model)
    x = images("resnet")
    for again in (cnnfast.fuse(fused), cnnfast.fuse(fused.unfuse())):
        torch.testing.assert_close(again(x), fused(x), rtol=0, atol=1e-6)
        assert type(again.unfuse()) is ResNet


def test_fuse_result_inside_another_network():
    outer = nn.Sequential(cnnfast.fuse(make("lenet")), nn.ReLU())
    fused = cnnfast.fuse(outer)
    x = images("lenet")
    torch.testing.assert_close(fused(x), outer(x), rtol=0, atol=1e-6)
    assert not fused.report().left_out[1:]


def test_fuse_keeps_class_and_attributes():
    model = ResNet(dropout=0.25)
    fused = cnnfast.fuse(model)
    assert isinstance(fused, ResNet) and isinstance(fused, FusedModule)
    assert fused.dropout == 0.25 and len(fused.stage) == 2 and isinstance(fused.stem[0], nn.Conv2d)


def copies(fused):
    stream = io.BytesIO()
    torch.save(fused, stream)
    stream.seek(0)
    return {
        "deepcopy": copy.deepcopy(fused),
        "pickle": pickle.loads(pickle.dumps(fused)),
        "torch.save": torch.load(stream, weights_only=False),
    }


@CASES
def test_fuse_deepcopy_and_pickle(name):
    fused = cnnfast.fuse(make(name)).eval()
    x = images(name)
    wanted = fused(x)
    for how, twin in copies(fused).items():
        assert torch.equal(twin(x), wanted), how
        assert all(a is not b for a, b in zip(twin.parameters(), fused.parameters(), strict=True))
        assert str(twin.report()) == str(fused.report())
        with torch.no_grad():
            next(twin.parameters()).zero_()
        assert torch.equal(fused(x), wanted), how
        assert type(twin.unfuse()) is type(fused.unfuse())


def _run(fused, x, queue):
    queue.put(fused(x).detach().numpy())


def test_fuse_spawned_process():
    context = torch.multiprocessing.get_context("spawn")
    fused = cnnfast.fuse(NotesNet()).eval()
    x = images("notes")
    queue = context.Queue()
    process = context.Process(target=_run, args=(fused, x, queue))
    process.start()
    result = queue.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    assert torch.equal(torch.from_numpy(result), fused(x))


def test_fuse_hooks_of_the_network_run():
    model = make("resnet").eval()
    calls = []
    model.register_forward_hook(lambda module, args, output: calls.append(output.shape))
    cnnfast.fuse(model)(images("resnet"))
    assert calls == [(3, 5)]


def test_fuse_hook_added_later_warns():
    fused = cnnfast.fuse(make("resnet"))
    with pytest.warns(RuntimeWarning, match="hooks do not run"):
        fused.stem[0].register_forward_hook(lambda *args: None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        partly = cnnfast.fuse(nn.Sequential(nn.Conv2d(3, 4, 1), nn.Softplus()))
        partly[1].register_forward_hook(lambda *args: None)  # a layer that is still called
        fused.unfuse().stem[0].register_forward_hook(lambda *args: None)


@pytest.mark.parametrize("path", ["stem", "stage", "stage.1.downsample", "stem.1", "stage.0.relu"])
def test_fuse_refuses_replacing_a_fused_layer(path):
    fused = cnnfast.fuse(make("resnet"))
    parent_path, _, name = path.rpartition(".")
    parent = fused.get_submodule(parent_path)
    for replace in (
        lambda: setattr(parent, name, nn.Identity()),
        lambda: parent.add_module(name, nn.Identity()),
        lambda: delattr(parent, name),
    ):
        with pytest.raises(RuntimeError, match=r"unfuse\(\).*fuse\(network\) again"):
            replace()


def test_fuse_takes_a_layer_of_the_same_kind():
    model = make("resnet").eval()
    fused = cnnfast.fuse(model)
    x = images("resnet")
    fused.fc = nn.Linear(12, 2)
    fused.stem[0] = nn.Conv2d(3, 8, 3, padding="same")
    assert fused(x).shape == (3, 2)
    torch.testing.assert_close(fused(x), fused.unfuse()(x), rtol=0, atol=1e-5)
    with pytest.raises(RuntimeError, match="fuse"):
        fused.stem[0] = nn.Conv2d(3, 8, 3, padding="valid")
    with pytest.raises(RuntimeError, match="fuse"):
        fused.stem[0] = nn.Conv2d(3, 8, 3, padding="same", padding_mode="reflect")


def test_fuse_settings_changed_later_are_followed():
    model = nn.Sequential(nn.Conv2d(2, 2, 3), nn.MaxPool2d(2), nn.AvgPool2d(2))
    fused = cnnfast.fuse(model)
    fused[0].stride, fused[0].padding, fused[1].kernel_size, fused[2].count_include_pad = (
        (2, 2),
        (1, 0),
        3,
        False,
    )
    fused[2].padding = 1
    x = torch.randn(1, 2, 20, 22)
    torch.testing.assert_close(fused(x), fused.unfuse()(x), rtol=0, atol=1e-6)


@pytest.mark.parametrize("pool", [nn.MaxPool2d(2), nn.AvgPool2d(2)])
def test_fuse_numbers_become_pairs_later(pool):
    """A setting that was one number for both sides when its layer was fused."""
    fused = cnnfast.fuse(nn.Sequential(nn.Conv2d(2, 2, 3), pool))
    fused[1].kernel_size, fused[1].stride, fused[1].padding = (3, 2), (2, 1), (1, 0)
    x = torch.randn(1, 2, 20, 22)
    torch.testing.assert_close(fused(x), fused.unfuse()(x), rtol=0, atol=1e-6)
    fused[1].kernel_size = fused[1].stride = 2
    torch.testing.assert_close(fused(x), fused.unfuse()(x), rtol=0, atol=1e-6)


class Tempered(nn.Module):
    """Forwards with numbers, a function and a tensor as attributes."""

    def __init__(self, inner=True):
        super().__init__()
        self.conv, self.scale, self.act, self.steps = nn.Conv2d(3, 3, 1), 0.5, torch.relu, 3
        self.offset = torch.zeros(1)
        self.inner = Tempered(inner=False) if inner else nn.Identity()

    def forward(self, x):
        return self.inner(self.act(self.conv(x)) * self.scale + self.offset)


def test_fuse_refuses_values_that_the_forward_would_not_see():
    model, x = Tempered(), torch.randn(2, 3, 4, 4)
    fused = cnnfast.fuse(model)
    fused.scale, fused.inner.act, fused.steps, fused.epoch = 0.5, torch.relu, 4, 1
    for module, name, value in ((fused, "scale", 2.0), (fused.inner, "act", torch.sigmoid)):
        with pytest.raises(RuntimeError, match=f"'{name}' was read"):
            setattr(module, name, value)
    fused.offset = torch.ones(1)  # read at every call
    model.offset = torch.ones(1)
    torch.testing.assert_close(fused(x), model(x))
    again = fused.unfuse()
    again.scale = model.scale = 2.0
    torch.testing.assert_close(cnnfast.fuse(again)(x), model(x))


def test_fuse_attributes_that_the_mode_sets():
    class Scaled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.scale = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU()), 1.0

        def train(self, mode=True):
            self.scale = 0.5 if mode else 1.0
            return super().train(mode)

        def forward(self, x):
            return self.conv(x) * self.scale

    model, x = nn.Sequential(Scaled(), nn.Conv2d(3, 2, 1)), torch.randn(2, 3, 4, 4)
    fused = cnnfast.fuse(model)
    assert fused.report()["0.conv.0"].status == fused.report()["1"].status == "fused"
    for mode in (True, False, True):
        torch.testing.assert_close(fused.train(mode)(x), model.train(mode)(x))


def test_fuse_data_parallel_replicas():
    fused = cnnfast.fuse(make("resnet"))
    replica = fused._replicate_for_data_parallel()
    assert type(replica) is type(fused)
