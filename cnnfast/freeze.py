"""Snapshots for inference: folded, packed, and run as one operator call."""

import os
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from cnnfast import _ext
from cnnfast.fuse.check import TOLERANCE, VerificationError, as_tuple, relative_error
from cnnfast.fuse.foreign import with_plain_norms
from cnnfast.fuse.own_thread import one_at_a_time
from cnnfast.fuse.shells import evaluating, own_copy, unfused
from cnnfast.fuse.side_effects import left_alone
from cnnfast.plan import files, tuning
from cnnfast.plan.arithmetic import faster_of
from cnnfast.plan.budget import check_budget, first_within, in_double
from cnnfast.plan.build import Built, UnsupportedNetworkError, build
from cnnfast.plan.codec import decode, encode
from cnnfast.plan.files import FileFormatError
from cnnfast.plan.network import EagerNet, FrozenNet, JoinedNet, eager_snapshot
from cnnfast.plan.nodes import ANY_TILE, DIRECT
from cnnfast.plan.parts.freezer import Freezer
from cnnfast.plan.record import copied, tensors_in, with_tensors
from cnnfast.report import Report, Row

__all__ = [
    "EagerNet", "FileFormatError", "FrozenNet", "JoinedNet", "UnsupportedNetworkError", "freeze", "load",
]  # fmt: skip

Frozen = FrozenNet | JoinedNet | EagerNet

_OF_NORMS = ("running_mean", "running_var", "weight", "bias")  # buffers that norms have
_TILES = (ANY_TILE, 4, 2, DIRECT)  # in the order in which an error budget tries them

_NO_PARTS = {
    torch.float32: "and no other layer has a place in one; cnnfast.fuse(model) takes layers one by one",
    torch.bfloat16: "plans joined by eager layers are made of float32 networks: write "
    "freeze(model.float(), inputs, dtype=torch.bfloat16)",
}


@one_at_a_time
def freeze(
    model: nn.Module,
    example_inputs: Tensor | tuple,
    *,
    dtype: torch.dtype | str = torch.float32,
    winograd: bool = True,
    tune: bool = False,
    error_budget: float | None = None,
    strict: bool = False,
    verify: bool = False,
    allow_eager: bool = False,
) -> Frozen:
    """A snapshot of `model` in evaluation mode: batch norm folded, weights packed, one planned call.

    The weights are copied: later changes of the model are not followed. Any batch and image size that the
    network itself allows can be given to the result. Takes plain modules, cnnfast's own, and what
    cnnfast.fuse returned.

    A network that one plan holds, from one tensor to one tensor, becomes a FrozenNet. Of any other the layers
    that plans hold are planned in as few parts as they hang together in, and the others stay eager between
    them, as copies: a JoinedNet, which takes and gives what the model does, tuples, lists and dicts too.
    Where a forward cannot be traced it stays, and its children are frozen one by one (for the network's own
    forward: an EagerNet). report() names every layer that stays eager, the reason, and what would change it,
    with the share of the multiply-adds in `report().coverage`.

    Args:
        model: float32 on the CPU, or bfloat16 for dtype=torch.bfloat16; in training mode its evaluation
            mode is frozen all the same.
        example_inputs: a tensor or a tuple of arguments (tensors, tuples, lists and dicts of them, and other
            values that the network takes); they are run a few times.
        dtype: of the values between layers and of the weights. torch.bfloat16: sums are float32 and rounded
            once, where they are stored; the network takes float32 and bfloat16 and gives what the model
            does. On CPUs without bfloat16 arithmetic the float32 kernels work on widened strips; on those
            with AVX512-VNNI, but no AMX, 3x3 and 5x5 convolutions multiply 16-bit whole numbers that share a
            scale for 64 channels of a tile (winograd=False: not), with errors about those of bfloat16
            weights. "auto": both are made and timed on example_inputs, and bfloat16 is taken where it is
            faster and differs
            from float32 by no more than error_budget (2e-2 where that is None) of the largest output value;
            report() has both.
        winograd: allow Winograd convolutions where they are faster: errors of some 1e-6 of a layer's largest
            value instead of 2e-7. False: every convolution is computed directly.
        tune: time every algorithm of each convolution (direct, and Winograd with each tile) for the sizes
            of example_inputs on the present number of threads, and take the fastest, instead of trusting a
            model of cost. Times are kept in the user's cache ($XDG_CACHE_HOME/cnnfast, ~/.cache/cnnfast),
            where the next tuning, and load, find them. Where nothing was measured (other sizes, threads,
            machines, an exported file in a process of its own) the model of cost decides. Results may
            differ in rounding from one measurement to the next. Not for bfloat16.
        error_budget: largest error allowed on example_inputs, as a share of the largest output value and
            against a float64 copy of the model: direct convolutions reach some 1e-6, Winograd 1e-5. The
            largest Winograd tile that keeps it is taken (6, 4, 2, then none); the report has the errors.
            bfloat16, which has no choice of tiles, keeps it or is an error.
        strict: raise where a layer stays eager, whatever allow_eager says.
        verify: compare with the model on example_inputs; raise above 1e-4 of the largest output value, in
            bfloat16 above 0.1.
        allow_eager: where no layer at all has a place in a plan, or the extension is not built, return an
            eager snapshot (EagerNet), whose report says so. Without it that is an error.

    Raises:
        UnsupportedNetworkError: strict, or nothing to plan: names each layer without a place in a plan, and
            why.
        TypeError, ValueError: arguments that do not fit; error_budget is beyond direct convolutions too, or
            the model does not run in float64. RuntimeError: the extension is not built.
        VerificationError: see verify.
    """
    inputs = as_tuple(example_inputs)
    _check_dtype(dtype, tune)
    check_budget(error_budget)
    own = _check_model(model, dtype)
    _check_inputs(inputs, own)
    allow_eager = allow_eager and not strict
    original, given = model, inputs
    with torch.inference_mode(False), torch.no_grad():
        if own == torch.bfloat16:
            model, inputs = own_copy(unfused(model)).float(), with_tensors(_widened, inputs)
        if not _ext.AVAILABLE:
            if allow_eager:
                reason = f"the extension is not there: {_ext.REASON}"
                return _eager(model, inputs, reason, error_budget)
            raise RuntimeError(f"freeze needs the compiled extension, or allow_eager=True: {_ext.REASON}")
        try:
            frozen: Frozen | None = _assemble(model, build(model, inputs, winograd), tune)
        except UnsupportedNetworkError as error:
            frozen = None if own == torch.bfloat16 else _in_parts(model, inputs, winograd, tune)
            if frozen is None and allow_eager and dtype == torch.float32:
                return _eager(model, inputs, str(error), error_budget)
            if frozen is None:
                raise error.with_advice(_NO_PARTS[own]) from None
            if strict and frozen.report().left_out:
                raise
        if tune:
            _tune(frozen, inputs)
        if dtype == "auto":
            frozen = faster_of(frozen, frozen.in_bfloat16(), inputs, error_budget)
        elif dtype == torch.bfloat16:
            frozen = frozen.in_bfloat16(own)
            frozen.add_note("bfloat16 between layers: float32 sums, rounded to nearest where they are stored")
            if error_budget is not None:
                attempts = (("bfloat16", frozen),)
                _, note = first_within(error_budget, in_double(model, inputs), inputs, attempts)
                frozen.add_note(note)
        elif error_budget is not None:
            tiles = _TILES if winograd else (DIRECT,)
            frozen = _within_budget(frozen, in_double(model, inputs), inputs, error_budget, tiles)
        return _compared(frozen, original, given, verify)


