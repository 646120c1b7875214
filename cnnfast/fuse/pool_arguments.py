"""The arguments of pooling functions, and of pooling modules at the time of fusing."""

from torch import nn

from cnnfast.fuse.foreign import pads_to_same
from cnnfast.fuse.groups import Group
from cnnfast.fuse.kinds import module_of


def max_pool_arguments(
    input, kernel_size, stride=None, padding=0, dilation=1, ceil_mode=False, return_indices=False
) -> tuple:
    """The arguments of F.max_pool2d as those of runtime.max_pool."""
    stride = kernel_size if stride in (None, [], ()) else stride
    return input, *map(_two, (kernel_size, stride, padding, dilation)), ceil_mode


def avg_pool_arguments(
    input, kernel_size, stride=None, padding=0, ceil_mode=False, count_include_pad=True, divisor_override=None
) -> tuple:
    """The arguments of F.avg_pool2d as those of runtime.avg_pool."""
    stride = kernel_size if stride in (None, [], ()) else stride
    return input, *map(_two, (kernel_size, stride, padding)), ceil_mode, count_include_pad, divisor_override


def is_plain_pool(group: Group, root: nn.Module) -> bool:
    """Whether a pool has window, stride and padding alone, as stages of a block have."""
    pool = module_of(group.first, root)
    if pads_to_same(pool):
        return False
    if group.kind == "max_pool":
        if pool is None:
            *_, dilation, ceil_mode = max_pool_arguments(*group.first.args, **group.first.kwargs)
        else:
            dilation, ceil_mode = _two(pool.dilation), pool.ceil_mode
        return dilation == [1, 1] and not ceil_mode
    if pool is None:
        *_, ceil_mode, _, divisor = avg_pool_arguments(*group.first.args, **group.first.kwargs)
    else:
        ceil_mode, divisor = pool.ceil_mode, pool.divisor_override
    return not ceil_mode and divisor is None


def _two(size: int | list[int] | tuple[int, ...]) -> list[int]:
    sizes = [size] if isinstance(size, int) else list(size)
    return sizes * 2 if len(sizes) == 1 else sizes
