"""Every operation that a plan holds, against eager PyTorch: sizes, batches, odd channels, NaN and Inf."""

import random

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import cnnfast
from cnnfast.plan.codec import decode
from cnnfast.plan.nodes import Act, Op

from .plan_interpreter import run
from .support import assert_near, needs_extension, truth

pytestmark = needs_extension
CASES = {}


def case(make):
    CASES[make.__name__.strip("_")] = make
    return make


class Fn(nn.Module):
    """A forward between two convolutions, so that its operands are values of a network."""

    def __init__(self, forward, channels=12, out=None, **layers):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.last = nn.Conv2d(out or channels, 5, 3, padding=1)
        self.inside = forward
        for name, layer in layers.items():
            if isinstance(layer, nn.Parameter):
                self.register_parameter(name, layer)
            elif isinstance(layer, torch.Tensor):
                self.register_buffer(name, layer)
            else:
                self.add_module(name, layer)

    def forward(self, x):
        return self.last(self.inside(self, self.first(x)))


class Bare(nn.Module):
    """A forward whose value is the network's output."""

    def __init__(self, forward, channels=12):
        super().__init__()
        self.first = nn.Conv2d(3, channels, 3, padding=1)
        self.inside = forward

    def forward(self, x):
        return self.inside(self.first(x))


def parameter(*shape):
    return nn.Parameter(torch.randn(shape))


class SqueezeExcite(nn.Module):
    def __init__(self, channels, gate, residual=False):
        super().__init__()
        self.pool, self.gate, self.residual = nn.AdaptiveAvgPool2d(1), gate, residual
        self.down, self.up = nn.Conv2d(channels, 4, 1), nn.Conv2d(4, channels, 1)

    def forward(self, x):
        y = self.gate(self.up(F.relu(self.down(self.pool(x))))) * x
        return F.relu(y + x) if self.residual else y


class FeatureExcite(nn.Module):
    """Squeeze-excite with linear layers on (N, C)."""

    def __init__(self, channels, expand):
        super().__init__()
        self.fc1, self.fc2, self.expand = nn.Linear(channels, 3), nn.Linear(3, channels), expand
        nn.init.normal_(self.fc2.weight)

    def forward(self, x):
        s = torch.sigmoid(self.fc2(F.silu(self.fc1(x.mean((2, 3))))))
        return x * self.expand(s, x)