def load(path: str | os.PathLike) -> FrozenNet:
    """The network that FrozenNet.save wrote to `path`, packed for the CPU at hand.

    Nothing is unpickled and everything is checked. A tuned network goes by the times that the user's cache
    has for this machine, by the model of cost where it has none. Raises FileFormatError, with what to do,
    for a damaged, foreign or newer file; OSError where it cannot be read; RuntimeError where the extension
    is not built.
    """
    if not _ext.AVAILABLE:
        raise RuntimeError(f"load needs the compiled extension: {_ext.REASON}")
    with torch.inference_mode(False):
        weights, plan, network = files.read(path)
        try:
            rows = tuple(Row(**row) for row in network["rows"])
            report = Report(network["title"], rows, tuple(network["notes"]))
            if decode(plan).tuned:
                tuning.load_times()
            return FrozenNet(weights, plan, list(network["names"]), report)
        except (KeyError, TypeError) as error:
            raise FileFormatError(f"{path} lacks the description of the network: save it again") from error
        except RuntimeError as error:  # the library's own checks of the plan
            raise FileFormatError(f"{path}: {error}") from error


def _assemble(model: nn.Module, built: Built, tune: bool) -> FrozenNet:
    report = _report(model, tuple(built.rows), ())
    plan = built.plan.with_conv_attributes(tuned=int(tune))
    return FrozenNet(built.weights, encode(plan, built.weights), built.names, report)


def _in_parts(model: nn.Module, inputs: tuple, winograd: bool, tune: bool) -> JoinedNet | EagerNet | None:
    """Plans joined by eager layers; None where no layer has a place in a plan."""
    freezer = Freezer(winograd)
    made = freezer.freeze(with_plain_norms(evaluating(unfused(model))), "", inputs)
    if made is None:
        return None
    report = _report(model, tuple(freezer.rows), tuple(freezer.notes))
    if not isinstance(made, JoinedNet):
        made = EagerNet(made, report)
    made._report = report
    return made.with_conv_attributes(tuned=1) if tune else made


def _report(model: nn.Module, rows: tuple[Row, ...], notes: tuple[str, ...]) -> Report:
    if model.training:
        notes = ("The model was in training mode; its evaluation mode is frozen.", *notes)
    return Report(f"freeze({type(unfused(model)).__name__})", rows, notes)


