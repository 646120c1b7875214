"""Conditions on the sizes of a forward's arguments, as lists of numbers that a generated forward checks.

A program is a list of instructions of three numbers (operation, a, b). Each gives a value that later ones
name by its place, but REQUIRE and RANK, which hold or do not.
"""

from dataclasses import dataclass

from torch import Tensor

CONSTANT, SIZE, ADD, MULTIPLY, FLOOR_DIVIDE, REMAINDER, LARGER, SMALLER, EQUAL, LESS, REQUIRE, RANK = range(
    12
)


@dataclass(frozen=True)
class Sizes:
    """Under which sizes of its tensors a graph is right.

    words: the same for people; empty where it is right for all sizes of tensors of so many dimensions.
    """

    program: tuple[int, ...]
    words: str


def sizes_fit(tensors: list[Tensor], program: list[int]) -> bool:
    """Whether the sizes of the tensors fulfil a program.

    Operations are numbers of the list above: TorchScript, which compiles this, knows no globals.
    """
    values: list[int] = []
    for at in range(0, len(program), 3):
        operation, a, b = program[at], program[at + 1], program[at + 2]
        if operation == 11:
            if tensors[a].dim() != b:
                return False
            values.append(0)
        elif operation == 10:
            if values[a] != b:
                return False
            values.append(0)
        elif operation == 0:
            values.append(a)
        elif operation == 1:
            values.append(tensors[a].size(b))
        elif operation == 2:
            values.append(values[a] + values[b])
        elif operation == 3:
            values.append(values[a] * values[b])
        elif operation == 4:
            values.append(values[a] // values[b])
        elif operation == 5:
            values.append(values[a] % values[b])
        elif operation == 6:
            values.append(max(values[a], values[b]))
        elif operation == 7:
            values.append(min(values[a], values[b]))
        elif operation == 8:
            values.append(int(values[a] == values[b]))
        else:
            values.append(int(values[a] < values[b]))
    return True


def refuse_other_sizes(tensors: list[Tensor], program: list[int], words: str) -> None:
    """RuntimeError where the sizes do not fulfil a program."""
    if not sizes_fit(tensors, program):
        if words == "":
            words = "as many dimensions"
        shapes = [list(tensor.size()) for tensor in tensors]
        raise RuntimeError(
            f"the forward that was frozen decides by sizes, and takes another path for inputs of {shapes}: "
            f"it was frozen for those with {words}. Freeze it again with an example of this size"
        )
