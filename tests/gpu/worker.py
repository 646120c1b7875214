"""What test_launcher.py runs in processes of their own, with the stub for a GPU: `worker.py LIBRARY STUB`.

Requests come through standard input, a line of JSON each, and every one runs in a fork: importing torch takes
longer than they do. The operator is called with CPU tensors through the kernel of the CUDA dispatch key.
cnnfast is not imported: the library alone does the work, as in a program without Python.
"""

import ctypes
import json
import os
import sys
import tempfile
import threading
import traceback
import zlib

import torch
import torch.nn.functional as F

torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # the subset of kernels has none in TF32
torch.ops.load_library(sys.argv[1])
STUB = ctypes.CDLL(sys.argv[2], mode=ctypes.RTLD_GLOBAL)
STUB.stub_launch.restype = STUB.stub_violation.restype = ctypes.c_char_p
CUDA = torch._C.DispatchKeySet(torch._C.DispatchKey.CUDA)
CASES = {
    "pointwise": ((2, 32, 5, 7), (16, 32, 1, 1), {}),
    "padded": ((2, 16, 6, 5), (24, 16, 3, 3), {"padding": [1, 1]}),
    "strided": ((1, 16, 9, 8), (8, 16, 3, 2), {"stride": [2, 1], "padding": [1, 0], "dilation": [1, 2]}),
    "grouped": ((2, 32, 4, 4), (16, 16, 3, 3), {"padding": [1, 1], "groups": 2}),
    "first_layer": (
        (2, 3, 13, 11),
        (5, 3, 7, 7),
        {"stride": [2, 2], "padding": [3, 3], "dtype": torch.float32},
    ),
}


def set_knob(name: str, value: int) -> None:
    STUB.stub_set(name.encode(), value)


def call(x, w, bias=None, scale=None, residual=None, activation="relu", **options):
    op = torch.ops.cnnfast.conv2d.default
    return op.redispatch(CUDA, x, w, bias, scale, residual, activation=activation, **options)


def operands(case: str, seed: int = 0):
    size, weight, options = CASES[case]
    options = dict(options)
    dtype = options.pop("dtype", torch.float16)
    random = torch.Generator().manual_seed(seed)

    def make(*shape):
        return torch.randn(*shape, generator=random).to(dtype)

    x = make(*size).contiguous(memory_format=torch.channels_last)
    y_size = F.conv2d(torch.empty(size), torch.empty(weight), **options).shape
    residual = make(*y_size).contiguous(memory_format=torch.channels_last)
    return x, make(*weight), make(weight[0]), make(weight[0]), residual, options


def expected(x, w, bias, scale, residual, options):
    y = F.conv2d(x.double(), w.double(), **options)
    y = y if scale is None else y * scale.double()[:, None, None]
    y = y if bias is None else y + bias.double()[:, None, None]
    return torch.relu(y if residual is None else y + residual.double()).to(x.dtype)


def launches() -> list[list[str]]:
    return [STUB.stub_launch(i).decode().split() for i in range(STUB.stub_launches())]


def check(y, wanted) -> None:
    assert y.is_contiguous(memory_format=torch.channels_last), y.stride()
    torch.testing.assert_close(y, wanted, rtol=2e-3, atol=2e-3)
    assert not STUB.stub_violation(), STUB.stub_violation()


def error_of(function) -> str:
    try:
        function()
    except (RuntimeError, ValueError) as error:
        return str(error)
    raise AssertionError("no error was raised")


def values():
    """Every case with every epilogue, layouts that must be copied, channel slices, no pixels."""
    for case in CASES:
        x, w, bias, scale, residual, options = operands(case)
        for b, s, r in (
            (bias, scale, residual),
            (bias, None, None),
            (None, scale, None),
            (None, None, residual),
        ):
            for _ in range(2):  # where several kernels serve, the first call times them
                before = STUB.stub_launches()
                check(call(x, w, b, s, r, **options), expected(x, w, b, s, r, options))
            assert STUB.stub_launches() == before + 1, case
    x, w, bias, scale, residual, options = operands("padded")
    check(call(x.contiguous(), w, bias, **options), expected(x, w, bias, None, None, options))
    buffer = torch.full((2, 48, 6, 5), torch.nan).half().contiguous(memory_format=torch.channels_last)
    buffer[:, 16:32] = x
    check(call(buffer[:, 16:32], w, bias, **options), expected(x, w, bias, None, None, options))
    assert call(x[:0], w, bias, **options).shape == (0, 24, 6, 5)
    assert {line[9] for line in launches()} == {"0"}, "the default stream"
    print(json.dumps(launches()))


