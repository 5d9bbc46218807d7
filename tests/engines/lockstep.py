"""Running the ranks of a tensor-parallel graph together, in ONNX's reference evaluator.

Each rank has a thread, its own graph and its own KV buffers. They meet at every AllReduce, where
each gets the sum of what all brought.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

from serving.contract import INPUT_IDS, LOGITS, LOGITS_POSITIONS, PAST_LENGTHS

Arrays = dict[str, np.ndarray]
Reduction = Callable[[Sequence[np.ndarray]], np.ndarray]
_PATIENCE = 20  # seconds, after which a rank that comes alone fails


class Group:
    """Where the ranks meet."""

    def __init__(self, ranks: int, reduction: Reduction) -> None:
        self.barrier = Barrier(ranks, timeout=_PATIENCE)
        self.parts: list[Any] = [None] * ranks
        self.reduction = reduction

    def operator(self, rank: int) -> type[OpRun]:
        group = self

        class AllReduce(OpRun):  # type: ignore[misc]
            op_domain = "export_llm"

            def _run(self, partial: np.ndarray, ranks: int) -> tuple[np.ndarray]:
                assert ranks == len(group.parts)
                group.parts[rank] = partial
                group.barrier.wait()
                total = group.reduction(group.parts)
                group.barrier.wait()
                return (total,)

        return AllReduce


def lockstep_logits(
    models: Sequence[ir.Model], tokens: np.ndarray, steps: Sequence[int], reduction: Reduction = sum
) -> list[np.ndarray]:
    """Logits [batch, tokens, vocab] of each rank from steps of so many tokens, at all positions."""
    group = Group(len(models), reduction)
    capacity = sum(steps)

    def run(rank: int) -> np.ndarray:
        model = models[rank]
        evaluator = ReferenceEvaluator(ir.to_proto(model), new_ops=[group.operator(rank)])
        rows = len(tokens)
        buffers = {
            value.name: np.zeros((rows, value.shape[1], capacity, value.shape[3]), np.float32)
            for value in model.graph.inputs[3:]
        }
        parts, past = [], 0
        for count in steps:
            feeds = {
                INPUT_IDS: tokens[:, past : past + count],
                PAST_LENGTHS: np.full(rows, past),
                LOGITS_POSITIONS: np.tile(np.arange(count), (rows, 1)),
            }
            results = _run(evaluator, model, feeds | buffers)
            buffers = {
                name: results[name.replace("past_key_values", "present")] for name in buffers
            }
            parts.append(results[LOGITS])
            past += count
        return np.concatenate(parts, axis=1)

    with ThreadPoolExecutor(len(models)) as threads:
        return list(threads.map(run, range(len(models))))


def _run(evaluator: ReferenceEvaluator, model: ir.Model, feeds: Arrays) -> Arrays:
    names = [str(value.name) for value in model.graph.outputs]
    return dict(zip(names, evaluator.run(names, feeds), strict=True))
