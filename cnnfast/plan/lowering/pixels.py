"""Values of one pixel, whatever the size of the network's images."""

from cnnfast.plan.lowering.context import Unsupported
from cnnfast.plan.nodes import Op
from cnnfast.plan.steps import Step


def check_features_of_one_pixel(step: Step) -> None:
    """Flattened images have fewer channels than features; of a linear layer's they are the same."""
    if not gives_one_pixel(step):
        raise Unsupported("a plan of this version scales features behind a linear layer or a mean only")


_TO_ONE_PIXEL = (Op.LINEAR, Op.GLOBAL_AVG_POOL, Op.TO_IMAGE, Op.IMAGE_NORM, Op.ATTENTION_POOL)
_KEEP_PIXELS = (
    *(Op.FLATTEN, Op.ACTIVATION, Op.ADD, Op.CONCAT, Op.AFFINE, Op.MULTIPLY, Op.SLICE, Op.CHANNEL_SHUFFLE),
    *(Op.LAYER_NORM, Op.GROUP_NORM, Op.PRELU, Op.CHANNEL_MAX, Op.CHANNEL_CONV, Op.POWER, Op.SOFTMAX),
)


def gives_one_pixel(step: Step) -> bool:
    """Whether a value is features or an image of one pixel whatever the size of the network's images."""
    waiting, seen = [step], set()
    while waiting:
        step = waiting.pop()
        if step in seen:
            continue
        seen.add(step)
        settings = step.settings
        if step.op in _TO_ONE_PIXEL or (step.op is Op.INPUT and settings["rank"] == 2):
            continue
        if step.op in (Op.ADAPTIVE_AVG_POOL2D, Op.ADAPTIVE_MAX_POOL2D, Op.RESHAPE_IMAGE):
            if settings["height"] == settings["width"] == 1:
                continue
            return False
        single = step.op is Op.CONV2D and settings["kernel_h"] == settings["kernel_w"] == 1
        if not (step.op in _KEEP_PIXELS or (single and not any(settings[f"pad_{s}"] for s in _SIDES))):
            return False
        waiting.extend(step.inputs)
    return True


_SIDES = ("top", "left", "bottom", "right")
