"""Exporting with --lora: what can't be combined is refused early, and the gate sees adapters."""

from collections.abc import Callable
from pathlib import Path

import onnx_ir as ir
import pytest

from exporter import export as export_module
from tests.exporter.commands import refusal

Traced = Callable[[], ir.Model]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--target", "tensorrt-rtx"], "--lora is for ONNX Runtime on the CPU"),
        (["--stages", "2"], "--lora is for engines in one piece"),
        (["--prune", "0.5"], "--lora is for whole layers"),
        (["--int4", "--method", "awq"], "--method awq scales the activations that adapters read"),
        (["--bisect"], "--bisect looks at a graph without adapters"),
        (
            ["--lora-modules", "q_proj,query"],
            "--lora-modules names query, which is no linear layer of this model's decoder: choose "
            "of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.",
        ),
        (["--lora-modules", "lm_head"], "--lora-modules names lm_head, which is no linear layer"),
    ],
)
def test_combinations_are_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path, options: list[str], says: str
) -> None:
    bundle = tmp_path / "bundle"
    assert says in refusal(tmp_path, checkpoint("mistral"), bundle, "--lora", *options)


def swap_tables(model: ir.Model) -> None:
    """Let layer 0 read the factors of layer 1."""
    for factor in ("#1", "#2"):
        ends = f"o_proj/lora/Gather{factor}"
        first, second = (node for node in model.graph if node.name.endswith(ends))
        first.replace_input_with(0, second.inputs[0])


def give_all_the_first_rows(model: ir.Model) -> None:
    """As if one adapter were chosen for all rows of a step."""
    ids = next(value for value in model.graph.inputs if value.name == "adapter_ids")
    readers = [use.node for use in ids.uses()]
    zero = ir.Value(name="first", const_value=ir.tensor([0], name="first"))
    zero.shape, zero.type = ir.Shape([1]), ir.TensorType(ir.DataType.INT64)
    model.graph.register_initializer(zero)
    first = ir.node("Gather", [ids, zero], name="first/Gather")
    model.graph.insert_before(next(iter(model.graph)), [first])
    for reader in readers:
        reader.replace_input_with(1, first.outputs[0])


def lose_an_adapter(model: ir.Model) -> None:
    """Drop what the last layer's adapter adds."""
    *_, add = [node for node in model.graph if node.name.endswith("down_proj/lora/Add")]
    add.outputs[0].replace_all_uses_with(add.inputs[0])
    model.graph.remove(add, safe=True)


@pytest.mark.parametrize("damage", [swap_tables, give_all_the_first_rows, lose_an_adapter])
def test_wrong_adapters_breach(
    traced: Traced,
    checkpoint: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[ir.Model], None],
) -> None:
    optimize = export_module.optimize

    def optimize_wrongly(model: ir.Model, adapted: tuple[str, ...] = ()) -> None:
        optimize(model, adapted)
        damage(model)

    monkeypatch.setattr(export_module, "trace_unrolled", lambda *_: traced())
    monkeypatch.setattr(export_module, "optimize", optimize_wrongly)
    said = refusal(tmp_path, checkpoint("mistral"), tmp_path / "bundle", "--lora")
    assert "logits differ by up to" in said
    assert "with adapters" in said
