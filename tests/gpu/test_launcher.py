"""Triton kernels in the library, launched without Python; a stub of the driver stands for a GPU."""

import json
import re
import sysconfig
from pathlib import Path

import aot_library
import pytest


@pytest.fixture(scope="session")
def built(tmp_path_factory):
    built = aot_library.build(
        tmp_path_factory.mktemp("aot"), rich="conv2d-ieee-any-across-64x64-relu-residual"
    )
    yield built
    built.close()


def run(built, name: str, *arguments: str, **environment: str) -> str:
    return built.worker.run(name, *arguments, **environment)


def test_launches_compute_the_convolution(built):
    records = json.loads(run(built, "values", CNNFAST_BACKEND="triton"))
    images = [image for variant in built.manifest for image in variant["images"]]
    for function, ptx, gx, gy, gz, bx, by, bz, shared, *_ in records:
        assert ptx == "0" and (gy, gz, by, bz) == ("1", "1", "1", "1") and int(gx) > 0
        assert (int(shared), int(bx)) in {(image["shared_bytes"], 32 * image["warps"]) for image in images}
        assert function in {variant["entry"] for variant in built.manifest}


@pytest.mark.skipif(
    not Path(sysconfig.get_path("include"), "Python.h").exists(), reason="Python's headers are not installed"
)
def test_bytes_are_those_of_tritons_own_launcher(built, tmp_path):
    files = [
        str(built.names.parent / "triton" / f"triton_{name}") for name in ("manifest.json", "kernels.bin")
    ]
    places = {"TRITON_LIBCUDA_PATH": str(built.stub.parent), "TRITON_CACHE_DIR": str(tmp_path)}
    run(built, "tritons_own_launcher", *files, CNNFAST_BACKEND="triton", **places)


def test_gradients(built):
    records = json.loads(run(built, "gradients", CNNFAST_BACKEND="triton"))
    entries = {variant["entry"] for variant in built.manifest}
    assert {record[0] for record in records} <= entries and {record[9] for record in records} == {"0"}


def test_gradient_of_a_weight_is_summed_in_parts(built):
    run(built, "parts_of_a_weight_gradient", CNNFAST_BACKEND="triton")


def test_batch_norm_in_front_of_a_convolution(built):
    run(built, "prologue", CNNFAST_BACKEND="triton")


def test_statistics_behind_a_convolution(built):
    run(built, "statistics", CNNFAST_BACKEND="triton")


def test_gradients_that_no_kernel_serves_say_why(built):
    run(built, "refused_gradients", CNNFAST_BACKEND="triton")


def test_gradients_fall_back_aloud(built):
    assert run(built, "gradients_fall_back", STUB_FAIL_LOAD="1") == "0\n"
    assert re.search(r"Warning: .*loading it.*; conv2d_input_grad goes on without it", built.worker.stderr)


def test_forced_backend_that_cannot_serve_says_why(built):
    run(built, "refusals", CNNFAST_BACKEND="triton")


def test_threads_share_loaded_code(built):
    run(built, "threads", CNNFAST_BACKEND="triton")


@pytest.mark.parametrize("arch, ptx", ((80, "0"), (86, "0"), (90, "1"), (121, "1")))
def test_code_for_the_device(built, arch, ptx):
    """sm_80's machine code on every 8.x, PTX on what is newer."""
    answer = json.loads(run(built, "forced_architecture", CNNFAST_BACKEND="triton", STUB_ARCH=str(arch)))
    assert answer == {"ptx": ptx}


