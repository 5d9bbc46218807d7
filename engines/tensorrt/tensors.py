"""What the checks of a parsed network share: types, the ways back, and the error of a breach."""

from collections.abc import Iterable
from typing import Any

import onnx_ir as ir

from serving.errors import UserError

TYPES = {
    ir.DataType.BOOL: "BOOL",
    ir.DataType.INT4: "INT4",
    ir.DataType.INT8: "INT8",
    ir.DataType.UINT8: "UINT8",
    ir.DataType.INT32: "INT32",
    ir.DataType.INT64: "INT64",
    ir.DataType.FLOAT8E4M3FN: "FP8",
    ir.DataType.FLOAT16: "HALF",
    ir.DataType.BFLOAT16: "BF16",
    ir.DataType.FLOAT: "FLOAT",
}
# Layers that a parser puts between a value and its use, none of which changes a number.
_VIEWS = frozenset({"CAST", "IDENTITY", "SHUFFLE", "SQUEEZE", "UNSQUEEZE"})


class VerificationError(UserError):
    """A network that isn't what its graph says."""

    def __init__(self, what: str) -> None:
        super().__init__(
            f"The TensorRT network is not what the graph says: {what}; "
            "no engine was written, export the model for onnxruntime instead."
        )


def ancestors(names: Iterable[str], producers: dict[str, Any]) -> set[str]:
    """Names of these tensors and of all that they are computed from."""
    reached: set[str] = set()
    waiting = list(names)
    while waiting:
        name = waiting.pop()
        if name not in reached:
            reached.add(name)
            if name in producers:
                waiting += [tensor.name for tensor in _operands(producers[name])]
    return reached


def is_view(layer: Any) -> bool:
    """Whether a layer only hands on what it reads, as another type or shape."""
    return layer.type.name in _VIEWS


def origins(tensor: Any, producers: dict[str, Any]) -> list[str]:
    """Names of a tensor and of those that it is a cast or a view of."""
    names = [tensor.name]
    while (layer := producers.get(names[-1])) is not None and is_view(layer):
        names.append(layer.get_input(0).name)
    return names


def _operands(layer: Any) -> list[Any]:
    operands = map(layer.get_input, range(layer.num_inputs))
    return [tensor for tensor in operands if tensor is not None]
