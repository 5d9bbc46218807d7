"""How much a feature matters to the linear layers that read it."""

from collections.abc import Iterable, Mapping

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from engines.calibration import InputStatistics
from engines.linears import Linear, find_linears
from engines.pruning.axes import Cut

Statistics = Mapping[str, InputStatistics]
Floats = npt.NDArray[np.float64]


class Importance:
    """Scores of the features that linear layers read.

    A feature's score is the norm of the weights that read it, times its mean magnitude where
    ``statistics`` tell it (Sun et al., "A Simple and Effective Pruning Approach for Large Language
    Models", 2023, for weights; An et al., "FLAP", 2024, sum it over a structure as here). A unit
    whose output weights are zero has the score zero: it is the first to go, and is lossless to
    remove.
    """

    def __init__(self, model: ir.Model, statistics: Statistics | None) -> None:
        self._linears = {linear.matmul: linear for linear in find_linears(model)}
        self._statistics = statistics
        self._squares: dict[ir.Node, Floats] = {}

    def of_unit(self, readers: Iterable[tuple[ir.Node, Cut]]) -> float:
        """The score of the features [``Cut.kept``] that these MatMul nodes read."""
        return float(sum(self._of(node)[list(cut.kept)].sum() for node, cut in readers) ** 0.5)

    def _of(self, matmul: ir.Node) -> Floats:
        """Squared scores of the features that a linear layer reads, [in]."""
        if matmul not in self._squares:
            linear = self._linears[matmul]
            squares = np.square(linear.array()).sum(axis=0, dtype=np.float64)
            self._squares[matmul] = squares * self._magnitudes(linear) ** 2
        return self._squares[matmul]

    def _magnitudes(self, linear: Linear) -> Floats | float:
        if self._statistics is None:
            return 1.0
        return self._statistics[linear.name].mean_magnitude.astype(np.float64)


def most_important(scores: Iterable[float], count: int) -> tuple[int, ...]:
    """Indices of the ``count`` highest scores, in order; of equal scores the later goes first."""
    ranked = sorted(enumerate(scores), key=lambda pair: (-pair[1], pair[0]))
    return tuple(sorted(index for index, _ in ranked[:count]))
