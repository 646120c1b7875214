"""Plan ↔ int64 words.

[magic, format, checksum of the words behind, checksum of the weights, number of floats,
number of nodes, number of outputs, nodes, outputs], a node being [op, activation, its two numbers, inputs,
attributes], the last two with their lengths in front. Format 3, which is read too, lacks the numbers.
Format 5 has two words in front of the nodes: how values are stored, and what the outputs are. Plans of
float32 values are written without them, in format 4; those with what only format 6 or 7 has, in that.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from cnnfast.plan.nodes import (
    ALIGNMENT,
    ATTRIBUTES,
    FORMAT,
    MAGIC,
    OLDEST_FORMAT,
    STORAGE_FORMAT,
    Act,
    Node,
    Op,
    Plan,
    PlanError,
    Storage,
    fraction_word,
    word_fraction,
)  # fmt: skip

_CHECKED_FROM = 3  # words behind the checksum
Checksum = Callable[[Tensor], int]


def library_checksum(data: Tensor) -> int:
    """The content hash that the operator library checks."""
    return torch.ops.cnnfast.checksum(data)


def encode(plan: Plan, weights: Tensor, checksum: Checksum = library_checksum) -> Tensor:
    """The words of a plan, 1-D int64, bound to its weights (1-D float32) by checksums."""
    words = [checksum(weights), weights.numel(), len(plan.nodes), len(plan.outputs)]
    if plan.format >= STORAGE_FORMAT:
        words += [plan.values, plan.results]
    for node in plan.nodes:
        attributes = [node[name] for name in ATTRIBUTES[node.op]]
        words += [node.op, node.activation, *map(fraction_word, node.numbers)]
        words += [len(node.inputs), *node.inputs, len(attributes), *attributes]
    words += plan.outputs
    checked = torch.tensor(words, dtype=torch.int64)
    return torch.cat([torch.tensor([MAGIC, plan.format, checksum(checked)]), checked])


def decode(words: Tensor) -> Plan:
    """The plan in these words; PlanError where there is none of this version. Checksums are not looked at."""
    if words.dim() != 1 or words.dtype != torch.int64:
        raise PlanError(f"a plan is 1-D int64, not {words.dim()}-D {words.dtype}")
    reader = _Reader(words.tolist())
    if reader.take() != MAGIC:
        raise PlanError("this is no plan of a frozen network")
    version = reader.take()
    if not OLDEST_FORMAT <= version <= FORMAT:
        remedy = "update cnnfast" if version > FORMAT else "save the network again with this version"
        raise PlanError(
            f"the plan has format {version}, this cnnfast reads formats {OLDEST_FORMAT} to {FORMAT}: {remedy}"
        )
    reader.at = _CHECKED_FROM + 2
    n_nodes, n_outputs = reader.take(), reader.take()
    storage = _read_storage(reader) if version >= STORAGE_FORMAT else ()
    nodes: list[Node] = []
    for _ in range(n_nodes):
        nodes.append(_read_node(reader, len(nodes), has_numbers=version >= 4))
    outputs = reader.take_values(n_outputs)
    if reader.at != len(reader.words) or not outputs or not all(0 <= i < n_nodes for i in outputs):
        raise PlanError("the plan's outputs are damaged")
    return Plan(tuple(nodes), tuple(outputs), *storage)


class _Reader:
    def __init__(self, words: list[int]):
        self.words, self.at = words, 0

    def take(self) -> int:
        return self.take_values(1)[0]

    def take_values(self, count: int) -> list[int]:
        if count < 0 or self.at + count > len(self.words):
            raise PlanError("the plan ends in the middle")
        self.at += count
        return self.words[self.at - count : self.at]


def _read_storage(reader: _Reader) -> tuple[Storage, Storage]:
    try:
        return Storage(reader.take()), Storage(reader.take())
    except ValueError as error:
        raise PlanError(f"the plan's values are unknown to this version ({error}): update cnnfast") from None


def _read_node(reader: _Reader, index: int, has_numbers: bool) -> Node:
    try:
        op, activation = Op(reader.take()), Act(reader.take())
    except ValueError as error:
        raise PlanError(
            f"node {index} of the plan is unknown to this version ({error}): update cnnfast"
        ) from None
    first, second = map(word_fraction, reader.take_values(2)) if has_numbers else (0.0, 0.0)
    inputs = reader.take_values(reader.take())
    if not all(0 <= i < index for i in inputs):
        raise PlanError(f"node {index} of the plan reads values that are not there yet")
    attributes = reader.take_values(reader.take())
    if len(attributes) != len(ATTRIBUTES[op]):
        raise PlanError(f"node {index} of the plan ({op.name.lower()}) has {len(attributes)} attributes")
    named = dict(zip(ATTRIBUTES[op], attributes, strict=True))
    return Node(op, tuple(inputs), named, activation, (first, second))


class Constants:
    """Collects constants into one float32 tensor."""

    def __init__(self):
        self._parts: list[Tensor] = []
        self._size = 0

    def add(self, value: Tensor) -> int:
        """The place of a constant, rounded to float32 and stored contiguously."""
        at = self._size
        padding = -value.numel() % ALIGNMENT
        self._parts += [value.detach().to(torch.float32).reshape(-1), torch.zeros(padding)]
        self._size += value.numel() + padding
        return at

    def tensor(self) -> Tensor:
        return torch.cat(self._parts) if self._parts else torch.zeros(0)
