"""The notes' basic operations: the numbers printed there, and torch's."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cnnfast.basics import Corr2d, batch_norm, corr2d, corr2d_multi_in, corr2d_multi_in_out, pool2d

EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "edge_kernel.py"

X = torch.arange(9.0).reshape(3, 3)
K = torch.tensor([[0.0, 1.0], [2.0, 3.0]])
CHANNELS = torch.stack([X, X + 1])
KERNELS = torch.stack([K, K + 1])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.int64])
def test_corr2d_gives_the_notes_numbers(dtype):
    found = corr2d(X.to(dtype), K.to(dtype))
    assert found.dtype == dtype and found.tolist() == [[19, 25], [37, 43]]


def test_corr2d_multi_in_gives_the_notes_numbers():
    assert corr2d_multi_in(CHANNELS, KERNELS).tolist() == [[56, 72], [104, 120]]


def test_corr2d_multi_in_out_gives_the_notes_numbers():
    found = corr2d_multi_in_out(CHANNELS, torch.stack([KERNELS, KERNELS + 1, KERNELS + 2]))
    assert found.tolist() == [[[56, 72], [104, 120]], [[76, 100], [148, 172]], [[96, 128], [192, 224]]]


def test_corr2d_finds_the_edges_of_the_notes_image():
    image = torch.ones(6, 8)
    image[:, 2:6] = 0
    kernel = torch.tensor([[1.0, -1.0]])
    assert corr2d(image, kernel).tolist() == 6 * [[0, 1, 0, 0, 0, -1, 0]]
    assert not corr2d(image.T, kernel).any()


def test_corr2d_is_differentiable():
    image, kernel = torch.rand(5, 6, dtype=torch.float64), torch.rand(2, 3, dtype=torch.float64)
    assert torch.autograd.gradcheck(corr2d, (image.requires_grad_(), kernel.requires_grad_()))


def test_corr2d_layer_has_one_kernel_and_one_number():
    layer = Corr2d((2, 3))
    assert [tuple(p.shape) for p in layer.parameters()] == [(2, 3), (1,)]
    image = torch.rand(5, 6)
    expected = F.conv2d(image[None, None], layer.weight[None, None], layer.bias)[0, 0]
    torch.testing.assert_close(layer(image), expected)


def test_pool2d_gives_the_notes_numbers():
    assert pool2d(X, (2, 2)).tolist() == [[4, 5], [7, 8]]
    assert pool2d(X, (2, 2), "avg").tolist() == [[2, 3], [5, 6]]
    assert pool2d(X, (3, 1), "avg").tolist() == [[3, 4, 5]]


@pytest.mark.parametrize("shape", [(6, 3), (4, 3, 5, 2)], ids=["vectors", "images"])
@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_is_that_of_torch(shape, training):
    features = 3
    layer = (nn.BatchNorm1d if len(shape) == 2 else nn.BatchNorm2d)(features, eps=1e-3, momentum=0.2)
    for values in (layer.weight.data, layer.bias.data, layer.running_mean, layer.running_var.add_(1)):
        values.add_(torch.rand(features))
    images = torch.randn(shape)
    before = (layer.running_mean.clone(), layer.running_var.clone())
    found, mean, var = batch_norm(images, layer.weight, layer.bias, *before, training, eps=1e-3, momentum=0.8)
    expected = layer.train(training)(images)
    torch.testing.assert_close(found, expected)
    if training:
        values = images.numel() // features
        biased = (layer.running_var - 0.8 * before[1]) * (values - 1) / values + 0.8 * before[1]
        torch.testing.assert_close(mean, layer.running_mean)
        torch.testing.assert_close(var, biased)
    else:
        assert mean is before[0] and var is before[1]


def test_batch_norm_is_differentiable_and_changes_no_argument():
    images = torch.randn(4, 2, 3, 3, dtype=torch.float64, requires_grad=True)
    gamma, beta = (torch.rand(2, dtype=torch.float64, requires_grad=True) for _ in range(2))
    moving = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)

    def result(*tensors):
        return batch_norm(*tensors, *moving)[0]

    assert torch.autograd.gradcheck(result, (images, gamma, beta))
    assert moving[0].tolist() == [0, 0] and moving[1].tolist() == [1, 1]
    _, mean, var = batch_norm(images, gamma, beta, *moving)
    assert not mean.requires_grad and not var.requires_grad


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: corr2d(X[None], K), r"corr2d: X must be \(H, W\), not \(1, 3, 3\)"),
        (lambda: corr2d_multi_in(CHANNELS, K), r"corr2d_multi_in: K must be \(C, h, w\)"),
        (lambda: corr2d_multi_in_out(CHANNELS, KERNELS), r"K must be \(D, C, h, w\), not \(2, 2, 2\)"),
        (lambda: pool2d(X, (2, 2), "median"), "mode is 'median'"),
        (lambda: batch_norm(X[None], *4 * [torch.ones(3)]), r"X must be \(N, F\) or \(N, C, H, W\)"),
    ],
)
def test_wrong_arguments_are_errors(call, words):
    with pytest.raises(ValueError, match=words):
        call()
    with pytest.raises(RuntimeError):
        corr2d(K, X)
    with pytest.raises(RuntimeError):
        pool2d(K, (3, 3))


def test_edge_kernel_example_learns_it(capsys):
    runpy.run_path(str(EXAMPLE), run_name="__main__")
    kernel, bias = capsys.readouterr().out.splitlines()[-1].removeprefix("kernel ").split(", bias ")
    left, right = map(float, kernel.strip("[]").split(", "))
    assert (left, right, float(bias)) == pytest.approx((1, -1, 0), abs=0.01)


def test_edge_kernel_example_runs_as_a_program():
    done = subprocess.run([sys.executable, EXAMPLE], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stdout.startswith("step 100, loss ")
