"""Kernels compiled ahead of time keep all values in registers, or the build ends."""

from types import SimpleNamespace

import pytest

pytest.importorskip("triton")

from build_support.triton_aot import compile as aot  # noqa: E402
from build_support.triton_aot.variants import variants  # noqa: E402

VARIANT = "conv2d-ieee-aligned-pointwise-128x64-none"


def compiled_with(monkeypatch, stack_of):
    """What _compile_without_stack chooses where a kernel's stack is stack_of(settings)."""
    monkeypatch.setattr(aot.triton, "compile", lambda source, target, options: _kernel(options))
    monkeypatch.setattr(aot, "stack_bytes", lambda cubin: stack_of(cubin))
    variant = next(variant for variant in variants() if variant.name == VARIANT)
    return aot._compile_without_stack(variant, 86).asm["cubin"], variant.signatures[86].options()


def _kernel(options):
    return SimpleNamespace(asm={"cubin": options})


def test_the_tiles_own_settings_come_first(monkeypatch):
    chosen, own = compiled_with(monkeypatch, lambda settings: 0)
    assert chosen == own


def test_other_settings_are_taken_where_values_would_lie_in_memory(monkeypatch):
    chosen, own = compiled_with(monkeypatch, lambda settings: 0 if settings.get("maxnreg") == 255 else 8)
    assert chosen == own | {"ptx_options": "", "maxnreg": 255}
    chosen, _ = compiled_with(
        monkeypatch, lambda settings: 0 if settings["num_warps"] > own["num_warps"] else 8
    )
    assert chosen == own | {"num_warps": 2 * own["num_warps"]}


def test_a_kernel_that_never_fits_ends_the_build(monkeypatch):
    with pytest.raises(ValueError, match=f"{VARIANT} for sm_86 keeps values in local memory"):
        compiled_with(monkeypatch, lambda settings: 8)


@pytest.mark.gpu_proof
def test_stacks_are_read_from_machine_code():
    """The tile's own settings leave some of a kernel's values in memory, by the compiler that is accepted."""
    variant = next(variant for variant in variants() if variant.name == VARIANT)
    signature = variant.signatures[86]
    target = aot.GPUTarget("cuda", 86, 32)
    own = aot.triton.compile(signature.source(), target=target, options=signature.options())
    assert aot.stack_bytes(own.asm["cubin"]) > 0
    _, (image,) = aot.compile_variant(variant, 86)
    assert aot.stack_bytes(image.code) == 0
