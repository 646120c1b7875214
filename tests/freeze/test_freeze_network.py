"""Frozen networks on the C++ plan: values, shapes, threads, modes of torch, errors."""

import copy
import io
import pickle
import sys
import threading

import fill
import pytest
import torch
from fuse.networks import NETWORKS, images, liven, make
from torch import nn

import cnnfast
from cnnfast.fuse import VerificationError
from cnnfast.plan.build import UnsupportedNetworkError
from cnnfast.plan.codec import decode

from .plan_interpreter import run
from .support import assert_near, needs_extension, truth

pytestmark = needs_extension
CASES = pytest.mark.parametrize("name", NETWORKS)


@CASES
def test_freeze_values_for_many_batches(name):
    model = make(name)
    frozen = cnnfast.freeze(model, images(name), verify=True)
    for batch in (1, 2, 3, 7, 16, 1):
        x = images(name, batch)
        assert_near(frozen(x), truth(model, x))


@CASES
def test_freeze_empty_batch(name):
    model, x = make(name), images(name)
    empty = cnnfast.freeze(model, x)(x[:0])
    assert empty.shape == (0, *truth(model, x).shape[1:]) and empty.dtype == torch.float32


@pytest.mark.parametrize("name", ["resnet", "branches", "preactivation"])
def test_freeze_values_for_many_image_sizes(name):
    model = make(name)
    frozen = cnnfast.freeze(model, images(name))
    for size in ((8, 8), (9, 31), (33, 12), (64, 64), (8, 9)):
        x = torch.randn(2, NETWORKS[name][1][0], *size)
        assert_near(frozen(x), truth(model, x))


@pytest.mark.parametrize("name", ["lenet", "residual_net"])
def test_freeze_networks_of_cnnfast(name, golden):
    case = golden[name]
    net = cnnfast.models.get_model(name)
    keys = {
        key: torch.from_numpy(fill.tensor_values(i, key.rsplit(".", 1)[-1], tuple(shape), case["gain"]))
        for i, (key, shape) in enumerate(case["entries"])
    }
    cnnfast.models.load_plain_state_dict(net, keys)
    x = torch.from_numpy(fill.input_values(tuple(case["input_shape"]))).float()
    frozen = cnnfast.freeze(net, x, strict=True)
    error = (frozen(x).double() - torch.tensor(case["logits"], dtype=torch.float64)).abs().max()
    assert error <= 2e-5 * case["logits_absmax"]


def test_freeze_takes_any_memory_format():
    model = make("resnet")
    frozen = cnnfast.freeze(model, images("resnet"))
    x = images("resnet")
    padded = torch.full((3, 3, 19, 26), float("nan"))
    padded[:, :, 1:18, 3:23] = x
    reversed_channels = x.flip(1).contiguous()
    for same in (
        x.to(memory_format=torch.channels_last),
        padded[:, :, 1:18, 3:23],
        torch.stack([x, x], -1)[..., 0],
        reversed_channels.flip(1),
    ):
        assert_near(frozen(same), truth(model, x))


def test_freeze_does_not_write_into_its_input():
    frozen = cnnfast.freeze(make("preactivation"), images("preactivation"))
    for x in (images("preactivation"), images("preactivation").to(memory_format=torch.channels_last)):
        before = x.clone()
        frozen(x)
        assert torch.equal(x, before)


def test_freeze_results_are_bitwise_repeatable_and_do_not_alias():
    frozen = cnnfast.freeze(make("resnet"), images("resnet"))
    x = images("resnet", 5)
    first = frozen(x)
    kept = first.clone()
    second = frozen(x + 0)
    assert torch.equal(first, second) and first.data_ptr() != second.data_ptr()
    frozen(torch.randn_like(x))
    assert torch.equal(first, kept)


def test_freeze_is_a_snapshot():
    model = make("resnet")
    x = images("resnet")
    frozen = cnnfast.freeze(model, x)
    before = frozen(x)
    with torch.no_grad():
        for tensor in (*model.parameters(), *model.buffers()):
            tensor.zero_()
    assert torch.equal(frozen(x), before)