def refusals():
    """Forced, a backend that cannot serve is an error that says why; nothing is launched."""
    x, w, bias, *_ = operands("pointwise")
    text = error_of(lambda: call(x, w, bias, activation="silu"))
    assert "CNNFAST_BACKEND=triton cannot serve this call: no Triton kernel of this build fits" in text, text
    assert "ACTIVATION is not relu" in text, text
    text = error_of(lambda: call(x.double(), w.double(), bias.double()))
    assert "x_ptr is not float" in text, text
    text = error_of(lambda: call(x.bfloat16(), w.bfloat16(), bias.bfloat16()))
    assert "x_ptr is not float" in text, text
    torch.backends.cudnn.allow_tf32 = True
    text = error_of(lambda: call(x.float(), w.float(), bias.float()))
    assert "PRECISION is not ieee" in text, text
    text = error_of(lambda: call(x, w[:, :5], bias))
    assert "channels" in text, text
    assert STUB.stub_launches() == 0
    set_knob("FAIL_LAUNCH", 1)
    text = error_of(lambda: call(x, w, bias))
    assert "launch of Triton kernel conv2d-float16-aligned-pointwise-64x64-relu failed with " in text, text
    assert "CUDA_ERROR_LAUNCH_OUT_OF_RESOURCES" in text, text


def threads():
    """Eight threads at once: each image is loaded once, every answer is right."""
    failures = []
    gate = threading.Barrier(8)

    def work(seed: int) -> None:
        x, w, bias, scale, residual, options = operands("padded", seed)
        gate.wait()
        try:
            for _ in range(3):
                check(call(x, w, bias, scale, None, **options), expected(x, w, bias, scale, None, options))
        except BaseException as error:
            failures.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    [worker.start() for worker in workers]
    [worker.join() for worker in workers]
    assert not failures, failures[0]
    assert STUB.stub_loads() == 1, STUB.stub_loads()
    assert STUB.stub_launches() == 24


def forced_architecture():
    """Prints whether PTX ran, or the error."""
    x, w, bias, *_ = operands("pointwise")
    try:
        y = call(x, w, bias)
    except RuntimeError as error:
        print(json.dumps({"error": str(error)}))
        return
    check(y, expected(x, w, bias, None, None, {}))
    print(json.dumps({"ptx": launches()[0][1]}))


def falls_back():
    """Without force, whatever fails on the GPU's side is said once, and ATen answers."""
    x, w, bias, *_, options = operands("padded")
    for _ in range(3):
        check(call(x, w, bias, **options), expected(x, w, bias, None, None, options))
    print(STUB.stub_launches())


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


def captured_load():
    """Forced while a graph is captured: code is loaded in relaxed mode, and the mode is put back."""
    set_knob("CAPTURING", 1)
    x, w, bias, *_ = operands("pointwise")
    check(call(x, w, bias), expected(x, w, bias, None, None, {}))


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


