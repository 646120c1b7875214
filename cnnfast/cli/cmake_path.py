"""`python -m cnnfast cmake-path`: where CMake finds cnnfast::cnnfast."""

import argparse
from pathlib import Path

import cnnfast


def main(argv: list[str]) -> int:
    argparse.ArgumentParser(
        prog="python -m cnnfast cmake-path",
        description="Prints the folder of cnnfast-config.cmake, for CMake's CMAKE_PREFIX_PATH.",
    ).parse_args(argv)
    print(Path(cnnfast.__file__).resolve().parent / "cmake")
    return 0
