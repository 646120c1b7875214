"""`python -m cnnfast <command>`: each command is a module that is imported only when it is asked for."""

import argparse
import importlib
import sys

COMMANDS = {
    "demo": ("cnnfast.demo", "the whole way on real data: train, fuse, freeze, export, C++, speed"),
    "train": ("cnnfast.cli.train", "train a network on Fashion-MNIST"),
    "accuracy": ("cnnfast.cli.accuracy", "a page about training runs, from their logs"),
    "bench": ("cnnfast.benchmarking.cli", "time a network against eager PyTorch and other engines"),
    "summary": ("cnnfast.cli.summary", "layers, shapes, parameters and multiply-adds of a network"),
    "profile": ("cnnfast.cli.profile", "time, arithmetic and traffic per layer of a frozen network"),
    "export": ("cnnfast.cli.export", "write a trained network to a file for another process or for C++"),
    "doctor": ("cnnfast.doctor", "what is built, what this machine has, what will run"),
    "data": ("cnnfast.cli.data", "fetch and check Fashion-MNIST"),
    "cmake-path": ("cnnfast.cli.cmake_path", "print the folder of cnnfast-config.cmake"),
}


def main(argv: list[str] | None = None) -> int:
    """Run one command; its exit code. Errors of our own are one line on stderr and exit code 2."""
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in COMMANDS:
        _parser().parse_args(argv)  # prints the help, or names the wrong command
        _parser().print_help(sys.stderr)
        return 2
    module = importlib.import_module(COMMANDS[argv[0]][0])
    try:
        return module.main(argv[1:]) or 0
    except KeyboardInterrupt:
        return 130
    except Exception as error:
        if type(error).__module__.split(".")[0] != "cnnfast":
            raise
        print(f"cnnfast {argv[0]}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m cnnfast", description="Fast convolutional networks for PyTorch."
    )
    commands = parser.add_subparsers(metavar="command", title="commands (each has its own --help)")
    for name, (_, description) in COMMANDS.items():
        commands.add_parser(name, help=description)
    return parser


if __name__ == "__main__":
    sys.exit(main())