class ConvNeXtBlock(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.dw, self.norm = nn.Conv2d(c, c, 7, padding=3, groups=c), nn.LayerNorm(c, eps=1e-6)
        self.up, self.down = nn.Linear(c, 4 * c), nn.Linear(4 * c, c)
        self.scale = nn.Parameter(torch.randn(c, 1, 1))

    def forward(self, x):
        y = self.norm(self.dw(x).permute(0, 2, 3, 1))
        y = self.down(F.gelu(self.up(y))).permute(0, 3, 1, 2)
        y = y * self.scale
        y += x
        return y


class ShuffleUnit(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(c // 2, c // 2, 1), nn.BatchNorm2d(c // 2), nn.ReLU())

    def forward(self, x):
        a, b = x.chunk(2, dim=1)
        x = torch.cat((a, self.branch(b)), 1)
        n, c, h, w = x.size()
        return x.view(n, 2, c // 2, h, w).transpose(1, 2).contiguous().view(n, c, h, w)


def channels_last_parts(x):
    a, b, c = x.split([6, 2, 4], dim=-1)
    d, e = x.chunk(2, 3)
    return torch.cat((b, F.gelu(a) * d - e**2, c), dim=-1)


def twice_by_thrice(x):
    return F.interpolate(x, (x.shape[2] * 2, 3 * x.size(-1)), mode="bilinear")


def viewed_by_sizes(x):
    x = F.relu(x)
    n, c = x.shape[:2]
    gate = F.adaptive_avg_pool2d(x, 1).view(n, c)
    return x * torch.sigmoid(gate).view([n, c] + [1] * (x.dim() - 2)) + gate.reshape(
        n, c, *(1,) * (x.ndim - 2)
    )


ACTIVATIONS = {
    "relu6": nn.ReLU6(),
    "hardtanh": nn.Hardtanh(-0.3, 0.7),
    "leaky_relu": nn.LeakyReLU(0.13),
    "silu": nn.SiLU(inplace=True),
    "hardswish": nn.Hardswish(),
    "hardsigmoid": nn.Hardsigmoid(),
    "tanh": nn.Tanh(),
    "gelu": nn.GELU(),
    "gelu_tanh": nn.GELU(approximate="tanh"),
    "elu": nn.ELU(1.3),
    "mish": nn.Mish(),
    "prelu_one": nn.PReLU(),
}
SIMPLE = {
    "own_silu": lambda m, x: x * x.sigmoid(),
    "own_hardswish": lambda m, x: x * F.hardsigmoid(x),
    "clamp": lambda m, x: x.clamp(min=-0.2, max=0.5) + torch.clamp(x, min=0.1),
    "clamp_min": lambda m, x: x.clamp(min=0),
    "product": lambda m, x: x * F.relu(x).sub(x) * F.relu6(x),
    "product_and_sum": lambda m, x: F.relu(x * torch.sigmoid(x + 1) + x),
    "difference": lambda m, x: F.relu(x) - 0.3 * torch.tanh(x),
    "scalars": lambda m, x: (2 - x / 4) * 3 + 1,
    "negative": lambda m, x: -F.relu(x) + 1,
    "alpha": lambda m, x: torch.add(F.relu(x), x, alpha=0.5).sub(x, alpha=2),
    "in_place": lambda m, x: F.relu(x).mul_(2).add_(1).sub_(0.5).div_(3),
    "in_place_twice": lambda m, x: x.add_(F.silu(x)),
    "chunk": lambda m, x: torch.cat([x.chunk(3, 1)[i] for i in (2, 0, 1)], 1),
    "split": lambda m, x: torch.cat((torch.split(F.relu(x), [5, 3, 4], dim=1)[0], x[:, 5:]), 1),
    "split_even": lambda m, x: torch.cat([F.relu(x.split(5, 1)[i]) for i in range(3)], 1),
    "narrow": lambda m, x: torch.cat((x.narrow(1, 3, 6), x[:, -6:, ...]), 1),
    "slice_sum": lambda m, x: torch.cat((x[:, :6] + x[:, 6:], x[:, 3:9] * x[:, : x.size(1) // 2]), 1),
    "slice_of_slice": lambda m, x: torch.cat((x[:, 2:11][:, 1:7], F.max_pool2d(x[:, 6:], 3, 1, 1)), 1),
    "slice_in_place": lambda m, x: torch.cat((F.relu_(x[:, :4].clone()), x[:, 4:]), 1),
    "plane": lambda m, x: torch.cat((x[:, 0].unsqueeze(1) * 2 + 0.5, x[:, 1:]), 1),
    "every_second": lambda m, x: F.interpolate(x[:, :, ::2, ::2], scale_factor=2.0),
    "shuffle": lambda m, x: F.channel_shuffle(x, 3),
    "shuffle_pairs": lambda m, x: F.channel_shuffle(F.relu(x), 2),
    "shuffle_own": lambda m, x: x.reshape(x.shape[0], 4, 3, x.shape[2], x.shape[3])
    .permute(0, 2, 1, 3, 4)
    .flatten(1, 2),
    "shuffle_concat": lambda m, x: F.channel_shuffle(torch.cat((F.relu(x[:, :6]), x[:, 6:]), 1), 2),
    "shuffle_wide_concat": lambda m, x: F.channel_shuffle(
        torch.cat((x, x[:, :4], F.relu(x), x[:, 4:]), 1), 2
    )[:, 3:15],
    "adaptive_avg": lambda m, x: F.adaptive_avg_pool2d(x, (5, 3)),
    "adaptive_max": lambda m, x: F.adaptive_max_pool2d(x, (4, None)),
    "adaptive_larger": lambda m, x: F.adaptive_avg_pool2d(x, 23),
    "global_max": lambda m, x: x * F.adaptive_max_pool2d(x, 1),
    "amax": lambda m, x: x + x.amax((2, 3), keepdim=True),
    "mean_sum": lambda m, x: F.relu(x + x.mean((2, 3), keepdim=True)),
    "pool_forms": lambda m, x: F.avg_pool2d(F.max_pool2d(x, 3, stride=2, padding=1), (2, 3), padding=(1, 0)),
    "pad": lambda m, x: F.max_pool2d(F.pad(x, (1, 2, 0, 3), value=-1.5), 2),
    "pad_behind": lambda m, x: F.relu(F.pad(x, (2, 1))),
    "nearest": lambda m, x: F.interpolate(x, scale_factor=2),
    "nearest_size": lambda m, x: F.interpolate(F.max_pool2d(x, 2), size=(7, 23)),
    "nearest_exact": lambda m, x: F.interpolate(x, size=(9, 30), mode="nearest-exact"),
    "nearest_like": lambda m, x: x + F.interpolate(F.max_pool2d(x, 2), size=x.shape[-2:]),
    "bilinear": lambda m, x: F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False),
    "bilinear_down": lambda m, x: F.interpolate(x, scale_factor=0.75, mode="bilinear"),
    "bilinear_corners": lambda m, x: F.interpolate(x, size=(21, 8), mode="bilinear", align_corners=True),
    "bilinear_like": lambda m, x: x
    * F.interpolate(
        F.adaptive_avg_pool2d(x, 3), size=(x.size(2), x.size(3)), mode="bilinear", align_corners=False
    ),
    "squares": lambda m, x: F.relu(x) ** 2 * 0.8 - x.square() + torch.pow(x, 2.0).mul_(0.5).pow_(2),
    "expand_first": lambda m, x: x.mean((2, 3), keepdim=True).expand_as(x) + F.relu(x).expand_as(x),
    "expand_to_shape": lambda m, x: x * x.mean((2, 3), keepdim=True).expand(x.shape) - x.expand(x.size()),
    "instance_norm": lambda m, x: F.instance_norm(F.relu(x), weight=m.first.bias),
    "sized_by_sides": lambda m, x: F.interpolate(F.relu(x), size=list(x.shape[2:])[:1] + [x.shape[-2:][1]]),
    "sized_twice": lambda m, x: twice_by_thrice(F.relu(x)),
    "viewed_by_sizes": lambda m, x: viewed_by_sizes(x),
    "instance_like": lambda m, x: F.group_norm(x, 12),
    "group_norm": lambda m, x: F.relu(F.group_norm(x, 3, m.first.bias, m.first.bias)),
    "groups_by_channels": lambda m, x: F.group_norm(
        F.conv2d(x, m.first.weight[:, :1], padding=1, groups=x.size(1)), x.shape[1] // 4)
    + F.conv_transpose2d(x, m.first.weight[:, :1], padding=1, groups=x.shape[1]),
    "channels_last_parts": lambda m, x: channels_last_parts(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "channels_last": lambda m, x: F.layer_norm(x.permute(0, 2, 3, 1), (12,)).permute(0, 3, 1, 2),
    "dropout": lambda m, x: F.dropout(F.dropout2d(x, training=m.training), 0.3, m.training),
    "squeeze": lambda m, x: x * x.mean((2, 3), keepdim=True).squeeze(-1).squeeze(-1)[:, :, None, None],
    "nested_concat": lambda m, x: torch.cat((torch.cat((x[:, :2], torch.cat((x[:, 2:5], x[:, 5:7]), 1)), 1),
                                             F.relu(x[:, 7:])), 1),
}  # fmt: skip
SIMPLE |= {
    "channel_mean": lambda m, x: x * torch.sigmoid(x.mean(1, keepdim=True)),
    "channel_max": lambda m, x: F.relu(x.amax(dim=1, keepdim=True) * x + x.mean(1).unsqueeze(1)),
    "channel_max_of_pairs": lambda m, x: torch.max(x, dim=1, keepdim=True)[0] + x,
    "channel_max_values": lambda m, x: x.max(1).values.unsqueeze(1) - torch.sum(x, 1, keepdim=True) + x,
    "channels_last_pixels": lambda m, x: channels_last_gate(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2),
    "pixels_and_channels": lambda m, x: x + x.mean((2, 3), keepdim=True) * torch.tanh(x[:, 3:4]),
    "gate_of_a_slice": lambda m, x: torch.cat((x[:, :6] * x[:, 7:8] + x[:, 6:], F.relu(x[:, 6:])), 1),
    "quotient": lambda m, x: x / (2 + x.square()) + x / x.square().mean((2, 3), keepdim=True),
    "same_type": lambda m, x: x.to(x.dtype) * x.mean((2, 3), keepdim=True).to(torch.float32).type(x.dtype),
    "powers": lambda m, x: 0.1 * x**3
    + torch.sqrt(x.square() + 1) * (x.square() + 0.5).rsqrt() + 1 / (x**2 + 1),
    "generalised_mean": lambda m, x: x
    * F.avg_pool2d(x.clamp(min=1e-6).pow(m.last.bias[:1].square() + 2), 3, 1, 1).pow(1.0 / 3),
    "response_norm": lambda m, x: x * torch.rsqrt(x.square().mean((2, 3), keepdim=True) + 1e-5),
    "image_norm": lambda m, x: x / (x.norm(p=2, dim=(2, 3), keepdim=True) + 1e-6),
    "image_norms": lambda m, x: 0.1 * x * torch.linalg.vector_norm(F.relu(x), dim=(-2, -1), keepdim=True),
    "two_paths": lambda m, x: two_paths(torch.stack([x, F.relu(x)], dim=1)),
    "channel_max_unpacked": lambda m, x: unpacked(x),
    "classes": lambda m, x: x.softmax(1) + F.log_softmax(x * 5, dim=-3),
    "classes_last": lambda m, x: F.softmax(x.permute(0, 2, 3, 1), dim=-1).permute(0, 3, 1, 2),
    "softmax_of_paths": lambda m, x: (torch.stack((x, -x), 1).softmax(dim=1) * 3).sum(dim=1)
    + torch.stack((x, -x), 1).softmax(dim=1).flatten(1, 2)[:, 12:],
    "attention_pool": lambda m, x: x + attention_pool(x, x[:, 2:3]),
    "attention_bmm": lambda m, x: x * attention_bmm(x),
    "crop": lambda m, x: x[:, :, 1:-2, 3:] + x[..., 2:-1, :-3],
    "crop_by_padding": lambda m, x: F.pad(F.pad(x, (-1, 0, -2, -1)), (2, -1, 0, 3), value=0.5),
    "focus": lambda m, x: torch.cat(
        (x[..., ::2, ::2], x[..., 1::2, ::2], x[..., ::2, 1::2], x[..., 1::2, 1::2]), 1)[:, 20:32],
    "space_to_depth": lambda m, x: space_to_depth(x[:, :3], 2),
    "reflect": lambda m, x: F.pad(x, (2, 1, 3, 0), mode="reflect"),
    "replicate_and_circular": lambda m, x: F.pad(
        F.pad(x, (4, 0, 1, 20), "replicate"), (0, 3, 2, 2), "circular"),
    "pad_to_size": lambda m, x: x - pad_like(F.max_pool2d(x[:, :, 1:, :-3], 2, 1), x, 0.5),
    "every_third": lambda m, x: x[:, :, 1::3, 0:-1:2],
    "pixel_shuffle": lambda m, x: torch.cat([F.pixel_shuffle(x, 2)] * 4, 1),
    "pixel_unshuffle": lambda m, x: F.pixel_unshuffle(x, 2)[:, 5:17] + F.pixel_unshuffle(x[:, :3], 2),
    "transposed_function": lambda m, x: F.relu(
        F.conv_transpose2d(x, m.first.weight.repeat(1, 4, 1, 1), stride=2)),
    "features_concat": lambda m, x: x * torch.cat(
        (F.linear(x.mean((2, 3)), m.last.weight[:4, :, 0, 0]),
         F.linear(x.amax((2, 3)), m.first.weight[:8].flatten(1)[:, :12])), dim=-1)[:, :, None, None],
    "vectors": lambda m, x: x * x.mean((2, 3)).view(x.size(0), 1, 3, -1).transpose(1, 2).reshape(
        x.size(0), -1, 1, 1),
}  # fmt: skip


def space_to_depth(x, b):
    n, c, h, w = x.size()
    x = x.view(n, c, h // b, b, w // b, b).permute(0, 3, 5, 1, 2, 4).contiguous()
    return x.view(n, c * b * b, h // b, w // b)


def unpacked(x):
    largest, _ = torch.max(x, dim=1, keepdim=True)
    return x * largest


def pad_like(x, like, value):
    rows, columns = like.size()[2] - x.size()[2], like.shape[3] - x.shape[-1]
    return F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2], value=value)


def channels_last_gate(x):
    return x * torch.sigmoid(x.mean(-1, keepdim=True)) + x.mean((1, 2), keepdim=True) * x


def two_paths(paths):
    n, count, channels, _, _ = paths.shape
    weights = paths.sum(1).mean((2, 3), keepdim=True)
    weights = torch.cat((weights, weights.square()), 1).view(n, count, channels, 1, 1)
    return torch.sum(paths * torch.softmax(weights, dim=1), dim=1)


def attention_pool(x, logits):
    n, channels, height, width = x.shape
    shares = F.softmax(logits.reshape(n, 1, height * width), dim=-1).unsqueeze(3)
    return (x.reshape(n, channels, height * width).unsqueeze(1) @ shares).view(n, channels, 1, 1)


def attention_bmm(x):
    shares = x[:, :1].flatten(2).softmax(-1).transpose(1, 2)
    return torch.bmm(x.flatten(2), shares).unsqueeze(-1)


for _name, _forward in SIMPLE.items():
    CASES[_name] = lambda forward=_forward: Fn(forward)

for _name, _act in ACTIVATIONS.items():
    CASES[f"activation_{_name}"] = lambda act=_act: Fn(lambda m, x: m.act(x), act=act)
for _kind, _gate in (("sigmoid", nn.Sigmoid()), ("hard", nn.Hardsigmoid())):
    CASES[f"squeeze_excite_{_kind}"] = lambda gate=_gate: Fn(lambda m, x: m.se(x), se=SqueezeExcite(12, gate))
CASES["squeeze_excite_residual"] = lambda: Fn(lambda m, x: m.se(x), se=SqueezeExcite(12, nn.Sigmoid(), True))
EXPANSIONS = {
    "view": lambda s, x: s.view(x.size(0), -1, 1, 1),
    "view_all": lambda s, x: s.view(x.size(0), x.size(1), 1, 1),
    "none": lambda s, x: s[:, :, None, None],
    "unsqueeze": lambda s, x: s.unsqueeze(-1).unsqueeze(-1),
    "expand_as": lambda s, x: s.view(x.size(0), x.size(1), 1, 1).expand_as(x),
}
for _kind, _expand in EXPANSIONS.items():
    CASES[f"features_{_kind}"] = lambda expand=_expand: Fn(lambda m, x: m.se(x), se=FeatureExcite(12, expand))


class FeatureParts(nn.Module):
    """Parts of features, each through a linear layer of its own."""

    def __init__(self):
        super().__init__()
        self.all, self.a, self.b = nn.Linear(12, 10), nn.Linear(4, 6), nn.Linear(6, 6)

    def forward(self, x):
        a, b = self.all(x.mean((2, 3))).split([4, 6], 1)
        return torch.cat((x[:, :6] * self.a(a)[:, :, None, None], x[:, 6:] + self.b(b).view(-1, 6, 1, 1)), 1)


class MeanNorm(nn.Module):
    """Batch norm of features that no linear layer gives."""

    def __init__(self):
        super().__init__()
        self.before, self.behind, self.fc = nn.BatchNorm1d(12), nn.BatchNorm1d(12), nn.Linear(12, 12)

    def forward(self, x):
        return x * self.fc(self.behind(F.relu(self.before(x.mean((2, 3))))))[:, :, None, None]


class ChannelFilter(nn.Module):
    """A convolution over the channels' means; `how` they become one row and back."""

    def __init__(self, turned, taps=5, bias=False):
        super().__init__()
        self.conv, self.turned = nn.Conv1d(1, 1, taps, padding=taps // 2, bias=bias), turned

    def forward(self, x):
        y = x.mean((2, 3), keepdim=True)
        if self.turned:
            y = self.conv(y.squeeze(-1).transpose(-1, -2)).transpose(-1, -2).unsqueeze(-1)
        else:
            y = self.conv(y.view(x.shape[0], 1, -1)).view(x.shape[0], -1, 1, 1)
        return x * torch.sigmoid(y).expand_as(x)


class ResponseNorm(nn.Module):
    """ConvNeXt v2's, over channels last, between two linear layers."""

    def __init__(self, c):
        super().__init__()
        self.up, self.down = nn.Linear(c, 3 * c), nn.Linear(3 * c, c)
        self.gamma, self.beta = parameter(1, 1, 1, 3 * c), parameter(1, 1, 1, 3 * c)

    def forward(self, x):
        y = F.gelu(self.up(x.permute(0, 2, 3, 1)))
        norm = torch.norm(y, p=2, dim=(1, 2), keepdim=True)
        share = norm / (norm.mean(dim=-1, keepdim=True) + 1e-6)
        return self.down(self.gamma * (y * share) + self.beta + y).permute(0, 3, 1, 2)


TRANSPOSED = {
    "2x2": (12, 12, 2, 2),
    "3x3": (12, 12, 3, 2, 1, 1),
    "4x4": (12, 12, 4, 2, 1),
    "stride_1": (12, 12, 3, 1, 1),
    "wide_stride": (12, 12, 2, 3),
    "uneven": (12, 12, (2, 5), (2, 3), (0, 2), (0, 1)),
    "much_padding": (12, 12, 5, 2, 4),
    "depthwise": (12, 12, 4, 2, 1, 0, 12),
    "depthwise_3x3": (12, 12, 3, 2, 1, 1, 12, False),
}


class Transposed(nn.Module):
    def __init__(self, *settings):
        super().__init__()
        self.conv, self.norm = nn.ConvTranspose2d(*settings), nn.BatchNorm2d(12)

    def forward(self, x):
        return F.relu(self.norm(self.conv(x)))


for _name, _settings in TRANSPOSED.items():
    CASES[f"transposed_{_name}"] = lambda settings=_settings: Fn(
        lambda m, x: m.layer(x), layer=Transposed(*settings)
    )

for _name, _layer in {
    "pixel_unshuffle_layer": lambda: nn.Sequential(nn.PixelUnshuffle(2), nn.PixelShuffle(2)),
    "channel_filter": lambda: ChannelFilter(False),
    "channel_filter_turned": lambda: ChannelFilter(True, 3, bias=True),
    "channel_filter_wide": lambda: ChannelFilter(True, 31),
    "response_norm": lambda: ResponseNorm(12),
    "feature_parts": FeatureParts,
    "reflection_pad": lambda: nn.ReflectionPad2d((1, 2, 3, 4)),
    "replication_pad": lambda: nn.Sequential(nn.ReplicationPad2d(2), nn.CircularPad2d((1, 0, 0, 3))),
    "reflected_conv": lambda: nn.Conv2d(12, 12, 3, 2, padding=2, padding_mode="reflect"),
    "circular_conv": lambda: nn.Conv2d(12, 12, (3, 5), padding="same", padding_mode="circular", groups=3),
    "replicated_conv": lambda: nn.Conv2d(12, 12, 3, padding=1, padding_mode="replicate"),
    "prelu": lambda: nn.PReLU(12),
    "zero_pad": lambda: nn.ZeroPad2d((1, 0, 2, 1)),
    "constant_pad": lambda: nn.ConstantPad2d(1, 0.7),
    "channel_shuffle": lambda: nn.ChannelShuffle(6),
    "group_norm_layer": lambda: nn.GroupNorm(4, 12),
    "instance_norm_layer": lambda: nn.InstanceNorm2d(12, affine=True),
    "instance_norm_of_the_past": lambda: nn.InstanceNorm2d(12, track_running_stats=True),
    "upsample": lambda: nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True),
    "upsample_nearest": lambda: nn.UpsamplingNearest2d(size=(8, 9)),
    "adaptive_pair": lambda: nn.AdaptiveAvgPool2d((None, 7)),
    "adaptive_max_layer": lambda: nn.AdaptiveMaxPool2d(3),
    "convnext": lambda: nn.Sequential(ConvNeXtBlock(12), ConvNeXtBlock(12)),
    "shuffle_units": lambda: nn.Sequential(ShuffleUnit(12), ShuffleUnit(12)),
    "norm_of_means": MeanNorm,
    "norm_of_concat": lambda: nn.BatchNorm2d(12),
}.items():
    CASES[f"layer_{_name}"] = lambda layer=_layer: Fn(lambda m, x: m.layer(F.relu(x)), layer=layer())
CASES["constants"] = lambda: Fn(
    lambda m, x: (x - m.mean) / m.std * m.gain + m.one,
    mean=torch.randn(1, 12, 1, 1), std=torch.rand(12, 1, 1) + 0.5, gain=parameter(12, 1, 1), one=parameter(1),
)  # fmt: skip
CASES["standardised_weight"] = lambda: Fn(
    lambda m, x: F.conv2d(x, F.normalize(m.weight, dim=(1, 2, 3)) * 2, m.bias.reshape(-1).exp()),
    weight=parameter(12, 12, 3, 3), bias=parameter(1, 12),
)  # fmt: skip
CASES["thresholded"] = lambda: Fn(
    lambda m, x: torch.maximum(x, m.bound.reshape(1, -1, 1, 1)) * x.maximum(torch.zeros_like(m.one) + 0.1),
    bound=parameter(12), one=parameter(1),
)  # fmt: skip
CASES["reshaped_scale"] = lambda: Fn(lambda m, x: x * m.gamma.reshape(1, -1, 1, 1), gamma=parameter(12))
CASES["layer_scale_residual"] = lambda: Fn(
    lambda m, x: F.relu(m.conv(x) * m.gamma + x), conv=nn.Conv2d(12, 12, 1), gamma=parameter(1, 12, 1, 1)
)
CASES["pad_into_conv"] = lambda: Fn(
    lambda m, x: m.conv(F.pad(x, (0, 1, 2, 1))), conv=nn.Conv2d(12, 12, 3, stride=2, padding=1)
)
for _name, _forward in {
    "slice": lambda x: x[:, 3:8],
    "features": lambda x: x.mean((-1, -2)),
    "flat_slice": lambda x: x[:, 2:4].flatten(1),
    "shuffle": lambda x: F.channel_shuffle(x, 2),
    "image": lambda x: F.interpolate(x.mean((2, 3), keepdim=True), size=(4, 3), mode="bilinear"),
    "norm": lambda x: F.layer_norm(x.mean((2, 3)), (12,)),
    "softmax": lambda x: F.softmax(x.mean((2, 3)), 1),
    "log_softmax": lambda x: x.mean((2, 3)).log_softmax(-1),
    "class_map": lambda x: x.softmax(1),
    "gelu_features": lambda x: F.gelu(x.mean((2, 3))) * 2,
    "channels_last_mean": lambda x: F.silu(x.permute(0, 2, 3, 1)).mean((1, 2)),
}.items():
    CASES[f"output_{_name}"] = lambda forward=_forward: Bare(forward)


def made(name):
    torch.manual_seed(sum(map(ord, name)))
    model = CASES[name]().eval()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias)
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 1.5)
    return model


# Eager PyTorch cannot tell what -1 is, or refuses no images at all.
NOT_EMPTY = (
    *("features_view", "instance_norm", "layer_instance_norm_layer", "vectors", "layer_channel_filter"),
    *("pixel_unshuffle", "layer_pixel_unshuffle_layer"),
    *("attention_pool", "layer_channel_filter_turned", "layer_channel_filter_wide"),
)

EACH = pytest.mark.parametrize("name", CASES)


@EACH
def test_plan_operation_values(name):
    model = made(name)
    x = torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(model, x, strict=True)
    for batch, height, width in ((2, 14, 12), (1, 14, 12), (3, 16, 20), (0, 14, 12)):
        if batch == 0 and name in NOT_EMPTY:
            continue
        x = torch.randn(batch, 3, height, width)
        wanted = truth(model, x)
        actual = frozen(x)
        assert_near(actual, wanted)
        (interpreted,) = run(decode(frozen.plan), frozen.weights, [x])
        assert_near(actual, interpreted)
        meta = torch.ops.cnnfast.run_plan(
            [x.to("meta")], frozen.weights.to("meta"), frozen.plan.to("meta"), frozen.signature
        )[0]
        assert meta.shape == wanted.shape


@EACH
def test_plan_operation_keeps_nan_where_eager_does(name):
    model = made(name)
    x = torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(model, x, winograd=False, strict=True)
    for value in (float("nan"), float("inf")):
        x[1, :, 5, 6] = value
        wanted = truth(model, x)
        assert torch.equal(frozen(x)[0].isfinite(), wanted[0].isfinite())
        assert (frozen(x)[1].isfinite() <= wanted[1].isfinite()).all()


@EACH
def test_plan_operation_results_repeat_bit_for_bit(name):
    model, x = made(name), torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(model, x, strict=True)
    first = frozen(x)
    frozen(torch.full_like(x, float("nan")))
    assert torch.equal(frozen(x), first)


@EACH
def test_plan_operation_with_several_threads(name):
    """Enough work for a plan to wake threads; each step cuts its share by itself."""
    model, x = made(name), torch.randn(5, 3, 48, 40)
    frozen = cnnfast.freeze(model, x, strict=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        alone = frozen(x)
        torch.set_num_threads(3)
        torch.testing.assert_close(frozen(x), alone, rtol=0, atol=1e-5 * alone.abs().max().item())
    finally:
        torch.set_num_threads(before)


KEEPS_SHAPE = [
    "own_silu", "clamp", "product", "product_and_sum", "difference", "scalars", "alpha", "in_place", "chunk",
    "split", "split_even", "narrow", "slice_sum", "slice_of_slice", "plane", "shuffle", "shuffle_pairs",
    "shuffle_own", "shuffle_concat", "shuffle_wide_concat", "amax", "mean_sum", "nearest_like",
    "bilinear_like", "group_norm", "channels_last", "squeeze", "nested_concat", "channel_mean", "channel_max",
    "channel_max_of_pairs", "channels_last_pixels", "pixels_and_channels", "gate_of_a_slice", "quotient",
    "image_norms", "two_paths", "softmax_of_paths", "attention_pool", "vectors", "pad_to_size",
]  # fmt: skip


class Woven(nn.Module):
    """Random operations on random earlier values: places, views and overwritten operands meet."""

    def __init__(self, seed):
        super().__init__()
        choice = random.Random(seed)
        self.first = nn.Conv2d(3, 12, 3, padding=1)
        self.convs = nn.ModuleList(nn.Conv2d(12, 12, 3, padding=1) for _ in range(3))
        self.steps = []
        for i in range(9):
            what = choice.choice(["conv", "add", *KEEPS_SHAPE * 3])
            self.steps.append((what, choice.randrange(3), choice.randint(0, i), choice.randint(0, i)))
        self.kept = choice.sample(range(10), 2)

    def forward(self, x):
        values = [self.first(x)]
        for what, conv, a, b in self.steps:
            if what == "conv":
                values.append(F.hardswish(self.convs[conv](values[a]) + values[b]))
            elif what == "add":
                values.append(F.relu(values[a] + values[b]))
            else:
                values.append(torch.tanh(SIMPLE[what](self, values[a])))
        return torch.cat([values[-1], *[values[i] for i in self.kept]], 1)


@pytest.mark.parametrize("seed", range(60))
def test_plan_of_woven_operations(seed):
    torch.manual_seed(seed)
    model, x = Woven(seed).eval(), torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(model, x, strict=True)
    assert_near(frozen(x), truth(model, x))
    larger = torch.randn(1, 3, 18, 40)
    assert_near(frozen(larger), truth(model, larger))


def operations(name, **kwargs):
    return decode(cnnfast.freeze(made(name), torch.randn(2, 3, 14, 12), strict=True).plan).nodes


def test_plan_activations_are_folded_into_convolutions():
    for name in ACTIVATIONS:
        nodes = operations(f"activation_{name}")
        assert [node.op for node in nodes] == [Op.INPUT, Op.CONV2D, Op.CONV2D], name
        assert nodes[1].activation is not Act.NONE


def test_plan_folds_what_stands_around_convolutions():
    assert [n.op for n in operations("layer_scale_residual")].count(Op.CONV2D) == 3
    assert {n.op for n in operations("layer_scale_residual")} == {Op.INPUT, Op.CONV2D}
    assert {n.op for n in operations("pad_into_conv")} == {Op.INPUT, Op.CONV2D}
    assert {n.op for n in operations("constants")} == {Op.INPUT, Op.CONV2D}
    assert [n.op for n in operations("own_silu")] == [Op.INPUT, Op.CONV2D, Op.CONV2D]
    residual = [n for n in operations("squeeze_excite_residual") if n.op is Op.MULTIPLY]
    assert [(len(n.inputs), n.activation) for n in residual] == [(3, Act.RELU)]


BY_CHANCE = {
    "product": lambda x, y: x * y.mean(3, keepdim=True),
    "sum": lambda x, y: x + y.sum(2, keepdim=True),
    "gate": lambda x, y: F.adaptive_avg_pool2d(x, (y.shape[2], 1)) * y,
}


@pytest.mark.parametrize("name", BY_CHANCE)
def test_plan_does_not_take_sizes_of_1_for_granted(name):
    """Shapes that are equal for images of one pixel are not for others."""

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.last = nn.Conv2d(3, 8, 3, 8, 1), nn.Conv2d(8, 4, 1)

        def forward(self, x):
            x = self.first(x)
            return self.last(BY_CHANCE[name](x, F.relu(x)))

    torch.manual_seed(0)
    model = Net().eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 8, 8))
    for size in ((8, 8), (8, 24), (32, 16)):
        x = torch.randn(2, 3, *size)
        assert_near(frozen(x), truth(model, x))


def test_plan_made_for_one_pixel_serves_larger_images():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, 8, 1), SqueezeExcite(12, nn.Sigmoid()), nn.Conv2d(12, 4, 1)
    ).eval()
    frozen = cnnfast.freeze(model, torch.randn(1, 3, 8, 8), strict=True)
    x = torch.randn(2, 3, 40, 24)
    assert_near(frozen(x), truth(model, x))


def test_plan_makes_transposed_convolutions_ordinary_ones():
    """Batch norm and activation go into the convolution in front of the pixels it becomes."""
    nodes = operations("transposed_4x4")
    assert [n.op for n in nodes] == [Op.INPUT, Op.CONV2D, Op.CONV2D, Op.DEPTH_TO_SPACE, Op.CONV2D]
    assert nodes[2].activation is Act.RELU and nodes[2]["out_channels"] == 48 and nodes[2]["kernel_h"] == 2


def test_plan_folds_what_scales_a_gated_residual():
    nodes = operations("layer_response_norm")
    assert [n.op for n in nodes].count(Op.MULTIPLY) == 2 and Op.ADD not in [n.op for n in nodes]
    (x,) = [torch.randn(2, 3, 14, 12)]
    frozen = cnnfast.freeze(made("layer_response_norm"), x, strict=True)
    assert "multiply, one value per channel, conv 1x1" in torch.ops.cnnfast.describe_plan(
        [x], frozen.weights, frozen.plan
    )


def test_plan_shuffle_reads_the_parts_of_a_concatenation():
    x = torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(made("layer_shuffle_units"), x, strict=True)
    steps = torch.ops.cnnfast.describe_plan([x], frozen.weights, frozen.plan)
    assert steps.count("shuffle") == 2 and "copy 2x" not in steps


def test_plan_of_format_3_is_still_read():
    """Files of the version before: activations without numbers."""
    x = torch.randn(2, 3, 14, 12)
    frozen = cnnfast.freeze(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Sigmoid()), x)
    words, plan = frozen.plan.tolist(), decode(frozen.plan)
    at, kept = 7, words[:7]
    for _ in plan.nodes:
        kept += words[at : at + 2]
        at += 4
        for _ in range(2):
            kept += words[at : at + 1 + words[at]]
            at += 1 + words[at]
    kept += words[at:]
    kept[1] = 3
    kept[2] = torch.ops.cnnfast.checksum(torch.tensor(kept[3:]))
    old = torch.tensor(kept)
    assert decode(old) == plan
    assert torch.equal(torch.ops.cnnfast.run_plan([x], frozen.weights, old)[0], frozen(x))