def test_freeze_uses_running_statistics_of_a_training_model():
    model = make("resnet").train()
    frozen = cnnfast.freeze(model, images("resnet"))
    assert model.training
    x = images("resnet")
    assert_near(frozen(x), truth(model, x))
    assert "evaluation mode is frozen" in str(frozen.report())
    assert not cnnfast.freeze(model.eval(), x).report().notes


def test_freeze_after_fuse_equals_freeze():
    model, x = make("resnet"), images("resnet")
    assert torch.equal(cnnfast.freeze(cnnfast.fuse(model), x)(x), cnnfast.freeze(model, x)(x))


def test_freeze_plan_interpreted_equals_cpp():
    for name in NETWORKS:
        frozen, x = cnnfast.freeze(make(name), images(name)), images(name, 2)
        (wanted,) = run(decode(frozen.plan), frozen.weights, [x])
        assert_near(frozen(x), wanted)


def test_freeze_keeps_nan_in_its_image():
    frozen = cnnfast.freeze(make("resnet"), images("resnet"))
    x = images("resnet")
    x[1, 0, 3, 4] = float("nan")
    assert frozen(x).isnan().any(1).tolist() == [False, True, False]


def test_freeze_in_threads_with_different_shapes():
    model = make("resnet")
    frozen = cnnfast.freeze(model, images("resnet"))
    inputs = [torch.randn(1 + i % 4, 3, 8 + i, 20 - i) for i in range(8)]
    wanted = [frozen(x) for x in inputs]
    wrong: list[object] = []

    def work(i):
        for _ in range(25):
            try:
                if not torch.equal(frozen(inputs[i]), wanted[i]):
                    wrong.append(i)
            except Exception as error:  # a thread's exception would be lost
                wrong.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_freeze_many_shapes_one_after_another():
    """More shapes than any bounded cache holds, some of them again."""
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU())
    frozen = cnnfast.freeze(model, torch.randn(1, 1, 5, 5))
    for size in [*range(3, 60), *range(3, 20)]:
        x = torch.randn(1, 1, size, 3 + size % 5)
        assert_near(frozen(x), truth(model, x))


def copies(frozen):
    stream = io.BytesIO()
    torch.save(frozen, stream)
    stream.seek(0)
    return (
        copy.deepcopy(frozen),
        pickle.loads(pickle.dumps(frozen)),
        torch.load(stream, weights_only=False),
    )


def test_freeze_deepcopy_and_pickle():
    frozen, x = cnnfast.freeze(make("resnet"), images("resnet")), images("resnet")
    wanted = frozen(x)
    for twin in copies(frozen):
        assert torch.equal(twin(x), wanted)
        assert repr(twin) == repr(frozen) and str(twin.report()) == str(frozen.report())


def _run(frozen, x, queue):
    queue.put(frozen(x).numpy())


@pytest.mark.parametrize("method", ["spawn", "fork"])
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_freeze_in_another_process(method):
    frozen, x = cnnfast.freeze(make("resnet"), images("resnet")), images("resnet")
    wanted = frozen(x)
    context = torch.multiprocessing.get_context(method)
    queue = context.Queue()
    process = context.Process(target=_run, args=(frozen, x, queue))
    process.start()
    result = queue.get(timeout=120)
    process.join(60)
    assert process.exitcode == 0
    torch.testing.assert_close(torch.from_numpy(result), wanted, rtol=0, atol=1e-5)


def test_freeze_input_that_requires_grad_is_an_error():
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    x = images("lenet").requires_grad_()
    with pytest.raises(RuntimeError, match="cnnfast.fuse"):
        frozen(x)
    with torch.no_grad():
        plain = frozen(x)
    assert torch.equal(frozen(x.detach()), plain) and not plain.requires_grad
    with torch.inference_mode():
        assert torch.equal(frozen(images("lenet")[:1]), frozen(images("lenet")[:1])) is False
        assert frozen(x.detach()).is_inference()


