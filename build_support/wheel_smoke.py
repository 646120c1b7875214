"""What `make wheel` runs with the installed wheel: the parts of the package, no compiler in reach."""

import shutil
import subprocess
import sys
import tempfile
import warnings
from pathlib import Path

import torch

import cnnfast
from cnnfast import _ext

assert _ext.AVAILABLE, _ext.REASON
place = Path(cnnfast.__file__).resolve()
assert place.is_relative_to(Path(sys.prefix).resolve()), f"{place} is not the installed wheel"
assert (place.parent / "py.typed").is_file(), "type checkers would not read the package's annotations"
found = [
    name for name in ("cc", "c++", "gcc", "g++", "clang", "clang++", "ninja", "nvcc") if shutil.which(name)
]
assert not set(found) - {"ninja"}, f"there are compilers: {found}"

torch.manual_seed(0)
net = cnnfast.models.get_model("resnet18")
x = torch.randn(2, 1, 64, 64)
loss = net(x).square().mean()
loss.backward()
assert all(parameter.grad is not None for parameter in net.parameters())
with torch.no_grad():
    wanted = net.eval()(x)
frozen = cnnfast.freeze(net, x, verify=True)
torch.testing.assert_close(frozen(x), wanted, rtol=1e-4, atol=1e-4)
with tempfile.TemporaryDirectory() as folder:
    loaded = cnnfast.load(frozen.save(Path(folder, "net.cnnfast")))
    assert torch.equal(loaded(x), frozen(x))
    path = cnnfast.export(frozen, Path(folder, "net.pt"), example_inputs=x)  # compared in a fresh process
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert torch.equal(torch.jit.load(path)(x), frozen(x))
cmake = subprocess.run(
    [sys.executable, "-m", "cnnfast", "cmake-path"], capture_output=True, text=True, check=True
).stdout.strip()
assert Path(cmake, "cnnfast-config.cmake").is_file()
subprocess.run([sys.executable, "-m", "cnnfast", "doctor"], check=True, stdout=subprocess.DEVNULL)
print(f"wheel: cnnfast {cnnfast.__version__}, torch {torch.__version__}, {_ext.active_isa()} kernels: works")
