"""`python -m cnnfast accuracy`: a Markdown page about training runs."""

import argparse
from pathlib import Path

from cnnfast.files import write_atomically
from cnnfast.training.accuracy import page, read_log


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cnnfast accuracy",
        description="Accuracies, settings, machine and command of training runs, as a Markdown page.",
    )
    parser.add_argument("runs", nargs="+", type=Path, help="folders of runs, or their log.json")
    parser.add_argument("--out", type=Path, help="the page (default: standard output)")
    arguments = parser.parse_args(argv)
    text = page([read_log(run) for run in arguments.runs])
    if arguments.out is None:
        print(text, end="")
    else:
        print(f"written: {write_atomically(arguments.out, text)}")
    return 0
