"""Live fusion: the same network, the same Parameters, its layers run by fused operators."""

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor, nn

from cnnfast import _ext
from cnnfast.fuse.check import (
    VerificationError,
    as_tuple,
    calls_of,
    check_errors,
    layer_errors,
    multiply_adds,
    wrong_units,
)
from cnnfast.fuse.convert import Converter
from cnnfast.fuse.module import FusedModule
from cnnfast.fuse.own_thread import one_at_a_time
from cnnfast.fuse.shells import unfused
from cnnfast.report import EAGER, FUSED, Report, Row

__all__ = ["FusedModule", "NotFusedError", "VerificationError", "fuse"]


class NotFusedError(ValueError):
    """With strict=True: layers that no fused operator serves."""


@one_at_a_time
def fuse(
    model: nn.Module,
    example_inputs: Tensor | tuple | None = None,
    *,
    filter_fn: Callable[[str, nn.Module], bool] | None = None,
    strict: bool = False,
    dryrun: bool = False,
    verify: bool = False,
    recompute: bool = True,
) -> nn.Module | Report:
    """The same network on fused operators, sharing Parameters and buffers with `model`, which is left alone.

    The result has the original state_dict keys and class, trains and evaluates, and follows every weight
    change: optimiser steps, load_state_dict (assign=True too), a Parameter put in the place of another on
    the result. A batch norm put in eval() by itself stays so. `.report()` tells what happened to each
    layer, `.unfuse()` gives the original structure back. It scripts, traces, compiles, exports, pickles
    and deep-copies.

    Fused, an activation being ReLU or Sigmoid, and activations, pools, norms without parameters and means
    also written as functions (behind convolutions, batch norms and linear layers ReLU6, Hardtanh, LeakyReLU,
    ELU, Hardsigmoid, Hardswish, SiLU, Mish, Tanh and GELU too; a layer's numbers are read at every call):
      Conv2d (+ BatchNorm2d) (+ a sum) (+ activation); a ReLU may stand behind a max pool
      BatchNorm2d (+ activation) + Conv2d (+ a sum); BatchNorm2d (+ a sum) (+ activation)
      GroupNorm, InstanceNorm2d (+ activation), also as functions of torch.nn.functional
      Linear (+ BatchNorm1d) (+ activation)
      MaxPool2d, AvgPool2d, LocalResponseNorm, the mean over the image (AdaptiveAvgPool2d(1) and the like)
      chains of convolutions and pools that begin at one value and are concatenated on dimension 1
      dense blocks, x = cat((x, conv(act(batch_norm(x)))), dim=1) layer after layer
    Convolutions that standardise their weight or pad by the size of the image (timm's StdConv2d, Conv2dSame
    and the like), and poolings that do, count as those of torch.nn; torch computes weight and border.
    A sum of shapes that broadcast is computed behind the convolution. What lies between must be used
    there only; nn.Identity counts as nothing. Layers that have hooks, are called twice, are parametrized
    or have a forward of their own stay as they are, and the report says so. Where a forward cannot be
    traced, or switches autocast or the recording of gradients on or off, it stays and its children are
    fused one by one, plain convolutions and group norms too. A forward with optional arguments is fused for
    calls like that of the example, without one for calls that leave them out; one that decides by sizes is
    fused for those that decide like the example's: all other calls run it as it was, its children fused one
    by one. A forward that decides by its own `training` becomes two, one for each mode. torch.jit.script
    compiles all these as they were.

    Args:
        model: any module; inside DataParallel or DistributedDataParallel fuse first and wrap the result.
        example_inputs: a tensor or a tuple of them, for multiply-adds in the report, for verify, to tell what
            forwards are called with, and to find those that tracing takes for others (they decide by what no
            graph shows): these stay.
        filter_fn: filter_fn(name, module) -> bool chooses the layers to fuse; all without it. For a function,
            such as F.max_pool2d, module is the one whose forward calls it.
        strict: raise where a layer stays eager that filter_fn did not leave out.
        dryrun: return the Report alone.
        verify: run example_inputs in evaluation mode through both and raise where a layer's error is
            above cnnfast.fuse.check.TOLERANCE (1e-4 of the layer's largest value in float32); errors are
            in the report.
        recompute: recompute normalised activations in backward instead of keeping them, where a layer can
            do so. No layer of this version does; both values mean the same.

    Raises:
        TypeError: model is no module, is compiled or scripted already, or is a parallel wrapper.
        ValueError: verify without example_inputs; a lazy module that has not run yet.
        NotFusedError: see strict. VerificationError: see verify.
    """
    _check_model(model)
    if verify and example_inputs is None:
        raise ValueError("fuse: verify needs inputs: write fuse(model, example_inputs, verify=True)")
    network, converter, rows, unchecked = _converted(model, filter_fn, example_inputs)
    report = Report(f"fuse({type(model).__name__})", rows, (*converter.notes, *unchecked))
    if not _ext.AVAILABLE:
        report = report.with_notes(f"The fused calls run plain PyTorch: {_ext.REASON}")
    if example_inputs is not None:
        macs = multiply_adds(network, as_tuple(example_inputs))
        report = _counted(report, network, macs, converter.functions_fused)
    if verify:
        report = _verified(report, network, converter, as_tuple(example_inputs))
    if strict:
        _check_strict(report)
    if dryrun:
        return report
    network.__dict__["_cnnfast_report"] = report
    return network


