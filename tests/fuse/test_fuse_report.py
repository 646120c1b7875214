"""The report, and the options that look at it: dryrun, strict, verify."""

import pytest
import torch
from torch import nn

import cnnfast
from cnnfast.fuse import FusedModule, NotFusedError, VerificationError
from cnnfast.fuse.check import relative_error
from cnnfast.report import Report

from .networks import NETWORKS, images, make


def test_report_rows_of_resnet():
    report = cnnfast.fuse(make("resnet"), images("resnet")).report()
    named = {row.name: row for row in report.rows}
    assert named["stem.0"].runs_as == "cnnfast.ops.conv2d_bn_act: stem.0 + stem.1 + stem.2"
    assert named["stem.2"].runs_as == "with stem.0"
    assert "iadd" in named["stage.1.conv2"].runs_as
    assert named["stem.3"].runs_as == "cnnfast.ops.max_pool2d: stem.3"
    assert named["pool"].runs_as == "cnnfast.ops.global_avg_pool2d: pool" and not report.left_out
    assert named["stem.0"].macs == 3 * 17 * 20 * 8 * 27 and named["fc"].macs == 3 * 12 * 5
    assert report.coverage.multiply_adds == report.coverage.layers == 1.0


def test_report_has_a_row_for_every_layer():
    for name in NETWORKS:
        model = make(name)
        names = {row.name for row in cnnfast.fuse(model).report().rows}
        leaves = {path for path, module in model.named_modules() if not list(module.children())}
        assert leaves <= names, name


def test_report_coverage_counts_multiply_adds():
    model = nn.Sequential(nn.Conv2d(1, 1, 3), nn.Conv2d(1, 3, 3))
    report = cnnfast.fuse(model, torch.randn(1, 1, 6, 6), filter_fn=lambda name, module: name == "1").report()
    first, second = 16 * 9, 4 * 3 * 9
    assert report.coverage.multiply_adds == pytest.approx(second / (first + second))
    assert report.coverage.layers == 0.5
    assert cnnfast.fuse(model).report().coverage.multiply_adds is None


def test_report_as_text_and_rich_table():
    report = cnnfast.fuse(make("resnet"), images("resnet"), verify=True).report()
    for row in report.rows:
        assert row.name in str(report) and row.reason in str(report)
    table = report.to_rich()
    assert table.row_count == len(report.rows)
    with pytest.raises(KeyError):
        report["nothing"]


def test_fuse_dryrun_gives_the_report_alone():
    model = make("resnet")
    report = cnnfast.fuse(model, dryrun=True)
    assert isinstance(report, Report) and report == cnnfast.fuse(model).report()


def test_fuse_strict_names_layers():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Softplus())
    with pytest.raises(
        NotFusedError, match=r"1 \(AdaptiveAvgPool2d\): its output size is 2(.|\n)*2 \(Softplus\): no"
    ):
        cnnfast.fuse(model, strict=True)
    chosen = cnnfast.fuse(model, strict=True, filter_fn=lambda name, module: name == "0")
    assert isinstance(chosen, FusedModule)


@pytest.mark.parametrize("name", NETWORKS)
def test_fuse_verify_reports_errors(name):
    report = cnnfast.fuse(make(name), images(name), verify=True).report()
    errors = {row.name: row.error for row in report.rows if row.error is not None}
    starts = {row.name for row in report.rows if row.runs_as.startswith("cnnfast.ops")}
    assert starts <= set(errors) and max(errors.values()) < 1e-4


def test_fuse_verify_raises_for_a_wrong_layer(monkeypatch):
    """A kernel that is wrong in one layer is found, and named."""
    from cnnfast.fuse import runtime

    right = runtime.conv_bn_act
    monkeypatch.setattr(
        runtime, "conv_bn_act", lambda x, *rest: right(x, *rest) + (0.01 if rest[1].shape[0] == 12 else 0)
    )
    with pytest.raises(VerificationError, match=r"stage\.1\.conv1 \("):
        cnnfast.fuse(make("resnet"), images("resnet"), verify=True)


class Remembers(nn.Module):
    """A forward with a state of its own, in evaluation too."""

    def __init__(self, decides):
        super().__init__()
        self.body, self.seen, self.decides = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), [], decides
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        y = self.body(x)
        if self.decides and y.sum() < 1e9:
            self.seen.append(y)
        return y * self.calls


@pytest.mark.parametrize("decides", [False, True])
def test_example_runs_leave_the_model_alone(decides):
    model, x = Remembers(decides).eval(), torch.randn(2, 3, 6, 6)
    fused = cnnfast.fuse(model, x, verify=True)
    assert model.calls == 0 and model.seen == []
    wanted = model.body(x)
    torch.testing.assert_close(fused(x), wanted)
    fused.calls.zero_()
    if cnnfast._ext.AVAILABLE:
        frozen = cnnfast.freeze(model, x, verify=True)
        assert model.calls == 0 and len(model.seen) == int(decides)
        with torch.no_grad():
            torch.testing.assert_close(frozen(x), wanted)
            torch.testing.assert_close(frozen(x), wanted * 2)


@pytest.mark.parametrize("layer", [nn.LeakyReLU(0.3), nn.ELU(0.7), nn.Hardtanh(-0.3, 0.7)], ids=str)
def test_fuse_verify_takes_numbers_of_activations_in_float64(layer):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), layer, nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), layer).double()
    model, x = model.eval(), torch.randn(2, 3, 6, 6, dtype=torch.float64)
    assert max(row.error or 0.0 for row in cnnfast.fuse(model, x, verify=True).report().rows) < 1e-14
    results = []
    for network in (model, cnnfast.fuse(model)):
        network.zero_grad()
        network(x).square().sum().backward()
        results.append([p.grad.clone() for p in model.parameters()])
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-12, atol=1e-12)


def test_fuse_verify_reaches_parts_of_untraceable_networks():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.part = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU())

        def forward(self, x):
            return self.part(x) if x.sum() > -1e9 else x

    report = cnnfast.fuse(Net(), torch.randn(1, 3, 5, 5), verify=True).report()
    assert report["part.0"].error is not None


def test_relative_error_sees_shapes_and_nan():
    a = torch.tensor([1.0, -4.0])
    assert relative_error(a + 0.5, a) == 0.125
    assert relative_error(a[:1], a) == float("inf")
    assert relative_error(torch.tensor([1.0, float("nan")]), a) == float("inf")


@pytest.mark.parametrize(
    ("make_model", "error", "words"),
    [
        (lambda: torch.relu, TypeError, "torch.nn.Module"),
        (lambda: nn.DataParallel(make("lenet")), TypeError, r"DataParallel\(cnnfast.fuse\(model.module\)\)"),
        (lambda: torch.jit.script(nn.Conv2d(1, 1, 1)), TypeError, "scripted already"),
        (lambda: torch.compile(make("lenet")), TypeError, "compiled already"),
        (lambda: nn.Sequential(nn.LazyConv2d(2, 3)), ValueError, "run the model once"),
    ],
    ids=["function", "parallel", "scripted", "compiled", "lazy"],
)
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::UserWarning")
def test_fuse_refuses_in_words(make_model, error, words):
    with pytest.raises(error, match=words):
        cnnfast.fuse(make_model())


def test_fuse_verify_needs_inputs():
    with pytest.raises(ValueError, match=r"fuse\(model, example_inputs, verify=True\)"):
        cnnfast.fuse(make("lenet"), verify=True)
