"""Benchmarks: cnnfast against eager PyTorch and other runtimes, each alone in a process of its own.

from cnnfast.benchmarking import compare
result = compare("residual_net", batches=(1, 16))
rich.print(result.table()); result.to_json("bench.json"); result.plot("bench.png")
"""

from .case import ModelSpec
from .result import Result, Row
from .runner import compare, default_contenders

__all__ = ["ModelSpec", "Result", "Row", "compare", "default_contenders"]
