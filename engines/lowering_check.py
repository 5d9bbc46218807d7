"""Whether a quantised engine computes what its standard Q/DQ graph says.

ONNX Runtime runs the standard graph without any optimisation: every weight is dequantised and
multiplied in floats. The engine's kernels work on the integers, with activations of 8 bits, so the
two differ by rounding, and by no more than that.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from serving.contract import (
    ADAPTER_IDS,
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PAST_LENGTHS,
    SOURCE_LENGTHS,
    cross_name,
)
from serving.engine import Engine, IntArray
from serving.kv_cache import HostBuffer, SourceCache
from serving.lora import AdapterTables

Floats = npt.NDArray[np.float32]

# Largest relative RMS error. ``MatMulNBits`` with activations of 8 bits gave 0.6% to 1.0% on the
# small trained model and 1.3% to 4.2% on tiny random ones of nine architectures, at 4 and 8 bits.
LIMIT = 0.1
_TYPES = {
    "tensor(float)": np.dtype(np.float32),
    "tensor(float16)": np.dtype(np.float16),
    "tensor(bfloat16)": np.dtype(ml_dtypes.bfloat16),
    "tensor(int8)": np.dtype(np.int8),
    "tensor(uint8)": np.dtype(np.uint8),
}


@dataclass(frozen=True)
class LoweringError:
    """RMS of the error of logits, as a share of the RMS of the logits themselves.

    Both are about the mean of their position, which no probability depends on. ``prefill`` is over
    steps of several tokens and ``decode`` over steps of one.
    """

    prefill: float
    decode: float

    def breach(self) -> str | None:
        """Say in a clause that the engine isn't what it was made from, or None."""
        worst = float(np.max([self.prefill, self.decode]))  # NaN wins
        if worst <= LIMIT:
            return None
        return (
            f"the lowered engine's logits are {worst:.1%} off those of the quantised graph "
            f"({LIMIT:.0%} allowed)"
        )


def exact_logits(
    file: Path,
    tokens: Sequence[int],
    *,
    capacity: int,
    adapters: AdapterTables | None = None,
    adapter_id: int = 0,
    source: SourceCache | None = None,
) -> Floats:
    """Logits [tokens, vocab] of the standard graph in ``file``, in one pass, with exact arithmetic.

    ``capacity`` is the size of the KV buffers where the graph leaves it open. A graph that takes
    ``adapters`` needs them; ``adapter_id`` is the one that the tokens have. An encoder-decoder's
    reads the first slot of ``source``.
    """
    session = _exact_session(file)
    feeds: dict[str, npt.NDArray[np.generic]] = {
        INPUT_IDS: np.array([tokens], dtype=np.int64),
        PAST_LENGTHS: np.zeros(1, dtype=np.int64),
        LOGITS_POSITIONS: np.arange(len(tokens), dtype=np.int64)[None],
    }
    if adapters is not None:
        feeds[ADAPTER_IDS] = np.array([adapter_id])
        feeds.update(adapters.inputs(adapted=True))
    if source is not None:
        feeds[SOURCE_LENGTHS] = source.lengths[:1]
        feeds.update(_first_slot(source))
    for value in session.get_inputs():
        if value.name not in feeds:
            heads, length, dim = value.shape[1:]
            length = length if isinstance(length, int) else capacity
            feeds[value.name] = np.zeros((1, heads, length, dim), _TYPES[value.type])
    logits: Floats = session.run([LOGITS], feeds)[0][0].astype(np.float32)
    return logits


def source_error(file: Path, source_ids: IntArray, source: SourceCache) -> float:
    """RMS of the error of what the first slot keeps of a source [n], as a share of its RMS.

    The standard encoder graph in ``file`` gives what is exact; the worst of all layers counts.
    """
    ids = source_ids[None]
    session = _exact_session(file)
    names = [value.name for value in session.get_outputs()]
    exact = session.run(names, {INPUT_IDS: ids, ATTENTION_MASK: np.ones_like(ids)})
    kept = _first_slot(source)
    errors = []
    for name, values in zip(names, exact, strict=True):
        size = values.astype(np.float64)
        error = kept[name][:, :, : ids.shape[1]] - size
        errors.append(float(np.sqrt(np.square(error).mean() / np.square(size).mean())))
    return max(errors)


def _exact_session(file: Path) -> ort.InferenceSession:
    """A session that runs a graph as it is."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(file, options, ["CPUExecutionProvider"])


def _first_slot(source: SourceCache) -> dict[str, npt.NDArray[np.generic]]:
    """What the first slot keeps of its source, by the names of the graphs' inputs."""
    kept = {}
    for (layer, part), buffer in source.cache.buffers.items():
        assert isinstance(buffer, HostBuffer)
        kept[cross_name(layer, part)] = buffer.array[:1]
    return kept


def lowering_error(engine: Engine, tokens: Sequence[int], exact: Floats) -> LoweringError:
    """Run an engine on the tokens of ``exact`` [tokens, vocab] and compare.

    The first half is prefilled in two steps, the second half is decoded token by token.
    """
    half = len(tokens) // 2
    ids = np.array([tokens], dtype=np.int64)
    edges = [0, half // 2, half, *range(half + 1, len(tokens) + 1)]
    parts = []
    for start, stop in pairwise(edges):
        positions = np.arange(stop - start, dtype=np.int64)[None]
        logits = engine.step(np.ascontiguousarray(ids[:, start:stop]), np.array([start]), positions)
        parts.append(logits[0].copy())
    ours = np.concatenate(parts)
    return LoweringError(
        prefill=_relative_rms(ours[:half], exact[:half]),
        decode=_relative_rms(ours[half:], exact[half:]),
    )


def _relative_rms(ours: Floats, exact: Floats) -> float:
    error, size = _centred(ours - exact), _centred(exact)
    return float(np.sqrt(np.square(error).mean() / np.square(size).mean()))


def _centred(logits: Floats) -> npt.NDArray[np.float64]:
    wide = logits.astype(np.float64)
    centred: npt.NDArray[np.float64] = wide - wide.mean(axis=1, keepdims=True)
    return centred
