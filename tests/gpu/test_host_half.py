"""The GPU half on the host: csrc/cuda's kernels under emulation, Triton's launches by the stub driver.

Blocks run as they do on a GPU: their order of kernels, their slices, their streams. Where launches write
shows that nothing is concatenated.
"""

import os

import aot_library
import pytest

pytestmark = pytest.mark.gpu_proof
MATCH = (
    "^(conv2d-(float16|ieee)-(aligned(-pointwise)?|any-across)-64x64-(none|relu|prologue|statistics)$"
    "|(input|weight)_grad-(float16|ieee)-(aligned(-pointwise)?|any-across)-64x64|sum_parts-float(16|32)|combine)"
)


@pytest.fixture(scope="session")
def half(tmp_path_factory):
    built = aot_library.build(
        tmp_path_factory.mktemp("half"), match=MATCH, on_host=True, jobs=os.cpu_count() or 1
    )
    yield built
    built.close()


@pytest.mark.parametrize("backend", ("triton", "cuda"))
def test_inception_block_writes_slices(half, backend):
    half.worker.run("inception_writes_slices", backend, CNNFAST_BACKEND=backend)


@pytest.mark.parametrize("backend", ("triton", "cuda"))
def test_dense_block_writes_slices(half, backend):
    half.worker.run("dense_block_writes_slices", backend, CNNFAST_BACKEND=backend)


@pytest.mark.parametrize("backend", ("auto", "cuda"))
def test_operators_by_emulated_kernels(half, backend):
    half.worker.run("two_backends_on_the_host", CNNFAST_BACKEND=backend)


def test_dense_block_backward(half):
    half.worker.run("dense_block_gradients", CNNFAST_BACKEND="cuda")


def test_convolutions_with_batch_norm(half):
    half.worker.run("normalised_convolutions", CNNFAST_BACKEND="cuda")


def test_convolutions_and_their_last_pass(half):
    half.worker.run("convolutions_and_their_last_pass", CNNFAST_BACKEND="cuda")
