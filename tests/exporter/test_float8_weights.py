"""Checkpoints with float8 weights: read as their makers read them, and kept as float8."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from compressed_tensors.compressors.naive_quantized import FloatQuantizationCompressor
from compressed_tensors.quantization import QuantizationScheme
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.integrations.finegrained_fp8 import _dequantize_fp8_weight

import serving
from engines.quantization.float8 import Float8Scheme
from engines.tensorrt.options import BuildOptions
from exporter.checkpoint import find_checkpoint, load, packed_weights, refuse_non_finite
from exporter.float8_weights import read_float8
from serving.errors import UserError
from tests.exports import export_bundle

LARGEST = 448  # of float8 e4m3
BLOCK = [16, 32]
ACTIVATION_SCALE = 0.02  # large activations saturate
Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Format:
    """How a weight becomes a checkpoint's tensors, and what they stand for."""

    settings: dict[str, Any]
    scales: Callable[[torch.Tensor], torch.Tensor]
    scheme: Float8Scheme
    activation: dict[str, float] = field(default_factory=dict)

    def store(self, weight: torch.Tensor) -> tuple[Tensors, torch.Tensor]:
        scales = self.scales(weight)
        activation = {name: torch.tensor(scale) for name, scale in self.activation.items()}
        if self.settings["quant_method"] == "fp8":
            full = scales.repeat_interleave(BLOCK[0], 0).repeat_interleave(BLOCK[1], 1)
            numbers = (weight / full).to(torch.float8_e4m3fn)
            stored = {"weight": numbers, "weight_scale_inv": scales}
            return stored | activation, _dequantize_fp8_weight(
                numbers, scales, BLOCK, torch.float32
            )
        scheme = QuantizationScheme(**self.settings["config_groups"]["group_0"])
        stored = FloatQuantizationCompressor.compress(
            {"weight": weight, "weight_scale": scales}, scheme
        )
        in_float32 = stored | {"weight_scale": scales.float()}
        expected = FloatQuantizationCompressor.decompress(in_float32, scheme)["weight"]
        return stored | activation, expected


