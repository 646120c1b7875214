"""The function and arguments of the fused calls that stand for whole blocks.

Settings are read when the forward runs, as those of single layers are. Lists are written as tuples:
torch.jit.script makes of those a list of optional tensors where one is asked for.
"""

from torch import fx, nn

from cnnfast.fuse import builders, runtime_blocks
from cnnfast.fuse.builders import Call, Layer, norm_values
from cnnfast.fuse.groups import Group

_CODES = {"none": 0, "relu": 1, "sigmoid": 2}


def inception(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    source = next(branch[0].source for branch in group.branches if branch)
    weights, biases, stages = _stages(graph, root, [stage for branch in group.branches for stage in branch])
    lengths = [len(branch) for branch in group.branches]
    return runtime_blocks.inception, (source, weights, biases, lengths, stages)


def chain(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    (stages,) = group.branches
    return runtime_blocks.chain, (group.source, *_stages(graph, root, stages))


def _stages(graph: fx.Graph, root: nn.Module, stages: list[Group]) -> tuple[tuple, tuple, tuple]:
    """Weights, biases and settings."""
    convs = [Layer(graph, root, stage.layer) for stage in stages if stage.kind == "conv"]
    weights, biases = tuple(conv["weight"] for conv in convs), tuple(conv["bias"] for conv in convs)
    return weights, biases, tuple(_stage(graph, root, stage) for stage in stages)


def _stage(graph: fx.Graph, root: nn.Module, stage: Group) -> fx.Node:
    if stage.kind == "conv":
        conv = Layer(graph, root, stage.layer)
        return graph.call_function(
            runtime_blocks.conv_stage, (*_conv_settings(conv), _CODES[stage.activation])
        )
    is_max = stage.kind == "max_pool"
    _, (_, *settings) = (builders.max_pool if is_max else builders.avg_pool)(graph, root, stage)
    function = runtime_blocks.max_pool_stage if is_max else runtime_blocks.avg_pool_stage
    return graph.call_function(function, tuple(settings))


def _conv_settings(conv: Layer) -> tuple:
    return conv["kernel_size"], conv["stride"], conv.padding(), conv["dilation"], conv["groups"]


def dense_block(graph: fx.Graph, root: nn.Module, group: Group) -> Call:
    (layers,) = group.branches
    convs = [Layer(graph, root, layer.layer) for layer in layers]
    norms = zip(*(norm_values(graph, root, layer.batch_norm) for layer in layers), strict=True)
    settings = tuple(graph.call_function(runtime_blocks.dense_layer, _conv_settings(conv)) for conv in convs)
    return runtime_blocks.dense_block, (
        layers[0].source,
        tuple(conv["weight"] for conv in convs),
        tuple(conv["bias"] for conv in convs),
        *norms,
        settings,
        group.activation,
    )
