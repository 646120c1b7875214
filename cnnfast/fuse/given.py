"""Which calls of a forward with optional arguments a graph of it serves.

A graph has one path. A forward `(x, mask=None, *args)` takes one where a mask is given, another without it,
and one that pads odd sizes takes another for even ones: its graph is for the calls of one kind, told by what
each argument is and how large, and all others run the forward itself.
"""

import inspect
import math
import re
from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from cnnfast.fuse.shells import ORIGINAL_FORWARD, OWN_FORWARD
from cnnfast.fuse.signature import (
    NotTraceable,
    header,
    is_plain,
    parameters_of,
    passed_on,
    takes_any_number,
)
from cnnfast.fuse.sizes import Sizes, sizes_fit

_CONTAINERS = (tuple, list, dict)
_NUMBERS = (int, float)


@dataclass(frozen=True)
class Given:
    """What the arguments of the calls are that a graph serves.

    taken: by name, those that the graph takes, and their class; None: whatever it is.
    fixed: by name, the others, and the value that they have: a number, a word, a flag or None.
    contents: by name, what those in `taken` hold that are no tensors: a tuple or list so many tensors, a dict
        tensors by these keys.
    sizes: what holds for the sizes of all these tensors; there is no dict then.
    Of *args and **kwargs there are none.
    """

    taken: tuple[tuple[str, type | None], ...]
    fixed: tuple[tuple[str, object], ...]
    contents: tuple[tuple[str, int | frozenset[str]], ...] = ()
    sizes: tuple[Sizes, ...] = ()

    def values(self, bound: inspect.BoundArguments) -> tuple | None:
        """What the graph takes in a call; None for a call that it does not serve."""
        whole = inspect.BoundArguments(bound.signature, OrderedDict(bound.arguments))
        whole.apply_defaults()
        functions = helpers()
        exec(self.condition(list(bound.signature.parameters.values())), functions)
        if not functions["given_serves"](*whole.arguments.values()):
            return None
        return tuple(whole.arguments[name] for name, _ in self.taken)

    def words(self) -> str:
        """What is said of the calls: `temb (Tensor), upsample_size=None`."""
        taken = [name if kind is None else f"{name} ({kind.__name__})" for name, kind in self.taken]
        words = ", ".join((*taken, *(f"{name}={value!r}" for name, value in self.fixed)))
        sizes = " and ".join(dict.fromkeys(sizes.words for sizes in self.sizes if sizes.words))
        return f"{words} and {sizes}" if sizes else words

    def condition(self, parameters: list[inspect.Parameter]) -> str:
        """A function of all arguments that tells whether the graph serves a call, as Python."""
        names = {p.name: f"a{i}" for i, p in enumerate(parameters)}  # so that none hides len or type
        tests = [_test(names[name], kind) for name, kind in self.taken if kind is not None]
        tests += [_equals(names[name], value) for name, value in self.fixed]
        tests += [f"not {names[p.name]}" for p in parameters if takes_any_number(p)]
        tests += [f"contents({names[name]}) == {contents!r}" for name, contents in self.contents]
        several = dict(self.contents)
        tensors = [
            f"*{names[name]}" if name in several else names[name]
            for name, kind in self.taken
            if kind is Tensor or name in several
        ]
        tests += [f"sizes_fit([{', '.join(tensors)}], {list(sizes.program)})" for sizes in self.sizes]
        return f"def given_serves({', '.join(names.values())}):\n    return {' and '.join(tests) or 'True'}"


@dataclass(frozen=True)
class Call:
    """A call that was seen: what it gave, and tensors like those, without their values."""

    given: Given
    example: tuple

    def arguments(self) -> tuple:
        """Arguments of the graph, whose tensors have memory and no values yet."""
        return tree_map(lambda value: value.made() if isinstance(value, _Like) else value, self.example)

    def with_sizes(self, sizes: Iterable[Sizes]) -> Given:
        """The calls whose sizes fit too. Raises NotTraceable."""
        sizes = tuple(sizes)
        for name, kind in self.given.taken if sizes else ():
            if kind is dict:
                raise NotTraceable(f"its forward decides by sizes, and takes a dict ({name})")
        return replace(self.given, sizes=sizes)


@dataclass(frozen=True)
class _Like:
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device

    def made(self) -> Tensor:
        return torch.empty_strided(self.shape, self.stride, dtype=self.dtype, device=self.device)


def _like(value: object) -> object:
    if not isinstance(value, Tensor):
        return value
    return _Like(tuple(value.shape), tuple(value.stride()), value.dtype, value.device)


def _contents(value: tuple | list | dict) -> int | frozenset[str] | None:
    """How many tensors a tuple or list holds, or by which keys a dict; None where it holds other things."""
    parts = value.values() if isinstance(value, dict) else value
    if not all(isinstance(part, Tensor) for part in parts):
        return None
    return frozenset(value) if isinstance(value, dict) else len(value)


def helpers() -> dict[str, object]:
    """What the names in a condition stand for."""
    return {"torch": torch, "sizes_fit": sizes_fit, "contents": _contents}


