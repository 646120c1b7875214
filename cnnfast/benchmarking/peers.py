"""Other inference runtimes, pinned to the case's precision; optional: pip install 'cnnfast[peers]'."""

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .case import Case
from .contenders import Contender


class OpenVino(Contender):
    name = "openvino"
    setting = (
        "convert_model, static shape, LATENCY hint, INFERENCE_PRECISION_HINT f32 or bf16, outputs shared"
    )
    requires = ("openvino",)

    def __init__(self, case: Case, model: nn.Module, example: Tensor):
        import openvino

        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # its converter traces with torch.jit, which warns of its own end
            converted = openvino.convert_model(model, example_input=example, input=[tuple(example.shape)])
        # Without the hint OpenVINO runs float32 networks in bfloat16 on CPUs with AMX.
        wanted = {"float32": "f32", "bfloat16": "bf16"}[case.dtype]
        options = {
            "INFERENCE_PRECISION_HINT": wanted,
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": case.threads,
        }
        compiled = openvino.compile_model(converted, "CPU", options)
        precision = compiled.get_property("INFERENCE_PRECISION_HINT").to_string()
        if precision != wanted:
            raise RuntimeError(f"OpenVINO runs in {precision} although {wanted} was asked for")
        self.step = partial(compiled.create_infer_request().infer, share_inputs=True, share_outputs=True)

    def feed(self, batch: Tensor) -> Any:
        return [batch.contiguous().numpy()]

    def output(self, result: Any) -> Tensor:
        return torch.from_numpy(result[0]).clone()


class OnnxRuntime(Contender):
    name = "onnxruntime"
    setting = (
        "torch.onnx.export, static shape, CPUExecutionProvider, ORT_ENABLE_ALL, sequential; always float32"
    )
    requires = ("onnxruntime", "onnx", "onnxscript")

    def __init__(self, case: Case, model: nn.Module, example: Tensor):
        import onnxruntime

        path = Path(case.folder) / f"onnxruntime-{case.batch}.onnx"
        torch.onnx.export(model, (example,), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = case.threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.step = partial(session.run, None)
        self._input = session.get_inputs()[0].name

    def feed(self, batch: Tensor) -> Any:
        return {self._input: batch.contiguous().numpy()}

    def output(self, result: Any) -> Tensor:
        return torch.from_numpy(result[0])
