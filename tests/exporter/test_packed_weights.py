"""Checkpoints with integer weights: read as other tools read them, and kept as integers."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from safetensors.torch import load_file, save_file

from engines.quantization.recipe import Recipe
from engines.quantization.weights import WeightScheme, round_to_nearest
from exporter.checkpoint import find_checkpoint, load, packed_weights
from serving.errors import UserError
from tests.exports import export_bundle

GROUP = 32
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # the integer that each four bits of a word have


def words(integers: np.ndarray, bits: int) -> torch.Tensor:
    """Unsigned integers [..., integers of a word] as int32 words, the first in the lowest bits."""
    word = np.zeros(integers.shape[:-1], np.int64)
    for place in range(32 // bits):
        word |= integers[..., place].astype(np.int64) << (bits * place)
    return torch.from_numpy(word.astype(np.uint32).view(np.int32))


def awq(integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray) -> dict[str, torch.Tensor]:
    """As AutoAWQ's GEMM version stores [out, in]: by input, eight outputs to a word."""

    def packed(array: np.ndarray) -> torch.Tensor:
        return words(array.T.reshape(array.shape[1], -1, 8)[..., AWQ_ORDER], 4)

    return {"qweight": packed(integers), "qzeros": packed(zeros), "scales": half(scales.T)}


def gptq(
    integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray, bits: int = 4
) -> dict[str, torch.Tensor]:
    """As GPTQ's first format stores [out, in]: inputs by the word, zero points less 1."""
    many = 32 // bits
    by_input = integers.T.reshape(-1, many, len(integers)).transpose(0, 2, 1)
    stored_zeros = (zeros.T - 1) & (2**bits - 1)
    groups = np.arange(integers.shape[1]) // (integers.shape[1] // zeros.shape[1])
    return {
        "qweight": words(by_input, bits),
        "qzeros": words(stored_zeros.reshape(len(stored_zeros), -1, many), bits),
        "scales": half(scales.T),
        "g_idx": torch.from_numpy(groups.astype(np.int32)),
    }


def gptq_by_activation_order(
    integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray
) -> dict[str, torch.Tensor]:
    """The same with groups that aren't neighbours."""
    order = np.random.default_rng(5).permutation(integers.shape[1])
    stored = gptq(integers[:, order], zeros, scales)
    return stored | {"g_idx": stored["g_idx"][torch.from_numpy(order)]}


def pack_quantized(
    integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray
) -> dict[str, torch.Tensor]:
    """As compressed-tensors stores 4 bits, packed by that library."""
    signed = torch.from_numpy((integers - 8).astype(np.int8))
    signed_zeros = torch.from_numpy((zeros - 8).astype(np.int8))
    return {
        "weight_packed": pack_to_int32(signed, 4),
        "weight_scale": half(scales),
        "weight_zero_point": pack_to_int32(signed_zeros, 4, packed_dim=0),
        "weight_shape": torch.tensor(integers.shape),
    }


def int_quantized(
    integers: np.ndarray, zeros: np.ndarray, scales: np.ndarray
) -> dict[str, torch.Tensor]:
    """As compressed-tensors stores int8 with one scale a row, symmetric."""
    assert (zeros == 128).all()
    weight = torch.from_numpy((integers - 128).astype(np.int8))
    return {"weight": weight, "weight_scale": half(scales)}


def half(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).half()


