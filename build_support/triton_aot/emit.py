"""The blob of all images, the C++ table that says what is where, and the same for other programs as JSON."""

import json
import zlib
from pathlib import Path

from .compile import Image
from .settings import TRITON_VERSION
from .variants import Variant

TYPES = {"*fp32": "kFloat32", "*fp16": "kFloat16", "*bf16": "kBFloat16", "i32": "kInt32", "i64": "kInt64"}
HEAD = """// Written by build_support/triton_aot with triton {version}: {variants} variants, {images} images.
namespace cnnfast::gpu {{
namespace {{

asm(R"(
  .pushsection .rodata
  .balign 16
cnnfast_triton_kernels:
  .incbin "{blob}"
  .popsection
)");
extern "C" __attribute__((visibility("hidden"))) const unsigned char kBlob[] asm("cnnfast_triton_kernels");

"""
TAIL = """}};

}}  // namespace

const Table& table() {{
  static const Table compiled{{kVariants, sizeof(kVariants) / sizeof(kVariants[0]), kBlob, "{version}"}};
  return compiled;
}}

}}  // namespace cnnfast::gpu
"""


def write(folder: Path, compiled: list[tuple[Variant, str, list[Image]]]) -> None:
    """triton_kernels.bin, triton_table.inc and triton_manifest.json in `folder`."""
    blob = Blob()
    rows, tables = [], []
    for index, (variant, entry, images) in enumerate(compiled):
        parameters = ",\n".join(f"    {_parameter(variant, name)}" for name in variant.types)
        places = ",\n".join(f"    {_image(image, *blob.add(image.code))}" for image in images)
        tables.append(f"constexpr Parameter kParameters{index}[] = {{\n{parameters}}};\n")
        tables.append(f"constexpr Image kImages{index}[] = {{\n{places}}};\n")
        tile = variant.tile
        rows.append(
            f'    {{"{variant.name}", "{variant.kernel_name}", "{entry}", '
            f"{{{tile[0]}, {tile[1]}, {tile[2]}}}, "
            f"kParameters{index}, {len(variant.types)}, kImages{index}, {len(images)}}},\n"
        )
    path = folder / "triton_kernels.bin"
    path.write_bytes(blob.content)
    images = sum(len(images) for _, _, images in compiled)
    text = HEAD.format(version=TRITON_VERSION, variants=len(compiled), images=images, blob=path.resolve())
    text += "".join(tables) + "constexpr Variant kVariants[] = {\n" + "".join(rows)
    (folder / "triton_table.inc").write_text(text + TAIL.format(version=TRITON_VERSION))
    manifest = [_facts(variant, entry, images, blob) for variant, entry, images in compiled]
    (folder / "triton_manifest.json").write_text(json.dumps(manifest, indent=1))


class Blob:
    """Compressed images one behind the other; equal ones once."""

    def __init__(self) -> None:
        self.content = bytearray()
        self._known: dict[bytes, tuple[int, int, int]] = {}

    def add(self, code: bytes) -> tuple[int, int, int]:
        """Offset, compressed and unpacked size."""
        if code not in self._known:
            packed = zlib.compress(code, 9)
            self._known[code] = len(self.content), len(packed), len(code)
            self.content += packed
        return self._known[code]


def fnv(data: bytes) -> str:
    """A short name of an image's bytes (FNV-1a, 64 bits)."""
    value = 0xCBF29CE484222325
    for byte in data:
        value = (value ^ byte) * 0x100000001B3 % 2**64
    return f"{value:016x}"


def _facts(variant: Variant, entry: str, images: list[Image], blob: Blob) -> dict:
    def of_image(image: Image) -> dict:
        facts = {name: value for name, value in vars(image).items() if name != "code"}
        offset, packed, unpacked = blob.add(image.code)
        return facts | {"offset": offset, "packed": packed, "unpacked": unpacked, "fnv": fnv(image.code)}

    return {
        "name": variant.name,
        "entry": entry,
        "types": variant.types,
        "constants": variant.constants,
        "multiples": variant.multiples,
        "images": [of_image(image) for image in images],
    }


def _parameter(variant: Variant, name: str) -> str:
    kind = variant.types[name]
    if kind != "constexpr":
        divisor = variant.multiples.get(name, 1)
        return f'{{"{name}", Role::kPassed, Type::{TYPES[kind]}, {divisor}, 0, ""}}'
    if name in variant.free:
        return f'{{"{name}", Role::kFree, Type::kNone, 1, {int(variant.constants[name])}, ""}}'
    value = variant.constants[name]
    if value is None:
        return f'{{"{name}", Role::kAbsent, Type::kNone, 1, 0, ""}}'
    if isinstance(value, str):
        return f'{{"{name}", Role::kWord, Type::kNone, 1, 0, "{value}"}}'
    return f'{{"{name}", Role::kNumber, Type::kNone, 1, {int(value)}, ""}}'


def _image(image: Image, offset: int, packed: int, unpacked: int) -> str:
    flags = [image.cooperative, image.dependent]
    numbers = [
        *(image.arch, image.arch_specific, image.ptx, offset, packed, unpacked),
        *(image.shared_bytes, image.warps, image.ctas, *flags),
        *(image.global_scratch, image.global_scratch_align),
        *(image.profile_scratch, image.profile_scratch_align),
    ]
    return "{" + ", ".join(str(number).lower() for number in numbers) + "}"