def tritons_own_launcher(manifest_file: str, blob_file: str):
    """The same kernel with the same arguments through Triton's launcher: equal bytes, grid and shared memory.

    Triton's launcher finds the stub because it is in the process under the driver's name.
    """
    manifest = json.loads(open(manifest_file).read())
    blob = open(blob_file, "rb").read()
    for case in CASES:
        set_knob("CAPTURING", 1)  # the first kernel that serves, without timing
        x, w, bias, scale, residual, options = operands(case)
        w = w.contiguous(memory_format=torch.channels_last)
        y = call(x, w, bias, scale, residual, **options)
        record = launches()[-1]
        set_knob("CAPTURING", 0)
        groups = options.get("groups", 1)
        pairs = {
            "stride": options.get("stride", [1, 1]),
            "pad": options.get("padding", [0, 0]),
            "dilation": options.get("dilation", [1, 1]),
        }
        values = {
            **{"x_ptr": x.data_ptr(), "w_ptr": w.data_ptr(), "y_ptr": y.data_ptr()},
            **{
                "residual_ptr": residual.data_ptr(),
                "bias_ptr": bias.data_ptr(),
                "scale_ptr": scale.data_ptr(),
            },
            "pixels": y.shape[0] * y.shape[2] * y.shape[3],
            **{"in_h": x.shape[2], "in_w": x.shape[3], "out_h": y.shape[2], "out_w": y.shape[3]},
            **{"in_channels": w.shape[1], "out_channels": w.shape[0] // groups, "groups": groups},
            **{"kernel_h": w.shape[2], "kernel_w": w.shape[3]},
            **{"x_stride": x.shape[1], "y_stride": y.shape[1], "residual_stride": y.shape[1]},
            **{f"{name}_{way}": pair[i] for name, pair in pairs.items() for i, way in enumerate("hw")},
        }
        if x.dtype != torch.float32:  # float32 copies that the library made: only their places are unknown
            raw = bytes.fromhex(record[10])
            values["bias_ptr"], values["scale_ptr"] = (
                int.from_bytes(raw[at : at + 8], "little") for at in (32, 40)
            )
        pointwise = case == "pointwise"
        variant = next(
            variant
            for variant in manifest
            if "residual" in variant["name"]
            and ("float16" in variant["name"]) == (x.dtype == torch.float16)
            and ("pointwise" in variant["name"]) == pointwise
        )
        mine = through_triton(variant, blob, values, record)
        assert mine == record, f"{case}:\n{mine}\n{record}"


def through_triton(variant: dict, blob: bytes, values: dict[str, int], record: list[str]) -> list[str]:
    """The record of Triton's launch, with the scratch buffers of our own: only their places would differ."""
    from triton.backends.nvidia import driver

    image = next(image for image in variant["images"] if not image["ptx"])
    grid = [int(record[2]) // image["ctas"], int(record[3]), int(record[4])]
    tail = bytes.fromhex(record[10])[-16:]
    scratch = [int.from_bytes(tail[at : at + 8], "little") or None for at in (0, 8)]
    for kind, address in zip(("global", "profile"), scratch, strict=True):
        assert (address is not None) == (image[f"{kind}_scratch"] > 0), kind
        assert (address or 0) % image[f"{kind}_scratch_align"] == 0, kind
    code = zlib.decompress(blob[image["offset"] : image["offset"] + image["packed"]])
    utils = driver.CudaUtils()
    function = utils.load_binary(variant["entry"], code, image["shared_bytes"], 0)[1]
    kinds = list(variant["types"].values())
    arguments = [values.get(name, variant["constants"].get(name)) for name in variant["types"]]
    passed = utils.build_signature_metadata([kind for kind in kinds if kind != "constexpr"])
    shape = (image["warps"], image["ctas"], image["shared_bytes"])
    flags = (image["cooperative"], image["dependent"])
    nothing = (None,) * 3  # metadata, two hooks
    annotations = driver.annotate_arguments(kinds)
    utils.launch(*grid, 0, function, *flags, shape, *nothing, *scratch, annotations, passed, tuple(arguments))
    return launches()[-1]


def serve() -> None:
    """Requests {"name", "arguments", "environment"}; answers {"status", "stdout", "stderr"}."""
    for line in sys.stdin:
        request = json.loads(line)
        with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
            child = os.fork()
            if child == 0:
                os.dup2(stdout.fileno(), 1)
                os.dup2(stderr.fileno(), 2)
                os.environ.update(request["environment"])
                status = 1
                try:
                    globals()[request["name"]](*request["arguments"])
                    status = 0
                except BaseException:
                    traceback.print_exc()
                finally:
                    sys.stdout.flush()
                    sys.stderr.flush()
                    os._exit(status)
            status = os.waitpid(child, 0)[1]
            texts = []
            for file in (stdout, stderr):
                file.seek(0)
                texts.append(file.read().decode())
        print(json.dumps({"status": status, "stdout": texts[0], "stderr": texts[1]}), flush=True)


serve()
