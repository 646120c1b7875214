"""Requests of worker.py: which backend is chosen, by measured times or by force."""

import json

import torch
from worker_support import (
    FAKE,
    STUB,
    below_autograd,
    call,
    check,
    error_of,
    expected,
    near,
    operands,
    set_knob,
    two_backends,
)


def run_two(name: str, case) -> int:
    """Runs an operator, checks it and gives the calls of its fake kernel."""
    arguments, truth = case
    before = FAKE.fake_calls(name.encode())
    found = below_autograd(name, *arguments)
    near(found if isinstance(found, torch.Tensor) else found[0], truth.detach())
    return FAKE.fake_calls(name.encode()) - before


def two_backends_choose():
    """A slow kernel is timed once and left alone; a kernel of another shape, quick, is taken."""
    for name, case in two_backends().items():
        assert run_two(name, case) == 0, "no kernels yet"
    FAKE.fake_install()
    FAKE.fake_set(10, True)
    for name, case in two_backends().items():
        assert run_two(name, case) >= 4, name  # to warm up, and at least three
        assert run_two(name, case) == 0, name
    rows = torch.ops.cnnfast.backend_times()
    assert {row.split()[0] for row in rows} == set(two_backends()), rows
    torch.use_deterministic_algorithms(True)
    for name, case in two_backends().items():  # nothing is timed: the first that serves
        assert run_two(name, case) == 1, name
    torch.use_deterministic_algorithms(False)
    FAKE.fake_set(0, False)
    for name, case in two_backends().items():
        arguments = [
            t.float() if isinstance(t, torch.Tensor) and t.is_floating_point() else t for t in case[0]
        ]
        assert run_two(name, (arguments, case[1].float().double())) == 0, name
    print(json.dumps(rows))


def two_backends_remember():
    """Times from the file: nothing is timed."""
    FAKE.fake_install()
    for name, case in two_backends().items():
        assert run_two(name, case) == 0, name


def two_backends_forced(backend: str):
    FAKE.fake_install()
    for name, case in two_backends().items():
        assert run_two(name, case) == (backend == "cuda"), name
    assert not torch.ops.cnnfast.backend_times()
    FAKE.fake_set(0, False)
    for name, case in two_backends().items():
        if backend == "cuda":
            text = error_of(lambda name=name, case=case: run_two(name, case))
            assert f"cnnfast::{name}: CNNFAST_BACKEND=cuda cannot serve this call: the CUDA kernels" in text
        else:
            assert run_two(name, case) == 0


def two_backends_not_built():
    """CNNFAST_BACKEND=cuda in a library without CUDA kernels."""
    for name, case in two_backends().items():
        text = error_of(lambda name=name, case=case: run_two(name, case))
        assert f"cnnfast::{name}: CNNFAST_BACKEND=cuda cannot serve this call: this build has no CUDA" in text


def chooses():
    """The faster one by the clock, from then on without timing; no timing while a graph is captured."""
    x, w, bias, _, residual, _ = operands("pointwise")
    set_knob("DELAY_MS", 20)
    call(x, w, bias)
    timed = STUB.stub_launches()
    assert timed >= 4, timed  # to warm up, and at least three
    check(call(x, w, bias), expected(x, w, bias, None, None, {}))
    assert STUB.stub_launches() == timed  # ATen is faster than 20 ms

    set_knob("DELAY_MS", 0)
    set_knob("COMPUTE", 0)
    x, w, bias, *_ = operands("padded")
    x = x.repeat(8, 1, 12, 12).contiguous(memory_format=torch.channels_last)
    call(x, w, bias, padding=[1, 1])
    before = STUB.stub_launches()
    for _ in range(3):
        call(x, w, bias, padding=[1, 1])
    assert STUB.stub_launches() == before + 3  # a kernel that computes nothing is the fastest

    rows = torch.ops.cnnfast.backend_times()
    set_knob("CAPTURING", 1)
    x, w, bias, scale, residual, options = operands("grouped")
    before = STUB.stub_launches()
    check(call(x, w, bias, **options), expected(x, w, bias, None, None, options))
    assert STUB.stub_launches() == before and torch.ops.cnnfast.backend_times() == rows
    set_knob("CAPTURING", 0)
    call(x, w, bias, **options)  # and afterwards it is timed
    assert len(torch.ops.cnnfast.backend_times()) == len(rows) + 2
    torch.use_deterministic_algorithms(True)
    call(x[:1], w, bias, **options)
    assert len(torch.ops.cnnfast.backend_times()) == len(rows) + 2
    print(json.dumps(torch.ops.cnnfast.backend_times()))


def remembers():
    """Times from the file: the first call launches at most what was chosen."""
    rows = torch.ops.cnnfast.backend_times()
    x, w, bias, *_ = operands("pointwise")
    call(x, w, bias)
    print(json.dumps({"rows": rows, "launches": STUB.stub_launches()}))


def rule():
    """The choice with times from outside."""
    choose, add = torch.ops.cnnfast.choose_backend, torch.ops.cnnfast.add_backend_times
    names, none = ["aten", "cuda", "triton/a", "triton/b"], [""] * 4
    assert choose("op", "k", names, none, True) == ""
    assert choose("op", "k", names, none, False) == "aten"
    add("k", names[:3], [3.0, 2.0, 1.0])
    assert choose("op", "k", names, none, True) == ""  # one was never timed
    add("k", names[3:], [0.5])
    assert choose("op", "k", names, none, True) == "triton/b"
    assert choose("op", "k", names, ["", "", "", "broken"], True) == "triton/a"
    assert choose("op", "other", ["aten", "cuda"], ["", "not built"], True) == "aten"
    text = error_of(lambda: choose("op", "k", ["cuda"], ["not built"], True))
    assert "cnnfast::op: no backend can serve this call: not built" in text, text
    assert "milliseconds" in error_of(lambda: add("k", ["aten"], [float("nan")]))


def forced_rule():
    """CNNFAST_BACKEND=cuda."""
    choose = torch.ops.cnnfast.choose_backend
    assert choose("op", "k", ["aten", "cuda"], ["", ""], True) == "cuda"
    text = error_of(lambda: choose("op", "k", ["aten", "cuda"], ["", "not built"], True))
    assert "CNNFAST_BACKEND=cuda cannot serve this call: not built" in text, text
    text = error_of(lambda: choose("op", "k", ["aten"], [""], True))
    assert "the operator has no such backend" in text, text


def unknown_force():
    text = error_of(lambda: torch.ops.cnnfast.choose_backend("op", "k", ["aten"], [""], True))
    assert "CNNFAST_BACKEND must be one of auto, aten, cuda, triton, not 'magic'" in text, text
