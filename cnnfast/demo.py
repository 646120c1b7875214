"""`python -m cnnfast demo`: the whole way of a network, on all of Fashion-MNIST.

A residual net in plain torch.nn is fused and trained, frozen, exported to TorchScript and loaded by a fresh
Python process and by a C++ program, with the same classes everywhere; then it is timed against eager PyTorch.
"""

import argparse
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import Tensor, nn

from cnnfast import _ext, data
from cnnfast.benchmarking import Result, compare
from cnnfast.benchmarking.plain import get_plain
from cnnfast.cli import cpp_example
from cnnfast.export import export
from cnnfast.files import replacing
from cnnfast.freeze import freeze
from cnnfast.fuse import fuse
from cnnfast.train import Settings, train
from cnnfast.training.epoch import evaluating

ACCURACY = 0.88
BATCH = 256
CONTENDERS = ("eager", "eager_channels_last", "cnnfast_frozen")
SETTINGS = Settings("residual_net", epochs=4, batch_size=128, optimizer="adam", lr=0.003, schedule="linear")

# What a user's other program does: it knows the file and the package, nothing of the training.
FRESH_PROCESS = """
import sys, warnings
import torch
import cnnfast
from cnnfast.data import batches, parse_idx
network, images, classes, batch = sys.argv[1:]
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # torch.jit is deprecated
    net = torch.jit.load(network)
pixels = parse_idx(open(images, "rb").read())
with torch.inference_mode():
    found = [net(x).argmax(1) for x, _ in batches(pixels, torch.zeros(len(pixels)), int(batch))]
open(classes, "wb").write(bytes(torch.cat(found).tolist()))
"""


class DemoError(RuntimeError):
    """The demo did not show what it must show."""


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m cnnfast demo", description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("runs/demo"), help="folder for what it writes")
    out = parser.parse_args(argv).out
    start = time.monotonic()
    if not _ext.AVAILABLE:
        raise DemoError(f"the demo needs the compiled operators, and {_ext.REASON}")
    train_data, test_data = data.fashion_mnist("train"), data.fashion_mnist("test")
    print(f"Fashion-MNIST: {len(train_data[0]):,} training and {len(test_data[0]):,} test images")

    torch.manual_seed(SETTINGS.seed)
    plain = get_plain("residual_net")
    trained(fuse(plain), train_data, test_data, out)  # the fused network's parameters are those of `plain`
    network, classes = exported(plain, test_data[0], out)
    same_everywhere(network, classes, test_data, out)
    result = timed(plain, out)
    failed = [row for row in result.rows if row.status != "ok"]
    if failed:
        raise DemoError("; ".join(f"{row.contender}, {row.group}: {row.detail}" for row in failed))
    _say(f"the demo took {time.monotonic() - start:.0f} s")
    return 0


def trained(net: nn.Module, train_data: tuple, test_data: tuple, out: Path) -> None:
    """Train to at least `ACCURACY` on the test images, or raise DemoError."""
    threads = torch.get_num_threads()
    _say(f"training residual_net on fused modules, {_ext.active_isa()} kernels, {threads} threads")
    history = train(net, train_data, test_data, SETTINGS, device="cpu", out=out, report=_say)
    if history[-1].test_accuracy < ACCURACY:
        raise DemoError(f"test accuracy {history[-1].test_accuracy:.4f} is below {ACCURACY}")


def exported(plain: nn.Module, images: Tensor, out: Path) -> tuple[Path, Tensor]:
    """Fuse, freeze, export; the TorchScript file, and the frozen network's class of each image as a byte."""
    example = next(data.batches(images, torch.zeros(len(images)), 1))[0]
    frozen = freeze(fuse(plain).eval(), example)
    network = Path(export(frozen, out / "residual_net.pt", format="torchscript", example_inputs=example))
    logits, eager = outputs(frozen, images), outputs(plain, images)
    _say(agreement(eager, logits))
    _say(f"exported: {network}, {network.stat().st_size / 1024:.0f} KiB")
    return network, logits.argmax(1).byte()


