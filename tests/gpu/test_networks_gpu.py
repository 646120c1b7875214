"""Whole networks on a GPU: fused ones and those of cnnfast.models, held against eager PyTorch in float64."""

import copy

import pytest
import torch
import torch.nn.functional as F
from fuse.networks import liven
from fuse.plain_networks import PLAIN, make_ours, make_plain, plain_images
from torch import nn
from zoo.smooth import Smooth, smooth_twin

import cnnfast
from cnnfast import data, train
from cnnfast.benchmarking.parity import without_dropout
from cnnfast.training.settings import settings_for

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
HALVES = DTYPES[1:]
# Beside what eager loses: of the largest value.
MARGIN = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}
FOREIGN = (
    *("resnet18", "resnet50", "densenet121", "googlenet", "inception_v3", "vgg16_bn", "squeezenet1_1"),
    *("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf"),
)
dtypes = pytest.mark.parametrize("dtype", DTYPES, ids=str)
networks = pytest.mark.parametrize("name", PLAIN)


@pytest.fixture(autouse=True)
def exact_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)


def on_gpu(module, dtype=torch.float32):
    return copy.deepcopy(module).to("cuda", dtype).to(memory_format=torch.channels_last)


def image_of(x, dtype=torch.float32):
    return x.to("cuda", dtype).contiguous(memory_format=torch.channels_last)


def error(actual, truth):
    return ((actual.double() - truth).abs().max() / truth.abs().max()).item()


def assert_as_near_as(actual, eager, truth, dtype):
    """Not farther from float64 than twice eager's way in the same type."""
    assert actual.dtype == dtype and actual.isfinite().all()
    assert error(actual, truth) <= 2 * error(eager, truth) + MARGIN[dtype]


def training(model):
    """In training mode, with one right answer."""
    without_dropout(model)
    return model.train()


def with_statistics_of(model, x):
    """In evaluation mode; batch norms hold these images' statistics, so that signals reach the head."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
            module.reset_running_stats()
    with torch.no_grad():
        training(model)(x)
    return model.eval()


@dtypes
@networks
def test_fused_network(name, dtype):
    model, x = make_plain(name).eval(), plain_images(name)
    with torch.no_grad():
        truth = on_gpu(model, torch.float64)(image_of(x, torch.float64))
        eager, fused = on_gpu(model, dtype), cnnfast.fuse(on_gpu(model, dtype), strict=True)
        for _ in range(2):  # backends are timed, then known
            assert_as_near_as(fused(image_of(x, dtype)), eager(image_of(x, dtype)), truth, dtype)


@dtypes
@networks
def test_network_of_cnnfast_on_any_memory_format(name, dtype):
    model, x = make_ours(name).eval(), plain_images(name)
    with torch.no_grad():
        truth = copy.deepcopy(model).double().to("cuda")(x.double().to("cuda"))
        model = model.to("cuda", dtype)
        for image in (x.to("cuda", dtype), image_of(x, dtype)):
            output = model(image)
            assert output.dtype == dtype and error(output, truth) <= 12 * MARGIN[dtype]


@networks
def test_gradients_of_a_fused_network(name):
    """In a network without kinks: a ReLU that rounding turns moves gradients by more than rounding does."""
    model, x = training(smooth_twin(make_plain(name))), plain_images(name, 4)

    def step(network, dtype):
        output = network(image_of(x, dtype))
        return output, torch.autograd.grad(output.square().mean(), list(network.parameters()))

    with Smooth():
        truth, exact = step(on_gpu(model, torch.float64), torch.float64)
        eager, plain = step(on_gpu(model), torch.float32)
        fused = cnnfast.fuse(on_gpu(model))
        for _ in range(2):
            output, gradients = step(copy.deepcopy(fused), torch.float32)
            assert error(output, truth) <= 2 * error(eager, truth) + 1e-5
            largest = max(gradient.abs().max() for gradient in exact)
            for actual, other, wanted in zip(gradients, plain, exact, strict=True):
                allowed = 3 * (other - wanted).abs().max() + 1e-5 * largest
                assert (actual - wanted).abs().max() <= allowed


@pytest.mark.parametrize("dtype", HALVES, ids=str)
@pytest.mark.parametrize("name", ("lenet", "nin", "googlenet", "resnet18", "resnet18_preact", "densenet"))
def test_training_under_autocast(name, dtype):
    """The loss falls as eager's does, gradients scaled where the type asks for it."""
    model, x = training(make_plain(name)), image_of(plain_images(name, 8))
    labels = torch.arange(8, device="cuda") % 10
    losses = []
    for network in (on_gpu(model), cnnfast.fuse(on_gpu(model))):
        optimiser = torch.optim.SGD(network.parameters(), lr=0.01)
        scaler = torch.amp.GradScaler("cuda", enabled=dtype == torch.float16, init_scale=256.0)
        losses.append([])
        for _ in range(6):
            optimiser.zero_grad()
            with torch.autocast("cuda", dtype):
                loss = F.cross_entropy(network(x).float(), labels)
            scaler.scale(loss).backward()
            scaler.step(optimiser)
            scaler.update()
            losses[-1].append(loss.item())
    plain, fused = losses
    assert fused[0] == pytest.approx(plain[0], rel=0.02)
    assert fused[-1] < fused[0] and fused[-1] == pytest.approx(plain[-1], rel=0.2, abs=0.05)


