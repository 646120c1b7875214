"""Convolutions to try: every code path of a kernel and its edges."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Geometry:
    """One convolution; in and out are channels, size is the image."""

    name: str
    size: tuple = (9, 8)
    channels: tuple = (5, 7)
    kernel: tuple = (3, 3)
    stride: tuple = (1, 1)
    padding: tuple = (0, 0)
    dilation: tuple = (1, 1)
    groups: int = 1
    batch: int = 2

    @property
    def options(self):
        return {
            "stride": self.stride,
            "padding": self.padding,
            "dilation": self.dilation,
            "groups": self.groups,
        }

    def input(self, dtype=torch.float32):
        return torch.randn(self.batch, self.channels[0], *self.size, dtype=dtype)

    def weight(self, dtype=torch.float32):
        """Scaled so that outputs are of the order of 1."""
        per_group = self.channels[0] // self.groups
        weight = torch.randn(self.channels[1], per_group, *self.kernel, dtype=dtype)
        return weight / (per_group * self.kernel[0] * self.kernel[1]) ** 0.5

    def output_shape(self):
        sides = zip(self.size, self.kernel, self.stride, self.padding, self.dilation, strict=True)
        image = [(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in sides]
        return (self.batch, self.channels[1], *image)

    def channel_values(self):
        return torch.rand(self.channels[1]) + 0.5

    def __str__(self):
        return self.name


GEOMETRIES = [
    Geometry("1x1", kernel=(1, 1)),
    Geometry("1x1_stride2", kernel=(1, 1), stride=(2, 2)),
    Geometry("1x1_padded", kernel=(1, 1), padding=(1, 1)),
    Geometry("1x1_wide", kernel=(1, 1), channels=(67, 130), size=(5, 7)),
    Geometry("3x3", padding=(1, 1)),
    Geometry("3x3_no_padding"),
    Geometry("3x3_one_channel", channels=(1, 16), padding=(1, 1)),
    Geometry("3x3_to_one_channel", channels=(16, 1), padding=(1, 1)),
    Geometry("3x3_three_channels", channels=(3, 33), size=(17, 19), padding=(1, 1)),
    Geometry("3x3_full_vectors", channels=(16, 64), size=(12, 12), padding=(1, 1)),
    Geometry("3x3_odd_channels", channels=(19, 37), size=(11, 13), padding=(1, 1)),
    Geometry("3x3_wide_padding", padding=(2, 2)),
    Geometry("3x3_huge_padding", size=(4, 3), padding=(5, 4)),
    Geometry("3x3_stride2", size=(10, 11), stride=(2, 2), padding=(1, 1)),
    Geometry("3x3_stride_beyond_kernel", size=(17, 16), stride=(4, 5)),
    Geometry("3x3_dilated", size=(11, 12), padding=(2, 2), dilation=(2, 2)),
    Geometry("3x3_dilated_unequally", size=(13, 12), padding=(1, 3), dilation=(1, 3), stride=(2, 1)),
    Geometry("5x5_one_channel", channels=(1, 6), size=(28, 28), kernel=(5, 5), padding=(2, 2)),
    Geometry("5x5", channels=(6, 16), size=(14, 14), kernel=(5, 5)),
    Geometry("7x7_stride2", channels=(3, 18), size=(23, 21), kernel=(7, 7), stride=(2, 2), padding=(3, 3)),
    Geometry("11x11_stride4", channels=(1, 9), size=(35, 31), kernel=(11, 11), stride=(4, 4)),
    Geometry("3x5", kernel=(3, 5), channels=(2, 3), size=(3, 5), padding=(1, 2)),
    Geometry("1x7", kernel=(1, 7), padding=(0, 3)),
    Geometry("2x2", kernel=(2, 2), padding=(1, 0)),
    Geometry("kernel_is_image", size=(6, 5), kernel=(6, 5)),
    Geometry("one_pixel", size=(1, 1), padding=(1, 1)),
    Geometry("one_row", size=(1, 40), kernel=(1, 3), padding=(0, 1)),
    Geometry("one_column", size=(40, 1), kernel=(3, 1), padding=(1, 0)),
    Geometry("one_image", batch=1, size=(20, 18), channels=(8, 24), padding=(1, 1)),
    Geometry("many_images", batch=9, size=(4, 4), channels=(8, 8), padding=(1, 1)),
    Geometry("two_groups", channels=(6, 10), groups=2, padding=(1, 1)),
    Geometry("three_odd_groups", channels=(15, 21), groups=3, padding=(1, 1), stride=(2, 2)),
    Geometry("groups_of_4", channels=(36, 36), groups=9, size=(9, 13), padding=(1, 1)),
    Geometry("groups_of_4_stride2", channels=(20, 20), groups=5, padding=(1, 1), stride=(2, 2)),
    Geometry("groups_of_8", channels=(40, 40), groups=5, size=(6, 21), padding=(1, 1)),
    Geometry("groups_of_8_stride2", channels=(16, 16), groups=2, padding=(1, 1), stride=(2, 2)),
    Geometry("groups_of_8_dilated", channels=(24, 24), groups=3, padding=(2, 2), dilation=(2, 2)),
    Geometry("depthwise_5x5", channels=(33, 33), groups=33, kernel=(5, 5), size=(9, 19), padding=(2, 2)),
    Geometry("depthwise_7x7", channels=(16, 16), groups=16, kernel=(7, 7), size=(9, 11), padding=(3, 3)),
    Geometry("depthwise_stride3", channels=(18, 18), groups=18, padding=(1, 1), stride=(3, 3)),
    Geometry("depthwise", channels=(19, 19), groups=19, padding=(1, 1)),
    Geometry("depthwise_full_vectors", channels=(32, 32), groups=32, size=(10, 9), padding=(1, 1)),
    Geometry("depthwise_stride2", channels=(17, 17), groups=17, stride=(2, 2), padding=(1, 1)),
    Geometry("depthwise_twofold", channels=(5, 10), groups=5, padding=(1, 1)),
    Geometry(
        "depthwise_5x5_dilated", channels=(9, 9), groups=9, kernel=(5, 5), padding=(4, 4), dilation=(2, 2)
    ),
]

# A few that stand for the rest where every one would take too long.
TYPICAL = [
    g for g in GEOMETRIES if g.name in ("1x1", "3x3_odd_channels", "3x3_stride2", "two_groups", "depthwise")
]
