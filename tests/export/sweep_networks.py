"""Every network of the notes through every format, frozen and fused: `make export-test`.

Twenty minutes on one core, so the suite does not collect it; test_export.py has the small ones.
"""

import warnings

import pytest
import torch

import cnnfast
from cnnfast.benchmarking import ModelSpec
from cnnfast.benchmarking.fill import fill_weights, images
from cnnfast.benchmarking.plain import get_plain
from cnnfast.export import FORMATS

from .support import loaded, name_of

TOLERANCE = 1e-4  # of the largest output value, against plain PyTorch in float64


@pytest.fixture(scope="module", params=cnnfast.models.list_models())
def case(request):
    """A plain network, images, and the right answer."""
    network = get_plain(request.param).eval()
    fill_weights(network)
    x = images(2, ModelSpec(request.param).resolved().input_shape, 0)
    with torch.no_grad():
        wanted = network.double()(x.double())
    return network.float(), x, wanted


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("kind", ["frozen", "fused"])
def test_network_through_format(case, format, kind, tmp_path):
    network, x, wanted = case
    exported = cnnfast.freeze(network, x) if kind == "frozen" else cnnfast.fuse(network).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.jit is deprecated
        path = cnnfast.export(exported, tmp_path / name_of(format), format=format, example_inputs=x[:1])
        with torch.no_grad():
            got = loaded(path, format)(x).double()
    error = ((got - wanted).abs().max() / wanted.abs().max()).item()
    print(f"{type(network).__name__} {kind} {format}: error {error:.1e}")
    assert error <= TOLERANCE
