"""A table of a network's layers: output shape, parameters and multiply-adds."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from cnnfast.fuse.module import FusedModule
from cnnfast.nn import BatchNormAct2d, BNActConv2d, ConvAct2d, ConvBNAct2d, LinearBNAct

_HEADER = ("layer", "type", "output shape", "parameters", "multiply-adds")
_ALIGN = ("<", "<", "<", ">", ">")


@dataclass
class Row:
    """One call of one layer."""

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    multiply_adds: int  # per image


@dataclass
class Summary:
    """Rows in the order of execution, and the sums. Prints as plain text, and as a table with rich."""

    title: str
    input_shape: tuple[int, ...]
    rows: list[Row] = field(default_factory=list)
    parameters: int = 0
    multiply_adds: int = 0  # per image

    def _cells(self) -> list[tuple[str, ...]]:
        return [
            (r.name, r.kind, _shape_text(r.output_shape), f"{r.parameters:,}", f"{r.multiply_adds:,}")
            for r in self.rows
        ]

    def _totals(self) -> tuple[str, ...]:
        return ("total", "", "", f"{self.parameters:,}", f"{self.multiply_adds:,}")

    def __str__(self) -> str:
        lines = [_HEADER, *self._cells(), self._totals()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(_HEADER))]
        title = f"{self.title}, input {_shape_text(self.input_shape)}; multiply-adds are per image"
        return "\n".join([title, *(_text_line(line, widths) for line in lines)])

    def __rich__(self):
        from rich.table import Table

        table = Table(
            title=f"{self.title}, input {_shape_text(self.input_shape)}", caption="multiply-adds per image"
        )
        for head, align in zip(_HEADER, _ALIGN, strict=True):
            table.add_column(head, justify="right" if align == ">" else "left")
        for cells in self._cells():
            table.add_row(*cells)
        table.add_section()
        table.add_row(*self._totals())
        return table


def summary(model: nn.Module, input_shape: Sequence[int], depth: int = 1) -> Summary:
    """Name, output shape, parameters and multiply-adds of every layer, as the notes print them.

    Args:
        model: any network whose forward takes one tensor. It is left as it was; nothing is computed (meta
            tensors). Of a network from `cnnfast.fuse`, the layers before fusing.
        input_shape: with the batch in front, e.g. (1, 1, 28, 28).
        depth: 1 lists the top-level children, 2 their children as well, and so on.

    Returns:
        A `Summary`: print it, or read `.rows`, `.parameters`, `.multiply_adds`. A layer called twice has two
        rows and its parameters in the first. Multiply-adds are those of convolutions and linear layers, per
        image.

    Raises:
        ValueError: input_shape without a batch dimension, a batch of 0, or depth below 1.
    """
    _check(input_shape, depth)
    name = type(model).__name__
    if isinstance(model, FusedModule):
        model = model.unfuse()  # the layers that the fused network computes, called one by one
    recorder = _Recorder(batch=input_shape[0])
    with recorder.watch(model, depth), _evaluation(model), torch.no_grad():
        tensors = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        on_meta = {key: tensor.to("meta") for key, tensor in tensors.items()}
        dtype = next((p.dtype for p in model.parameters()), torch.float32)
        torch.func.functional_call(model, on_meta, (torch.empty(*input_shape, device="meta", dtype=dtype),))
    parameters = sum(p.numel() for p in model.parameters())
    return Summary(
        name,
        tuple(input_shape),
        recorder.rows,
        parameters,
        recorder.multiply_adds // input_shape[0],
    )


def _check(input_shape: Sequence[int], depth: int) -> None:
    if len(input_shape) < 2:
        right = ", ".join(map(str, (1, *input_shape)))
        raise ValueError(f"summary: input_shape {tuple(input_shape)} lacks the batch; write ({right})")
    if input_shape[0] < 1:
        raise ValueError(f"summary: input_shape {tuple(input_shape)} must hold at least one image")
    if depth < 1:
        raise ValueError(f"summary: depth must be at least 1, not {depth}")


class _Recorder:
    """Rows in the order of the calls; multiply-adds of inner calls count for the layers around them."""

    def __init__(self, batch: int):
        self.batch = batch
        self.rows: list[Row] = []
        self.multiply_adds = 0
        self._open: list[tuple[Row, int]] = []  # running calls, and the multiply-adds before each

    @contextmanager
    def watch(self, model: nn.Module, depth: int) -> Iterator[None]:
        handles = []
        listed = _layers(model, depth) or {type(model).__name__: model}
        try:
            for module in _counted(model):  # before the rows' hooks: a row is to see its own layer counted
                handles.append(module.register_forward_hook(self._count))
            for name, module in listed.items():
                handles.append(module.register_forward_pre_hook(self._begin(name)))
                handles.append(module.register_forward_hook(self._end()))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _count(self, module: nn.Module, _inputs: tuple, output: Tensor) -> None:
        self.multiply_adds += output.numel() * module.weight[0].numel()

    def _begin(self, name: str):
        def hook(module: nn.Module, _inputs: tuple) -> None:
            first = all(row.name != name for row in self.rows)
            parameters = sum(p.numel() for p in module.parameters()) if first else 0
            self.rows.append(Row(name, type(module).__name__, (), parameters, 0))
            self._open.append((self.rows[-1], self.multiply_adds))

        return hook

    def _end(self):
        def hook(_module: nn.Module, _inputs: tuple, output: object) -> None:
            row, before = self._open.pop()
            row.output_shape = _shape(output)
            row.multiply_adds = (self.multiply_adds - before) // self.batch

        return hook


# Fused layers, whose children hold parameters and are no layers of their own.
_HOLDERS = (BatchNormAct2d, BNActConv2d, ConvAct2d, ConvBNAct2d, LinearBNAct)


def _layers(model: nn.Module, depth: int, prefix: str = "") -> dict[str, nn.Module]:
    """Modules down to `depth`, by name."""
    found: dict[str, nn.Module] = {}
    if depth < 1 or isinstance(model, _HOLDERS):
        return found
    for name, child in model.named_children():
        found[prefix + name] = child
        found.update(_layers(child, depth - 1, f"{prefix}{name}."))
    return found


def _counted(model: nn.Module) -> list[nn.Module]:
    """Every convolution and linear layer once. A child that only holds parameters is called for its hook."""
    return [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


@contextmanager
def _evaluation(model: nn.Module) -> Iterator[None]:
    """Eval mode inside, every module's own mode restored behind."""
    modes = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _shape(output: object) -> tuple[int, ...]:
    while isinstance(output, (list, tuple)) and output:
        output = output[0]
    return tuple(output.shape) if isinstance(output, Tensor) else ()


def _shape_text(shape: tuple[int, ...]) -> str:
    return "×".join(map(str, shape))


def _text_line(cells: tuple[str, ...], widths: list[int]) -> str:
    columns = zip(cells, widths, _ALIGN, strict=True)
    return "  ".join(f"{cell:{align}{width}}" for cell, width, align in columns).rstrip()
