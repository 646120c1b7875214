"""A network as a service: several threads call one loaded network with changing batch sizes.

Every contender loads a file that cnnfast.export wrote, in a process of its own. Each client thread sends its
next request when the last one is answered; throughput and the spread of latencies are what counts.

Run as a program it is the worker's side, like worker.py: requests setup, check, serve.
"""

import math
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from .contenders import extension_unavailable
from .process import Worker, WorkerError

Call = Callable[[Any], Any]
_TOLERANCE = 1e-4  # of the largest output value
_PATIENCE = 300.0  # seconds for one answer of a worker


@dataclass(frozen=True)
class Load:
    """What clients ask for.

    clients: threads that call at once. threads: that one call may use inside. batches: sizes in turn.
    """

    clients: int
    threads: int
    batches: tuple[int, ...] = (1, 4, 2, 8)
    seconds: float = 2.0


@dataclass
class Served:
    """What one contender did under a load; latencies in seconds."""

    contender: str
    network: str
    load: Load
    status: str = "ok"  # or "missing", "failed": see detail
    detail: str = ""
    requests: int = 0
    images_per_s: float = 0.0
    p50_s: float = math.nan
    p99_s: float = math.nan

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def drive(clients: Sequence[Call], batches: Sequence[tuple[int, Any]], seconds: float) -> dict[str, Any]:
    """Calls from one thread per client for `seconds`.

    batches: (number of images, what the callable takes), in turn; each client begins at another one.
    Returns requests, images_per_s, p50_s, p99_s. An exception in a client is raised here.
    """
    start = threading.Barrier(len(clients) + 1)
    latencies: list[list[float]] = [[] for _ in clients]
    images, failures = [0] * len(clients), []

    def work(client: int) -> None:
        try:
            call, own, at = clients[client], latencies[client], client
            with torch.inference_mode():
                for offset in range(len(batches)):  # every shape planned, every thread awake
                    call(batches[(client + offset) % len(batches)][1])
                start.wait()
                began = now = time.perf_counter()
                while now - began < seconds:
                    count, batch = batches[at % len(batches)]
                    call(batch)
                    before, now = now, time.perf_counter()
                    own.append(now - before)
                    images[client] += count
                    at += 1
        except threading.BrokenBarrierError:
            pass
        except Exception as error:  # of whatever kind: the thread would take it along
            failures.append(error)
            start.abort()

    threads = [threading.Thread(target=work, args=(client,)) for client in range(len(clients))]
    for thread in threads:
        thread.start()
    began = time.perf_counter()
    try:
        start.wait()
        began = time.perf_counter()
    except threading.BrokenBarrierError:
        pass
    for thread in threads:
        thread.join()
    if failures:
        raise failures[0]
    taken = time.perf_counter() - began
    ordered = sorted(latency for own in latencies for latency in own)
    return {
        "requests": len(ordered),
        "images_per_s": sum(images) / taken,
        "p50_s": percentile(ordered, 50),
        "p99_s": percentile(ordered, 99),
    }


def percentile(ordered: Sequence[float], percent: float) -> float:
    """The smallest value that is not below `percent` per cent of the values (nearest rank)."""
    return ordered[max(0, math.ceil(percent / 100 * len(ordered)) - 1)]


class ServedFrozen:
    """torch.jit.load of the frozen network; threads share it."""

    name = "cnnfast_frozen"
    requires = ()

    def __init__(self, folder: Path, load: Load):
        import warnings

        import cnnfast  # noqa: F401  loads the operator library

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit announces its own end
            self._network = torch.jit.load(folder / "net.pt")

    def feed(self, batch: Tensor) -> Any:
        return batch

    def client(self) -> Call:
        return self._network.forward

    def output(self, result: Any) -> Tensor:
        return result


class ServedOnnxRuntime:
    """One session for all threads, CPUExecutionProvider, ORT_ENABLE_ALL."""

    name = "onnxruntime"
    requires = ("onnxruntime", "onnx")

    def __init__(self, folder: Path, load: Load):
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = load.threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        path = folder / "net.onnx"
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def feed(self, batch: Tensor) -> Any:
        return {"input": batch.contiguous().numpy()}

    def client(self) -> Call:
        session = self._session
        return lambda batch: session.run(None, batch)

    def output(self, result: Any) -> Tensor:
        return torch.from_numpy(result[0])


class ServedOpenVino:
    """One compiled model with a stream and an infer request per client, f32."""

    name = "openvino"
    requires = ("openvino", "onnx")

    def __init__(self, folder: Path, load: Load):
        import openvino

        options = {
            "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "THROUGHPUT",
            "NUM_STREAMS": load.clients,
            "INFERENCE_NUM_THREADS": load.clients * load.threads,
        }
        self._model = openvino.compile_model(str(folder / "net.onnx"), "CPU", options)
        precision = self._model.get_property("INFERENCE_PRECISION_HINT").to_string()
        if precision != "f32":
            raise RuntimeError(f"OpenVINO runs in {precision} although f32 was asked for")

    def feed(self, batch: Tensor) -> Any:
        return [batch.contiguous().numpy()]

    def client(self) -> Call:
        request = self._model.create_infer_request()
        return lambda batch: request.infer(batch, share_inputs=True, share_outputs=True)

    def output(self, result: Any) -> Tensor:
        return torch.from_numpy(result[0]).clone()