def compressed(weights: dict[str, Any], activations: dict[str, Any] | None) -> dict[str, Any]:
    """A config as llm-compressor writes it."""
    numbers = {"num_bits": 8, "type": "float", "symmetric": True}
    group = {"targets": ["Linear"], "weights": numbers | weights}
    if activations is not None:
        group["input_activations"] = numbers | activations
    return {
        "quant_method": "compressed-tensors",
        "format": "float-quantized",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


def of_tensor(weight: torch.Tensor) -> torch.Tensor:
    return weight.abs().max().reshape(1) / LARGEST


def of_rows(weight: torch.Tensor) -> torch.Tensor:
    return (weight.abs().amax(1, keepdim=True) / LARGEST).bfloat16()


def of_blocks(weight: torch.Tensor) -> torch.Tensor:
    rows, columns = weight.shape
    blocks = weight.reshape(rows // BLOCK[0], BLOCK[0], columns // BLOCK[1], BLOCK[1])
    return blocks.abs().amax((1, 3)) / LARGEST


TENSOR, TOKEN = {"strategy": "tensor"}, {"strategy": "token", "dynamic": True}
FORMATS = {
    "tensor": Format(compressed(TENSOR, TOKEN), of_tensor, Float8Scheme("tensor")),
    "channel": Format(compressed({"strategy": "channel"}, TOKEN), of_rows, Float8Scheme("row")),
    "block": Format(
        compressed({"strategy": "block", "block_structure": BLOCK}, TOKEN),
        of_blocks,
        Float8Scheme("block", BLOCK[1]),
    ),
    "static activations": Format(
        compressed(TENSOR, TENSOR | {"dynamic": False}),
        of_tensor,
        Float8Scheme("tensor", activations=True),
        {"input_scale": ACTIVATION_SCALE},
    ),
    "fp8": Format(
        {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": BLOCK},
        of_blocks,
        Float8Scheme("block", BLOCK[1]),
    ),
}


def float8_copy(source: Path, target: Path, name: str) -> dict[str, torch.Tensor]:
    """Write a copy of a checkpoint in a format; returns all weights that it stands for."""
    target.mkdir()
    for file in source.iterdir():
        if file.suffix in (".json", ".jinja") and file.name != "config.json":
            (target / file.name).write_bytes(file.read_bytes())
    config = json.loads((source / "config.json").read_text())
    settings = FORMATS[name].settings
    (target / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    tensors, expected = {}, {}
    for key, tensor in load_file(source / "model.safetensors").items():
        if not key.endswith("proj.weight"):
            tensors[key] = expected[key] = tensor
            continue
        stored, expected[key] = FORMATS[name].store(tensor.float())
        tensors |= {key.removesuffix("weight") + suffix: part for suffix, part in stored.items()}
    save_file(tensors, target / "model.safetensors", {"format": "pt"})
    return expected


@pytest.fixture(params=FORMATS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def test_what_is_stored_is_read(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    expected = float8_copy(checkpoint("llama"), tmp_path / "float8", name)
    found = find_checkpoint(str(tmp_path / "float8"))
    packed = dict(packed_weights(found))
    assert {weight.quantized.scheme for weight in packed.values()} == {FORMATS[name].scheme}
    assert packed.keys() == {key for key in expected if key.endswith("proj.weight")}
    state = load(found, torch.float32).model.state_dict()
    for key, weight in expected.items():
        np.testing.assert_array_equal(state[key].numpy(), weight.float().numpy(), err_msg=key)


def reference(source: Path, weights: dict[str, torch.Tensor], name: str) -> PreTrainedModel:
    """transformers' model with these weights; torch rounds activations where they are static."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32).eval()
    model.load_state_dict(weights, strict=False)

    def rounded(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor]:
        scaled = (inputs[0] / ACTIVATION_SCALE).clamp(-LARGEST, LARGEST)
        return (scaled.to(torch.float8_e4m3fn).float() * ACTIVATION_SCALE,)

    if FORMATS[name].scheme.activations:
        for key, module in model.named_modules():
            if key.endswith("proj"):
                module.register_forward_pre_hook(rounded)
    return model


@pytest.mark.parametrize("name", ["channel", "static activations", "fp8"])
def test_onnxruntime_computes_what_it_stands_for(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    source = checkpoint("llama")
    weights = float8_copy(source, tmp_path / "float8", name)
    bundle = export_bundle(tmp_path / "float8", tmp_path / "bundle")
    tokens = list(range(3, 23))
    with torch.no_grad():
        expected = reference(source, weights, name)(torch.tensor([tokens])).logits[0].numpy()
    with serving.load(bundle) as model:
        got = logits(model, tokens)
    np.testing.assert_allclose(got, expected, atol=2e-5 * np.abs(expected).max())
    report = json.loads((bundle / "report.json").read_text())
    packed = report["compression"]["packed"].values()
    assert [asdict(FORMATS[name].scheme)] * len(packed) == list(packed)


def logits(model: Any, tokens: list[int]) -> np.ndarray:
    positions = np.arange(len(tokens))[None]
    return np.asarray(model.engine.step(np.array([tokens]), np.array([0]), positions)[0])


def test_an_engine_of_tensorrt_holds_float8(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    """In bfloat16, which most of these checkpoints come from."""
    pytest.importorskip("tensorrt_rtx")
    float8_copy(checkpoint("llama"), tmp_path / "float8", "static activations")
    bundle = export_bundle(
        tmp_path / "float8",
        tmp_path / "bundle",
        dtype="bfloat16",
        targets=("tensorrt-rtx",),
        max_length=64,
    )
    stored = load_file(tmp_path / "float8" / "model.safetensors")
    engine = (bundle / "model.tensorrt-rtx.engine").read_bytes()
    for key in (key for key in stored if key.endswith("proj.weight")):
        numbers = stored[key].view(torch.uint8).numpy()
        layouts = (numbers, np.ascontiguousarray(numbers.T))
        assert sum(engine.count(layout.tobytes()[512:1024]) for layout in layouts) == 1, key
    manifest = json.loads((bundle / "bundle.json").read_text())
    assert manifest["engines"][0]["compute_capabilities"] == ["8.9", "12.0", "12.1"]
    assert manifest["model"]["precision"] == "bfloat16, float8 of compressed-tensors"


REFUSED: list[tuple[dict[str, Any], str]] = [
    (
        {"build_options": BuildOptions(compute_capabilities=("8.6", "8.9"))},
        "compute capability 8.6 have no float8",
    ),
    ({"targets": ("tensorrt",)}, "use --target tensorrt-rtx for this checkpoint"),
]


@pytest.mark.parametrize(("options", "said"), REFUSED)
def test_gpus_without_float8_are_refused(
    options: dict[str, Any], said: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    float8_copy(checkpoint("llama"), tmp_path / "float8", "tensor")
    with pytest.raises(UserError, match=said):
        export_bundle(
            tmp_path / "float8", tmp_path / "bundle", **{"targets": ("tensorrt-rtx",)} | options
        )


@pytest.mark.parametrize("byte", [0x7F, 0xFF], ids=["nan", "negative nan"])
def test_not_a_number_is_named(
    byte: int, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    float8_copy(checkpoint("llama"), tmp_path / "float8", "tensor")
    file = tmp_path / "float8" / "model.safetensors"
    tensors = load_file(file)
    tensors["model.layers.1.mlp.up_proj.weight"].view(torch.uint8)[3, 5] = byte
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(UserError, match=r"layers\.1\.mlp\.up_proj\.weight has values that are NaN"):
        refuse_non_finite(find_checkpoint(str(tmp_path / "float8")), [])


def test_blocks_that_do_not_divide_are_cut() -> None:
    """As transformers pads them: the last block of each axis is smaller."""
    random = torch.Generator().manual_seed(0)
    numbers = torch.randn((200, 320), generator=random).to(torch.float8_e4m3fn)
    scales = torch.rand((2, 3), generator=random)
    read = read_float8({"weight": numbers, "scale": scales}, "scale", (128, 128))
    assert read.scheme == Float8Scheme("block", 64)
    expected = _dequantize_fp8_weight(numbers, scales, [128, 128], torch.float32)
    np.testing.assert_array_equal(read.dequantized(), expected.numpy())


def test_another_float8_is_refused() -> None:
    weight = torch.ones((2, 2)).to(torch.float8_e5m2)
    with pytest.raises(UserError, match="which isn't read: export"):
        read_float8({"weight": weight, "scale": torch.ones(1)}, "scale", None)


def test_scales_of_a_float8_cache_are_left_aside(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    float8_copy(checkpoint("llama"), tmp_path / "float8", "tensor")
    file = tmp_path / "float8" / "model.safetensors"
    key = "model.layers.0.self_attn.k_scale"
    save_file(load_file(file) | {key: torch.ones(1)}, file, {"format": "pt"})
    load(find_checkpoint(str(tmp_path / "float8")), torch.float32)
