"""Networks by name."""

import difflib
import fnmatch
import inspect
from typing import Callable, Dict, List, Optional, Sequence, Union

from torch import nn

_BUILDERS: Dict[str, Callable[..., nn.Module]] = {}
_Patterns = Optional[Union[str, Sequence[str]]]


def register_model(builder: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
    """Decorator: makes the function's name one for get_model. Raises ValueError where the name is taken."""
    name = builder.__name__
    if name in _BUILDERS:
        raise ValueError(
            f"register_model: there is a model {name!r} already, in {_BUILDERS[name].__module__}"
        )
    _BUILDERS[name] = builder
    return builder


def get_model(name: str, **kwargs) -> nn.Module:
    """Build a network by name: get_model("lenet", num_classes=10), with random parameters.

    Raises ValueError for an unknown name and TypeError for an unknown option; both show the corrected call.
    """
    if name not in _BUILDERS:
        close = difflib.get_close_matches(str(name).lower().replace("-", "_"), _BUILDERS, n=1)
        hint = f'; write get_model("{close[0]}")' if close else ""
        raise ValueError(
            f"get_model: no model is called {name!r}{hint}. There are: {', '.join(list_models())}"
        )
    builder = _BUILDERS[name]
    _check_options(name, builder, kwargs)
    return builder(**kwargs)


def list_models(include: _Patterns = None, exclude: _Patterns = None) -> List[str]:
    """Names that get_model knows, sorted; include and exclude are shell patterns or lists of them."""
    names = sorted(_BUILDERS)
    if include is not None:
        names = [name for name in names if _matches(name, include)]
    if exclude is not None:
        names = [name for name in names if not _matches(name, exclude)]
    return names


def _matches(name: str, patterns: Union[str, Sequence[str]]) -> bool:
    patterns = [patterns] if isinstance(patterns, str) else patterns
    return any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)


def _check_options(name: str, builder: Callable[..., nn.Module], kwargs: Dict[str, object]) -> None:
    known = list(inspect.signature(builder).parameters)
    for option, value in kwargs.items():
        if option not in known:
            close = difflib.get_close_matches(option, known, n=1)
            hint = f'; write get_model("{name}", {close[0]}={value!r})' if close else ""
            raise TypeError(f"get_model: {name} has no option {option!r}{hint}. It has: {', '.join(known)}")