CONTENDERS = {kind.name: kind for kind in (ServedFrozen, ServedOnnxRuntime, ServedOpenVino)}


class Session:
    """The worker's side: one contender and its batches."""

    def setup(self, contender: str, folder: str, load: dict) -> dict[str, Any]:
        self.load = Load(**{**load, "batches": tuple(load["batches"])})
        torch.set_num_threads(self.load.threads)
        self.contender = CONTENDERS[contender](Path(folder), self.load)
        self.cases = torch.load(Path(folder) / "cases.pt", weights_only=True)
        self.batches = [(len(x), self.contender.feed(x)) for x, _ in self.cases]
        return {}

    def check(self) -> dict[str, Any]:
        call = self.contender.client()
        errors = []
        for (_, batch), (_, wanted) in zip(self.batches, self.cases, strict=True):
            with torch.inference_mode():
                got = self.contender.output(call(batch))
            errors.append(((got - wanted).abs().max() / wanted.abs().max()).item())
        if not max(errors) <= _TOLERANCE:
            raise RuntimeError(f"wrong answers: {max(errors):.1e} of the largest output value")
        return {"error": max(errors)}

    def serve(self) -> dict[str, Any]:
        clients = [self.contender.client() for _ in range(self.load.clients)]
        return drive(clients, self.batches, self.load.seconds)


def compare(network: str, load: Load, contenders: Sequence[str] = tuple(CONTENDERS)) -> list[Served]:
    """One row per contender for a network of the notes, its weights filled at random.

    Raises ValueError for an unknown name. What is not installed, answers wrongly or fails has a row that
    says so. Needs the compiled extension.
    """
    unknown = [name for name in contenders if name not in CONTENDERS]
    if unknown:
        raise ValueError(f"no contender named {unknown[0]!r} for serving; known: {', '.join(CONTENDERS)}")
    with TemporaryDirectory(prefix="cnnfast-serving-") as folder:
        missing = prepare(network, load, Path(folder))
        return [_row(network, load, name, Path(folder), missing) for name in contenders]


def prepare(network: str, load: Load, folder: Path) -> str:
    """Writes the files that contenders load; why there is no ONNX file, or nothing."""
    import cnnfast

    from .case import ModelSpec
    from .fill import fill_weights, images

    spec = ModelSpec(network).resolved()
    model = spec.module().eval()
    fill_weights(model)
    batches = [images(size, spec.input_shape, seed) for seed, size in enumerate(load.batches)]
    frozen = cnnfast.freeze(model, batches[0])
    with torch.inference_mode():
        torch.save([(batch, model(batch)) for batch in batches], folder / "cases.pt")
    cnnfast.export(frozen, folder / "net.pt", verify=False)
    try:
        import onnx  # noqa: F401
    except ImportError as error:
        return str(error)
    cnnfast.export(frozen, folder / "net.onnx", format="onnx", example_inputs=batches[0], verify=False)
    return ""


def _row(network: str, load: Load, name: str, folder: Path, missing: str) -> Served:
    import importlib.util

    row = Served(name, network, load)
    absent = [module for module in CONTENDERS[name].requires if importlib.util.find_spec(module) is None]
    reason = extension_unavailable() if name == "cnnfast_frozen" else (", ".join(absent) or missing)
    if reason:
        row.status, row.detail = "missing", f"not installed: {reason}"
        return row
    with Worker(name, load.threads, "cnnfast.benchmarking.serving") as worker:
        try:
            worker.ask("setup", _PATIENCE, contender=name, folder=str(folder), load=asdict(load))
            worker.ask("check", _PATIENCE)
            for key, value in worker.ask("serve", _PATIENCE + load.seconds).items():
                setattr(row, key, value)
            worker.ask("check", _PATIENCE)
        except WorkerError as error:
            row.status, row.detail = "failed", str(error)
    return row


def table(rows: Sequence[Served]) -> str:
    """Rows as aligned text."""
    lines = [
        f"{'network':<16}{'contender':<16}{'clients':>8}{'requests':>10}{'images/s':>10}"
        f"{'p50 ms':>9}{'p99 ms':>9}"
    ]
    for row in rows:
        start = f"{row.network:<16}{row.contender:<16}{row.load.clients:>8}"
        if row.status == "ok":
            times = f"{1e3 * row.p50_s:>9.3f}{1e3 * row.p99_s:>9.3f}"
            lines.append(f"{start}{row.requests:>10}{row.images_per_s:>10.0f}{times}")
        else:
            lines.append(f"{start}  {row.status}: {row.detail.splitlines()[0]}")
    return "\n".join(lines)


if __name__ == "__main__":
    from .worker import die_with_parent, own_pipe, serve

    die_with_parent()
    handlers = ("setup", "check", "serve")
    serve(own_pipe(sys.argv[1], "r"), own_pipe(sys.argv[2], "w"), Session(), handlers)
