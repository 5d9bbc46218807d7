"""Tracing in tests: each model's code once a session, for all tests and all workers.

A trace takes seconds, and most tests that export aren't about it. What comes out is the same for
two models of one class, config and form of tensors, whatever their weights.
"""

import hashlib
from collections.abc import Callable

import onnx_ir as ir
import pytest
import torch
from onnx_ir.tensor_adapters import TorchTensor
from transformers import PreTrainedModel

from exporter.tracing import CacheLayer
from tests.exports import once

Trace = Callable[[PreTrainedModel, list[CacheLayer | None]], ir.Model]


def traced_once(trace: Trace, factory: pytest.TempPathFactory) -> Trace:
    """``trace``, but a graph that this session has traced already is read again.

    The initialisers that bear a weight's name get the weights of the model at hand. A model with
    code of its own, which a test may have put there, is traced each time.
    """

    def read(model: PreTrainedModel, layers: list[CacheLayer | None]) -> ir.Model:
        if not _has_known_code(model):
            return trace(model, layers)
        tensors = {**dict(model.named_parameters(remove_duplicate=False)), **dict(_buffers(model))}
        path = once(
            factory,
            f"traces/{_form(model, layers)}.onnx",
            lambda path: ir.save(trace(model, layers), path),
        )
        graph = ir.load(path)
        for name, value in graph.graph.initializers.items():
            if name in tensors:
                value.const_value = TorchTensor(tensors[name], name=name)
        return graph

    return read


def _has_known_code(model: PreTrainedModel) -> bool:
    libraries = ("torch.", "transformers.")
    return all(type(module).forward.__module__.startswith(libraries) for module in model.modules())


def _form(model: PreTrainedModel, layers: list[CacheLayer | None]) -> str:
    """A digest of all that a trace depends on, code apart."""
    config = model.config.to_dict()
    for name in ("_name_or_path", "quantization_config"):  # where the weights were read from
        config.pop(name, None)
    owners: dict[int, str] = {}  # tied weights are one tensor
    parameters = [
        (name, owners.setdefault(id(tensor), name), tuple(tensor.shape), tensor.dtype)
        for name, tensor in model.named_parameters(remove_duplicate=False)
    ]
    # Small buffers become constants.
    buffers = [(name, buffer.dtype, _digest(buffer)) for name, buffer in _buffers(model)]
    form = repr((type(model), sorted(config.items()), parameters, buffers, layers, model.training))
    return f"{model.config.model_type}-{hashlib.sha256(form.encode()).hexdigest()[:16]}"


def _buffers(model: PreTrainedModel) -> list[tuple[str, torch.Tensor]]:
    return list(model.named_buffers(remove_duplicate=False))


def _digest(tensor: torch.Tensor) -> str:
    numbers = tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.sha256(numbers.tobytes()).hexdigest()
