"""`python -m cnnfast.benchmarking.gpu [--out FOLDER]`: measures on the GPU; 2 where there is none."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from cnnfast import _ext

from .cases import network_cases, operator_cases
from .measure import CONTENDERS, measure
from .report import header, summary, write, write_figures
from .timers import EventTimer

NO_GPU = 2
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def why_not() -> str:
    """Why nothing can be measured here; empty where it can."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return "torch finds no CUDA device on this machine"
    return "" if _ext.AVAILABLE else f"the extension is not there: {_ext.REASON}"


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="python -m cnnfast.benchmarking.gpu", description=__doc__)
    result.add_argument(
        "--out", type=Path, default=Path("build/gpu"), help="folder for gpu.md, .json and .png"
    )
    result.add_argument("--check", action="store_true", help="only say whether there is a GPU to measure on")
    result.add_argument("--dtypes", default="float32,float16", help=f"of {', '.join(DTYPES)}")
    result.add_argument("--contenders", default=",".join(CONTENDERS), help=f"of {', '.join(CONTENDERS)}")
    result.add_argument("--batch", type=int, default=32)
    result.add_argument("--rounds", type=int, default=30)
    result.add_argument("--match", default="", help="only cases with this in their names or kinds")
    return result


def main(arguments: Sequence[str] | None = None) -> int:
    arguments_of = parser()
    options = arguments_of.parse_args(arguments)
    for name, known in (("dtypes", DTYPES), ("contenders", CONTENDERS)):
        if unknown := set(getattr(options, name).split(",")) - set(known):
            arguments_of.error(f"--{name}: {', '.join(sorted(unknown))}: not of {', '.join(known)}")
    reason = why_not()
    if reason:
        print(f"gpu: nothing was measured: {reason}", file=sys.stderr)
        return NO_GPU
    device = torch.device("cuda", torch.cuda.current_device())
    torch.backends.cudnn.benchmark = True  # for every contender: cuDNN's best algorithm, not its guess
    facts = header(device)
    print(f"gpu: {facts['device']}", flush=True)
    if options.check:
        return 0
    cases = [*operator_cases(options.batch), *network_cases(options.batch)]
    cases = [case for case in cases if options.match in f"{case.kind}: {case.name}"]
    dtypes = [DTYPES[name] for name in options.dtypes.split(",")]
    contenders = options.contenders.split(",")
    rows = []
    for row in measure(cases, device, dtypes, EventTimer(device), options.rounds, contenders):
        rows.append(row)
        time = row.reason if row.best_ms is None else f"{row.best_ms:.4g} ms"
        print(f"{row.kind}: {row.case} {row.dtype} {row.contender}: {row.status} {time}", flush=True)
        if row.contender == contenders[-1]:  # hours may follow: what is measured stays
            write_figures(rows, facts, options.out)
    for path in write(rows, facts, options.out):
        print(path)
    print(summary(rows))
    return 1 if any(row.status in ("wrong", "failed") and row.contender == "cnnfast" for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
