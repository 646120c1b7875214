"""Checkpoints made with the course notes' own code."""

from typing import Dict, List, Mapping

import torch
from torch import Tensor, nn


def load_plain_state_dict(net: nn.Module, state_dict: Mapping[str, Tensor]) -> nn.Module:
    """Copy a checkpoint of the notes' plain PyTorch code into the same network of ours; returns the network.

    The tensors are matched by position: the notes' code and ours hold the same ones in the same order, under
    other names. A module that defines its layers in another order says so in its attribute `plain_prefixes`:
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
    return _ordered(net, [key for key in net.state_dict() if not key.endswith("num_batches_tracked")])


def _ordered(module: nn.Module, keys: List[str]) -> List[str]:
    """The module's own keys in the notes' order, that of its children put right first."""
    prefixes = getattr(module, "plain_prefixes", None)
    if prefixes is None:
        prefixes = list(dict.fromkeys(key.split(".")[0] for key in keys))
    ordered: List[str] = []
    for prefix in prefixes:
        inner = [key[len(prefix) + 1 :] for key in keys if key.startswith(prefix + ".")]
        if inner:
            ordered += [f"{prefix}.{key}" for key in _ordered(module.get_submodule(prefix), inner)]
        elif prefix in keys:
            ordered.append(prefix)
    if sorted(ordered) != sorted(keys):
        raise ValueError(
            f"{type(module).__name__}.plain_prefixes {prefixes} do not cover each key once: {keys}"
        )
    return ordered
