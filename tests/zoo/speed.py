"""Frozen networks beside eager channels_last and what other runtimes are installed."""

import math

from cnnfast.benchmarking.case import ModelSpec
from cnnfast.benchmarking.contenders import registry
from cnnfast.benchmarking.runner import compare

NETWORKS = (
    *("resnet18", "resnet50", "densenet121", "googlenet", "inception_v3", "vgg16_bn", "squeezenet1_1"),
    *("mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "shufflenet_v2_x1_0", "regnet_y_400mf"),
)
PEERS = ("openvino", "onnxruntime")


def measure(name: str, batches: tuple[int, ...] = (1, 16)) -> dict:
    """What one network of NETWORKS ran on, and seconds a call by batch: eager, the best peer, frozen."""
    contenders = [
        name for name in ("eager_channels_last", *PEERS, "cnnfast_frozen") if name in registry("inference")
    ]
    result = compare(ModelSpec(f"torchvision:{name}", label=name), batches, contenders, rounds=3)
    rows = []
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
    head = {key: result.header.get(key, {}) for key in ("machine", "settings")}
    return {**head, "rows": rows}


def geometric_mean(values: list[float]) -> float:
    return math.exp(sum(map(math.log, values)) / len(values)) if values else float("nan")
