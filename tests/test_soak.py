"""A short soak: clients of every kind, and nothing may be left of them (scripts/soak is longer)."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from scripts.soak_test.cases import Answer, Choice
from scripts.soak_test.command import run_soak, tiny_bundle
from scripts.soak_test.growth import growths, leaks
from scripts.soak_test.phases import Plan
from scripts.soak_test.server import Sample


def test_a_short_soak_has_no_breach(tmp_path: Path) -> None:
    plan = Plan(requests=240, clients=12, rounds=1, seed=1, outlasts=False)
    result = run_soak(tiny_bundle(tmp_path), plan, tmp_path, cases=40)
    assert result["breaches"] == []
    assert result["requests"] == 240
    assert result["outcomes"]["answers compared"] > 100
    assert result["outcomes"]["phases that ended idle"] == 4
    assert result["different_answers"] > 30


@pytest.mark.parametrize(("field", "per_request"), [("worker_mb", 0.0015), ("server_files", 0.002)])
def test_what_grows_with_every_request_is_found(field: str, per_request: float) -> None:
    flat = [
        Sample(requests, 100 + requests % 3, 200 + requests % 5, 50 + requests % 7, 10)
        for requests in range(0, 20_000, 50)
    ]
    assert leaks(growths(flat)) == []
    growing = [
        replace(sample, **{field: getattr(sample, field) + per_request * sample.requests})
        for sample in flat
    ]
    (leak,) = leaks(growths(growing))
    assert leak.startswith(f"{field} grew by ")


@pytest.mark.parametrize(
    ("changes", "is_equal"),
    [
        ({}, True),
        ({"text": "ax"}, False),
        ({"finish_reason": "stop"}, False),
        ({"logprobs": (-1.0, -2.1)}, False),
        ({"logprobs": (-1.0,)}, False),
    ],
)
def test_answers_that_differ_are_not_equal(changes: dict[str, Any], is_equal: bool) -> None:
    choice = Choice("ab", "length", (-1.0, -2.0))
    answer = Answer((choice,), 3, 2)
    other = Answer((replace(choice, **changes),), 3, 2)
    assert answer.equals(other) == is_equal
    assert not answer.equals(replace(other, completion_tokens=1))
