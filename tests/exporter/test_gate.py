"""A graph that is wrong never becomes a bundle, and bisection says where it is wrong."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from exporter import export as export_module
from serving.bundle import open_bundle
from tests.exporter.commands import refusal, run
from tests.exporter.damage import (
    Damage,
    change_scale,
    change_weight,
    change_window,
    foreign_operator,
    forget_past,
    forget_window,
    ignore_lengths,
    large_constant,
    shift_positions,
    skip_attention,
    skip_cache,
    swap_presents,
    turn_rotation,
)

Traced = Callable[[], ir.Model]


@pytest.fixture
def export_damaged(
    traced: Traced,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., str]:
    """Return a function that exports mistral with a damaged graph and returns the sentence."""

    def export(damage: Damage, *options: str) -> str:
        graph = traced()
        damage(graph)
        monkeypatch.setattr(export_module, "trace_unrolled", lambda *_: graph)
        return refusal(tmp_path, checkpoint("mistral"), tmp_path / "bundle", *options)

    return export


def test_the_graph_that_is_right_passes(
    traced: Traced,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Or else none of the failures below would mean anything."""
    monkeypatch.setattr(export_module, "trace_unrolled", lambda *_: traced())
    result = run(checkpoint("mistral"), tmp_path / "bundle")
    assert result.exit_code == 0, result.output
    assert open_bundle(tmp_path / "bundle").manifest.parity["status"] == "passed"


BREACHES = {
    "embedding": (change_weight("model.embed_tokens.weight", by=3.0), "logits differ by up to"),
    "first q_proj": (
        change_weight("model.layers.0.self_attn.q_proj.weight", by=0.1),
        "logits differ by up to",
    ),
    "scale": (change_scale, "logits differ by up to"),
    "window": (change_window, "logits differ by up to"),
    "no window": (forget_window, "logits differ by up to"),
    "rotary sign": (turn_rotation, "logits differ by up to"),
    "rotary angle": (shift_positions, "logits differ by up to"),
    "NaN": (change_weight("model.norm.weight", by=float("nan")), "differ by up to inf (prefill"),
}


@pytest.mark.parametrize(("damage", "says"), BREACHES.values(), ids=BREACHES)
def test_wrong_numbers_breach(
    export_damaged: Callable[..., str], damage: Damage, says: str
) -> None:
    said = export_damaged(damage)
    assert said.startswith("mistral ")
    assert says in said


@pytest.mark.parametrize(
    "module",
    [
        "model.embed_tokens",
        "model.layers.0.self_attn.q_proj",
        "model.layers.0.self_attn.v_proj",
        "model.layers.0.post_attention_layernorm",
        "model.layers.1.input_layernorm",
        "model.layers.1.mlp.down_proj",
        "model.norm",
        "lm_head",
    ],
)
def test_bisect_names_the_module_with_a_wrong_weight(
    export_damaged: Callable[..., str], module: str
) -> None:
    said = export_damaged(change_weight(f"{module}.weight", by=3.0), "--bisect")
    assert said.endswith(f"; the first module whose output differs is {module}.")


@pytest.mark.parametrize("damage", [change_scale, forget_window, turn_rotation])
def test_bisect_of_attention_names_what_comes_out_of_it(
    export_damaged: Callable[..., str], damage: Damage
) -> None:
    said = export_damaged(damage, "--bisect")
    assert said.endswith("is model.layers.0.self_attn.o_proj.")


STRUCTURE = {
    "attention": (skip_attention, "1 Attention nodes for 2 layers with a cache"),
    "cache update": (skip_cache, "3 cache updates for 2 layers"),
    "place": (forget_past, "present.1.value isn't written at past_lengths"),
    "lengths": (ignore_lengths, "its input past_lengths is used nowhere"),
    "presents": (swap_presents, "present.0.key updates past_key_values.1.key instead of past_key"),
    "operator": (foreign_operator, "operators outside the ONNX standard: com.example"),
    "constant": (large_constant, "lm_head.folded is a constant of 32768 elements that is no wei"),
}


@pytest.mark.parametrize(("damage", "says"), STRUCTURE.values(), ids=STRUCTURE)
def test_wrong_structure_is_refused(
    export_damaged: Callable[..., str], damage: Damage, says: str
) -> None:
    said = export_damaged(damage)
    assert said.startswith("mistral has the architecture 'mistral', which can't be exported: ")
    assert says in said
