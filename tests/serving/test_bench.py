"""serve-llm bench: what it measures, and that the figures are those of what ran."""

import json
import os
import time
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import serving
from serving import benchmark
from serving.benchmark import Statistic, measure_loading, measure_speed, read_bandwidth
from serving.cli import main
from serving.engine import IntArray
from tests.serving.tiny_bundle import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    return make_bundle(tmp_path / "bundle")


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["bench", *arguments])


def test_a_statistic_is_the_median_and_the_range() -> None:
    assert Statistic.of([5.0, 1.0, 2.0]) == Statistic(median=2.0, min=1.0, max=5.0)


def test_every_context_is_measured_with_other_prompts(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving.load(bundle, slots=1) as model:
        prefills: list[list[int]] = []
        steps = []
        step = model.engine.step

        def recorded(
            input_ids: IntArray, past_lengths: IntArray, positions: IntArray, first_slot: int = 0
        ) -> object:
            if past_lengths[0] == 0:
                prefills.append(input_ids[0].tolist())
            else:
                steps.append(int(past_lengths[0]))
            return step(input_ids, past_lengths, positions, first_slot)

        monkeypatch.setattr(model.engine, "step", recorded)
        calls: list[None] = []
        speeds = measure_speed(
            model, [3, 6], new_tokens=4, repeats=2, progress=lambda: calls.append(None)
        )
    assert [speed.context for speed in speeds] == [3, 6]
    assert [len(prompt) for prompt in prefills] == [3, 6] * 3
    assert len({tuple(prompt) for prompt in prefills}) == 6
    assert steps == [3, 4, 5, 6, 7, 8] * 3
    assert len(calls) == 6


def test_rates_follow_from_time_and_bytes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving.load(bundle, slots=1) as model:
        step = model.engine.step

        def slowed(*arguments: IntArray) -> object:
            time.sleep(0.02)
            return step(*arguments)

        monkeypatch.setattr(model.engine, "step", slowed)
        (speed,) = measure_speed(model, [5], new_tokens=4, repeats=1)
        cache = model.engine.cache
        kv_bytes = cache.nbytes / cache.capacity
        weight_bytes = model.engine.weight_bytes
    # Three steps read the weights and 6, 7 and 8 tokens of the cache.
    per_step = (3 * weight_bytes + 21 * kv_bytes) / 3
    rate = speed.decode_tokens_per_second.median
    assert rate < 50
    assert speed.decode_gigabytes_per_second.median == pytest.approx(rate * per_step / 1e9)
    assert speed.time_to_first_token.median > 0.02
    assert speed.prefill_tokens_per_second.median == pytest.approx(
        5 / speed.time_to_first_token.median
    )


def test_loading_is_measured_in_processes_of_their_own(bundle: Path) -> None:
    ours = np.ones(1 << 28, np.uint8)  # would show in a peak of this process
    cost = measure_loading(bundle, threads=1, capacity=40, repeats=2)
    assert ours.nbytes < benchmark.peak_memory()
    assert 1 << 24 < cost.peak_memory.max < ours.nbytes
    assert 0 < cost.load_seconds.min < cost.first_token_seconds.max


def test_a_bundle_that_a_new_process_cannot_open_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(serving.UserError, match="no bundle directory"):
        measure_loading(tmp_path / "none", threads=1, capacity=40, repeats=1)


def test_bandwidth_counts_every_byte_once(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    monkeypatch.setattr(np, "max", lambda part: seen.append(part.nbytes))
    monkeypatch.setattr(benchmark, "BANDWIDTH_BYTES", 3 << 20)
    assert read_bandwidth(threads=3, repeats=2).min > 0
    assert seen == [1 << 20] * 9


def test_json_is_one_document_with_all_figures(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(benchmark, "BANDWIDTH_BYTES", 1 << 20)
    result = run(str(bundle), "--contexts", "8,3", "--new-tokens", "3", "--repeats", "1", "--json")
    assert result.exit_code == 0, result.output
    assert result.stderr == ""
    document = json.loads(result.stdout)
    assert [speed["context"] for speed in document["contexts"]] == [8, 3]
    assert document["threads"] <= (os.cpu_count() or 1)
    assert document["peak_memory"] > 1 << 24
    for statistic in (
        document["read_bandwidth_gigabytes_per_second"],
        document["loading"]["load_seconds"],
        document["contexts"][0]["decode_tokens_per_second"],
    ):
        assert 0 < statistic["min"] <= statistic["median"] <= statistic["max"]


def test_people_get_tables_and_no_progress(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(benchmark, "BANDWIDTH_BYTES", 1 << 20)
    result = run(str(bundle), "--contexts", "4", "--new-tokens", "3", "--repeats", "1")
    assert result.stderr == ""
    for word in ("first token", "prefill", "decode", "GB/s", "load", "peak memory"):
        assert word in result.stdout


@pytest.mark.parametrize("contexts", ["", "0,5", "5,x", "-3"])
def test_contexts_that_are_no_lengths_are_refused(bundle: Path, contexts: str) -> None:
    result = run(str(bundle), "--contexts", contexts)
    assert result.exit_code == 2
    assert "32,512" in result.stderr


def test_a_context_beyond_the_model_is_refused_before_loading(bundle: Path) -> None:
    result = run(str(bundle), "--contexts", "100000")
    assert result.exit_code == 1
    assert "--contexts" in result.stderr
