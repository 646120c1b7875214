"""What a forward writes into its modules while it is traced or run for an example: found, and taken back.

Either runs a forward on shells (see shells.py), whose tensors, lists, dicts and other objects are those of
the user's modules.
"""

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, fx, nn

from cnnfast.fuse.shells import original_class
from cnnfast.fuse.surroundings import RandomNumbers, is_plain_object, names_around

_DEPTH = 4  # containers within containers
_CONTAINERS = (list, deque, set, dict, tuple)
_UNWATCHED = ("training",)  # written by tracing itself
_REGISTERED = ("_parameters", "_buffers", "_modules")


class Watched:
    """The attributes of a tree of modules, with what the lists, dicts, sets and objects among them hold.

    Globals that the classes' functions name, and data that the classes hold, likewise.
    """

    def __init__(self, root: nn.Module):
        self._modules = dict(root.named_modules())
        self._attributes = {path: _attributes(module) for path, module in self._modules.items()}
        self._held = [
            (path, key, container, content)
            for path, attributes in self._attributes.items()
            for key, value in attributes.items()
            for container, content in _containers(value, _DEPTH)
        ]
        classes = {original_class(module): path for path, module in reversed(self._modules.items())}
        self._around = [(path, names) for cls, path in classes.items() for names in names_around(cls)]
        self._held += [
            (path, key, container, content)
            for path, names in self._around
            for key, value in names.before.items()
            for container, content in _containers(value, _DEPTH)
        ]

    def take_back(self) -> list[tuple[str, str]]:
        """Path and attribute of all that was written, which is as it was before from now on."""
        written = []
        for path, module in self._modules.items():
            before, after = self._attributes[path], _attributes(module)
            names = [*before, *(after.keys() - before.keys())]
            changed = [key for key in names if after.get(key) is not before.get(key)]
            written += [(path, key) for key in changed]
            for key in changed:
                module.__dict__.pop(key, None)
                if key in before:
                    module.__dict__[key] = before[key]
        for path, key, container, content in self._held:
            if not _holds(container, content):
                changed = _reassigned(container, content, path) if key in _REGISTERED else [key]
                written += [(path, name) for name in changed]
                _refill(container, content)
        for path, names in self._around:
            for name in names.changed():
                written.append((path, name))
                names.take_back(name)
        return written


@contextmanager
def left_alone(root: nn.Module) -> Iterator[None]:
    """Attributes and buffers of a tree of modules are at the end what they were, whatever was run.

    So are the random numbers that come next.
    """
    watched, numbers = Watched(root), RandomNumbers()
    kept = [(buffer, buffer.detach().clone()) for buffer in root.buffers()]
    try:
        yield
    finally:
        watched.take_back()
        numbers.take_back()
        for buffer, values in kept:
            if not _is_as_it_was(buffer, values):  # batch norm writes its averages without counting that
                with torch.inference_mode(buffer.is_inference()), torch.no_grad():
                    buffer.copy_(values)


def _is_as_it_was(buffer: Tensor, values: Tensor) -> bool:
    try:
        return torch.equal(buffer, values)
    except RuntimeError:  # a kind of tensor that does not compare: it is written back
        return False


def write_count(tensor: Tensor) -> int:
    """How often a tensor was written; those of inference mode do not count, and refuse writes outside."""
    return 0 if tensor.is_inference() else tensor._version


def _attributes(module: nn.Module) -> dict[str, object]:
    return {key: value for key, value in module.__dict__.items() if key not in _UNWATCHED}


def _containers(value: object, depth: int) -> Iterator[tuple[object, list]]:
    """The containers in a value that can be written to, each with a copy of its content.

    Of an object the dict of its attributes.
    """
    if is_plain_object(value) and not isinstance(value, _CONTAINERS):
        value = value.__dict__
    if depth == 0 or not isinstance(value, _CONTAINERS):
        return
    if not isinstance(value, tuple):
        yield value, _content(value)
    for element in value.values() if isinstance(value, dict) else value:
        yield from _containers(element, depth - 1)


def _content(container: object) -> list:
    return list(container.items()) if isinstance(container, dict) else list(container)


def _holds(container: object, content: list) -> bool:
    now = _content(container)
    if isinstance(container, dict):
        now, content = ([part for item in items for part in item] for items in (now, content))
    return len(now) == len(content) and all(a is b for a, b in zip(now, content, strict=True))


def _reassigned(registered: dict, content: list, path: str) -> list[str]:
    """Names of parameters, buffers or children that are others now."""
    before = dict(content)
    names = [*before, *(registered.keys() - before.keys())]
    changed = [name for name in names if registered.get(name) is not before.get(name)]
    prefix = f"{path}." if path else ""
    return [name for name in changed if not _is_own_tensor(registered.get(name), prefix + name)]


def _is_own_tensor(value: object, target: str) -> bool:
    """Whether `self.count += 1` wrote a value: the buffer itself, whose memory the graph writes."""
    node = value.node if isinstance(value, fx.Proxy) else None
    while node is not None and node.op in ("call_function", "call_method") and _returns_first(node):
        node = node.args[0]
    return node is not None and node.op == "get_attr" and node.target == target


def _returns_first(node: fx.Node) -> bool:
    """Whether a call writes into its first argument and returns it."""
    if node.op == "call_method":
        return node.target.endswith("_") and not node.target.endswith("__")
    return getattr(node.target, "__module__", "") == "_operator" and node.target.__name__ in _IN_PLACE


_IN_PLACE = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow")


def _refill(container: object, content: list) -> None:
    container.clear()
    if isinstance(container, (dict, set)):
        container.update(content)
    else:
        container.extend(content)
