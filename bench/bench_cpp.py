"""The C++ program of examples/cpp beside a Python process that does the same: images per second.

Both load the exported file in a process of their own and classify the Fashion-MNIST test images.
"""

import subprocess
import sys
import textwrap

import pytest
import torch

import cnnfast
from cnnfast import data
from cnnfast.cli import cpp_example

BATCH = 256
FORMATS = {"torchscript": "net.pt", "aoti": "net.pt2"}
SLACK = 0.95  # two processes on one machine are never equally fast

_PYTHON = """
    import sys, time, torch, cnnfast
    from cnnfast.data import parse_idx
    network, images, batch = sys.argv[1], parse_idx(open(sys.argv[2], "rb").read()), int(sys.argv[3])
    net = torch._inductor.aoti_load_package(network) if network.endswith(".pt2") else torch.jit.load(network)

    def classify(images):
        parts = (part.unsqueeze(1).to(torch.float32).div_(255) for part in images.split(batch))
        return torch.cat([net(part).argmax(1).to(torch.uint8) for part in parts])

    with torch.inference_mode():
        classify(images[:batch])
        seconds = []
        for _ in range(3):
            start = time.perf_counter()
            classify(images)
            seconds.append(time.perf_counter() - start)
    print(len(images) / min(seconds))
"""


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("cpp")
    arrays = data.fashion_mnist("test")
    return [data.write_idx(a, folder / f.name) for a, f in zip(arrays, data.FILES["test"], strict=True)]


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("name", ["lenet", "residual_net", "inception_net"])
def test_cpp_is_not_slower_than_python(name, format, files, tmp_path, capsys):
    if reason := cpp_example.why_not():
        pytest.skip(reason)
    images, labels = files
    x = torch.rand(2, 1, 28, 28)
    frozen = cnnfast.freeze(cnnfast.models.get_model(name).eval(), x)
    network = cnnfast.export(frozen, tmp_path / FORMATS[format], format=format, example_inputs=x)
    program = cpp_example.build()
    command = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(_PYTHON), str(network), str(images)]
    rates = []
    for _ in range(2):  # in turn, and the better of each
        line = cpp_example.classify(program, network, images, labels, tmp_path / "classes", BATCH)
        cpp = float(line.split(", ")[1].split()[0])
        python = subprocess.run([*command, str(BATCH)], capture_output=True, text=True, check=True).stdout
        rates.append((cpp, float(python)))
    cpp, python = (max(column) for column in zip(*rates, strict=True))
    with capsys.disabled():
        print(f"\n{name}, {format}: C++ {cpp:.0f} images/s, Python {python:.0f}, ratio {cpp / python:.2f}")
    assert cpp >= SLACK * python
