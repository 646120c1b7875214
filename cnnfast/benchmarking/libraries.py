"""Networks of torchvision and timm by name, with random weights: "torchvision:resnet50"."""

import importlib.util

from torch import nn

LIBRARIES = ("torchvision", "timm")
# Other image sizes than 224.
_SIZES = {"torchvision:inception_v3": 299, "timm:inception_v3": 299}


def is_library_name(build: str) -> bool:
    """Whether it is "library:network" of one of LIBRARIES."""
    library, colon, _ = build.partition(":")
    return bool(colon) and library in LIBRARIES


def input_shape(build: str) -> tuple[int, int, int]:
    """(C, H, W) that the network is usually given."""
    size = _SIZES.get(build, 224)
    return 3, size, size


def check(build: str) -> None:
    """ValueError where the library is not installed or knows no such network."""
    library, _, name = build.partition(":")
    if importlib.util.find_spec(library) is None:
        raise ValueError(f"{build!r} needs {library}, which is not installed: pip install 'cnnfast[zoo]'")
    if name not in _names(library):
        raise ValueError(f"{library} has no network named {name!r}")


def _names(library: str) -> list[str]:
    if library == "timm":
        import timm

        return timm.list_models()
    import torchvision

    return torchvision.models.list_models(module=torchvision.models)


def build_network(build: str, **kwargs) -> nn.Module:
    """The network in float32; kwargs go to the library."""
    library, _, name = build.partition(":")
    if library == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **kwargs)
    import torchvision

    if name in ("googlenet", "inception_v3"):
        kwargs.setdefault("init_weights", False)  # slow, and filled with other values anyway
    return torchvision.models.get_model(name, weights=None, **kwargs)
