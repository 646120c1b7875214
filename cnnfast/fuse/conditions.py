"""Conditions on symbolic sizes, and the programs of fuse/sizes.py that check them.

Beside that file, which generated forwards need: sympy takes as long to import as torch does.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import sympy

from cnnfast.fuse.sizes import (
    ADD,
    CONSTANT,
    EQUAL,
    FLOOR_DIVIDE,
    LARGER,
    LESS,
    MULTIPLY,
    RANK,
    REMAINDER,
    REQUIRE,
    SIZE,
    SMALLER,
    Sizes,
)


class NotExpressible(Exception):
    """A size is no whole-number expression of the arguments' sizes that a program can hold."""


@dataclass(frozen=True)
class Condition:
    """A relation between sizes, and whether it has to hold."""

    relation: sympy.Basic
    holds: bool


def sizes_of(
    conditions: Sequence[Condition], symbols: dict[sympy.Symbol, tuple[int, int]], ranks: Sequence[int]
) -> Sizes:
    """The program for conditions on symbols, which stand for (tensor, dimension).

    Raises NotExpressible.
    """
    made = _Program(symbols)
    for tensor, rank in enumerate(ranks):
        made.add(RANK, tensor, rank)
    for condition in conditions:
        made.add(REQUIRE, made.value(condition.relation), int(condition.holds))
    several = len(ranks) > 1
    names = {
        symbol: sympy.Symbol(f"{f'input {t} ' if several else ''}size({d})")
        for symbol, (t, d) in symbols.items()
    }
    words = [_in_words(condition.relation.xreplace(names), condition.holds) for condition in conditions]
    return Sizes(tuple(made.instructions), " and ".join(dict.fromkeys(words)))


def _in_words(relation: sympy.Basic, holds: bool) -> str:
    text = _written(relation if holds else sympy.Not(relation))
    return text if len(text) < 200 else f"{text[:200]}..."


_SIGNS = {
    **{"Add": " + ", "Mul": " * ", "FloorDiv": " // ", "CleanDiv": " // ", "Mod": " % ", "PythonMod": " % "},
    **{"FloatTrueDiv": " / ", "IntTrueDiv": " / "},
    **{"Equality": " == ", "Unequality": " != ", "StrictLessThan": " < ", "LessThan": " <= "},
    **{"StrictGreaterThan": " > ", "GreaterThan": " >= ", "And": " and ", "Or": " or "},
}


_CALLS = {"Max": "max", "Min": "min", "CeilToInt": "ceil", "FloorToInt": "floor"}


def _written(expression: sympy.Basic) -> str:
    """As Python would have it."""
    expression = _whole(expression)
    kind = type(expression).__name__
    sign = _SIGNS.get(kind)
    if sign is None and kind not in _CALLS:
        return str(expression)
    parts = [_written(part) for part in expression.args]
    if kind in _CALLS:
        return f"{_CALLS[kind]}({', '.join(parts)})"
    return sign.join(
        f"({text})" if _whole(part).args else text for part, text in zip(expression.args, parts, strict=True)
    )


@dataclass
class _Program:
    symbols: dict[sympy.Symbol, tuple[int, int]]
    instructions: list[int] = field(default_factory=list)
    _places: dict[tuple[int, int, int], int] = field(default_factory=dict)

    def add(self, operation: int, a: int, b: int) -> int:
        key = operation, a, b
        if key not in self._places:
            self._places[key] = len(self.instructions) // 3
            self.instructions += key
        return self._places[key]

    def value(self, expression: sympy.Basic) -> int:
        """The place of an expression's value; 1 and 0 for true and false."""
        expression = _whole(expression)
        if expression in self.symbols:
            return self.add(SIZE, *self.symbols[expression])
        if expression in (sympy.true, sympy.false):
            return self.add(CONSTANT, int(bool(expression)), 0)
        if isinstance(expression, sympy.Integer):
            return self.add(CONSTANT, int(expression), 0)
        kind = type(expression).__name__
        if kind in _WHOLE:
            return self._rounded(expression.args[0], up=kind == "CeilToInt")
        if kind in _NEGATED:
            return self.add(EQUAL, self.value(_NEGATED[kind](expression)), self.add(CONSTANT, 0, 0))
        if kind not in _OPERATIONS:
            raise NotExpressible(f"{kind} in {expression}")
        operation, swapped = _OPERATIONS[kind]
        first, *others = expression.args
        place = self.value(first)
        for other in others:
            pair = (self.value(other), place) if swapped else (place, self.value(other))
            place = self.add(operation, *pair)
        return place

    def _rounded(self, quotient: sympy.Basic, up: bool) -> int:
        """The place of a quotient of whole numbers, rounded to one."""
        if type(quotient).__name__ not in _QUOTIENTS:
            raise NotExpressible(f"{quotient}, rounded")
        above, below = map(self.value, quotient.args)
        minus = self.add(CONSTANT, -1, 0)
        if not up:
            return self.add(FLOOR_DIVIDE, above, below)
        return self.add(MULTIPLY, minus, self.add(FLOOR_DIVIDE, self.add(MULTIPLY, minus, above), below))


def _whole(number: sympy.Basic) -> sympy.Basic:
    """The whole number that a float was made of."""
    if type(number).__name__ == "ToFloat":
        return number.args[0]
    return sympy.Integer(int(number)) if number.is_Float and float(number).is_integer() else number


_WHOLE = ("CeilToInt", "FloorToInt")
_QUOTIENTS = ("FloatTrueDiv", "IntTrueDiv")
# sympy's and torch's classes by name: the operation, and whether its operands are exchanged.
_OPERATIONS = {
    "Add": (ADD, False),
    "Mul": (MULTIPLY, False),
    "FloorDiv": (FLOOR_DIVIDE, False),
    "CleanDiv": (FLOOR_DIVIDE, False),
    "Mod": (REMAINDER, False),
    "PythonMod": (REMAINDER, False),
    "Max": (LARGER, False),
    "Min": (SMALLER, False),
    "And": (SMALLER, False),
    "Or": (LARGER, False),
    "Equality": (EQUAL, False),
    "StrictLessThan": (LESS, False),
    "StrictGreaterThan": (LESS, True),
}
# What holds where another relation does not.
_NEGATED = {
    "Not": lambda relation: relation.args[0],
    "Unequality": lambda relation: sympy.Eq(*relation.args, evaluate=False),
    "LessThan": lambda relation: sympy.Gt(*relation.args, evaluate=False),
    "GreaterThan": lambda relation: sympy.Lt(*relation.args, evaluate=False),
}
