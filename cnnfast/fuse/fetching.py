"""Modules in a generated forward as local variables.

torch.nn.Module finds a child by a search through three dicts, and FX writes the whole way from the root for
every attribute of every layer: in small networks that took as long as their layers.
"""

import re

_FETCH = re.compile(r"(?P<indent> +)(?P<name>\w+) = (?P<module>(?:self\.|getattr\().+)\.(?P<attribute>\w+)")
_BY_NAME = re.compile(r'getattr\((?P<parent>.+), (?P<child>"[^"]+")\)')


def fetch_modules_once(source: str) -> str:
    """The same straight-line forward; a module on the way to an attribute is fetched at its first use."""
    lines, names = [], {}
    for line in source.split("\n"):
        fetch = _FETCH.fullmatch(line)
        if fetch:
            indent = fetch["indent"]
            module = _local(fetch["module"], names, lines, indent, source)
            line = f"{indent}{fetch['name']} = {module}.{fetch['attribute']}"
        lines.append(line)
    return "\n".join(lines)


def _local(expression: str, names: dict[str, str], lines: list[str], indent: str, source: str) -> str:
    """The variable that holds the module; where there is none, a line of its own fetches it first."""
    if expression == "self":
        return expression
    if expression not in names:
        by_name = _BY_NAME.fullmatch(expression)
        if by_name:
            parent = _local(by_name["parent"], names, lines, indent, source)
            value = f"getattr({parent}, {by_name['child']})"
        else:
            before, _, child = expression.rpartition(".")
            value = f"{_local(before, names, lines, indent, source)}.{child}"
        names[expression] = name = _unused(f"module_{len(names)}", source)
        lines.append(f"{indent}{name} = {value}")
    return names[expression]


def _unused(name: str, source: str) -> str:
    while re.search(rf"\b{name}\b", source):
        name += "_"
    return name
