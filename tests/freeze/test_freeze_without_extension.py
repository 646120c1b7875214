"""Without the compiled operators nothing falls back in silence."""

import os
import subprocess
import sys
import textwrap

_CODE = """
    import torch, cnnfast
    from torch import nn
    from cnnfast import _ext
    assert not _ext.AVAILABLE
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()).eval()
    x = torch.randn(2, 1, 6, 6)
    for call in (
        lambda: cnnfast.freeze(model, x),
        lambda: cnnfast.freeze(model, x, allow_eager=True, strict=True),
        lambda: cnnfast.load("nothing"),
    ):
        try:
            call()
        except RuntimeError as error:
            assert _ext.REASON in str(error), error
        else:
            raise SystemExit("no error")
    eager = cnnfast.freeze(model, x, allow_eager=True)
    assert torch.equal(eager(x), model(x)) and _ext.REASON in str(eager.report())
    fused = cnnfast.fuse(model, x, verify=True)
    assert torch.allclose(fused(x), model(x)) and "plain PyTorch" in str(fused.report())
    fused.repack()
    assert torch.allclose(torch.jit.script(fused)(x), model(x))
    cnnfast.export(fused, "{folder}/net.pt", example_inputs=x)
    print("done")
"""


def test_freeze_without_extension_raises(tmp_path):
    code = textwrap.dedent(_CODE).replace("{folder}", str(tmp_path))
    result = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env={**os.environ, "CNNFAST_REFERENCE": "1"},
        capture_output=True,
        text=True,
    )
    assert result.stdout.strip().endswith("done"), result.stderr
