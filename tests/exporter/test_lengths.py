"""How long a sequence an export allows."""

from pathlib import Path

import pytest

from exporter.export import Request, plan_export
from serving.errors import UserError
from tests.checkpoints import POSITIONS, make_checkpoint

LONGROPE = {
    "max_position_embeddings": 256,
    "original_max_position_embeddings": 64,
    "rope_parameters": {
        "rope_type": "longrope",
        "rope_theta": 10000.0,
        "short_factor": [1.0] * 8,
        "long_factor": [4.0] * 8,
    },
}


def test_the_models_own_length_is_the_limit(tmp_path: Path) -> None:
    checkpoint = make_checkpoint("llama", tmp_path / "checkpoint")
    _, plan = plan_export(Request(str(checkpoint), tmp_path / "bundle"))
    assert plan.max_length == POSITIONS


def test_a_rotary_embedding_that_changes_with_the_length_ends_before(tmp_path: Path) -> None:
    """Keys in the cache keep the old frequencies, which transformers computes anew."""
    checkpoint = make_checkpoint("phi3", tmp_path / "checkpoint", **LONGROPE)
    _, plan = plan_export(Request(str(checkpoint), tmp_path / "bundle"))
    assert plan.max_length == 64
    with pytest.raises(UserError, match="from 2 to 64 tokens"):
        plan_export(Request(str(checkpoint), tmp_path / "bundle", max_length=65))