def _test(name: str, kind: type) -> str:
    return f"isinstance({name}, torch.Tensor)" if kind is Tensor else f"isinstance({name}, {kind.__name__})"


def _equals(name: str, value: object) -> str:
    if value is None or isinstance(value, bool):
        return f"{name} is {value}"
    return f"type({name}) is {type(value).__name__} and {name} == {value!r}"


def given_by_default(cls: type[nn.Module]) -> Given | None:
    """Calls with the required arguments alone; None where there are no others.

    Raises NotTraceable where a default is no number, word, flag or None.
    """
    parameters = parameters_of(cls)
    if is_plain(parameters):
        return None
    taken, fixed = [], []
    for p in parameters:
        if takes_any_number(p):
            continue
        if p.default is p.empty:
            taken.append((p.name, None))
        elif _can_be_fixed(p.default):
            fixed.append((p.name, p.default))
        else:
            kind = type(p.default).__name__
            raise NotTraceable(f"its forward has an optional argument ({p.name}), a {kind} by default")
    if not taken:
        raise NotTraceable("its forward has optional arguments alone: give fuse example_inputs")
    return Given(tuple(taken), tuple(fixed))


def seen_call(bound: inspect.BoundArguments) -> Call | None:
    """The calls like this one; None where an argument is of a kind that nothing is known of."""
    taken: list[tuple[str, type | None]] = []
    fixed: list[tuple[str, object]] = []
    contents: list[tuple[str, int | frozenset[str]]] = []
    example: list[object] = []
    for p in bound.signature.parameters.values():
        value = bound.arguments.get(p.name, p.default)
        if takes_any_number(p):
            if bound.arguments.get(p.name):
                return None
        elif (kind := _kind(value, p)) is not None:
            taken.append((p.name, kind))
            example.append(tree_map(_like, value))
            if kind in _CONTAINERS:
                contents.append((p.name, _contents(value)))
        elif _can_be_fixed(value):
            fixed.append((p.name, value))
        else:
            return None
    if not taken or any(held is None for _, held in contents):
        return None
    return Call(Given(tuple(taken), tuple(fixed), tuple(contents)), tuple(example))


def _kind(value: object, parameter: inspect.Parameter) -> type | None:
    """What an argument that the graph takes is; None for one whose value is to be fixed."""
    if isinstance(value, Tensor):
        return Tensor
    by_value = type(value) in _NUMBERS and parameter.default is not parameter.empty
    return type(value) if type(value) in (*_CONTAINERS, *_NUMBERS) and not by_value else None


def _can_be_fixed(value: object) -> bool:
    finite = type(value) not in _NUMBERS or math.isfinite(value)
    return finite and (value is None or type(value) in (bool, str, *_NUMBERS))


def take_given(probe: nn.Module, given: Given) -> None:
    """Give a module a forward that takes what the graph takes."""
    cls = type(probe)
    parameters = parameters_of(cls)
    names = [name for name, _ in given.taken]
    original = "original"
    while original in names:
        original += "_"
    values = {f"fixed_{i}_": value for i, (_, value) in enumerate(given.fixed)}
    by_name = dict(zip((name for name, _ in given.fixed), values, strict=True))
    handed_on = []
    for p in parameters:
        if not takes_any_number(p):
            value = by_name.get(p.name, p.name)
            handed_on.append(f"{p.name}={value}" if p.kind is p.KEYWORD_ONLY else value)
    source = "\n".join(
        (
            f"def forward({', '.join(['self', *names])}):",
            f"    return {original}({', '.join(['self', *handed_on])})",
        )
    )
    body: dict = {original: cls.forward, **values}
    exec(source, body)
    shortened = {"forward": body["forward"], "__module__": cls.__module__}
    probe.__class__ = type(cls.__name__, (cls,), shortened)


def source_for_given(
    source: str, names: dict[str, object], cls: type[nn.Module], given: Given
) -> tuple[str, dict[str, object]]:
    """A forward of the original's signature that calls the one in `source` where it serves the call."""
    parameters = parameters_of(cls)
    inner = re.sub(r"^def forward\(", "def given_forward(", source, count=1, flags=re.MULTILINE)
    taken = ", ".join(["self", *(name for name, _ in given.taken)])
    own = f"return self.{ORIGINAL_FORWARD}({passed_on(parameters)})"
    body = [
        f"if not self.{OWN_FORWARD} and given_serves({', '.join(p.name for p in parameters)}):",
        f"    return given_forward({taken})",
        own,
    ]
    if not any(map(takes_any_number, parameters)):  # torch.jit takes no such forward, whatever is in it
        body = ["if torch.jit.is_scripting():", f"    {own}", "else:", *(f"    {line}" for line in body)]
    lines = [f"def forward{header(cls.forward)}:", *(f"    {line}" for line in body)]
    functions = (inner.strip("\n"), given.condition(parameters), "\n".join(lines))
    return "\n\n\n".join(functions) + "\n", helpers() | names
