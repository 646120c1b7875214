"""Copies of a module tree that share its tensors, and classes that carry a generated forward.

A shell is a shallow copy of a module: own dictionaries, the same Parameter and buffer objects. Fusing
swaps the class of a shell for a generated subclass of it, so isinstance, attributes and methods of the
original stay; giving the class back unfuses.
"""

import copy
import importlib
import itertools
import linecache
import re
import types
import warnings
import weakref
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import fx, nn
from torch.utils._pytree import tree_leaves

from cnnfast.fuse.fetching import fetch_modules_once
from cnnfast.fuse.interpret import Interpreter
from cnnfast.fuse.signature import header_names

_OWN_DICTS = ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set")
_SWALLOWED = "_cnnfast_swallowed"
_SHARED = "_cnnfast_shared"
_READ = "_cnnfast_read"
_BESIDE = "_cnnfast_beside"
OWN_FORWARD = "_cnnfast_own_forward"
ORIGINAL_FORWARD = "_cnnfast_original_forward"
_FORWARD_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def shell_copy(module: nn.Module, class_of: Callable[[nn.Module], type] = type) -> nn.Module:
    """A copy of the module tree with the same Parameters and buffers; modules used twice stay shared."""
    shells: dict[int, nn.Module] = {}
    copied = _shell_copy(module, class_of, shells)
    for shell in shells.values():
        for key, value in shell.__dict__.items():
            if key not in _OWN_DICTS:
                shell.__dict__[key] = _with_shells(value, shells)
    return copied


def _shell_copy(
    module: nn.Module, class_of: Callable[[nn.Module], type], memo: dict[int, nn.Module]
) -> nn.Module:
    if id(module) in memo:
        return memo[id(module)]
    if isinstance(module, torch.jit.ScriptModule):  # no Python shell to copy
        memo[id(module)] = copy.copy(module)
        return memo[id(module)]
    cls = class_of(module)
    shell = object.__new__(_class_of_its_own(cls))
    memo[id(module)] = shell
    for key, value in module.__dict__.items():
        own = key in _OWN_DICTS or (key.startswith("_") and "hooks" in key and isinstance(value, dict))
        shell.__dict__[key] = _copied(value) if own else value
    for name, child in module._modules.items():
        if child is not None:
            shell._modules[name] = _shell_copy(child, class_of, memo)
    if type(shell) is not cls:
        shell.recompile()
    return shell


def _with_shells(value: object, shells: dict[int, nn.Module]) -> object:
    """What an attribute becomes: the shells of modules that it is, or holds in lists, tuples and dicts.

    self.forward = self.another_forward; self.stages = [self.stem, self.body]
    """
    if isinstance(value, nn.Module):
        return shells.get(id(value), value)
    if isinstance(value, types.MethodType) and id(value.__self__) in shells:
        return types.MethodType(value.__func__, shells[id(value.__self__)])
    if not isinstance(value, (list, tuple, dict)):
        return value
    old = list(value.values()) if isinstance(value, dict) else list(value)
    new = [_with_shells(part, shells) for part in old]
    if all(a is b for a, b in zip(old, new, strict=True)):
        return value
    if isinstance(value, tuple):
        return value._make(new) if hasattr(value, "_make") else type(value)(new)
    made = copy.copy(value)
    for key, part in zip(value if isinstance(value, dict) else range(len(new)), new, strict=True):
        made[key] = part
    return made


def evaluating(module: nn.Module) -> nn.Module:
    """The module in evaluation mode; networks with a train() of their own may return nothing from eval()."""
    module.eval()
    return module


def own_copy(module: nn.Module, memo: dict | None = None) -> nn.Module:
    """A deep copy. Values that a training forward kept, which torch does not copy, are detached in it."""
    memo = {} if memo is None else memo
    for part in module.modules():
        for leaf in tree_leaves(list(part.__dict__.values())):
            if isinstance(leaf, torch.Tensor) and not leaf.is_leaf:
                memo[id(leaf)] = leaf.detach().clone()
    return copy.deepcopy(module, memo)


def _class_of_its_own(cls: type) -> type:
    """A GraphModule keeps its forward in a class that belongs to it alone."""
    if not (issubclass(cls, fx.GraphModule) and cls.__qualname__.endswith("GraphModuleImpl")):
        return cls
    names = {"__module__": cls.__module__, "__qualname__": cls.__qualname__}
    return type(cls.__name__, cls.__bases__, names)


