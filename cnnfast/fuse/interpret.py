"""Running a graph node by node, with arguments as a forward gives them."""

from torch import fx


class Interpreter(fx.Interpreter):
    """Calls get lists and dicts of their own; fx would hand over its immutable ones.

    A forward may write into a list that it is given: x[i] = self.head(x[i]).
    """

    def fetch_args_kwargs_from_env(self, node: fx.Node) -> tuple[tuple, dict]:
        args, kwargs = super().fetch_args_kwargs_from_env(node)
        return _plain(args), _plain(kwargs)


def _plain(value: object) -> object:
    if isinstance(value, fx.immutable_collections.immutable_list):
        return [_plain(part) for part in value]
    if isinstance(value, fx.immutable_collections.immutable_dict):
        return {key: _plain(part) for key, part in value.items()}
    return tuple(map(_plain, value)) if type(value) is tuple else value
