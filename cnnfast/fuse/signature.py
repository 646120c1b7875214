"""Signatures of forwards, and whether their arguments say which graph stands for them."""

import inspect
import typing
from collections.abc import Callable, Iterable

from torch import nn

_ANY_NUMBER = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)


class NotTraceable(Exception):
    """Why a forward cannot be written down as a graph."""


class NeedsExample(NotTraceable):
    """A forward that does something by sizes, which are those of an example or unknown."""


def parameters_of(cls: type[nn.Module]) -> list[inspect.Parameter]:
    """Of a class's forward, without `self`."""
    return list(inspect.signature(cls.forward).parameters.values())[1:]


def takes_any_number(parameter: inspect.Parameter) -> bool:
    """Whether it is *args or **kwargs."""
    return parameter.kind in _ANY_NUMBER


def is_plain(parameters: Iterable[inspect.Parameter]) -> bool:
    """Whether every call gives the same arguments, by position."""
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return all(p.kind in positional and p.default is p.empty for p in parameters)


def check_own_forward(root: nn.Module) -> None:
    """Raises NotTraceable where the forward is not that of the class."""
    if "forward" in root.__dict__:
        raise NotTraceable("its forward was replaced on the instance")


def check_arguments(cls: type[nn.Module], given: int | None) -> None:
    """Raises NotTraceable where a call with `given` arguments (None: all) is not what the forward takes."""
    parameters = parameters_of(cls)
    rest = [] if given is None else parameters[given:]
    if any(p.default is p.empty and not takes_any_number(p) for p in rest):
        raise NotTraceable(f"its forward takes more than {given} arguments")
    for parameter in parameters[:given]:
        if takes_any_number(parameter):
            raise NotTraceable(f"its forward takes any number of arguments (*{parameter.name})")
        optional = parameter.default is not parameter.empty and given is None
        if optional or parameter.kind is parameter.KEYWORD_ONLY:
            raise NotTraceable(f"its forward has an optional argument ({parameter.name})")


class _Name:
    """Written as it is where a signature is printed."""

    def __init__(self, text: str):
        self.text = text

    def __repr__(self) -> str:
        return self.text


def header(forward: Callable) -> str:
    """A signature as source, with names from `header_names` for annotations and defaults."""
    made = []
    for i, p in enumerate(inspect.signature(forward).parameters.values()):
        changes: dict = {"name": "self"} if i == 0 else {}
        if p.annotation is not p.empty:
            changes["annotation"] = _Name(f"annotation_of_{p.name}")
        if p.default is not p.empty:
            changes["default"] = _Name(f"default_of_{p.name}")
        made.append(p.replace(**changes))
    return str(inspect.Signature(made))


def header_names(forward: Callable) -> dict[str, object]:
    """What the names in `header` stand for."""
    names: dict[str, object] = {}
    try:
        hints = typing.get_type_hints(forward)
    except Exception:  # annotations that name what is not there at run time
        hints = {}
    for p in inspect.signature(forward).parameters.values():
        names[f"annotation_of_{p.name}"] = hints.get(p.name, p.annotation)
        names[f"default_of_{p.name}"] = p.default
    return names


def passed_on(parameters: Iterable[inspect.Parameter]) -> str:
    """A call's arguments that hands on all that was given."""
    signs = {inspect.Parameter.VAR_POSITIONAL: "*{0}", inspect.Parameter.VAR_KEYWORD: "**{0}"}
    signs[inspect.Parameter.KEYWORD_ONLY] = "{0}={0}"
    return ", ".join(signs.get(p.kind, "{0}").format(p.name) for p in parameters)