def _copied(value: object) -> object:
    return OrderedDict(value) if isinstance(value, WatchedHooks) else copy.copy(value)


@dataclass(frozen=True, eq=False)
class Recipe:
    """How to make a generated class again, in another process too."""

    original: type
    bases: tuple[type, ...]
    source: str = ""  # of forward; empty: the original's forward stays
    names: dict[str, object] = field(default_factory=dict)  # what the source refers to; modules as ModuleName
    prefix: str = "Fused"  # of the class's name

    def __deepcopy__(self, memo: dict) -> "Recipe":
        return self

    def key(self) -> tuple:
        names = ((name, obj if isinstance(obj, ModuleName) else id(obj)) for name, obj in self.names.items())
        return self.original, self.bases, self.source, *names


class ModuleName(str):
    """Stands for an imported module, which pickle does not take."""


class Generated:
    """Base of the generated classes: pickles by recipe."""

    _cnnfast_recipe: Recipe
    _cnnfast_own_forward = False  # whether no call is served by a graph any more, where another forward stays

    def __reduce_ex__(self, protocol):
        state = self.__getstate__() if hasattr(self, "__getstate__") else self.__dict__
        return _new_instance, (self._cnnfast_recipe,), state


class Guarded(Generated):
    """A module whose forward does the work of some children and holds the values of some attributes.

    Replacing one would go unnoticed: it is refused, or the forward runs that is kept beside the graph.
    """

    def __setattr__(self, name, value):
        _notice(self, name, value)
        super().__setattr__(name, value)

    def __delattr__(self, name):
        _notice(self, name, None)
        super().__delattr__(name)

    def add_module(self, name, module):
        _notice(self, name, module)
        super().add_module(name, module)


class Inlined(Guarded):
    """A container whose forward became part of the fused network around it."""

    @torch.jit.unused
    def forward(self, *args, **kwargs):
        return self._cnnfast_recipe.original.forward(self, *args, **kwargs)


def original_class(module: nn.Module) -> type:
    """The class that the user wrote, for generated classes too."""
    return module._cnnfast_recipe.original if isinstance(module, Generated) else type(module)


def unfused(module: nn.Module) -> nn.Module:
    """A copy with every generated class and mark taken back; the tensors are shared."""
    copied = shell_copy(module, original_class)
    for part in copied.modules():
        for key in [key for key in part.__dict__ if key.startswith("_cnnfast_")]:
            del part.__dict__[key]
    return copied


def source_of(graph: fx.Graph) -> tuple[str, dict[str, object]]:
    """A graph as Python, and what its names stand for.

    Infinities and NaN are written as torch.jit reads them: it knows no global names for them.
    """
    code = graph.python_code("self")
    source = re.sub(r"(?<![\w.'\"])(inf|nan)\b(?! *=)", r"float('\1')", code.src)
    source = fetch_modules_once(source)
    return source, {name: obj for name, obj in code.globals.items() if re.search(rf"\b{name}\b", source)}


def source_of_two(
    training: tuple[str, dict], evaluation: tuple[str, dict], arguments: Iterable[str]
) -> tuple[str, dict[str, object]]:
    """A forward that takes one of two by `self.training`, each given as `source_of` gives it.

    torch.jit, to which both results would have to be of one type, compiles the original's forward.
    """
    names: dict[str, object] = {"torch": torch}
    sources = []
    for word, (source, its_names) in (("training", training), ("evaluation", evaluation)):
        for name, obj in its_names.items():
            while names.setdefault(name, obj) is not obj:  # it means something else in the other one
                source, name = re.sub(rf"\b{name}\b", f"{name}_", source), f"{name}_"
        sources.append(source.replace("def forward(", f"def {word}_forward(", 1).strip("\n"))
    header = next(line for line in training[0].splitlines() if line.startswith("def forward("))
    given = ", ".join(arguments)
    lines = (
        re.sub(r"\) *->.*:$", "):", header),
        "    if torch.jit.is_scripting():",
        f"        return self.{ORIGINAL_FORWARD}({given})",
        "    else:",
        "        path = training_forward if self.training else evaluation_forward",
        f"        return path(self, {given})",
    )
    return "\n\n\n".join((*sources, "\n".join(lines))) + "\n", names


def become(
    module: nn.Module,
    bases: tuple[type, ...],
    source: str = "",
    names: dict | None = None,
    prefix: str = "Fused",
) -> None:
    """Swap the class of a shell for a generated subclass of it."""
    kept = {
        name: ModuleName(obj.__name__) if isinstance(obj, types.ModuleType) else obj
        for name, obj in (names or {}).items()
    }
    module.__class__ = class_for(Recipe(original_class(module), bases, source, kept, prefix))


