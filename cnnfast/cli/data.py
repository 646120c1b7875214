"""`python -m cnnfast data`: fetch Fashion-MNIST where it is missing, check every file."""

import argparse
from pathlib import Path

from cnnfast import data


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cnnfast data",
        description="Finds or fetches Fashion-MNIST and checks its files: sizes, magic numbers, digests.",
    )
    parser.add_argument(
        "--root", type=Path, help="look in this folder alone (else: $CNNFAST_DATA, cache, Debian)"
    )
    parser.add_argument(
        "--plain", type=Path, help="write decompressed files into this folder, for C++ programs"
    )
    arguments = parser.parse_args(argv)
    folder = data.find(arguments.root)
    for split, files in data.FILES.items():
        arrays = data.fashion_mnist(split, root=folder)
        print(f"{split}: {len(arrays[0]):,} images in {folder}, checked")
        for array, file in zip(arrays, files, strict=True):
            if arguments.plain is not None:
                print(f"  {data.write_idx(array, arguments.plain / file.name)}")
    return 0
