"""`python -m build_support.triton_aot FOLDER --archs 80,90 [--jobs 2] [--match WORD]`: writes the files."""

import argparse
import multiprocessing
import os
import re
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--archs", required=True)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--match", default="", help="only variants in whose names this expression occurs")
    options = parser.parse_args()
    options.folder.mkdir(parents=True, exist_ok=True)
    # Before Triton and cnnfast are imported. Line numbers make machine code four times as large.
    os.environ.pop("TRITON_INTERPRET", None)
    os.environ |= {"TRITON_DISABLE_LINE_INFO": "1", "CNNFAST_REFERENCE": "1"}
    os.environ.setdefault("TRITON_CACHE_DIR", str(options.folder / "cache"))
    from . import emit, settings
    from .compile import compile_named
    from .variants import variants

    settings.check_triton()
    archs = [int(arch) for arch in options.archs.split(",")]
    chosen = [variant for variant in variants() if re.search(options.match, variant.name)]
    tasks = [(variant.name, arch) for variant in chosen for arch in archs]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool:
        results = dict(zip(tasks, pool.starmap(compile_named, tasks, chunksize=8), strict=True))
    compiled = []
    for variant in chosen:
        ours = [results[variant.name, arch] for arch in archs]
        compiled.append((variant, ours[0][0], [image for _, images in ours for image in images]))
    emit.write(options.folder, compiled)
    print(report(compiled, options.folder))


def report(compiled, folder: Path) -> str:
    """A line with numbers and sizes."""
    images = [image for _, _, images in compiled for image in images]
    raw = sum(len(image.code) for image in images)
    packed = (folder / "triton_kernels.bin").stat().st_size
    return (
        f"cnnfast: {len(compiled)} Triton kernels, {len(images)} images, {raw / 2**20:.1f} MiB, "
        f"{packed / 2**20:.1f} MiB compressed"
    )


if __name__ == "__main__":
    main()
