"""Setting the smallest weights of linear layers to zero.

The shapes stay. What is gained: files that compress, and for two of every four zeros, kernels of
sparse tensor cores (Mishra et al., "Accelerating Sparse Deep Neural Networks", 2021).
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.linears import Linear, find_linears
from engines.pruning.axes import UnmatchedError
from engines.pruning.layers import last_linears
from serving.contract import LOGITS

Floats = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]


def largest(weight: Floats, fraction: float) -> Mask:
    """True for all but the ``fraction`` of smallest magnitude (unstructured L1 pruning).

    The count is rounded; of equal magnitudes the first ones go. Han et al., "Learning both Weights
    and Connections for Efficient Neural Networks", 2015.
    """
    magnitudes = np.abs(weight).ravel()
    count = round(fraction * magnitudes.size)
    kept = np.ones(magnitudes.size, bool)
    if count:
        threshold = np.partition(magnitudes, count - 1)[count - 1]
        below = magnitudes < threshold
        equal = np.flatnonzero(magnitudes == threshold)
        kept[below] = False
        kept[equal[: count - int(below.sum())]] = False
    return kept.reshape(weight.shape)


def two_largest_of_four(weight: Floats) -> Mask:
    """True for the two weights of largest magnitude in every four along the inputs.

    ``weight`` is [out, in]; of equal magnitudes the later ones go.
    """
    fours = np.abs(weight).reshape(len(weight), -1, 4)
    order = np.argsort(-fours, axis=2, kind="stable")
    kept = np.zeros(fours.shape, bool)
    np.put_along_axis(kept, order[:, :, :2], True, axis=2)
    return kept.reshape(weight.shape)


def prunable_linears(model: ir.Model) -> list[Linear]:
    """The linear layers, one for each weight, without what makes the logits.

    Raises UnmatchedError for weights that are quantised already.
    """
    linears = {linear.matmul: linear for linear in find_linears(model)}
    logits = next(value for value in model.graph.outputs if value.name == LOGITS)
    left_alone = {linears[node].name for node in last_linears(logits, linears)}
    by_name = {linear.name: linear for linear in linears.values() if linear.name not in left_alone}
    for linear in by_name.values():
        if linear.dequantize is not None:
            raise UnmatchedError(f"{linear.name} is quantised already")
    return list(by_name.values())


def zero_weights(linear: Linear, choose: Callable[[Floats], Mask]) -> int:
    """Zero what ``choose`` of the weight [out, in] doesn't keep; returns how many are zero then.

    The mask is found again when the numbers are read, so that no weight is held in memory.
    """
    value, transposed, whole = linear.weight, linear.transposed, linear.weight.const_value
    assert whole is not None

    def masked() -> ir.TensorProtocol:
        array = whole.numpy()
        weight = array.astype(np.float32, copy=False)
        kept = choose(weight) if transposed else choose(weight.T).T
        return ir.Tensor(
            np.where(kept, array, np.zeros((), array.dtype)), dtype=whole.dtype, name=value.name
        )

    value.const_value = ir.LazyTensor(
        masked, dtype=whole.dtype, shape=ir.Shape(whole.shape.numpy()), name=value.name
    )
    return int((value.const_value.numpy() == 0).sum())