Store = Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, torch.Tensor]]
GROUPS = WeightScheme(4, GROUP, symmetric=False)
FORMATS: dict[str, tuple[dict[str, Any], Store]] = {
    "awq": ({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm"}, awq),
    "gptq": ({"quant_method": "gptq", "bits": 4, "group_size": GROUP}, gptq),
    "gptq, activation order": (
        {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": True},
        gptq_by_activation_order,
    ),
    "gptq, 8 bits": (
        {"quant_method": "gptq", "bits": 8, "group_size": GROUP},
        lambda *parts: gptq(*parts, bits=8),
    ),
    "compressed-tensors, 4 bits": (
        {"quant_method": "compressed-tensors", "format": "pack-quantized"},
        pack_quantized,
    ),
    "compressed-tensors, 8 bits": (
        {"quant_method": "compressed-tensors", "format": "int-quantized"},
        int_quantized,
    ),
}
SCHEMES = {
    "gptq, 8 bits": WeightScheme(8, GROUP, symmetric=False),
    "compressed-tensors, 8 bits": WeightScheme(8),
}


def quantized_copy(source: Path, target: Path, name: str) -> dict[str, np.ndarray]:
    """Write a copy of a checkpoint in a format; returns the float weights that it stands for."""
    settings, store = FORMATS[name]
    target.mkdir()
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    tensors, expected = {}, {}
    for key, tensor in load_file(source / "model.safetensors").items():
        if not key.endswith("proj.weight"):
            tensors[key] = tensor
            continue
        weight = tensor.float().numpy()
        scheme = SCHEMES.get(name, GROUPS)
        quantized = round_to_nearest(weight, scheme)
        middle = 1 << scheme.bits - 1
        integers = quantized.integers.astype(np.int64) + middle
        zeros = np.full(quantized.scales.shape, middle)
        if quantized.zero_points is not None:
            zeros = quantized.zero_points.astype(np.int64) + middle
        scales = quantized.scales.astype(np.float16).astype(np.float32)
        for suffix, stored in store(integers, zeros, scales).items():
            tensors[key.removesuffix("weight") + suffix] = stored.contiguous()
        by_group = integers.reshape(*scales.shape, -1) - zeros[:, :, None]
        expected[key] = (by_group * scales[:, :, None]).reshape(weight.shape)
        if name == "gptq, activation order":
            order = np.random.default_rng(5).permutation(weight.shape[1])
            # The stored group of channel j is that of column order[j]; see the format.
            groups = (np.arange(weight.shape[1]) // GROUP)[order]
            shuffled = integers[:, order]
            expected[key] = (shuffled - zeros[:, groups]) * scales[:, groups]
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return expected


@pytest.mark.parametrize("name", FORMATS)
def test_integers_are_read(name: str, checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    expected = quantized_copy(checkpoint("llama"), tmp_path / "packed", name)
    found = find_checkpoint(str(tmp_path / "packed"))
    got = {key: weight.dequantized() for key, weight in packed_weights(found)}
    assert got.keys() == expected.keys()
    for key, weight in expected.items():
        np.testing.assert_allclose(got[key], weight, atol=1e-6, err_msg=key)
    state = load(found, torch.float32).model.state_dict()
    for key, weight in expected.items():
        np.testing.assert_allclose(state[key].numpy(), weight, atol=1e-6, err_msg=key)


@pytest.mark.parametrize("name", ["awq", "gptq, activation order", "compressed-tensors, 8 bits"])
def test_integers_stay_integers(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    quantized_copy(checkpoint("llama"), tmp_path / "packed", name)
    bundle = export_bundle(tmp_path / "packed", tmp_path / "bundle")
    model = ir.load(bundle / "model.onnx")
    linears = [node for node in model.graph if node.op_type == "MatMulNBits"]
    report = json.loads((bundle / "report.json").read_text())
    assert len(linears) == len(report["compression"]["packed"]) > 0
    quality = report["quality"]["engines"][0]["overall"]
    assert quality["mean_kl"] < 0.005, "the reference has the same integers"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"quant_method": "awq", "bits": 4, "version": "gemv"}, "'awq' \\(gemv, 4 bits\\)"),
    ({"quant_method": "gptq", "bits": 3}, "'gptq' .*3 bits"),
    ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "'bitsandbytes'"),
    ({"quant_method": "compressed-tensors", "format": "marlin-24"}, "'compressed-tensors'"),
    ({"quant_method": "fbgemm_fp8"}, "'fbgemm_fp8'"),
]


@pytest.mark.parametrize(("settings", "said"), REFUSED)
def test_other_formats_are_refused_by_name(
    settings: dict[str, Any], said: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = checkpoint("llama")
    config = json.loads((source / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    (tmp_path / "model.safetensors").symlink_to(source / "model.safetensors")
    with pytest.raises(UserError, match=said):
        find_checkpoint(str(tmp_path))


def test_a_quantised_checkpoint_is_not_quantised_again(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    quantized_copy(checkpoint("llama"), tmp_path / "packed", "awq")
    with pytest.raises(UserError, match="quantised already"):
        export_bundle(tmp_path / "packed", tmp_path / "bundle", recipe=Recipe(bits=8))
