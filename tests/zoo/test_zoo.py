"""A few small networks of every kind through all that `make zoo` does with the others."""

import importlib.util

import pytest

from cnnfast import _ext
from cnnfast.report import Report, Row

from . import page
from .measure import LIMIT, eager_reasons, examine
from .networks import entry

SMALL = (
    *("torchvision/squeezenet1_1", "torchvision/mobilenet_v3_small", "torchvision/shufflenet_v2_x0_5"),
    *("torchvision/mnasnet0_5", "torchvision/regnet_y_400mf", "torchvision/resnet18"),
    *("timm/resnet18", "timm/lcnet_050", "timm/tinynet_e", "timm/ghostnet_100", "timm/convnext_atto"),
    *("timm/regnetx_002", "timm/efficientvit_b0", "timm/skresnet18", "timm/convnextv2_atto"),
    *("timm/tf_mobilenetv3_large_075", "timm/fasternet_t0"),
)


@pytest.mark.skipif(not _ext.AVAILABLE, reason="needs the compiled operators")
@pytest.mark.parametrize("name", SMALL)
def test_zoo(name):
    library = name.split("/")[0]
    if importlib.util.find_spec(library) is None:
        pytest.skip(f"{library} is not installed: pip install '.[zoo]'")
    result = examine(entry(name))
    assert result.frozen_error <= LIMIT and result.fused_error <= LIMIT
    assert page.problem(vars(result)) == ""
    assert result.frozen.multiply_adds > 0.9 and result.fused.multiply_adds > 0.9


def test_page_says_what_is_wrong():
    nan = float("nan")
    good = {
        "name": "timm/net", "sizes": (64,), "parameters": 1000, "spread": 0.2,
        "frozen_error": 1e-5, "fused_error": 1e-6, "gradient_error": 1e-5,
        "half_error": 2e-2, "autocast_error": 2e-2,
        "eager_gradient_error": nan, "gradient_jump": nan, "smooth_gradient_error": nan,
        "plans": 1, "frozen": {"layers": 1.0, "multiply_adds": 1.0},
        "fused": {"layers": 0.5, "multiply_adds": 0.99},
    }  # fmt: skip
    assert page.problem(good) == ""
    assert page.problem(good | {"frozen_error": 2e-3}) == "frozen error"
    assert page.problem(good | {"frozen_error": nan}) == "frozen error"
    assert page.problem(good | {"half_error": 3.9e-2}) == ""
    assert page.problem(good | {"half_error": 4.1e-2}) == "bfloat16 error"
    assert page.problem(good | {"half_error": nan}) == "bfloat16 error"
    assert page.problem(good | {"gradient_error": nan}) == "gradient error"
    assert page.problem(good | {"gradient_error": nan, "parameters": 10**9}) == ""  # not compared
    stays = {"eager": ["Linear (2; 30.0% of the multiply-adds): its input has shape ..."]}
    text = page.page([good | stays, {"name": "timm/other", "failed": "ValueError: no"}], [])
    assert "| net | 64 | 0.20 | 100% | 100.0% | 1 | 1e-05 | 2e-02 (2e-02) | 50% | 99.0% |" in text
    assert "* net\n  - Linear (2; 30.0% of the multiply-adds): its input has shape ..." in text
    assert "| other |" in text and "ValueError: no" in text


def test_reasons_are_joined_by_what_they_say():
    rows = (
        Row("a", "Conv2d", "fused", macs=60),
        Row("b", "Linear", "eager", reason="its input 'x' is odd", macs=30),
        Row("c", "Linear", "eager", reason="its input 'y' is odd", macs=10),
        Row("d", "add", "eager", reason="no"),
    )
    lines = eager_reasons(Report("net", rows))
    assert lines == ["Linear (2; 40.0% of the multiply-adds): its input ... is odd", "add (1): no"]


def test_page_takes_flipped_decisions_only_with_exact_kernels():
    flipped = {
        "parameters": 1000, "frozen_error": 1e-5, "fused_error": 1e-6, "gradient_error": 2e-2,
        "eager_gradient_error": 1e-6, "gradient_jump": 3e-2, "smooth_gradient_error": 1e-5,
        "half_error": 1e-2, "autocast_error": 1e-2,
    }  # fmt: skip
    assert page.problem(flipped) == ""
    assert page.problem(flipped | {"gradient_jump": 5e-3}) == "gradient error"
    assert page.problem(flipped | {"gradient_jump": 5e-3, "eager_gradient_error": 2e-2}) == ""
    for wrong in (2e-4, float("nan")):
        assert page.problem(flipped | {"smooth_gradient_error": wrong}) == "gradient error"


def test_page_compares_times():
    row = {"network": "net", "batch": 1, "eager": 4e-3, "peer": 3e-3, "peer_name": "openvino", "frozen": 2e-3}
    head = {"machine": {"cpu": "a CPU"}, "settings": {"threads": 2}}
    other = {**row, "network": "other", "peer": None, "peer_name": None, "frozen": 1e-3}
    text = page.page([], [{**head, "rows": [row]}, {**head, "rows": [other]}])
    assert "float32, 2 threads, a CPU;" in text
    assert "| net | 1 | 4 | 3 openvino | 2 | 2.00 | 1.50 |" in text
    assert "| other | 1 | 4 |   | 1 | 4.00 |  |" in text  # no peer
    assert "over eager 2.83, over the best peer 1.50." in text
