"""Functions of a network's values, by name: operations that a plan holds; and networks woven of them."""

import random

import torch
import torch.nn.functional as F
from torch import nn


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