def test_freeze_inside_inference_mode_gives_ordinary_tensors():
    model, x = make("lenet"), images("lenet")
    with torch.inference_mode():
        frozen = cnnfast.freeze(model, images("lenet"))
    assert not frozen.weights.is_inference() and not frozen.plan.is_inference()
    assert_near(frozen(x), truth(model, x))


def test_freeze_under_autocast_stays_float32():
    model, x = make("resnet"), images("resnet")
    frozen = cnnfast.freeze(model, x)
    with torch.autocast("cpu", torch.bfloat16):
        assert_near(frozen(x), truth(model, x))


def test_freeze_with_one_thread_gives_the_same():
    frozen, x = cnnfast.freeze(make("resnet"), images("resnet")), images("resnet")
    wanted = frozen(x)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        torch.testing.assert_close(frozen(x), wanted, rtol=0, atol=1e-5)
    finally:
        torch.set_num_threads(threads)


def test_freeze_has_no_training_mode_and_no_parameters():
    frozen, x = cnnfast.freeze(make("resnet"), images("resnet")), images("resnet")
    before = frozen(x)
    assert frozen.train() is frozen and not frozen.training and not list(frozen.parameters())
    assert torch.equal(frozen(x), before)
    assert set(frozen.state_dict()) == {"weights", "plan"}
    outer = nn.Sequential(frozen).train()
    assert torch.equal(outer(x), before)


@pytest.mark.parametrize("move", ["half", "double", "bfloat16"])
def test_freeze_stays_float32_on_the_cpu(move):
    frozen, x = cnnfast.freeze(make("lenet"), images("lenet")), images("lenet")
    before = frozen(x)
    for module in (frozen, nn.Sequential(frozen)):
        with pytest.raises(TypeError, match="stays float32 on the CPU"):
            getattr(module, move)()
    with pytest.raises(TypeError, match="meta"):
        frozen.to("meta")
    assert torch.equal(frozen.to("cpu", torch.float32).float()(x), before)


@pytest.mark.parametrize(
    "x",
    [
        torch.randn(2, 4, 16, 16),
        torch.randn(3, 16, 16),
        torch.randn(2, 3, 16),
        torch.randn(2, 3, 0, 16),
        torch.randn(2, 3, 16, 16).double(),
        torch.zeros(2, 3, 16, 16, dtype=torch.int64),
        torch.zeros(2, 3, 16, 16, dtype=torch.bool),
        torch.randn(2, 3, 16, 16).bfloat16(),
        torch.randn(2, 3, 16, 16, dtype=torch.complex64),
    ],
    ids=lambda x: f"{x.dtype}-{list(x.shape)}".replace("torch.", ""),
)
def test_freeze_wrong_inputs_are_errors(x):
    frozen = cnnfast.freeze(make("resnet"), images("resnet"))
    with pytest.raises(RuntimeError, match="(?i)network|input"):
        frozen(x)
    assert frozen(images("resnet")).shape == (3, 5)


def test_freeze_kernel_larger_than_the_image_is_an_error():
    frozen = cnnfast.freeze(nn.Sequential(nn.Conv2d(1, 1, 5), nn.ReLU()), torch.randn(1, 1, 8, 8))
    with pytest.raises(RuntimeError, match="node 1"):
        frozen(torch.randn(1, 1, 4, 8))


def test_freeze_linear_for_another_image_size_is_an_error():
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    with pytest.raises(RuntimeError, match="linear"):
        frozen(torch.randn(1, 1, 32, 32))


def test_freeze_damaged_buffers_are_an_error():
    frozen = cnnfast.freeze(make("lenet"), images("lenet"))
    for name in ("weights", "plan"):
        twin = copy.deepcopy(frozen)
        getattr(twin, name)[40] += 1
        with pytest.raises(RuntimeError, match="damaged"):
            twin(images("lenet"))


def test_freeze_load_state_dict_of_the_same_structure():
    first, second = (cnnfast.freeze(make("lenet"), images("lenet")) for _ in range(2))
    x = images("lenet")
    first(x)
    first.load_state_dict(second.state_dict())
    assert torch.equal(first(x), second(x))


