"""Watching a graph's activations on calibration text: what quantisation and pruning choose by."""

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import onnx_ir.passes.common as common
import onnxruntime as ort

from engines import onnxruntime as onnxruntime_target
from engines.linears import Linear, find_linears
from engines.passes.lora_inputs import without_adapter
from engines.passes.sizes import known_type, static_size
from serving.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS_POSITIONS,
    PAST_LENGTHS,
    SOURCE_LENGTHS,
)
from serving.encoders.contract import TOKEN_TYPE_IDS
from serving.engine import IntArray
from serving.onnxruntime import open_session

Floats = npt.NDArray[np.float32]

SECOND_MOMENTS_BUDGET = 1 << 30  # bytes of second moments that one run over the text may hold

_OBSERVED = "observed."  # prefix of the outputs that are added to a graph


@dataclass(frozen=True)
class SourceWindow:
    """A row of tokens for a decoder that reads a source too."""

    tokens: IntArray
    """int64 [n]."""
    source: Mapping[str, Floats]
    """Keys and values of the source, [1, kv_heads, source, head_dim], by the input's name."""


Window = IntArray | SourceWindow


@dataclass
class InputStatistics:
    """What the inputs of a linear layer looked like; layers with one source share one object."""

    rows: int
    """Tokens seen."""
    mean_magnitude: Floats
    """Mean |x| of each input channel, [in]."""
    largest_magnitude: Floats
    """Largest |x| of each input channel, [in]."""
    second_moment: Floats | None = None
    """XᵀX over all tokens, [in, in], where it was asked for."""


def collect(
    model: ir.Model, windows: Sequence[IntArray], workspace: Path, *, second_moments: bool = False
) -> dict[str, InputStatistics]:
    """Statistics of every linear layer's inputs, by the name of its weight.

    ``model`` is a standard graph with float weights and stays as it is; each of ``windows`` is a
    row of tokens, int64 [n], that is prefilled by itself. ``workspace`` is a directory for the
    weights while the graph runs. With ``second_moments`` all of them are held at once: see
    ``collect_in_parts`` where they don't fit into memory.
    """
    return _collect(
        model, _linears_by_source(model), windows, workspace, second_moments=second_moments
    )


def collect_in_parts(
    model: ir.Model,
    windows: Sequence[IntArray],
    workspace: Path,
    *,
    weights: Collection[str] | None = None,
    budget: int = SECOND_MOMENTS_BUDGET,
) -> Iterator[dict[str, InputStatistics]]:
    """Statistics with second moments, some layers at a time, in the graph's order.

    ``weights`` names the layers, all where it is None. One part's second moments take at most
    ``budget`` bytes (or are those of one source); the text runs once for each part, up to its last
    layer.
    """
    part: dict[ir.Value, list[Linear]] = {}
    size = 0
    for source, linears in _linears_by_source(model, weights).items():
        needed = 4 * linears[0].inputs ** 2
        if part and size + needed > budget:
            yield _collect(model, part, windows, workspace, second_moments=True)
            part, size = {}, 0
        part[source] = linears
        size += needed
    if part:
        yield _collect(model, part, windows, workspace, second_moments=True)


def _collect(
    model: ir.Model,
    linears_by_source: Mapping[ir.Value, Sequence[Linear]],
    windows: Sequence[IntArray],
    workspace: Path,
    *,
    second_moments: bool,
) -> dict[str, InputStatistics]:
    sums = {
        _name(source): _Sums(linears[0].inputs, second_moment=second_moments)
        for source, linears in linears_by_source.items()
    }
    for arrays in observe(model, list(linears_by_source), windows, workspace):
        for name, array in arrays.items():
            sums[name].add(array)
    statistics: dict[str, InputStatistics] = {}
    for source, linears in linears_by_source.items():
        shared = sums[_name(source)].statistics()
        statistics.update((linear.name, shared) for linear in linears)
    return statistics


def _linears_by_source(
    model: ir.Model, weights: Collection[str] | None = None
) -> dict[ir.Value, list[Linear]]:
    """The linear layers that each activation goes into, in the graph's order."""
    by_source: dict[ir.Value, list[Linear]] = {}
    for linear in find_linears(model):
        if weights is None or linear.name in weights:
            by_source.setdefault(linear.source, []).append(linear)
    return by_source


