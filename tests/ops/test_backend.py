"""The choice of a backend in Python, with a timer of our own in place of a GPU's events."""

import uuid
import warnings

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from cnnfast import _ext
from cnnfast.ops import _backend

pytestmark = pytest.mark.skipif(not _ext.AVAILABLE, reason=f"the extension is not there: {_ext.REASON}")
ONE = torch.ones(1)


class Options:
    """Two options that count their calls, and a timer that knows what they take."""

    def __init__(self, aten: float, triton: float) -> None:
        self.times = {"aten": aten, "triton": triton}
        self.ran, self.timed = [], []
        self.calls = {name: self._call(name) for name in self.times}
        self.key = uuid.uuid4().hex

    def _call(self, name: str):
        def call():
            if self.times[name] < 0:
                raise RuntimeError(f"{name} does not compile")
            self.ran.append(name)
            return ONE

        return call

    def timer(self, call) -> float:
        call()
        name = self.ran.pop()
        self.timed.append(name)
        return self.times[name]

    def run(self, may_measure: bool = True, unavailable: dict | None = None) -> str:
        options = {"may_measure": may_measure, "timer": self.timer}
        result = _backend.run_fastest("conv2d", self.key, self.calls, unavailable or {}, **options)
        assert result is ONE
        return self.ran.pop()


def test_fastest_is_measured_once():
    options = Options(aten=2.0, triton=1.0)
    assert [options.run() for _ in range(3)] == ["triton"] * 3
    assert options.timed == ["aten", "triton"]
    assert any(row.startswith(f"{options.key}\ttriton\t1.0") for row in torch.ops.cnnfast.backend_times())
    assert Options(aten=1.0, triton=2.0).run() == "aten"


def test_nothing_is_timed_where_it_must_not_be():
    options = Options(aten=2.0, triton=1.0)
    assert options.run(may_measure=False) == "aten" and options.timed == []
    assert options.run() == "triton"
    assert options.run(may_measure=False) == "triton"  # known by now


def test_what_cannot_serve_is_left_out():
    options = Options(aten=2.0, triton=1.0)
    assert options.run(unavailable={"triton": "not built"}) == "aten" and options.timed == []


def test_option_that_fails_is_left_out_with_a_warning():
    options = Options(aten=2.0, triton=-1.0)
    with pytest.warns(RuntimeWarning, match="goes on without triton failed: RuntimeError: triton does"):
        assert options.run() == "aten"
    broken = Options(aten=-1.0, triton=-1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(RuntimeError, match="no backend can serve this call: aten failed"):
            broken.run()


def test_library_serves_the_cpu_by_itself():
    assert _backend.other_conv2d(torch.ones(1, 1, 2, 2), torch.ones(1, 1, 1, 1)) is None


def test_kernels_of_python_stay_out_of_what_is_recorded():
    """Tracers and transforms see the operator; a symbolic value is not asked where it lies."""
    seen = []

    def look(x):
        seen.append(_backend._is_watched())
        return x + 1

    assert not _backend._is_watched()
    torch.func.vmap(look)(torch.ones(2, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.trace(look, torch.ones(2), check_trace=False)
    with FakeTensorMode():
        look(torch.ones(2))
    assert seen == [True] * 3

    def symbolic(x):
        assert _backend.other_conv2d(x, ONE) is None
        return x

    torch.fx.symbolic_trace(symbolic)


def test_name_must_be_known(monkeypatch):
    monkeypatch.setenv("CNNFAST_BACKEND", "cudnn")
    with pytest.raises(ValueError, match="must be one of auto, aten, cuda, triton, not 'cudnn'"):
        _backend._requested()


@pytest.mark.parametrize(
    "change, reason",
    (
        ({"input": torch.ones(1, 1, 2, 2, dtype=torch.float64)}, "no kernel for torch.float64"),
        ({"activation": "mish"}, "no kernel with the activation mish"),
        ({"weight": torch.ones(1, 1, 1, 1, requires_grad=True)}, "a gradient is recorded"),
    ),
)
def test_forced_triton_that_cannot_serve_says_why(monkeypatch, change, reason):
    monkeypatch.setattr(_backend, "_REQUESTED", "triton")
    arguments = {
        "input": torch.ones(1, 1, 2, 2),
        "weight": torch.ones(1, 1, 1, 1),
        "bias": None,
        "scale": None,
    }
    arguments |= {"residual": None, "stride": [1, 1], "padding": [0, 0], "dilation": [1, 1], "groups": 1}
    arguments |= {"activation": "none"} | change
    with pytest.raises(RuntimeError, match=f"CNNFAST_BACKEND=triton cannot serve this call: .*{reason}"):
        _backend._chosen_conv2d(**arguments)
