"""Compiles the convolution kernel for explicit GPUs, without one, and writes a JSON record per variant.

Run as a program of its own, without TRITON_INTERPRET: `python compile_conv2d.py facts.json`. The figures come
from the machine code (cuobjdump), not from the compiler's intermediate forms.
"""

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cnnfast.triton.conv2d import _conv2d_forward_kernel
from cnnfast.triton.conv2d_arguments import Geometry
from cnnfast.triton.tiles import Access, Machine, Tile, candidates

TYPES = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}
# Processors and the most shared memory that one program can have (CUDA programming guide, table of limits).
MACHINES = {80: Machine(108, 163 * 1024, 80), 90: Machine(132, 227 * 1024, 90)}
# 3×3 convolution of a ResNet's second stage, and one whose channel counts allow no 16-byte access.
WIDE = Geometry(16, 56, 56, 56, 56, 64, 128, 3, 3, (1, 1), (1, 1), (1, 1), 1)
ODD = WIDE._replace(in_channels=3, out_channels=13, kernel_h=7, kernel_w=7, padding=(3, 3))
# Triton compiles a number that is 1 as a constant, and an absent tensor as None: here all of them are.
BARE = Geometry(1, 1, 1, 1, 1, 1, 1, 1, 1, (1, 1), (1, 1), (1, 1), 1)
POINTERS = ("x_ptr", "w_ptr", "y_ptr", "bias_ptr", "scale_ptr", "residual_ptr")


def source(sizes: Geometry, dtype: str, precision: str, tile: Tile) -> ASTSource:
    """The kernel with the specialisations that the launcher would get for these sizes."""
    channels = sizes.in_channels * sizes.groups
    numbers = {
        "pixels": sizes.pixels,
        "in_h": sizes.in_h,
        "in_w": sizes.in_w,
        "out_h": sizes.out_h,
        "out_w": sizes.out_w,
        "in_channels": sizes.in_channels,
        "out_channels": sizes.out_channels,
        "groups": sizes.groups,
        "x_stride": channels,
        "y_stride": sizes.output_shape[1],
        "residual_stride": sizes.output_shape[1],
        **dict(zip(("stride_h", "stride_w"), sizes.stride, strict=True)),
        **dict(zip(("pad_h", "pad_w"), sizes.padding, strict=True)),
        **dict(zip(("dilation_h", "dilation_w"), sizes.dilation, strict=True)),
    }
    constants = {
        "KERNEL_H": sizes.kernel_h,
        "KERNEL_W": sizes.kernel_w,
        "ACTIVATION": "relu",
        "PRECISION": precision,
        "ACROSS_TAPS": tile.spans_taps(sizes),
        "UPCAST": False,
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "BLOCK_K": tile.block_k,
        **{name: 1 for name, value in numbers.items() if value == 1},
        **(dict.fromkeys(POINTERS[3:]) if sizes == BARE else {}),
    }
    types = {name: "*" + TYPES[dtype] for name in POINTERS} | dict.fromkeys(numbers, "i32")
    names = _conv2d_forward_kernel.arg_names
    signature = {name: "constexpr" if name in constants else types[name] for name in names}
    variable = [name for name in names if name not in constants]
    aligned = [name for name in variable if name in POINTERS or numbers[name] % 16 == 0]
    attributes = {(names.index(name),): [["tt.divisibility", 16]] for name in aligned}
    return ASTSource(_conv2d_forward_kernel, signature, constants, attributes)


def machine_code_facts(cubin: bytes) -> dict:
    tool = triton.knobs.nvidia.cuobjdump.path
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        usage, code = (
            subprocess.run([tool, flag, str(path)], capture_output=True, text=True, check=True).stdout
            for flag in ("-res-usage", "-sass")
        )
    return {
        "registers": int(re.search(r"REG:(\d+)", usage).group(1)),
        "stack": int(re.search(r"STACK:(\d+)", usage).group(1)),
        "spills": len(re.findall(r"\b(?:STL|LDL)\b", code)),
        "tensor_core": sorted(set(re.findall(r"\bHG?MMA[\w.]*", code))),
        "copies_16_bytes": len(re.findall(r"\bLDGSTS[\w.]*\.128\b", code)),
        "stores_16_bytes": len(re.findall(r"\bSTG[\w.]*\.128\b", code)),
    }


def variants():
    """The largest tile of every shape in every precision."""
    for capability, machine in MACHINES.items():
        for dtype in TYPES:
            size = 4 if dtype == "float32" else 2
            for precision in ("tf32", "ieee") if dtype == "float32" else ("tf32",):
                for shape, sizes in (("wide", WIDE), ("odd", ODD), ("bare", BARE)):
                    tiles = candidates(sizes, size, Access(shape == "wide", precision), machine)
                    yield capability, dtype, precision, shape, sizes, tiles[0]


def main() -> None:
    records = []
    for capability, dtype, precision, shape, sizes, tile in variants():
        kernel = triton.compile(
            source(sizes, dtype, precision, tile),
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": tile.num_warps, "num_stages": tile.num_stages},
        )
        facts = {
            "capability": capability,
            "dtype": dtype,
            "precision": precision,
            "shape": shape,
            "tile": list(tile),
            "shared": kernel.metadata.shared,
            "shared_reckoned": tile.shared_bytes(4 if dtype == "float32" else 2),
            "shared_limit": MACHINES[capability].shared_bytes,
            **machine_code_facts(kernel.asm["cubin"]),
        }
        records.append(facts)
    Path(sys.argv[1]).write_text(json.dumps(records, indent=1))


if __name__ == "__main__":
    main()
