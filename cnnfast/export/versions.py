"""Which versions wrote a file: recorded in every format, read without running anything of it."""

import torch
from torch import nn

from cnnfast import _ext
from cnnfast.freeze import FrozenNet
from cnnfast.plan.nodes import FORMAT

RECORD = "cnnfast.json"  # of TorchScript archives and torch.export programs, beside the network
FORMAT_VERSION = 1


def record(network: nn.Module) -> dict[str, str]:
    """Names and versions, as words."""
    from cnnfast import __version__

    facts = {
        "format": "cnnfast.export",
        "format_version": str(FORMAT_VERSION),
        "cnnfast": __version__,
        "torch": torch.__version__,
        "network": "frozen" if isinstance(network, FrozenNet) else "modules",
    }
    if _ext.AVAILABLE:
        facts |= {"plan_format": str(FORMAT), "written_on": _ext.active_isa()}
    return facts
