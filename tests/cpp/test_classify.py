"""examples/cpp: built with CMake against our own target, it gives Python's answers without Python."""

import subprocess

import pytest
import torch

import cnnfast
from cnnfast import _ext, data
from cnnfast.benchmarking.fill import fill_weights
from cnnfast.cli import cpp_example

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not _ext.AVAILABLE, reason=f"needs compiled operators: {_ext.REASON}"),
    pytest.mark.skipif(bool(cpp_example.why_not()), reason=f"cannot build: {cpp_example.why_not()}"),
]

BATCH = 96  # the last batch is smaller


@pytest.fixture(scope="module")
def program():
    return cpp_example.build()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """The test images and labels as plain IDX files."""
    folder = tmp_path_factory.mktemp("cpp")
    arrays = data.fashion_mnist("test")
    return [data.write_idx(a, folder / f.name) for a, f in zip(arrays, data.FILES["test"], strict=True)]


@pytest.fixture(scope="module")
def frozen():
    """A LeNet with wide weights and centred outputs: images get different classes."""
    net = cnnfast.models.get_model("lenet").eval()
    fill_weights(net, gain=6.0)
    images, _ = next(data.batches(*data.fashion_mnist("test"), 500))
    with torch.no_grad():
        list(net.parameters())[-1].sub_(net(images).mean(0))
    return cnnfast.freeze(net, torch.rand(2, 1, 28, 28))


@pytest.fixture(scope="module")
def networks(frozen, tmp_path_factory):
    """The network in both formats that the program reads."""
    folder = tmp_path_factory.mktemp("network")
    names = {"torchscript": "lenet.pt", "aoti": "lenet.pt2"}
    example = torch.rand(1, 1, 28, 28)
    return {
        format: cnnfast.export(frozen, folder / name, format=format, example_inputs=example)
        for format, name in names.items()
    }


@pytest.fixture
def network(networks):
    return networks["torchscript"]


@pytest.mark.parametrize("format", ["torchscript", "aoti"])
def test_classes_are_those_of_python(format, program, files, networks, frozen, tmp_path):
    network = networks[format]
    images, labels = data.fashion_mnist("test")
    with torch.inference_mode():
        expected = torch.cat([frozen(batch).argmax(1) for batch, _ in data.batches(images, labels, BATCH)])
    assert len(expected.unique()) >= 4  # else equal classes say little
    line = cpp_example.classify(program, network, *files, tmp_path / "classes", BATCH)
    assert (tmp_path / "classes").read_bytes() == bytes(expected.tolist())
    accuracy = (expected == labels).double().mean().item()
    assert line.startswith(f"accuracy {accuracy:.4f}, ") and line.endswith(" images/s")


def test_program_needs_no_python(program):
    needed = subprocess.run(["ldd", str(program)], capture_output=True, text=True, check=True).stdout
    assert "libcnnfast.so" in needed and "not found" not in needed
    assert "libpython" not in needed and "libtorch_python" not in needed


def run(program, *arguments):
    return subprocess.run([str(program), *map(str, arguments)], capture_output=True, text=True, timeout=60)


def test_wrong_arguments_show_the_usage(program):
    result = run(program)
    assert result.returncode == 2 and "usage" in result.stderr


def test_bad_files_are_errors(program, files, network, networks, tmp_path):
    images, labels = files
    broken = tmp_path / "broken"
    for content, words in (
        (b"", "not an IDX file"),
        (images.read_bytes()[:10], "cut off"),
        (images.read_bytes()[:-1], "length"),
        (b"\0\0\x08\x04" + b"\xff" * 16, "absurd"),
        (b"\x1f\x8b\x08\x00 and so on", "not an IDX file"),
    ):
        broken.write_bytes(content)
        result = run(program, network, broken, labels)
        assert result.returncode == 1 and words in result.stderr and str(broken) in result.stderr
    assert "same N" in run(program, network, labels, images).stderr
    assert "at least 1" in run(program, network, images, labels, tmp_path / "classes", 0).stderr
    for name, whole in (("broken.pt", network), ("broken.pt2", networks["aoti"])):
        cut = tmp_path / name
        cut.write_bytes(whole.read_bytes()[:1000])
        result = run(program, cut, images, labels)
        assert result.returncode == 1 and "classify: " in result.stderr
    assert "cannot open" in run(program, tmp_path / "nothing.pt2", images, labels).stderr
    assert run(program, network, images, labels, tmp_path / "no" / "folder").returncode == 1


def test_config_names_what_is_wrong(tmp_path):
    """Without torch, and with a torch of another version, configuring stops in words."""
    other = tmp_path / "torch"
    (other / "lib").mkdir(parents=True)

    def configure(*options):
        command = [
            cpp_example._cmake(),
            "-S",
            str(cpp_example.SOURCE),
            "-B",
            str(tmp_path / "build"),
            *options,
        ]
        command.append(f"-DCMAKE_PREFIX_PATH={cpp_example.PACKAGE / 'cmake'}")
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode != 0
        return " ".join(result.stderr.split())  # CMake wraps its lines

    assert "CNNFAST_TORCH_DIR" in configure(f"-DCNNFAST_TORCH_DIR={other}")
    for name in ("c10", "torch_cpu", "torch"):
        (other / "lib" / f"lib{name}.so").touch()
    (other / "version.py").write_text("__version__ = '1.2.3'\n")
    assert f"was built for torch {torch.__version__}" in configure(f"-DCNNFAST_TORCH_DIR={other}")
    assert "cannot import torch" in configure("-DCNNFAST_TORCH_DIR=", "-DCNNFAST_PYTHON=/bin/false")
