"""Reading what passes need to know of values: static sizes and types."""

import onnx_ir as ir


def static_size(value: ir.Value | None, axis: int) -> int:
    """The size of an axis that the graph fixes, such as a count of heads. Raises ValueError."""
    shape = value.shape if value is not None else None
    size = shape[axis] if shape is not None else None
    if not isinstance(size, int):
        raise ValueError(f"{value!r} has no static size at axis {axis}")
    return size


def known_type(value: ir.Value) -> ir.DataType:
    """The element type of a value that must have one. Raises ValueError."""
    if value.dtype is None:
        raise ValueError(f"{value!r} has no element type")
    return value.dtype
