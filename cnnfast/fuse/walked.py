"""Which nn.Sequential of a module its methods step through themselves, instead of calling it."""

import ast
import inspect
import textwrap
import types
from collections.abc import Iterator

from torch import nn

from cnnfast.fuse.shells import original_class


def walked(module: nn.Module) -> set[str]:
    """Names of attributes that methods loop over or index and never call: `for layer in self.body`.

    Read from the source; nothing where there is none. What a forward fused for such a Sequential would give
    nobody asks for: its children have to be fused one by one.
    """
    stepped: set[str] = set()
    called: set[str] = set()
    for function, tree in _methods(original_class(module)):
        myself = next(iter(inspect.signature(function).parameters), "self")
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                called |= {name for name in [_attribute(node.func, myself)] if name}
            elif isinstance(node, (ast.For, ast.comprehension)):
                stepped |= _read(node.iter, myself)
            elif isinstance(node, ast.Subscript):
                stepped |= _read(node.value, myself)
    return stepped - called


def _methods(cls: type) -> Iterator[tuple[types.FunctionType, ast.AST]]:
    for ancestor in cls.__mro__[: cls.__mro__.index(nn.Module)]:
        for name, function in vars(ancestor).items():
            if isinstance(function, types.FunctionType) and name != "__init__":
                try:
                    yield function, ast.parse(textwrap.dedent(inspect.getsource(function)))
                except (OSError, TypeError, SyntaxError):  # written at a prompt, or generated
                    continue


def _read(expression: ast.AST, myself: str) -> set[str]:
    """Attributes of the module that an expression reads without calling them."""
    functions = {node.func for node in ast.walk(expression) if isinstance(node, ast.Call)}
    names = {_attribute(node, myself) for node in ast.walk(expression) if node not in functions}
    return names - {None}


def _attribute(node: ast.AST, myself: str) -> str | None:
    own = isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == myself
    return node.attr if own else None
