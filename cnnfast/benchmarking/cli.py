"""python -m cnnfast bench"""

import argparse
import sys
from collections.abc import Sequence

from cnnfast.cli.dtypes import dtype_name

from .case import DTYPES, MODES
from .contenders import registry
from .plain import BUILDERS
from .process import WorkerError
from .result import Result
from .runner import compare, default_contenders


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a benchmark. Exit status 0: every contender timed or missing; 1: one failed; 2: wrong usage."""
    arguments = parser().parse_args(argv)
    if arguments.list:
        return _list(arguments.mode)
    contenders = arguments.contenders or default_contenders(arguments.mode, peers=arguments.peers)
    if arguments.state_dict and len(arguments.model) > 1:
        print(
            "bench: --state-dict holds the weights of one network: give one --model",
            file=sys.stderr,
        )
        return 2
    result: Result | None = None
    try:
        for model in arguments.model:
            part = _compare_with_bar(model, contenders, arguments)
            if result is None:
                result = part
            else:
                result.extend(part)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    except WorkerError as error:
        print(f"bench: the float64 reference of {model} failed: {error}", file=sys.stderr)
        return 1
    return _report(result, arguments)


def parser() -> argparse.ArgumentParser:
    words = argparse.ArgumentParser(
        prog="python -m cnnfast bench",
        description="Times networks, each contender alone in its own process, the others stopped meanwhile.",
    )
    words.add_argument(
        "--model",
        type=networks,
        default=["lenet", "residual_net"],
        help=f"all, or some of {','.join(BUILDERS)}, torchvision:NETWORK, timm:NETWORK "
        "(default lenet,residual_net)",
    )
    words.add_argument("--batch", type=integers, default=[1, 16], help="batch sizes (default 1,16)")
    words.add_argument("--mode", choices=MODES, default="inference")
    words.add_argument("--dtype", type=dtype_name, choices=DTYPES, default="float32", help="bf16: bfloat16")
    group = words.add_mutually_exclusive_group()
    group.add_argument("--contenders", type=names, help="names from --list, or package.module:Class")
    group.add_argument("--peers", action="store_true", help="also compile, OpenVINO, ONNX Runtime, ...")
    words.add_argument("--list", action="store_true", help="list the contenders of --mode and their settings")
    words.add_argument("--threads", type=int, help="threads of each contender (default: all usable cores)")
    words.add_argument("--rounds", type=int, default=5, help="rounds to take the median of (default 5)")
    words.add_argument("--min-time", type=float, default=0.2, help="shortest round in seconds (default 0.2)")
    words.add_argument(
        "--timeout", type=float, default=300.0, help="seconds to wait for an answer (default 300)"
    )
    words.add_argument(
        "--patience",
        type=float,
        default=5.0,
        help="seconds for which a round is timed anew while something else has the cores (default 5)",
    )
    words.add_argument("--state-dict", help="trained weights (.safetensors, torch.save); one --model")
    words.add_argument("--json", metavar="FILE", help="write everything as JSON")
    words.add_argument("--png", metavar="FILE", help="write a bar chart")
    return words


def names(text: str) -> list[str]:
    return [word for word in text.split(",") if word]


def networks(text: str) -> list[str]:
    return list(BUILDERS) if text == "all" else names(text)


def integers(text: str) -> list[int]:
    return [int(word) for word in names(text)]


def _compare_with_bar(model: str, contenders: list[str], arguments: argparse.Namespace) -> Result:
    from tqdm import tqdm

    with tqdm(desc=model, unit="step", leave=False, disable=None, file=sys.stderr) as bar:

        def progress(done: int, total: int, text: str) -> None:
            bar.total = total
            bar.set_description_str(text, refresh=False)
            bar.update(done - bar.n)
            bar.refresh()

        return compare(
            model,
            arguments.batch,
            contenders,
            arguments.rounds,
            arguments.threads,
            arguments.mode,
            dtype=arguments.dtype,
            state_dict_path=arguments.state_dict,
            min_time=arguments.min_time,
            timeout=arguments.timeout,
            patience=arguments.patience,
            progress=progress,
        )


def _list(mode: str) -> int:
    for name, kind in registry(mode).items():
        reason = kind.unavailable()
        print(f"{name:28} {kind.setting}" + (f"  [{reason}]" if reason else ""))
    return 0


def _report(result: Result, arguments: argparse.Namespace) -> int:
    from rich.console import Console

    # A file or pipe has no width of its own; 80 columns would cut names.
    console = Console(width=None if sys.stdout.isatty() else 140)
    console.print(result.table())
    for path, write in ((arguments.json, result.to_json), (arguments.png, result.plot)):
        if path:
            print(f"written: {write(path)}")
    return 1 if any(row.status in ("parity", "failed") for row in result.rows) else 0


if __name__ == "__main__":
    raise SystemExit(main())
