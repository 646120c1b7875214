"""Networks as people write them: frozen for several sizes, fused with gradients, saved."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import cnnfast
from cnnfast import _ext
from cnnfast.freeze import FrozenNet

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")


def cbr(ins, outs, kernel=3, stride=1):
    conv = nn.Conv2d(ins, outs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outs), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """Skips are concatenated behind transposed convolutions; `pads`: to the size of the skip."""

    def __init__(self, pads=False):
        super().__init__()
        self.down = nn.ModuleList([cbr(3, 8), cbr(8, 16), cbr(16, 32)])
        self.up = nn.ModuleList([nn.ConvTranspose2d(32, 16, 2, 2), nn.ConvTranspose2d(16, 8, 2, 2)])
        self.join, self.out, self.pads = nn.ModuleList([cbr(32, 16), cbr(16, 8)]), nn.Conv2d(8, 4, 1), pads

    def forward(self, x):
        skips = []
        for i, block in enumerate(self.down):
            x = block(F.max_pool2d(x, 2) if i else x)
            skips.append(x)
        for up, join, skip in zip(self.up, self.join, skips[-2::-1], strict=True):
            x = up(x)
            if self.pads:
                rows, columns = skip.size(2) - x.size(2), skip.size(3) - x.size(3)
                x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
            x = join(torch.cat([skip, x], dim=1))
        return self.out(x)


class SharedNorms(nn.Module):
    """Pre-activation blocks whose batch norms are shared between layers."""

    def __init__(self):
        super().__init__()
        self.stem, self.norms = (
            nn.Conv2d(3, 16, 3, padding=1),
            nn.ModuleList(nn.BatchNorm2d(16) for _ in "ab"),
        )
        self.convs = nn.ModuleList(nn.Conv2d(16, 16, 3, padding=1, bias=False) for _ in range(4))
        self.fc = nn.Linear(16, 10)

    def forward(self, x):
        x = self.stem(x)
        for i, conv in enumerate(self.convs):
            x = x + conv(F.relu(self.norms[i % 2](x)))
        return self.fc(F.relu(self.norms[0](x)).mean([2, 3]))


class Siamese(nn.Module):
    def __init__(self):
        super().__init__()
        self.trunk = nn.Sequential(
            cbr(3, 16, stride=2), cbr(16, 32, stride=2), nn.AdaptiveAvgPool2d(1), nn.Flatten()
        )
        self.head = nn.Linear(64, 3)

    def forward(self, a, b):
        u, v = self.trunk(a), self.trunk(b)
        return self.head(torch.cat([u, v], 1)), F.cosine_similarity(u, v)


class CBAM(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.mlp = nn.Sequential(nn.Flatten(), nn.Linear(channels, 4), nn.ReLU(), nn.Linear(4, channels))
        self.conv = nn.Conv2d(2, 1, 7, padding=3, bias=False)

    def forward(self, x):
        gate = self.mlp(F.adaptive_avg_pool2d(x, 1)) + self.mlp(F.adaptive_max_pool2d(x, 1))
        x = x * torch.sigmoid(gate).unsqueeze(2).unsqueeze(3)
        maps = torch.cat((torch.max(x, 1)[0].unsqueeze(1), torch.mean(x, 1).unsqueeze(1)), dim=1)
        return x * torch.sigmoid(self.conv(maps))


class SuperResolution(nn.Module):
    def __init__(self):
        super().__init__()
        self.head, self.tail = nn.Conv2d(3, 16, 3, padding=1), nn.Conv2d(16, 12, 3, padding=1)
        self.body = nn.Sequential(nn.Conv2d(16, 16, 3, padding=1, padding_mode="reflect"), nn.PReLU(16))

    def forward(self, x):
        y = self.head(x)
        return torch.clamp(F.pixel_shuffle(self.tail(y + 0.1 * self.body(y)), 2), 0, 1)


class Generator(nn.Module):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.ConvTranspose2d(16, 32, 4, 1, 0, bias=False), nn.BatchNorm2d(32), nn.ReLU(True),
            nn.ConvTranspose2d(32, 16, 4, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(True),
            nn.ConvTranspose2d(16, 3, 3, 2, 1, output_padding=1), nn.Tanh(),
        )  # fmt: skip

    def forward(self, z):
        return self.layers(z)


class Focus(nn.Module):
    """Slices of every second pixel, pyramids of pools, two heads whose results are rearranged."""

    def __init__(self):
        super().__init__()
        self.stem, self.join = cbr(12, 16), cbr(64, 16, 1)
        self.pools = nn.ModuleList(nn.MaxPool2d(k, 1, k // 2) for k in (5, 9, 13))
        self.heads = nn.ModuleList(nn.Conv2d(16, 18, 1) for _ in range(2))

    def forward(self, x):
        x = torch.cat([x[..., i::2, j::2] for j in (0, 1) for i in (0, 1)], 1)
        x = self.stem(x)
        x = self.join(torch.cat([x, *[pool(x) for pool in self.pools]], 1))
        results = []
        for head, y in zip(self.heads, (x, F.max_pool2d(x, 2)), strict=True):
            y = head(y)
            results.append(y.view(y.shape[0], 3, 6, *y.shape[2:]).permute(0, 1, 3, 4, 2).contiguous())
        return results


class StandardisedConv(nn.Conv2d):
    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def standardised():
    layers = [StandardisedConv(3, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU()]
    return nn.Sequential(*layers, StandardisedConv(16, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1))


class SplitBlock(nn.Module):
    """Cross-stage blocks of one-shot detectors: a list of pieces that grows, joined at the end."""

    def __init__(self, channels, depth, cut):
        super().__init__()
        self.half, self.cut = channels // 2, cut
        self.open, self.close = cbr(channels, channels, 1), cbr((2 + depth) * self.half, channels, 1)
        self.inner = nn.ModuleList(cbr(self.half, self.half) for _ in range(depth))

    def forward(self, x):
        pieces = list(self.cut(self.open(x), self.half))
        pieces.extend(block(pieces[-1]) for block in self.inner)
        return self.close(torch.cat(pieces, 1))


class Boxes(nn.Module):
    """A head with an `inplace` of its own, which writes into a list alone, and shapes that it remembers."""

    def __init__(self, channels):
        super().__init__()
        self.inplace, self.shape = True, None
        self.boxes, self.classes = nn.Conv2d(channels, 4, 1), nn.Conv2d(channels, 6, 3, padding=1)

    def forward(self, x):
        for i, y in enumerate(x):
            x[i] = torch.cat((self.boxes(y), self.classes(y)), 1)
        if self.shape != x[0].shape[2:]:
            self.shape = x[0].shape[2:]
        return torch.cat([y.flatten(2) for y in x], 2)


class Detector(nn.Module):
    """Layers in a Sequential that the forward walks through, keeping what later layers read."""

    def __init__(self):
        super().__init__()
        by_half = lambda x, half: x.chunk(2, 1)  # noqa: E731
        by_sizes = lambda x, half: torch.split(x, (half, half), dim=1)  # noqa: E731
        self.model = nn.Sequential(
            cbr(3, 16, stride=2),
            SplitBlock(16, 2, by_half),
            cbr(16, 32, stride=2),
            SplitBlock(32, 1, by_sizes),
        )
        self.up, self.join, self.head = nn.Upsample(scale_factor=2.0), cbr(48, 16), Boxes(16)

    def forward(self, x, *args):
        kept = []
        for layer in self.model:
            x = layer(x)
            kept.append(x)
        x = self.join(torch.cat([self.up(x), kept[1]], 1))
        return self.head([x, F.avg_pool2d(x, 2)])


class Named(nn.Module):
    """Calls that name what they are given."""

    def __init__(self):
        super().__init__()
        self.conv, self.norm, self.out = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        x = F.relu(input=self.norm(input=self.conv(input=x)), inplace=False)
        return self.out(input=F.max_pool2d(input=x, kernel_size=2))


# of a seed of their own: what other files drew before these would choose which ReLUs stand next to zero
SEED = torch.Generator().manual_seed(6)
IMAGES = tuple(torch.randn(shape, generator=SEED) for shape in ((2, 3, 32, 40), (1, 3, 48, 24)))
ODD = tuple(torch.randn(shape, generator=SEED) for shape in ((2, 3, 37, 42), (1, 3, 27, 30)))
# by name: how it is made, the inputs of two calls, whether one plan holds all of it
NETWORKS = {
    "u_net": (UNet, IMAGES, True),
    "u_net_of_any_size": (lambda: UNet(pads=True), ODD, True),
    "shared_norms": (SharedNorms, IMAGES, True),
    "siamese": (Siamese, tuple((x, x.flip(3)) for x in IMAGES), False),
    "cbam": (lambda: nn.Sequential(cbr(3, 16), CBAM(16), cbr(16, 8)), IMAGES, True),
    "super_resolution": (SuperResolution, IMAGES, True),
    "generator": (Generator, (torch.randn(2, 16, 1, 1), torch.randn(5, 16, 2, 3)), True),
    "focus": (Focus, IMAGES, False),
    "named": (Named, IMAGES, True),
    "detector": (Detector, IMAGES, False),
    "standardised": (standardised, IMAGES, True),
}
EACH = pytest.mark.parametrize("name", NETWORKS)


def made(name):
    make, calls, one_plan = NETWORKS[name]
    torch.manual_seed(2)
    model = make()
    for norm in (module for module in model.modules() if isinstance(module, nn.BatchNorm2d)):
        norm.running_mean.normal_(0, 0.2)
        norm.running_var.uniform_(0.5, 2)
        nn.init.uniform_(norm.weight, 0.5, 1.5)
    return model.eval(), [call if isinstance(call, tuple) else (call,) for call in calls], one_plan


def tensors(result):
    return [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]


def assert_near(got, wanted, relative):
    for actual, right in zip(tensors(got), tensors(wanted), strict=True):
        largest = right.abs().max().item()
        torch.testing.assert_close(actual.double(), right.double(), rtol=0, atol=relative * largest)


@EACH
def test_frozen(name, tmp_path):
    model, calls, one_plan = made(name)
    frozen = cnnfast.freeze(model, calls[0], strict=one_plan)
    double = copy.deepcopy(model).double()
    with torch.no_grad():
        for call in calls:
            assert_near(frozen(*call), double(*(x.double() for x in call)), 2e-5)
    assert frozen.report().coverage.multiply_adds == 1.0
    again = cnnfast.load(frozen.save(tmp_path / "net")) if one_plan else pickle.loads(pickle.dumps(frozen))
    assert isinstance(frozen, FrozenNet) == one_plan
    for actual, wanted in zip(tensors(again(*calls[1])), tensors(frozen(*calls[1])), strict=True):
        assert torch.equal(actual, wanted)


@EACH
@pytest.mark.parametrize("training", [False, True])
def test_fused(name, training):
    """Outputs, gradients of inputs and parameters, running averages; a ReLU flipped by rounding is 2e-3."""
    model, calls, _ = made(name)
    fused, results = cnnfast.fuse(copy.deepcopy(model)), []
    for network in (fused, model):
        inputs = [x.clone().requires_grad_() for x in calls[0]]
        got = network.train(training)(*inputs)
        sum(value.square().sum() for value in tensors(got)).backward()
        named = {key: p.grad for key, p in network.named_parameters() if p.grad is not None}
        named |= {f"input {i}": x.grad for i, x in enumerate(inputs)}
        results.append((got, named))
    (got, gradients), (wanted, right) = results
    assert_near(got, wanted, 1e-4)
    assert gradients.keys() == right.keys()
    largest = max(gradient.norm().item() for gradient in right.values())
    for key, gradient in right.items():
        assert (gradients[key] - gradient).norm() <= 5e-3 * max(gradient.norm().item(), 1e-2 * largest), key
    for actual, buffer in zip(fused.buffers(), model.buffers(), strict=True):
        torch.testing.assert_close(actual, buffer, rtol=1e-4, atol=1e-5)
    assert list(fused.state_dict()) == list(model.state_dict())


def test_reports_say_why_layers_of_shared_modules_stay():
    report = cnnfast.fuse(made("siamese")[0]).report()
    assert report["trunk.0.0"].reason == "it is called 2 times: give every call a layer of its own"
    assert "fused" in {row.status for row in report.rows}


def test_layers_that_a_forward_walks_through_are_fused_one_by_one():
    """A forward of the Sequential that holds them would never be called, whatever a report said of it."""
    model, ((images,), _), _ = made("detector")
    fused = cnnfast.fuse(model, images)
    report = fused.report()
    assert report["model.1.open.0"].runs_as == (
        "cnnfast.ops.conv2d_bn_act: model.1.open.0 + model.1.open.1 + model.1.open.2"
    )
    assert [row.name for row in report.rows if row.status == "eager"] == ["up"]
    called = []
    for block in (fused.model[0], fused.model[1]):
        block.register_forward_hook(lambda block, args, result: called.append(block))
    fused(images)
    assert called == [fused.model[0], fused.model[1]]


def test_detection():
    """Forwards that choose boxes stay; backbone and heads are frozen, for other images too."""
    detection = pytest.importorskip("torchvision", reason="torchvision is not installed").models.detection
    torch.manual_seed(0)
    model = detection.ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=5).eval()
    images = [torch.rand(3, 320, 320)]
    frozen = cnnfast.freeze(model, (images,))
    report = frozen.report()
    assert report.coverage.multiply_adds == 1.0
    assert any("its forward loops over a tensor, or over a list" in note for note in report.notes)
    fused = cnnfast.fuse(copy.deepcopy(model), (images,))
    assert fused.report().coverage.multiply_adds > 0.99
    others = [torch.rand(3, 200, 300), torch.rand(3, 330, 310)]
    with torch.no_grad():
        wanted = model.backbone(torch.stack([F.interpolate(x[None], (320, 320))[0] for x in others]))
        got = frozen.network.backbone(torch.stack([F.interpolate(x[None], (320, 320))[0] for x in others]))
        assert list(got) == list(wanted)
        assert_near(got, wanted, 1e-4)
        for network in (frozen, fused.eval()):
            found = network(others)
            assert [set(part) for part in found] == [{"boxes", "scores", "labels"}] * 2


def test_segmentation():
    segmentation = pytest.importorskip(
        "torchvision", reason="torchvision is not installed"
    ).models.segmentation
    torch.manual_seed(0)
    model = segmentation.lraspp_mobilenet_v3_large(weights=None, weights_backbone=None).eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 64, 64))
    assert len(frozen.plans()) == 1 and not frozen.report().left_out
    for x in (torch.randn(2, 3, 64, 64), torch.randn(1, 3, 96, 80)):
        got, wanted = frozen(x), model(x)
        assert type(got) is type(wanted) and list(got) == list(wanted)
        assert_near(got, wanted, 1e-4)