def test_freeze_repr_shows_the_plan():
    text = repr(cnnfast.freeze(make("resnet"), images("resnet")))
    assert "stem.0 + stem.1 + stem.2" in text and "conv2d 3→8 3×3, padding 1 + relu" in text


def test_freeze_report_and_profile():
    frozen = cnnfast.freeze(make("resnet"), images("resnet"))
    assert frozen.report().coverage.layers == 1.0
    assert frozen.report()["stem.1"].runs_as == "node 1: conv2d"
    profile = frozen.profile(images("resnet", 2), repeats=3)
    assert len(profile.rows) == len(decode(frozen.plan).nodes)
    assert profile.seconds > 0 and profile.rows[1].macs == 2 * 17 * 20 * 8 * 27
    assert profile.rows[1].gflops > 0 and "GFLOP/s" in str(profile)
    assert profile.to_rich().row_count == len(profile.rows)
    with pytest.raises(ValueError, match="repeats"):
        frozen.profile(images("resnet"), repeats=0)


def test_freeze_refuses_models_and_inputs_in_words():
    model, x = make("lenet"), images("lenet")
    with pytest.raises(TypeError, match="torch.nn.Module"):
        cnnfast.freeze(torch.relu, x)
    with pytest.raises(TypeError, match="frozen already"):
        cnnfast.freeze(cnnfast.freeze(model, x), x)
    with pytest.raises(ValueError, match=r"'0.weight' is torch.float64.*model.float\(\).cpu\(\)"):
        cnnfast.freeze(make("lenet").double(), x.double())
    with pytest.raises(ValueError, match="must have a tensor"):
        cnnfast.freeze(model, (1, None))
    with pytest.raises(ValueError, match="float32 tensor"):
        cnnfast.freeze(model, x.double())


def test_freeze_unsupported_network():
    model, x = liven(nn.Sequential(nn.Conv3d(1, 4, 3), nn.Softplus())), torch.randn(2, 1, 4, 8, 8)
    with pytest.raises(UnsupportedNetworkError, match=r"0 \(Conv3d\)"):
        cnnfast.freeze(model, x)
    with pytest.raises(UnsupportedNetworkError):
        cnnfast.freeze(model, x, allow_eager=True, strict=True)
    eager = cnnfast.freeze(model.train(), x, allow_eager=True)
    wanted = truth(model, x)
    assert_near(eager(x), wanted)
    with torch.no_grad():
        model[0].weight.zero_()
    assert_near(eager(x), wanted)
    assert "Conv3d" in str(eager.report()) and eager.report().coverage.layers == 0.0
    assert not eager.train().network.training and not any(p.requires_grad for p in eager.parameters())
    with pytest.raises(RuntimeError, match="cnnfast.fuse"):
        eager(x.requires_grad_())
    with pytest.raises(TypeError, match="no plan"):
        eager.save("anywhere")


def test_freeze_without_folding_is_another_plan_and_as_right(monkeypatch):
    """Sums and activations as nodes of their own."""
    from cnnfast.plan import fold

    for rule in ("_fold_add", "_fold_activation", "_fold_affine"):
        monkeypatch.setattr(fold, rule, lambda step, uses: None)
    for name in ("resnet", "preactivation", "lenet"):
        model, x = make(name), images(name)
        frozen = cnnfast.freeze(model, x)
        assert_near(frozen(x), truth(model, x))
        assert len(decode(frozen.plan).nodes) > 9


def test_freeze_verify_raises_for_a_wrong_plan(monkeypatch):
    module = sys.modules["cnnfast.freeze"]
    right = module.build

    def wrong(*args):
        built = right(*args)
        built.weights[0] += 1
        return built

    monkeypatch.setattr(module, "build", wrong)
    with pytest.raises(VerificationError, match="differs by"):
        cnnfast.freeze(make("resnet"), images("resnet"), verify=True)