@pytest.mark.parametrize(
    "environment, words",
    (
        ({"STUB_ARCH": "75"}, "has no code for sm_75 (Stub GPU)"),
        ({"STUB_SHARED": "1024"}, "within its 1024 bytes of shared memory"),
        ({"STUB_FAIL_LOAD": "1"}, "CUDA_ERROR_INVALID_IMAGE"),
        ({"STUB_FAIL_PTX": "1", "STUB_ARCH": "90"}, "words from the compiler"),
        ({"STUB_FAIL_INIT": "1"}, "the CUDA driver does not start (cuInit: CUDA_ERROR_NO_DEVICE"),
        ({"CNNFAST_CUDA_DRIVER": "/nowhere/libcuda.so.1"}, "the CUDA driver library does not load (/nowhere"),
        ({"CNNFAST_CUDA_DRIVER": "libm.so.6"}, "libm.so.6 has no cuInit"),
    ),
)
def test_errors_name_their_cause(built, environment, words):
    answer = json.loads(run(built, "forced_architecture", CNNFAST_BACKEND="triton", **environment))
    assert words in answer["error"], answer


@pytest.mark.parametrize(
    "knob, words", (("FAIL_LOAD", "loading it"), ("FAIL_LAUNCH", "launch of Triton kernel"))
)
def test_falls_back_aloud(built, knob, words):
    assert run(built, "falls_back", **{f"STUB_{knob}": "1"}) == "0\n"
    (warning,) = re.findall(r"Warning: (.*; conv2d goes on without it)", built.worker.stderr)
    assert words in warning


def test_choice_is_measured_once_and_kept(built, tmp_path):
    file = tmp_path / "times"
    rows = json.loads(run(built, "chooses", CNNFAST_BACKEND_TIMES=str(file)))
    assert any(
        re.match(r"conv2d Stub GPU Half Half\[2, 32, 5, 7\]/32 .*\ttriton/conv2d-", row) for row in rows
    )
    later = json.loads(run(built, "remembers", CNNFAST_BACKEND_TIMES=str(file)))
    assert later["rows"] == rows and later["launches"] == 0
    assert "Warning" not in built.worker.stderr
    file.write_text(file.read_text() + "half a line\n")
    damaged = json.loads(run(built, "remembers", CNNFAST_BACKEND_TIMES=str(file)))
    assert damaged["launches"] > 0 and "are not used: 'half a line' has no times" in built.worker.stderr


def test_operators_of_aten_and_cuda_kernels_are_chosen_too(built, tmp_path):
    file = tmp_path / "times"
    rows = json.loads(run(built, "two_backends_choose", CNNFAST_BACKEND_TIMES=str(file)))
    assert any(re.match(r"max_pool2d Stub GPU Double Double\[2, 6, 5, 7\]/6 .*\tcuda\t", row) for row in rows)
    run(built, "two_backends_remember", CNNFAST_BACKEND_TIMES=str(file))


@pytest.mark.parametrize("backend", ("aten", "cuda"))
def test_operators_of_aten_and_cuda_kernels_can_be_forced(built, backend):
    run(built, "two_backends_forced", backend, CNNFAST_BACKEND=backend)


def test_operators_without_cuda_kernels_in_the_build_say_so(built):
    run(built, "two_backends_not_built", CNNFAST_BACKEND="cuda")


def test_code_is_loaded_while_a_graph_is_captured(built):
    run(built, "captured_load", CNNFAST_BACKEND="triton")


def test_rule_of_choice(built):
    run(built, "rule")
    run(built, "forced_rule", CNNFAST_BACKEND="cuda")
    run(built, "unknown_force", CNNFAST_BACKEND="magic")


def test_driver_numbers_are_those_of_cuda_h(tmp_path):
    """Structures and constants beside NVIDIA's header, which comes with Triton."""
    triton = pytest.importorskip("triton", reason="Triton is not installed (Linux on x86-64 only)")
    include = Path(triton.__file__).parent / "backends" / "nvidia" / "include"
    source = Path(__file__).resolve().parent / "driver_numbers.cpp"
    command = [*aot_library.compiler(), "-std=c++20", "-fsyntax-only", "-Wall", "-Werror", str(source)]
    aot_library.run([*command, f"-I{aot_library.ROOT / 'csrc'}", "-isystem", str(include)])
