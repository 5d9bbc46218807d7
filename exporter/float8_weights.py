"""Reading weights that a checkpoint stores in float8: compressed-tensors' and transformers' own."""

import math
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
import torch

from engines.quantization.float8 import Float8Weight
from engines.quantization.weights import Floats
from serving.errors import UserError


def stores_float8(settings: Mapping[str, Any]) -> bool:
    """Whether a ``quantization_config`` of compressed-tensors is about float8 weights."""
    return settings.get("format") == "float-quantized" or any(
        weights.get("type") == "float" and weights.get("num_bits") == 8
        for weights in _weight_settings(settings)
    )


def block_of(settings: Mapping[str, Any]) -> tuple[int, int] | None:
    """Outputs and inputs of a weight that share a scale, where they are blocks of both."""
    if "weight_block_size" in settings:
        block = settings["weight_block_size"]
    else:
        blocks = (weights.get("block_structure") for weights in _weight_settings(settings))
        block = next(filter(None, blocks), None)
    return None if block is None else (int(block[0]), int(block[1]))


def read_float8(
    tensors: Mapping[str, torch.Tensor], scales: str, block: tuple[int, int] | None
) -> Float8Weight:
    """``weight`` float8 [out, in] with one scale, [out, 1], [out, groups], or one a ``block``.

    ``scales`` is the name of theirs. A static scale of the activations is taken too, but not with
    blocks, which TensorRT-RTX can't multiply with float8 activations. Raises UserError for other
    types of float8.
    """
    weight = tensors["weight"]
    if weight.dtype != torch.float8_e4m3fn:
        raise UserError(
            f"The checkpoint's config says float8 and a weight is stored as {weight.dtype}, which "
            "isn't read: export the checkpoint that it was made from, with --int8."
        )
    numbers = weight.view(torch.uint8).numpy().view(ml_dtypes.float8_e4m3fn)
    by_block = _common_scales(tensors[scales].float().numpy(), numbers.shape, block)
    activation = tensors.get("input_scale", tensors.get("activation_scale"))
    if activation is None or by_block.ndim == 2:
        return Float8Weight(numbers, by_block)
    return Float8Weight(numbers, by_block, float(activation.float().max()))


def _common_scales(stored: Floats, shape: tuple[int, ...], block: tuple[int, int] | None) -> Floats:
    """Scales as ONNX has them: [], [out] or [out, blocks], with blocks along the inputs alone.

    The scale of a block of both is repeated for each of its rows. Where the blocks don't divide
    the inputs, they are cut into smaller ones that do.
    """
    outputs, inputs = shape
    if stored.size == 1:
        return stored.reshape(())
    if block is not None:
        size = math.gcd(block[1], inputs)
        rows = stored.repeat(block[0], axis=0)[:outputs]
        stored = rows.repeat(block[1] // size, axis=1)[:, : inputs // size]
    if stored.shape[1] == 1:
        stored = stored[:, 0]
    return np.ascontiguousarray(stored, np.float32)


def _weight_settings(settings: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What compressed-tensors says of the weights of each group of layers."""
    groups = (settings.get("config_groups") or {}).values()
    return [group["weights"] for group in groups if group.get("weights")]
