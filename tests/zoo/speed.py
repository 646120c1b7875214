"""Frozen networks beside eager channels_last and what other runtimes are installed."""

import math
import sys

from cnnfast.benchmarking.case import ModelSpec
from cnnfast.benchmarking.contenders import registry
from cnnfast.benchmarking.runner import compare

NETWORKS = (
    *("resnet18", "resnet50", "densenet121", "googlenet", "inception_v3", "vgg16_bn", "squeezenet1_1"),
    *("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf"),
)
PEERS = ("openvino", "onnxruntime")


def measure(batches: tuple[int, ...] = (1, 16)) -> dict:
    """Milliseconds a call by network and batch: eager_channels_last, the best peer and its name, frozen."""
    contenders = [
        name for name in ("eager_channels_last", *PEERS, "cnnfast_frozen") if name in registry("inference")
    ]
    rows, head = [], {}
    for name in NETWORKS:
        print(f"timing {name}", file=sys.stderr, flush=True)
        size = 299 if name == "inception_v3" else 224
        quick = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
        spec = ModelSpec(
            f"torchvision.models:{name}", {"weights": None, **quick}, (3, size, size), label=name
        )
        result = compare(spec, batches, contenders, rounds=3)
        head = result.header
        for batch in batches:
            times = {row.contender: row.median_s for row in result.rows if row.batch == batch and row.timed}
            peers = {peer: times[peer] for peer in PEERS if peer in times}
            best = min(peers, key=peers.__getitem__, default=None)
            rows.append(
                {
                    "network": name,
                    "batch": batch,
                    "eager": times.get("eager_channels_last"),
                    "peer": peers.get(best),
                    "peer_name": best,
                    "frozen": times.get("cnnfast_frozen"),
                }
            )
    return {"machine": head.get("machine", {}), "settings": head.get("settings", {}), "rows": rows}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")