class _Sums:
    """Sums over the tokens seen so far, in float64 but for the second moment."""

    def __init__(self, channels: int, *, second_moment: bool) -> None:
        self.rows = 0
        self.magnitude = np.zeros(channels)
        self.largest = np.zeros(channels, np.float32)
        shape = (channels, channels)
        self.second_moment = np.zeros(shape, np.float32) if second_moment else None

    def add(self, array: Floats) -> None:
        """Count activations [..., in] in."""
        tokens = array.reshape(-1, array.shape[-1])
        magnitude = np.abs(tokens)
        self.rows += len(tokens)
        self.magnitude += magnitude.sum(axis=0, dtype=np.float64)
        np.maximum(self.largest, magnitude.max(axis=0, initial=0), out=self.largest)
        if self.second_moment is not None:
            self.second_moment += tokens.T @ tokens

    def statistics(self) -> InputStatistics:
        mean = (self.magnitude / max(self.rows, 1)).astype(np.float32)
        return InputStatistics(self.rows, mean, self.largest, self.second_moment)


def observe(
    model: ir.Model, values: Sequence[ir.Value], windows: Sequence[Window], workspace: Path
) -> Iterator[dict[str, Floats]]:
    """Prefill each window of tokens by itself and yield these values of it, by name, as float32.

    A value is given with the batch's axis of size 1. The graph runs lowered for ONNX Runtime, as
    far as it has to for these values, with logits at every position; ``model`` stays as it is.
    """
    names = [_name(value) for value in values]
    graph = _observed_graph(model, names)
    outputs = [f"{_OBSERVED}{index}" for index in range(len(names))]
    with opened(graph, workspace) as session:
        # Passes may have dropped what these values don't depend on.
        wanted = {value.name for value in session.get_inputs()}
        for window in windows:
            feeds = prefill_feeds(graph, window)
            known = {name: feed for name, feed in feeds.items() if name in wanted}
            yield dict(zip(names, session.run(outputs, known), strict=True))


@contextmanager
def opened(graph: ir.Model, workspace: Path) -> Iterator[ort.InferenceSession]:
    """A session of a lowered graph, whose files are in the directory ``workspace`` meanwhile."""
    onnxruntime_target.write(graph, workspace)
    yield open_session(workspace / onnxruntime_target.MODEL_FILE, "cpu", None)
    for file in (onnxruntime_target.MODEL_FILE, onnxruntime_target.WEIGHTS_FILE):
        (workspace / file).unlink()


def _observed_graph(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A lowered copy of the graph whose only outputs are these values."""
    copy = model.clone()
    graph = copy.graph
    values = {value.name: value for node in graph for value in node.outputs}
    values.update((value.name, value) for value in graph.inputs)
    observed: list[ir.Value] = []
    for index, name in enumerate(names):
        # A node of its own: passes may rename, fuse or replace the value itself.
        node = ir.node("Cast", [values[name]], {"to": ir.DataType.FLOAT})
        output = node.outputs[0]
        output.name, output.shape = f"{_OBSERVED}{index}", values[name].shape
        output.type = ir.TensorType(ir.DataType.FLOAT)
        graph.append(node)
        observed.append(output)
    graph.outputs.extend(observed)
    onnxruntime_target.lower(copy)
    by_name = {value.name: value for value in graph.outputs}
    graph.outputs[:] = [by_name[value.name] for value in observed]
    common.RemoveUnusedNodesPass()(copy)
    return copy


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def prefill_feeds(graph: ir.Model, window: Window) -> dict[str, npt.NDArray[Any]]:
    """Inputs that run one row of tokens, int64 [n], over KV buffers just as long, if any."""
    row, source = (
        (window.tokens, window.source) if isinstance(window, SourceWindow) else (window, {})
    )
    tokens = np.ascontiguousarray(row, np.int64)[None]
    feeds: dict[str, npt.NDArray[Any]] = {
        INPUT_IDS: tokens,
        ATTENTION_MASK: np.ones_like(tokens),
        TOKEN_TYPE_IDS: np.zeros_like(tokens),
        PAST_LENGTHS: np.zeros(1, np.int64),
        LOGITS_POSITIONS: np.arange(tokens.shape[1], dtype=np.int64)[None],
    }
    if source:
        feeds[SOURCE_LENGTHS] = np.array([next(iter(source.values())).shape[2]], np.int64)
    for value in graph.graph.inputs:
        if (nothing := without_adapter(value)) is not None:
            feeds[_name(value)] = nothing
        elif _name(value) in source:
            feeds[_name(value)] = source[_name(value)].astype(known_type(value).numpy())
        elif value.name not in feeds and not value.is_initializer():
            shape = (1, static_size(value, 1), tokens.shape[1], static_size(value, 3))
            feeds[_name(value)] = np.zeros(shape, known_type(value).numpy())
    return {
        _name(value): feeds[_name(value)] for value in graph.graph.inputs if value.name in feeds
    }
