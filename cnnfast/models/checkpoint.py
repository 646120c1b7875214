"""Checkpoints made with the course notes' own code."""

from typing import Dict, List, Mapping

import torch
from torch import Tensor, nn


def load_plain_state_dict(net: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Copy a checkpoint of the notes' plain PyTorch code into the same network of ours; returns the network.

    The tensors are matched by position: the notes' code and ours hold the same ones in the same order, under
    other names. A network that defines its layers in another order says so in its attribute `plain_prefixes`:
    the prefixes of its keys, in the notes' order. num_batches_tracked is neither asked for nor loaded.

    Raises ValueError, with the network unchanged, where the number of tensors or a shape differs; names both
    keys.
    """
    ours = _in_plain_order(net)
    theirs = [key for key in state_dict if not key.endswith("num_batches_tracked")]
    target = net.state_dict()
    for own, plain in zip(ours, theirs, strict=False):  # of unequal lengths: said below
        if target[own].shape != state_dict[plain].shape:
            raise ValueError(
                f"load_plain_state_dict: {plain!r} has shape {list(state_dict[plain].shape)}, but {own!r} of "
                f"{type(net).__name__} has {list(target[own].shape)}"
            )
    if len(ours) != len(theirs):
        missing, extra = ours[len(theirs) :], theirs[len(ours) :]
        what = f"it lacks tensors for {missing}" if missing else f"it has more: {extra}"
        raise ValueError(
            f"load_plain_state_dict: {type(net).__name__} has {len(ours)} tensors, "
            f"the checkpoint {len(theirs)}; {what}"
        )
    with torch.no_grad():
        for own, plain in zip(ours, theirs, strict=True):
            target[own].copy_(state_dict[plain])
    return net


def plain_key_map(net: nn.Module, plain_keys: List[str]) -> Dict[str, str]:
    """Our key for every key of the notes' code, in its order; num_batches_tracked left out."""
    theirs = [key for key in plain_keys if not key.endswith("num_batches_tracked")]
    return dict(zip(theirs, _in_plain_order(net), strict=True))


def _in_plain_order(net: nn.Module) -> List[str]:
    keys = [key for key in net.state_dict() if not key.endswith("num_batches_tracked")]
    prefixes = getattr(net, "plain_prefixes", None)
    if prefixes is None:
        return keys
    ordered = [key for prefix in prefixes for key in keys if key.startswith(prefix + ".")]
    if sorted(ordered) != sorted(keys):
        raise ValueError(f"{type(net).__name__}.plain_prefixes {prefixes} do not cover each key once: {keys}")
    return ordered
