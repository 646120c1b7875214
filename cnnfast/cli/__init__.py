"""The commands of `python -m cnnfast`: one module each, with `main(argv) -> exit code`."""

import argparse


class CommandError(RuntimeError):
    """A command that cannot be done as it was given. The message says why."""


def positive(text: str) -> int:
    """A whole number above 0, for argparse."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} is below 1")
    return number