_classes: "weakref.WeakValueDictionary[tuple, type]" = weakref.WeakValueDictionary()
_numbers = itertools.count()


def class_for(recipe: Recipe) -> type:
    key = recipe.key()
    made = _classes.get(key)
    if made is None:
        body = {
            "__module__": recipe.original.__module__,
            "__qualname__": recipe.original.__qualname__,  # by which libraries know what a class can do
            "__doc__": recipe.original.__doc__,
            "__jit_unused_properties__": _properties(recipe.original),
            "_cnnfast_recipe": recipe,
        }
        if issubclass(recipe.original, fx.GraphModule):
            body |= {"recompile": _keep_forward, "__deepcopy__": _copy_state}
            if Inlined not in recipe.bases:
                body["forward"] = _interpret
        if ORIGINAL_FORWARD in recipe.source:
            body[ORIGINAL_FORWARD] = _renamed(recipe.original.forward, ORIGINAL_FORWARD)
        if recipe.source:
            body["forward"] = _compile_forward(recipe)
        made = type(f"{recipe.prefix}{recipe.original.__name__}", (*recipe.bases, recipe.original), body)
        _classes[key] = made
    return made


def _renamed(function: types.FunctionType, name: str) -> types.FunctionType:
    """The same function under another name, by which torch.jit knows a method."""
    if not isinstance(function, types.FunctionType):
        return function
    made = types.FunctionType(
        function.__code__, function.__globals__, name, function.__defaults__, function.__closure__
    )
    made.__annotations__, made.__kwdefaults__ = function.__annotations__, function.__kwdefaults__
    made.__dict__.update(function.__dict__)
    return made


def _keep_forward(self: fx.GraphModule) -> None:
    """A GraphModule writes its forward anew when it gets a graph, as copies and feature extractors do."""


def _interpret(self: fx.GraphModule, *args, **kwargs) -> object:
    """The forward of a GraphModule whose graph stays as it is, and may change with the mode."""
    names = [node.target for node in self.graph.nodes if node.op == "placeholder"]
    return Interpreter(self).run(*args, *(kwargs[name] for name in names[len(args) :] if name in kwargs))


def _copy_state(self: nn.Module, memo: dict) -> nn.Module:
    made = object.__new__(type(self))
    memo[id(self)] = made
    made.__dict__.update(copy.deepcopy(self.__dict__, memo))
    return made


def _properties(cls: type) -> list[str]:
    """torch.jit.script compiles every property, also those that its forward never asks for."""
    return [name for name in dir(cls) if isinstance(getattr(cls, name, None), property)]


def _compile_forward(recipe: Recipe) -> types.FunctionType:
    """The source goes to linecache, where torch.jit and tracebacks look for it."""
    filename = f"<fused {recipe.original.__name__} {next(_numbers)}>"
    linecache.cache[filename] = (len(recipe.source), None, recipe.source.splitlines(True), filename)
    namespace = {
        name: importlib.import_module(obj) if isinstance(obj, ModuleName) else obj
        for name, obj in recipe.names.items()
    }
    if ORIGINAL_FORWARD in recipe.source:
        namespace |= header_names(recipe.original.forward)
    exec(compile(recipe.source, filename, "exec"), namespace)
    for name in recipe.names:
        if getattr(namespace[name], "__module__", "").startswith("cnnfast."):
            exec(
                f"__import__('torch').fx.wrap({name!r})", namespace
            )  # one call in an FX graph of this forward
    return namespace["forward"]


def _new_instance(recipe: Recipe) -> nn.Module:
    return object.__new__(class_for(recipe))


class WatchedHooks(OrderedDict):
    """Hooks of a layer that some generated forwards do not call.

    beside: modules that run their own forward, which calls the layer, from the first hook on. warns: whether
    there is another that never does: adding a hook says so.
    """

    def __init__(self, beside: list[nn.Module], warns: bool):
        super().__init__()
        self.beside, self.warns = beside, warns

    def __reduce__(self):
        return WatchedHooks, (self.beside, self.warns), None, None, iter(self.items())

    def __setitem__(self, key, value):
        for module in self.beside:
            module.__dict__[OWN_FORWARD] = True
        if self.warns:
            warnings.warn(
                "this layer is fused with others, so its hooks do not run: register them before "
                "cnnfast.fuse, which then leaves the layer as it is, or on fused.unfuse()",
                RuntimeWarning,
                stacklevel=3,
            )
        super().__setitem__(key, value)


