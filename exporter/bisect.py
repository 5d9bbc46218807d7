"""Finding the first module whose output the graph gets wrong."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from transformers import PreTrainedModel

from serving.bundle import GraphInfo
from serving.contract import (
    INPUT_IDS,
    LOGITS,
    LOGITS_POSITIONS,
    PARTS,
    PAST_LENGTHS,
    past_name,
)
from serving.onnxruntime import open_session

_TOKENS = 12

Outputs = dict[str, list[npt.NDArray[np.float32]]]


def first_differing_module(
    graph_file: Path, graph: GraphInfo, model: PreTrainedModel, *, tolerance: float
) -> str | None:
    """Path of the first module, in order of execution, whose output differs.

    ``tolerance`` is a share of each output's largest value. Runs the graph of ``graph_file`` (with
    its weights beside it) with every module's result exposed, and ``model`` with hooks.
    """
    tokens = np.random.default_rng(0).integers(0, graph.vocab_size, (1, _TOKENS))
    expected = _module_outputs(model, tokens)
    got = _graph_outputs(graph_file, graph, tokens, expected)
    for module, references in expected.items():
        for reference in references:
            ours = [value for value in got.get(module, []) if value.shape == reference.shape]
            limit = tolerance * np.abs(reference).max()
            if ours and not any(np.allclose(o, reference, rtol=0, atol=limit) for o in ours):
                return module
    return None


def _module_outputs(model: PreTrainedModel, tokens: npt.NDArray[np.int64]) -> Outputs:
    """The tensors that each module returns, in order of completion."""
    outputs: Outputs = {}
    handles = []
    for path, module in model.named_modules():

        def keep(_: object, __: object, output: object, path: str = path) -> None:
            parts = output if isinstance(output, tuple) else (output,)
            tensors = [p for p in parts if isinstance(p, torch.Tensor) and p.is_floating_point()]
            outputs.setdefault(path, [tensor.float().numpy().copy() for tensor in tensors])

        if path:
            handles.append(module.register_forward_hook(keep))
    try:
        with torch.no_grad():
            model(input_ids=torch.from_numpy(tokens), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return outputs


def _graph_outputs(
    file: Path,
    graph: GraphInfo,
    tokens: npt.NDArray[np.int64],
    modules: Mapping[str, object],
) -> Outputs:
    """What the graph computes in the same modules, as far as it is used outside them."""
    model = ir.load(file)
    exposed = _module_results(model, modules)
    values = {value.name: value for values in exposed.values() for value in values}
    for name in values.keys() - {value.name for value in model.graph.outputs}:
        model.graph.outputs.append(values[name])
    probed = file.with_name("probed.onnx")
    ir.save(model, probed)
    feeds: dict[str, npt.NDArray[np.generic]] = {
        INPUT_IDS: tokens,
        PAST_LENGTHS: np.zeros(1, np.int64),
        LOGITS_POSITIONS: np.arange(_TOKENS, dtype=np.int64)[None],
    }
    kind = np.float32 if graph.dtype == "float32" else np.float16
    capacity = _capacity(model)
    for index, layer in enumerate(graph.layers):
        for part, dim in zip(PARTS, (layer.key_dim, layer.value_dim), strict=True):
            feeds[past_name(index, part)] = np.zeros((1, layer.kv_heads, capacity, dim), kind)
    session = open_session(probed, "cpu", None)
    results = dict(zip(values, session.run(list(values), feeds), strict=True))
    return {
        path: [results[value.name].astype(np.float32) for value in values]
        for path, values in exposed.items()
    }


def _capacity(model: ir.Model) -> int:
    """Length of the KV buffers: what the graph fixes, or enough for the tokens."""
    shape = next(v.shape for v in model.graph.inputs if v.name == past_name(0, "key"))
    fixed = shape[2] if shape is not None else None
    return fixed if isinstance(fixed, int) else _TOKENS


def _module_results(model: ir.Model, modules: Mapping[str, object]) -> dict[str, list[ir.Value]]:
    """The values that leave each module: made in it and used outside it."""
    results: dict[str, list[ir.Value]] = {}
    for node in model.graph:
        for output in node.outputs:
            if output.dtype is None or output.dtype.is_floating_point():
                _add_to_modules(results, output, modules)
    return results


def _add_to_modules(
    results: dict[str, list[ir.Value]], output: ir.Value, modules: Mapping[str, object]
) -> None:
    """File a value under every module that it leaves, by its name."""
    path = _module_of(output)
    while path:
        leaves = output.name == LOGITS or any(not _inside(use.node, path) for use in output.uses())
        if path in modules and leaves:
            results.setdefault(path, []).append(output)
        path = path.rpartition(".")[0]


def _module_of(output: ir.Value) -> str:
    """The module that a value comes from: merged layers have one node and a name for each part."""
    module, _, kind = (output.name or "").partition("/")
    node = output.producer()
    return module if kind or node is None else _module_path(node)


def _module_path(node: ir.Node) -> str:
    """The module that a node belongs to, also if a pass put it there."""
    return (node.name or "").partition("/")[0]


def _inside(node: ir.Node, path: str) -> bool:
    own = _module_path(node)
    return own == path or own.startswith(f"{path}.")