def test_freeze_copied_in_inference_mode():
    frozen, x = cnnfast.freeze(make("lenet"), images("lenet")), images("lenet")
    with torch.inference_mode():
        twin = copy.deepcopy(frozen)
        for _ in range(2):
            assert torch.equal(twin(x), frozen(x))


@pytest.mark.parametrize("shape", [(2, 1, 14, 56), (2, 2, 392), (4, 392), (28, 28, 2), (783,)])
def test_frozen_lenet_refuses_what_the_module_refuses(shape):
    net = cnnfast.models.lenet().eval()
    frozen = cnnfast.freeze(net, torch.rand(2, 1, 28, 28))
    with pytest.raises(RuntimeError, match="ReshapeImage"):
        net(torch.rand(shape))
    with pytest.raises(RuntimeError, match=r"\(N, 1, 28, 28\) or \(N, 784\)"):
        frozen(torch.rand(shape))


class Dense(nn.Module):
    """Concatenations that are outputs while their parts are still read with padding."""

    def __init__(self, nested):
        super().__init__()
        self.nested = nested
        self.first = nn.Conv2d(3, 5, 3, padding=1)
        self.second = nn.Conv2d(5, 7, 5, padding=2)
        self.third = nn.Conv2d(12, 4, 3, padding=1)

    def forward(self, x):
        a = torch.relu(self.first(x))
        b = torch.relu(self.second(a))
        both = torch.cat([a, b], 1)
        return torch.cat([both, self.third(both)], 1) if self.nested else both


@pytest.mark.parametrize("nested", [False, True])
def test_freeze_output_that_is_a_concatenation_of_padded_inputs(nested):
    torch.manual_seed(0)
    net = Dense(nested).eval()
    x = torch.rand(2, 3, 9, 11)
    frozen = cnnfast.freeze(net, x)
    for _ in range(2):  # the second run meets what the first left in the arena
        assert_near(frozen(x), truth(net, x))


@pytest.mark.parametrize("tail", [nn.Identity, nn.ReLU, nn.Sigmoid])
def test_freeze_output_that_was_flattened(tail):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 5, 3, padding=1), nn.MaxPool2d(2), nn.Flatten(), tail()).eval()
    x = torch.rand(2, 3, 8, 10)
    assert_near(cnnfast.freeze(net, x)(x), truth(net, x))


def test_freeze_of_a_network_made_in_inference_mode():
    with torch.inference_mode():
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Softplus(), nn.Conv2d(4, 4, 1)
        ).eval()
        x = torch.randn(2, 3, 9, 9)
        wanted = model(x)
        for part, strict in ((model[:3], True), (model, False)):
            frozen = cnnfast.freeze(part, x, strict=strict)
            torch.testing.assert_close(frozen(x), part(x), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(
        cnnfast.freeze(model, torch.randn(1, 3, 9, 9))(x), wanted, rtol=1e-4, atol=1e-5
    )


class Scaled(nn.Module):
    """A buffer that is no weight of a layer."""

    def __init__(self, dtype):
        super().__init__()
        self.conv, self.behind = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.register_buffer("scale", torch.rand(1, 8, 1, 1).to(dtype))

    def forward(self, x):
        return self.behind(torch.relu(self.conv(x)) * self.scale)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_narrow_buffers_widen_as_they_do_in_the_model(dtype):
    torch.manual_seed(0)
    model, x = Scaled(dtype).eval(), torch.randn(2, 3, 12, 12)
    with torch.no_grad():
        wanted = model(x)
    frozen = cnnfast.freeze(model, x)(x)
    assert frozen.dtype == wanted.dtype == torch.float32
    torch.testing.assert_close(frozen, wanted, rtol=0, atol=1e-5)


def test_wide_buffers_are_refused_by_name():
    """Beside an image they would make all that follows float64."""
    with pytest.raises(ValueError, match=r"'scale' is torch.float64.*model.float"):
        cnnfast.freeze(Scaled(torch.float64).eval(), torch.randn(2, 3, 12, 12))
