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


def first_differing_module(
    graph_file: Path, graph: GraphInfo, model: PreTrainedModel, *, tolerance: float
) -> str | None:
    """Path of the first module, in order of execution, whose output differs.

    ``tolerance`` is a share of each output's largest value. Runs the graph of ``graph_file`` (in the
    same directory as its weights) with every module's result exposed, and ``model`` with hooks.
    """
    tokens = np.random.default_rng(0).integers(0, graph.vocab_size, (1, _TOKENS))
    expected = _module_outputs(model, tokens)
    got = _graph_outputs(graph_file, graph, tokens, expected)
    for module, reference in expected.items():
        ours = got.get(module)
        if ours is None or ours.shape != reference.shape:
            continue
        if not np.allclose(ours, reference, rtol=0, atol=tolerance * np.abs(reference).max()):
            return module
    return None


def _module_outputs(
    model: PreTrainedModel, tokens: npt.NDArray[np.int64]
) -> dict[str, npt.NDArray[np.float32]]:
    """Output of every module that returns one tensor, in order of completion."""
    outputs: dict[str, npt.NDArray[np.float32]] = {}
    handles = []
    for path, module in model.named_modules():

        def keep(_: object, __: object, output: object, path: str = path) -> None:
            first = output[0] if isinstance(output, tuple) and output else output
            if isinstance(first, torch.Tensor) and first.is_floating_point():
                outputs.setdefault(path, first.detach().float().numpy().copy())

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
) -> dict[str, npt.NDArray[np.float32]]:
    """What the graph computes for the same modules, where it still has that value."""
    model = ir.load(file)
    exposed = _module_results(model, modules)
    names = {path: value.name or "" for path, value in exposed.items()}
    known = {value.name for value in model.graph.outputs}
    for value in exposed.values():
        if value.name not in known:
            known.add(value.name)
            model.graph.outputs.append(value)
    probed = file.with_name("probed.onnx")
    ir.save(model, probed)
    feeds: dict[str, npt.NDArray[np.generic]] = {
        INPUT_IDS: tokens,
        PAST_LENGTHS: np.zeros(1, np.int64),
        LOGITS_POSITIONS: np.arange(_TOKENS, dtype=np.int64)[None],
    }
    kind = np.float32 if graph.dtype == "float32" else np.float16
    capacity = 256 if model.graph.inputs[3].shape[2] is None else model.graph.inputs[3].shape[2]
    for index, layer in enumerate(graph.layers):
        for part, dim in zip(PARTS, (layer.key_dim, layer.value_dim), strict=True):
            feeds[past_name(index, part)] = np.zeros((1, layer.kv_heads, capacity, dim), kind)
    session = open_session(probed, "cpu", None)
    wanted = sorted(set(names.values()))
    results = dict(zip(wanted, session.run(wanted, feeds), strict=True))
    return {path: results[name].astype(np.float32) for path, name in names.items()}


def _module_results(model: ir.Model, modules: Mapping[str, object]) -> dict[str, ir.Value]:
    """The value that leaves each module: the last one made in it that is used outside it."""
    results: dict[str, ir.Value] = {}
    for node in model.graph:
        path = (node.name or "").rpartition("/")[0]
        while path:
            output = node.outputs[0]
            leaves = output.name == LOGITS or any(
                not _inside(use.node, path) for use in output.uses()
            )
            if path in modules and leaves:
                results[path] = output
            path = path.rpartition(".")[0]
    return results


def _inside(node: ir.Node, path: str) -> bool:
    own = (node.name or "").rpartition("/")[0]
    return own == path or own.startswith(f"{path}.")