def outputs(net: nn.Module, images: Tensor) -> Tensor:
    """The outputs for all images, in batches of `BATCH`."""
    with evaluating(net):
        return torch.cat([net(batch) for batch, _ in data.batches(images, torch.zeros(len(images)), BATCH)])


def agreement(eager: Tensor, frozen: Tensor) -> str:
    """In words, how far plain PyTorch's outputs and the frozen network's agree.

    Raises:
        DemoError: another class than eager's for an image whose best two classes are no tie within rounding.
    """
    difference = ((frozen - eager).abs().max() / eager.abs().max()).item()
    chosen = eager.gather(1, frozen.argmax(1, keepdim=True)).squeeze(1)
    behind = eager.amax(1) - chosen  # how much eager prefers its own choice
    ties, wrong = int((behind > 0).sum()), int((~(behind <= 1e-4 * eager.abs().max())).sum())
    if wrong:
        raise DemoError(
            f"frozen and plain network disagree on {wrong} images, outputs differ by {difference:.1e}"
        )
    same = f"same class for {len(eager) - ties:,} of {len(eager):,} images"
    tied = f", a tie within rounding for {ties}" if ties else ""
    return f"frozen against plain torch.nn: {same}{tied}; outputs differ by {difference:.1e} of the largest"


def same_everywhere(network: Path, classes: Tensor, test_data: tuple, out: Path) -> None:
    """The exported file in a fresh Python process and in C++: the same class of every image, or DemoError."""
    images, labels = (
        data.write_idx(array, out / file.name)
        for array, file in zip(test_data, data.FILES["test"], strict=True)
    )
    found = out / "classes-python.bin"
    command = [sys.executable, "-c", FRESH_PROCESS, *map(str, (network, images, found, BATCH))]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise DemoError(f"a fresh Python process cannot run {network}:\n{result.stderr}")
    _require_same("a fresh Python process", found, classes)
    reason = cpp_example.why_not()
    if reason:
        _say(f"C++ program: SKIPPED, {reason}")
        return
    _say("C++ program: building examples/cpp …")
    found = out / "classes-cpp.bin"
    line = cpp_example.classify(cpp_example.build(), network, images, labels, found, BATCH)
    _require_same(f"the C++ program ({line})", found, classes)


def _require_same(who: str, found: Path, classes: Tensor) -> None:
    theirs = found.read_bytes()
    ours = bytes(classes.tolist())
    if theirs != ours:
        count = sum(a != b for a, b in zip(theirs, ours, strict=False)) + abs(len(theirs) - len(ours))
        raise DemoError(f"{who}: {count:,} of {len(ours):,} classes differ from the frozen network's")
    _say(f"{who}: the same class for all {len(ours):,} test images")


def timed(plain: nn.Module, out: Path) -> Result:
    """The trained network against eager PyTorch: a table, speedup.json and speedup.png."""
    weights = out / "plain_weights.pt"
    with replacing(weights) as temporary:
        torch.save(plain.state_dict(), temporary)
    _say("timing, each contender alone in a process of its own …")
    from rich.console import Console
    from tqdm import tqdm

    with tqdm(leave=False, disable=None, file=sys.stderr, bar_format="{l_bar}{bar}") as bar:

        def progress(done: int, total: int, what: str) -> None:
            bar.total, bar.n = total, done
            bar.set_description_str(what)

        result = compare("residual_net", (1, 16), CONTENDERS, state_dict_path=str(weights), progress=progress)
    Console(width=None if sys.stdout.isatty() else 120).print(result.table())
    _say(f"written: {result.to_json(out / 'speedup.json')}, {result.plot(out / 'speedup.png')}")
    return result


def _say(what: object) -> None:
    print(what, flush=True)
