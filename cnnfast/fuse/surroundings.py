"""What a forward can write to or draw from beside its module: globals, classes' data, random numbers."""

import functools
import io
import random
import sys
import types
from collections.abc import Iterator

import torch
from torch import nn

_CODE = (type, types.ModuleType, types.BuiltinFunctionType)
_OWN_PACKAGES = ("torch", "cnnfast", "numpy")  # whose classes and functions are not looked into


class Names:
    """Some names of a namespace, a module's globals or a class, with what they stand for."""

    def __init__(self, holder: dict | type, names: frozenset[str]):
        self._holder, self._names = holder, names
        self.before = self._present()

    def changed(self) -> list[str]:
        now = self._present()
        return [name for name in self._names if now.get(name, self) is not self.before.get(name, self)]

    def take_back(self, name: str) -> None:
        if isinstance(self._holder, dict):
            self._holder.pop(name, None)
            if name in self.before:
                self._holder[name] = self.before[name]
        elif name in self.before:
            setattr(self._holder, name, self.before[name])
        else:
            delattr(self._holder, name)

    def _present(self) -> dict[str, object]:
        space = self._holder if isinstance(self._holder, dict) else vars(self._holder)
        return {name: space[name] for name in self._names if name in space}


def names_around(cls: type) -> list[Names]:
    """What the functions of a user's class name of globals, and data that the class itself holds."""
    found = [Names(holder, names) for holder, names in _globals_of(cls)]
    return found + [Names(part, names) for part in _own_classes(cls) if (names := _data_of(part))]


def is_plain_object(value: object) -> bool:
    """An instance of a class that a user wrote, or a namespace: attributes may be set to anything.

    None where reading alone may set attributes.
    """
    if isinstance(value, types.SimpleNamespace):
        return True
    if isinstance(value, (type, nn.Module, torch.Tensor)) or not _is_users(type(value)):
        return False
    return isinstance(getattr(value, "__dict__", None), dict) and not _caches(type(value))


def _caches(cls: type) -> bool:
    values = (value for part in cls.__mro__ for value in vars(part).values())
    return any(isinstance(value, functools.cached_property) for value in values)


def differs_by_call(value: object) -> bool:
    """An attribute that gives another value whenever it is asked: iterators, generators, open files."""
    return isinstance(value, (Iterator, random.Random, torch.Generator, io.IOBase)) or (
        type(value).__module__.startswith("numpy.random")
    )


def random_states() -> tuple:
    """Where the random numbers of Python, numpy and torch are."""
    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state()[1:3] if numpy is not None else ()
    where = (drawn[0].tobytes(), drawn[1]) if drawn else ()
    return random.getstate(), where, torch.get_rng_state().numpy().tobytes()


class RandomNumbers:
    """The present states, to come back to."""

    def __init__(self):
        numpy = sys.modules.get("numpy")
        self._numpy = (numpy.random, numpy.random.get_state()) if numpy is not None else None
        self._python, self._torch = random.getstate(), torch.get_rng_state()

    def take_back(self) -> None:
        random.setstate(self._python)
        torch.set_rng_state(self._torch)
        if self._numpy is not None:
            module, state = self._numpy
            module.set_state(state)


def _is_users(cls: type) -> bool:
    package = cls.__module__.partition(".")[0]
    return package not in _OWN_PACKAGES and (package == "__main__" or package not in sys.stdlib_module_names)


def _own_classes(cls: type) -> list[type]:
    return [part for part in cls.__mro__ if _is_users(part) and "_cnnfast_recipe" not in vars(part)]


def _data_of(cls: type) -> frozenset[str]:
    """Attributes of a class that are no functions."""
    code = (types.FunctionType, classmethod, staticmethod, property, type)
    held = vars(cls).items()
    return frozenset(name for name, value in held if name[:2] != "__" and not isinstance(value, code))


def _globals_of(cls: type) -> tuple[tuple[dict, frozenset[str]], ...]:
    """By namespace, the data that functions of a class name, and functions of theirs, of the same module."""
    spaces: dict[int, tuple[dict, set[str]]] = {}
    held = [value for part in _own_classes(cls) for value in vars(part).values()]
    waiting = [value for value in held if isinstance(value, types.FunctionType)]
    seen = set(waiting)
    while waiting:
        function = waiting.pop()
        space, names = spaces.setdefault(id(function.__globals__), (function.__globals__, set()))
        for name in _names_in(function.__code__):
            value = space.get(name)
            if isinstance(value, types.FunctionType):
                if value.__globals__ is space and value not in seen:
                    seen.add(value)
                    waiting.append(value)
            elif name in space and not isinstance(value, _CODE):
                names.add(name)
    return tuple((space, frozenset(names)) for space, names in spaces.values() if names)


def _names_in(code: types.CodeType) -> set[str]:
    inner = (part for part in code.co_consts if isinstance(part, types.CodeType))
    return set(code.co_names).union(*map(_names_in, inner))
