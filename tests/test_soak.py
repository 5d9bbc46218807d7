"""A short soak: clients of every kind, and nothing may be left of them (scripts/soak is longer)."""

from pathlib import Path

from scripts.soak_test.command import run_soak, tiny_bundle
from scripts.soak_test.phases import Plan


def test_a_short_soak_has_no_breach(tmp_path: Path) -> None:
    plan = Plan(requests=240, clients=12, rounds=1, seed=1, outlasts=False)
    result = run_soak(tiny_bundle(tmp_path), plan, tmp_path, cases=40)
    assert result["breaches"] == []
    assert result["requests"] == 240
    assert result["outcomes"]["answers compared"] > 100
    assert result["outcomes"]["phases that ended idle"] == 4
    assert result["different_answers"] > 30
