"""Requests of worker.py: convolutions by launched Triton kernels, what is refused, and how code is loaded."""

import json
import threading
import zlib

import torch
from worker_support import (
    CASES,
    STUB,
    call,
    check,
    error_of,
    expected,
    launches,
    operands,
    set_knob,
)


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


def captured_load():
    """Forced while a graph is captured: code is loaded in relaxed mode, and the mode is put back."""
    set_knob("CAPTURING", 1)
    x, w, bias, *_ = operands("pointwise")
    check(call(x, w, bias), expected(x, w, bias, None, None, {}))


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
