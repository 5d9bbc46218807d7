"""``scripts/distill`` makes a checkpoint that loses nothing more when it is exported as pruned."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from transformers import AutoTokenizer

from engines.pruning.plan import Pruning
from engines.pruning.pruning import prune
from engines.standard import simplify
from exporter.tracing import cache_layers
from exporter.unrolling import trace_unrolled
from scripts.distill import main
from tests.checkpoints import VOCABULARY, make_checkpoint
from tests.engines.pruning.decoders import load, logits, reference

ROOT = Path(__file__).parents[1]
TEXT = ROOT / "scripts" / "train_checkpoint.py"


def distill(*arguments: object) -> Result:
    options = [*arguments, "--text", TEXT, "--steps", 12, "--batch", 2]
    return CliRunner().invoke(main, list(map(str, options)))


def test_distilled_checkpoint(tmp_path: Path) -> None:
    original = make_checkpoint("qwen2", tmp_path / "original")
    output = tmp_path / "distilled"
    done = distill(original, output, "--prune", 0.5, "--prune-heads", 0.5, "--prune-channels", 0.25)
    assert done.exit_code == 0, done.output
    pruned, distilled = (
        float(done.stdout.split(f", {word} ")[1].split(",")[0]) for word in ("pruned", "distilled")
    )
    assert distilled < pruned
    assert len(AutoTokenizer.from_pretrained(output)) == VOCABULARY

    model = load(output)
    assert (model.get_parameter("model.layers.0.mlp.down_proj.weight") == 0).float().mean() > 0.6
    graph = trace_unrolled(model, cache_layers(model))
    simplify(graph)
    report = prune(graph, Pruning(weights=0.5, heads=0.5, channels=0.25))
    assert report.query_heads == (2, 2)
    np.testing.assert_allclose(logits(graph, VOCABULARY), reference(model), atol=2e-5)


@pytest.mark.parametrize(
    ("options", "reason"),
    [([], "what to prune"), (["--prune", "2"], "--prune 2"), (["--prune", ".5"], "exists")],
)
def test_refusals(options: list[str], reason: str, tmp_path: Path) -> None:
    done = distill(tmp_path, tmp_path, *options)
    assert done.exit_code == 1
    assert reason in done.stderr
