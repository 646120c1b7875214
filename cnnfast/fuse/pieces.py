"""Pieces of a tensor that a forward loops over: `for part in x.chunk(2, 1)`, `list(x.split((8, 8), 1))`."""

import torch
from torch import Tensor, fx

_CUTS = {
    **dict.fromkeys((torch.chunk, torch.Tensor.chunk, "chunk"), "chunks"),
    **dict.fromkeys((torch.split, torch.Tensor.split, "split"), "split_size"),
    **dict.fromkeys(
        (torch.split_with_sizes, torch.Tensor.split_with_sizes, "split_with_sizes"), "split_sizes"
    ),
}
_CHANNELS = (1, -3)


def is_cut(node: fx.Node) -> bool:
    """Whether a node gives pieces of a tensor."""
    return node.target in _CUTS


def number_of_pieces(node: fx.Node) -> int | None:
    """How many pieces a call of chunk or split gives, where that does not depend on the tensor's size.

    chunk(n, 1) counts as n pieces of the channels; `of_number` says where there are fewer.
    """
    named = _CUTS.get(node.target)
    if named is None:
        return None
    how = node.args[1] if len(node.args) > 1 else node.kwargs.get(named)
    if isinstance(how, (list, tuple)):
        return len(how)
    dim = node.args[2] if len(node.args) > 2 else node.kwargs.get("dim", 0)
    return how if named == "chunks" and isinstance(how, int) and dim in _CHANNELS else None


def of_number(pieces: list[Tensor], number: int) -> list[Tensor]:
    """The pieces themselves. Raises RuntimeError where their number is another one."""
    if len(pieces) != number:
        raise RuntimeError(
            f"a fused forward loops over {number} pieces of a tensor, as it was told to cut, and has "
            f"{len(pieces)}: the tensor has another size. Leave the module around it out, by filter_fn"
        )
    return pieces