def _converted(
    model: nn.Module, filter_fn: Callable | None, example_inputs: Tensor | tuple | None
) -> tuple[nn.Module, Converter, tuple[Row, ...], list[str]]:
    """The fused network; forwards whose graph is wrong for the example keep their own code.

    Last notes of what could not be checked.
    """
    refused: dict[str, str] = {}
    calls = {} if example_inputs is None else calls_of(model, as_tuple(example_inputs))
    while True:
        network = unfused(model)
        converter = Converter(network, filter_fn or (lambda name, module: True), refused, calls)
        rows = tuple(converter.run())
        if example_inputs is None:
            return network, converter, rows, []
        wrong, notes = wrong_units(network, converter.units, as_tuple(example_inputs))
        if wrong.keys() <= refused.keys():
            return network, converter, rows, notes
        refused |= wrong


def _check_model(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module, not {type(model).__name__}")
    wrappers = (nn.DataParallel, nn.parallel.DistributedDataParallel)
    if isinstance(model, wrappers):
        name = type(model).__name__
        raise TypeError(
            f"fuse: fuse the network inside and wrap the result: {name}(cnnfast.fuse(model.module))"
        )
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError(
            "fuse: model is scripted already; write torch.jit.script(cnnfast.fuse(original_model))"
        )
    if isinstance(model, torch._dynamo.OptimizedModule):
        raise TypeError("fuse: model is compiled already; write torch.compile(cnnfast.fuse(original_model))")
    for name, parameter in model.named_parameters():
        if isinstance(parameter, nn.parameter.UninitializedParameter):
            raise ValueError(
                f"fuse: '{name}' has no size yet (lazy module): run the model once, then fuse it"
            )


def _counted(
    report: Report, network: nn.Module, macs: dict[str, int], functions_fused: dict[str, bool]
) -> Report:
    """The report with multiply-adds, and a row for each module that does some beside its layers."""
    listed = {row.name for row in report.rows}
    reason = "it calls convolutions or matrix products as functions: write them as layers of torch.nn"
    others = []
    for name in macs.keys() - listed:
        kind = type(unfused(network).get_submodule(name)).__name__
        fused = functions_fused.get(name, False)
        row = Row(name, kind, FUSED, "its functions") if fused else Row(name, kind, EAGER, reason=reason)
        others.append(row)
    return replace(report, rows=(*report.rows, *others)).with_values("macs", macs)


def _verified(report: Report, network: nn.Module, converter: Converter, inputs: tuple) -> Report:
    errors = layer_errors(network, converter.units, inputs)
    dtype = next((x.dtype for x in inputs if isinstance(x, Tensor) and x.is_floating_point()), torch.float32)
    check_errors(errors, dtype)
    worst = max(errors.values(), default=0.0)
    return report.with_values("error", errors).with_notes(
        f"verified: largest error {worst:.1e} of a layer's values"
    )


def _check_strict(report: Report) -> None:
    left = [row for row in report.left_out if row.reason != "left out by filter_fn"]
    if left:
        rows = "\n".join(f"  {row.name} ({row.type}): {row.reason}" for row in left)
        raise NotFusedError(f"fuse(strict=True): these layers would run eager:\n{rows}")
