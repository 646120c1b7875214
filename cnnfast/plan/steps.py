"""A plan while it is being made: nodes that point at each other and still hold their constants."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from torch import Tensor

from cnnfast.plan.codec import Constants
from cnnfast.plan.nodes import ABSENT, ATTRIBUTES, Act, Node, Op, Plan


@dataclass(eq=False)
class Step:
    """A node of a plan in the making."""

    op: Op
    inputs: list["Step"] = field(default_factory=list)
    settings: dict[str, int] = field(default_factory=dict)  # attributes other than places in the weights
    constants: dict[str, Tensor | None] = field(default_factory=dict)  # weight, bias, scale, shift
    activation: Act = Act.NONE
    numbers: tuple[float, float] = (0.0, 0.0)  # of the activation
    broadcasts: bool = False  # a sum or product whose second operand is N×C×1×1 or N×1×H×W
    position: int = 0  # among the steps, in an order in which they can run
    layers: list[str] = field(default_factory=list)  # whose work it does


def pointwise_step(source: Step, weight: Tensor) -> Step:
    """A convolution of every pixel by itself; weight: (out, in, 1, 1)."""
    ones = ("kernel_h", "kernel_w", "stride_h", "stride_w", "dilation_h", "dilation_w", "groups")
    pads = ("pad_top", "pad_left", "pad_bottom", "pad_right")
    channels = {"out_channels": weight.shape[0], "group_channels": weight.shape[1]}
    settings = channels | dict.fromkeys(ones, 1) | dict.fromkeys(pads, 0)
    return Step(Op.CONV2D, [source], settings, {"weight": weight, "bias": None})


def crop_step(source: Step, top=0, left=0, bottom=0, right=0, stride_h=1, stride_w=1) -> Step:
    """An image without some rows and columns; then every stride-th is kept."""
    sides = {"top": top, "left": left, "bottom": bottom, "right": right}
    return Step(Op.CROP, [source], sides | {"stride_h": stride_h, "stride_w": stride_w})


def reachable(outputs: Iterable[Step]) -> list[Step]:
    """All steps that the outputs depend on, in the order of their positions."""
    found: dict[Step, None] = {}
    waiting = list(outputs)
    while waiting:
        step = waiting.pop()
        if step not in found:
            found[step] = None
            waiting.extend(step.inputs)
    return sorted(found, key=lambda step: step.position)


def to_plan(inputs: list[Step], outputs: list[Step]) -> tuple[Plan, Tensor, list[str]]:
    """The plan, its weights, and a name for each node. External inputs come first, used or not."""
    steps = inputs + [step for step in reachable(outputs) if step not in inputs]
    number = {step: i for i, step in enumerate(steps)}
    constants = Constants()
    nodes = [_to_node(step, number, constants) for step in steps]
    names = [" + ".join(step.layers) for step in steps]
    return Plan(tuple(nodes), tuple(number[step] for step in outputs)), constants.tensor(), names


def _to_node(step: Step, number: dict[Step, int], constants: Constants) -> Node:
    attributes = dict(step.settings)
    for name, value in step.constants.items():
        attributes[f"{name}_at"] = ABSENT if value is None else constants.add(value)
    ordered = {name: int(attributes[name]) for name in ATTRIBUTES[step.op]}
    return Node(
        step.op, tuple(number[source] for source in step.inputs), ordered, step.activation, step.numbers
    )
