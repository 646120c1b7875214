"""Networks by name, one for every operation that a plan holds."""

import torch
import torch.nn.functional as F
from torch import nn

from .plan_functions import SIMPLE


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
CASES = {}
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