def _tune(frozen: Frozen, inputs: tuple) -> None:
    """Time every plan for the sizes that it meets with the example inputs."""
    for weights, plan, sizes in frozen.plan_inputs(inputs):
        frozen.add_note(tuning.tune(weights, plan, [torch.zeros(size) for size in sizes]))


def _eager(model: nn.Module, inputs: tuple, reason: str, error_budget: float | None) -> EagerNet:
    snapshot = eager_snapshot(model, reason)
    if error_budget is not None:
        attempts = (("eager operators", snapshot),)
        _, note = first_within(error_budget, in_double(model, inputs), inputs, attempts)
        snapshot.add_note(note)
    return snapshot


def _within_budget(
    frozen: Frozen, wanted: list[Tensor], inputs: tuple, error_budget: float, tiles: tuple[int, ...]
) -> Frozen:
    """The same plans with the largest of the tiles that keeps the budget."""

    def attempts() -> Iterator[tuple[str, Frozen]]:
        for tile in tiles:
            computed_by = f"Winograd tiles up to {tile}" if tile else "direct convolutions"
            yield computed_by, frozen.with_conv_attributes(largest_tile=tile)

    network, note = first_within(error_budget, wanted, inputs, attempts())
    network.add_note(note)
    return network


def _compared(frozen: Frozen, model: nn.Module, inputs: tuple, verify: bool) -> Frozen:
    """Run the example through both."""
    with left_alone(model), left_alone(frozen):
        results = evaluating(unfused(model))(*map(copied, inputs)), frozen(*map(copied, inputs))
    wanted, got = map(tensors_in, results)
    if [(x.shape, x.dtype) for x in got] != [(x.shape, x.dtype) for x in wanted]:
        raise VerificationError(
            f"freeze: the plan gives {_words(got)} where the model gives {_words(wanted)}: please report "
            "this network"
        )
    if verify:
        error = max((relative_error(a, b) for a, b in zip(got, wanted, strict=True)), default=0.0)
        if not error <= TOLERANCE[_arithmetic_of(frozen)]:
            raise VerificationError(f"freeze: the plan's output differs by {error:.1e} of its largest value")
        frozen.add_note(f"verified: error {error:.1e} of the largest output value")
    return frozen


def _words(tensors: list[Tensor]) -> str:
    return ", ".join(f"{list(x.shape)} {x.dtype}" for x in tensors) or "no tensors"


def _arithmetic_of(frozen: Frozen) -> torch.dtype:
    """bfloat16 where a plan of the network stores its values so."""
    plans = [frozen] if isinstance(frozen, FrozenNet) else list(frozen.plans().values())
    return torch.bfloat16 if any(decode(part.plan).half for part in plans) else torch.float32


def _widened(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def _check_dtype(dtype: object, tune: bool) -> None:
    if dtype not in (torch.float32, torch.bfloat16, "auto"):
        raise ValueError(f'freeze: dtype is torch.float32, torch.bfloat16 or "auto", not {dtype!r}')
    if tune and dtype == torch.bfloat16:
        raise ValueError(
            "freeze: tune=True times float32 convolutions, and bfloat16 has nothing to choose from: leave "
            'tune out, or write dtype="auto"'
        )


def _check_model(model: object, dtype: object) -> torch.dtype:
    """The dtype of the parameters: float32, or bfloat16 where that is to be frozen."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"freeze: model must be a torch.nn.Module, not {type(model).__name__}")
    if isinstance(model, Frozen):
        raise TypeError("freeze: model is frozen already")
    if isinstance(model, torch.jit.ScriptModule):
        raise TypeError("freeze: model is scripted already; freeze the original and script the result")
    tensors = [
        (name, tensor)
        for name, tensor in (*model.named_parameters(), *model.named_buffers())
        if tensor.is_floating_point()
    ]
    half = dtype == torch.bfloat16 and tensors and all(x.dtype == torch.bfloat16 for _, x in tensors)
    own = torch.bfloat16 if half else torch.float32
    parameters = {name for name, _ in model.named_parameters()}
    for name, tensor in tensors:
        # Narrower buffers beside the layers become float32 with what they meet; wider ones would widen that.
        fixed = name in parameters or name.rpartition(".")[2] in _OF_NORMS or tensor.dtype == torch.float64
        if (fixed and tensor.dtype != own) or tensor.device.type != "cpu":
            raise ValueError(
                f"freeze: '{name}' is {tensor.dtype} on {tensor.device}; this version freezes float32 "
                "networks on the "
                "CPU: write freeze(model.float().cpu(), ...)"
            )
    return own


def _check_inputs(inputs: tuple, dtype: torch.dtype) -> None:
    tensors = tensors_in(inputs)
    if not tensors:
        kinds = ", ".join(type(value).__name__ for value in inputs)
        raise ValueError(f"freeze: example_inputs must have a tensor, it has ({kinds})")
    for value in tensors:
        if value.device.type != "cpu" or (value.is_floating_point() and value.dtype != dtype):
            wanted = str(dtype).removeprefix("torch.")
            raise ValueError(
                f"freeze: example_inputs is {value.dtype} on {value.device}: give a {wanted} tensor on the "
                "CPU"
            )
