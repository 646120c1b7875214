"""Results with named fields in TorchScript, which has no such classes: a dict of what the fields hold."""

from dataclasses import is_dataclass

import torch
from torch import fx


def as_dict_when_scripted(
    source: str, names: dict[str, object], graph: fx.Graph
) -> tuple[str, dict[str, object]]:
    """A forward that gives a dict with named fields gives a plain one where torch.jit.script compiles it."""
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if not isinstance(result, fx.Node) or not _is_named_dict(result.target) or len(result.users) > 1:
        return source, names
    fields = {name: value for name, value in result.kwargs.items() if value is not None}
    written = ", ".join(f"{name!r}: {_written(value)}" for name, value in fields.items())
    lines = source.split("\n")
    at = next(i for i, line in enumerate(lines) if line.startswith(f"    {result.name} = "))
    branch = ["    if torch.jit.is_scripting():", f"        return {{{written}}}", "    else:"]
    rest = [f"    {line}" for line in lines[at:] if line.strip()]
    return "\n".join([*lines[:at], *branch, *rest, ""]), names | {"torch": torch}


def _is_named_dict(target: object) -> bool:
    return isinstance(target, type) and issubclass(target, dict) and is_dataclass(target)


def _written(value: object) -> str:
    """As the forward names it."""
    if isinstance(value, tuple):
        return f"({''.join(f'{_written(part)}, ' for part in value)})"
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return value.name if isinstance(value, fx.Node) else repr(value)
