"""What cnnfast.fuse adds to a network."""

import torch
from torch import nn

from cnnfast import _ext
from cnnfast.fuse.shells import Guarded, unfused
from cnnfast.report import Report


class FusedModule(Guarded):
    """Mixed into the class of a fused network: isinstance and attributes of the original class stay.

    Replacing a layer that is fused with others raises RuntimeError (another layer of the same type and
    settings is taken); so does giving another value to an attribute of the network that its forward read.
    Hooks added to such a layer do not run, and a RuntimeWarning says so. Where a forward was fused for some
    calls alone (optional arguments, sizes), all three are followed instead: the original forward, whose
    layers are fused one by one, runs in every call from then on.
    """

    def report(self) -> Report:
        """What happened to every layer."""
        return self._cnnfast_report

    def unfuse(self) -> nn.Module:
        """The network as it was, of the original classes, sharing the Parameters and buffers held now."""
        return unfused(self)

    def repack(self) -> None:
        """Forget packed weights: needed after writes through `.data` only, which leave no trace."""
        if _ext.AVAILABLE:
            torch.ops.cnnfast.clear_caches()