def mark_swallowed(root: nn.Module, swallowed: set[nn.Module], all_calls: bool) -> None:
    """Remember in each parent which children's forward is not called any more.

    all_calls: in none; else there is a forward that calls them, for some.
    """
    paths = list(root.named_modules(remove_duplicate=False))
    places = Counter(child for _, child in paths)
    for path, child in paths:
        if child not in swallowed:
            continue
        parent_path, _, name = path.rpartition(".")
        parent = root.get_submodule(parent_path)
        marks = ((_SWALLOWED, all_calls), (_SHARED, places[child] > 1))
        if not all_calls:
            _mark_beside(parent, [name], root)
        for mark in [mark for mark, holds in marks if holds]:
            parent.__dict__[mark] = parent.__dict__.get(mark, frozenset()) | {name}
        for key in _FORWARD_HOOKS:
            if key in child.__dict__ and not child.__dict__[key]:
                present = child.__dict__[key]
                watched = present if isinstance(present, WatchedHooks) else WatchedHooks([], False)
                watched.beside = [*watched.beside, *([] if all_calls else [root])]
                watched.warns |= all_calls
                child.__dict__[key] = watched


def mark_read(root: nn.Module, read: dict[str, set[str]], all_calls: bool) -> None:
    """Remember in each module which attributes' values are part of a generated forward."""
    for path, names in read.items():
        module = root.get_submodule(path)
        if all_calls:
            module.__dict__[_READ] = module.__dict__.get(_READ, frozenset()) | names
        else:
            _mark_beside(module, names, root)


def _mark_beside(module: nn.Module, names: Iterable[str], root: nn.Module) -> None:
    beside = module.__dict__.setdefault(_BESIDE, {})
    for name in names:
        beside[name] = (*beside.get(name, ()), root)


def _notice(module: nn.Module, name: str, value: object) -> None:
    """Refuse what no forward would follow; what some graphs do not is left to the forwards beside them."""
    child = module._modules.get(name) if "_modules" in module.__dict__ else None
    differs = _is_other_value if child is None else _is_other_layer
    if not differs(module, name, value):
        return
    if name in module.__dict__.get(_SWALLOWED, ()):
        raise RuntimeError(
            f"'{name}' ({original_class(child).__name__}) is fused with the layers around it, so that "
            "replacing it would change "
            "nothing: take network = fused.unfuse(), change network, and call cnnfast.fuse(network) again"
        )
    if name in module.__dict__.get(_READ, ()):
        raise RuntimeError(
            f"'{name}' was read when the forward was fused, so that setting it would change nothing: "
            "take network = fused.unfuse(), set it there, and call cnnfast.fuse(network) again; or make it a "
            "buffer"
        )
    for root in module.__dict__.get(_BESIDE, {}).get(name, ()):
        root.__dict__[OWN_FORWARD] = True


def _is_other_value(module: nn.Module, name: str, value: object) -> bool:
    old = module.__dict__.get(name)
    plain = type(value) is type(old) and isinstance(value, (bool, int, float, str, tuple))
    return not (value is old or (plain and value == old))


def _is_other_layer(module: nn.Module, name: str, value: object) -> bool:
    old = module._modules.get(name)
    shared = name in module.__dict__.get(_SHARED, ())  # calls from all places read the layer at one
    return not (value is old or (not shared and _serves_as_well(old, value)))


def _serves_as_well(old: nn.Module, new: object) -> bool:
    """Another layer of the same kind: the generated forward reads its weights and settings at every call."""
    if type(new) is not original_class(old) or next(old.children(), None) is not None or has_hooks(new):
        return False
    fixed = ("padding_mode", "return_indices")
    if isinstance(getattr(old, "padding", None), str) or isinstance(getattr(new, "padding", None), str):
        fixed += ("padding", "kernel_size", "dilation")
    same_form = all(
        type(getattr(old, key, None)) is type(getattr(new, key, None))
        for key in ("kernel_size", "stride", "padding", "dilation", "output_size")
    )
    return same_form and all(getattr(old, key, None) == getattr(new, key, None) for key in fixed)


def has_hooks(module: nn.Module) -> bool:
    """Whether calling the module does more than its forward."""
    return any(module.__dict__.get(key) for key in _FORWARD_HOOKS)
