"""The whole list of Triton kernels, for every architecture, in a library that needs no Python."""

import ctypes
import json
import os
import subprocess
from pathlib import Path

import aot_library
import pytest
import torch

from build_support.triton_aot import settings

pytestmark = pytest.mark.gpu_proof
HERE = Path(__file__).resolve().parent
# The most shared memory that one program can have (CUDA programming guide, table of limits).
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Takes minutes: some twelve hundred compilations."""
    archs = ",".join(map(str, settings.ARCHS))
    built = aot_library.build(tmp_path_factory.mktemp("whole"), archs, "", jobs=os.cpu_count())
    yield built
    built.close()


def test_list_is_capped_and_complete(whole, record_property):
    assert 0 < len(whole.manifest) <= settings.MOST_VARIANTS
    for variant in whole.manifest:
        code = {image["arch"] for image in variant["images"] if not image["ptx"]}
        assert code == set(settings.ARCHS), variant["name"]
        assert [image["arch"] for image in variant["images"] if image["ptx"]] == [settings.PTX_ARCH]
        for image in variant["images"]:
            assert image["shared_bytes"] <= 1024 * SHARED[image["arch"]], (variant["name"], image)
            if variant["kernel"].startswith("conv2d"):  # operands pass through it
                assert image["shared_bytes"] > 0, (variant["name"], image)
            assert image["global_scratch"] == image["profile_scratch"] == 0, variant["name"]
            assert image["arch_specific"] == (image["arch"] >= 90), variant["name"]
    sizes = {
        "variants": len(whole.manifest),
        "images": sum(len(variant["images"]) for variant in whole.manifest),
        "bytes": sum(image["unpacked"] for variant in whole.manifest for image in variant["images"]),
        "compressed_bytes": len(whole.blob),
    }
    print(sizes)
    record_property("sizes", json.dumps(sizes))
    assert len(whole.blob) < 64 * 2**20


def test_machine_code_wants_the_parameters_of_the_signature(whole):
    """Sizes of parameters, from the code itself, for every image: those passed and two scratch buffers."""
    import zlib

    stub = ctypes.CDLL(str(whole.stub))
    stub.stub_layout.restype = ctypes.c_char_p
    for variant in whole.manifest:
        kinds = [kind for kind in variant["types"].values() if kind != "constexpr"]
        wanted = " ".join(["8" if kind.startswith("*") else "4" for kind in kinds] + ["8", "8"])
        for image in variant["images"]:
            code = zlib.decompress(whole.blob[image["offset"] : image["offset"] + image["packed"]])
            found = stub.stub_layout(code + b"\0", variant["entry"].encode()).decode()
            assert found == wanted, (variant["name"], image["arch"], image["ptx"])


@pytest.mark.parametrize("arch", settings.ARCHS)
def test_every_architecture_runs_its_own_code(whole, arch):
    places = {"STUB_ARCH": str(arch), "STUB_SHARED": str(1024 * SHARED[arch]), "CNNFAST_BACKEND": "triton"}
    output = whole.worker.run("values", **places)
    assert {record[1] for record in json.loads(output)} == {"0"}


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_script_runs_in_a_program_without_python(whole, tmp_path):
    """A script that torch.jit.load reads in C++ reaches the kernels; its answer is right."""
    import cnnfast

    class Block(torch.nn.Module):
        def __init__(self):
            super().__init__()
            weight = torch.randn(24, 16, 3, 3).contiguous(memory_format=torch.channels_last)
            self.register_buffer("weight", weight)
            self.register_buffer("bias", torch.randn(24))

        def forward(self, x, residual):
            scale = torch.ones_like(self.bias) if self.training else self.bias
            return torch.ops.cnnfast.conv2d(
                x, self.weight, self.bias, scale, residual, padding=[1, 1], activation="relu"
            )

    block = Block().eval()
    x = torch.randn(2, 16, 7, 5).contiguous(memory_format=torch.channels_last)
    residual = torch.randn(2, 24, 7, 5).contiguous(memory_format=torch.channels_last)
    expected = cnnfast.reference.conv2d(
        x, block.weight, block.bias, block.bias, residual, (1, 1), (1, 1), activation="relu"
    )
    torch.jit.script(block).save(str(tmp_path / "block.pt"))

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for name, value in (("x", x), ("residual", residual), ("expected", expected)):
                self.register_buffer(name, value)

    torch.jit.script(Holder()).save(str(tmp_path / "tensors.pt"))
    program = tmp_path / "run_script"
    includes = [aot_library.TORCH / "include", aot_library.TORCH / "include/torch/csrc/api/include"]
    flags = ["-std=c++20", "-O0", *[word for path in includes for word in ("-isystem", str(path))]]
    library = aot_library.TORCH / "lib"
    links = [f"-L{library}", "-Wl,--no-as-needed", "-ltorch_cpu", "-ltorch", "-lc10", f"-Wl,-rpath,{library}"]
    source = str(HERE / "run_script.cpp")
    aot_library.run([*aot_library.compiler(), *flags, source, "-o", str(program), *links, "-ldl"])
    arguments = [
        str(whole.library),
        str(whole.stub),
        str(tmp_path / "block.pt"),
        str(tmp_path / "tensors.pt"),
    ]
    result = subprocess.run(
        [str(program), *arguments],
        env=whole.environment(CNNFAST_BACKEND="triton"),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr[-4000:]
    words = result.stdout.split()  # more than one launch, where several kernels serve and are timed
    assert words[0] == "launches" and int(words[1]) >= 1 and words[2:] == ["python", "no"], result.stdout