@pytest.mark.parametrize("name", ("googlenet", "resnet18", "densenet"))
def test_network_in_a_cuda_graph(name):
    network, x = cnnfast.fuse(on_gpu(make_plain(name).eval(), torch.float16)), plain_images(name)
    x = image_of(x, torch.float16)
    stream = torch.cuda.Stream()
    with torch.no_grad(), torch.cuda.stream(stream):
        network(x)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.no_grad(), torch.cuda.graph(graph):
        output = network(x)
    other = torch.randn_like(x)
    x.copy_(other)
    graph.replay()
    with torch.no_grad():
        torch.testing.assert_close(output, network(other))


@pytest.mark.parametrize("name", ("lenet", "googlenet", "resnet18", "densenet"))
def test_script_saved_and_loaded(name, tmp_path):
    model, x = make_ours(name).eval().to("cuda", torch.float16), image_of(plain_images(name), torch.float16)
    path = str(tmp_path / "network.pt")
    torch.jit.script(model).save(path)
    with torch.no_grad():
        loaded = torch.jit.load(path)
        for _ in range(3):
            torch.testing.assert_close(loaded(x), model(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("name", ("residual_net", "inception_net"))
def test_torch_compile_around_it(name):
    network, x = cnnfast.fuse(on_gpu(make_plain(name).eval())), image_of(plain_images(name))
    with torch.no_grad():
        assert error(torch.compile(network)(x), network(x).double()) <= 1e-5


@pytest.mark.parametrize("name", FOREIGN)
def test_torchvision_network(name):
    """In evaluation and a training step under autocast."""
    torchvision = pytest.importorskip("torchvision", reason="torchvision is not installed")
    options = {"aux_logits": False, "init_weights": False} if name in ("googlenet", "inception_v3") else {}
    x = torch.randn(4, 3, 96, 80)
    model = liven(torchvision.models.get_model(name, weights=None, **options)).to("cuda")
    model = with_statistics_of(model, x.to("cuda"))
    with torch.no_grad():
        truth = on_gpu(model, torch.float64)(image_of(x, torch.float64))
        for dtype in DTYPES:
            eager, fused = on_gpu(model, dtype), cnnfast.fuse(on_gpu(model, dtype))
            assert_as_near_as(fused(image_of(x, dtype)), eager(image_of(x, dtype)), truth, dtype)
    fused = cnnfast.fuse(on_gpu(model)).train()
    with torch.autocast("cuda", torch.bfloat16):
        loss = fused(image_of(x)).float().square().mean()
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in fused.parameters())


def test_training_on_fashion_mnist(tmp_path):
    """Some batches, from memory, end to end: a checkpoint of the GPU goes on."""
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (512, 28, 28), dtype=torch.uint8, generator=random)
    labels = torch.arange(512) % len(data.CLASSES)
    split = (images, labels)
    settings = settings_for("residual_net", epochs=1, batch_size=64)
    history = train.train(train.build(settings), split, split, settings, device="cuda", out=tmp_path)
    settings = settings_for("residual_net", epochs=2, batch_size=64)
    model = train.build(settings)
    history = train.train(model, split, split, settings, device="cuda", out=tmp_path, resume=True)
    assert len(history) == 2 and history[1].loss < history[0].loss
