"""Types of numbers as a command line names them."""

_SHORT = {"fp32": "float32", "bf16": "bfloat16"}


def dtype_name(word: str) -> str:
    """torch's name of a type: `fp32` and `bf16` are short for float32 and bfloat16, other words stay."""
    return _SHORT.get(word, word)
