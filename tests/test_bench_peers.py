"""scripts/bench_peers: real workers on a tiny model, and the arithmetic of its report."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scripts.peers.agreement import disagreement
from scripts.peers.catalogue import PEERS, REFERENCE, chosen_pythons, missing_module
from scripts.peers.measuring import Contestant, Prompts, in_turns
from scripts.peers.remote import PeerError, Worker
from scripts.peers.results import ratios
from tests.exports import export_bundle

ROOT = Path(__file__).parents[1]
PYTHON = Path(sys.executable)


def contestant(name: str, prefill: list[float], decode: list[float]) -> Contestant:
    made = Contestant(name, "none", PYTHON, {}, Path("none.log"))
    made.prefill_seconds = {8: prefill}
    made.decode_seconds = {8: decode}
    return made


def bench_peers(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, ROOT / "scripts" / "bench_peers", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_run_measures_ours_beside_transformers(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    right = export_bundle(checkpoint("llama"), tmp_path / "right")
    wrong = export_bundle(checkpoint("qwen2"), tmp_path / "wrong")
    done = bench_peers(
        checkpoint("llama"),
        *("--bundle", right, "--bundle", f"wrong={wrong}", "--only", "transformers"),
        *("--only", "openvino-genai", "--python", f"openvino-genai={tmp_path / 'none'}"),
        *("--converted", tmp_path / "converted", "--output", tmp_path / "out"),
        *("--contexts", "16,8", "--new-tokens", "3", "--repeats", "1", "--threads", "1"),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads((tmp_path / "out" / "llama-float32.json").read_text())
    names = [model["name"] for model in document["models"]]
    assert names == ["export-llm", "transformers"]
    ours = document["models"][0]
    assert ours["agreement"]["logit_difference"] < 1e-5
    assert ours["agreement"]["equal_tokens"] == 16
    assert ours["kv_precision"] == "float32"
    assert [speed["context"] for speed in ours["contexts"]] == [8, 16]
    assert ours["load_seconds"]["median"] < ours["first_token_seconds"]["median"]
    assert {(r["phase"], r["context"], r["best_peer"]) for r in document["ratios"]} == {
        (phase, context, "transformers") for phase in ("prefill", "decode") for context in (8, 16)
    }
    # Another model is no contestant, and a peer that isn't there is named.
    assert "logits differ" in document["failed"]["wrong"]
    assert "not installed" in document["absent"]["openvino-genai"]
    assert (tmp_path / "out" / "llama-float32.png").read_bytes().startswith(b"\x89PNG")


def test_an_unknown_peer_is_a_usage_error(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    done = bench_peers(tmp_path, "--python", "llama=/usr/bin/python3")
    assert done.returncode == 2
    assert "no peer is called 'llama'" in done.stderr


def test_a_worker_that_dies_says_why(tmp_path: Path) -> None:
    settings = {"model": str(tmp_path), "precision": "float32", "threads": 1, "capacity": 8}
    with pytest.raises(PeerError, match=r"code 1: .*not a bundle"):
        Worker("bundle", PYTHON, settings, tmp_path / "log")


def test_the_first_of_a_round_changes_and_who_failed_is_left_out() -> None:
    three = [contestant(name, [], []) for name in "abc"]
    three[1].failure = "died"
    turns = ["".join(one.name for one in in_turns(three, number)) for number in range(3)]
    assert turns == ["ac", "ca", "ca"]


def test_ratios_are_of_rounds_and_to_the_fastest_peer_of_each_phase() -> None:
    ours = contestant("ours", [1.0, 2.0, 4.0], [0.5, 0.5, 0.5])
    slow = contestant("slow", [9.0, 9.0, 9.0], [0.25, 0.25, 0.5])
    fast = contestant("fast", [2.0, 2.0, 2.0], [1.0, 1.0, 1.0])
    prefill, decode = ratios(ours, [slow, fast], [8])
    assert (prefill["best_peer"], decode["best_peer"]) == ("fast", "slow")
    assert prefill["ratio"] == {"median": 1.0, "min": 0.5, "max": 2.0}
    assert decode["ratio"] == {"median": 0.5, "min": 0.5, "max": 1.0}


def test_prompts_differ_within_a_run_and_not_between_runs() -> None:
    one, other = Prompts(1, 5000), Prompts(1, 5000)
    first = [tuple(one.next(8)) for _ in range(50)]
    assert len(set(first)) == 50
    assert first == [tuple(other.next(8)) for _ in range(50)]
    assert max(Prompts(1, 20).next(1000)) == 19


def test_float32_models_must_compute_what_the_checkpoint_says() -> None:
    exact = {"logit_difference": 1e-6, "logit_correlation": 1.0, "equal_tokens": 16}
    assert disagreement(exact) is None
    assert disagreement(exact | {"logit_difference": 0.3})
    assert disagreement(exact | {"logit_difference": float("nan")})
    assert disagreement(exact | {"logit_difference": None, "equal_tokens": 0})


def test_interpreters_come_from_the_file_and_the_options() -> None:
    chosen = chosen_pythons(("llama.cpp=/a",), {"llama.cpp": "/b", "ctranslate2": "/c"}, PYTHON)
    assert chosen["llama.cpp"] == Path("/a")
    assert chosen["ctranslate2"] == Path("/c")
    assert chosen["transformers"] == PYTHON
    assert missing_module(REFERENCE, PYTHON) is None
    assert missing_module(REFERENCE, Path("/none/python")) == "/none/python"


def test_peers_say_what_they_cannot_run() -> None:
    peers = {peer.name: peer for peer in PEERS}
    assert peers["onnxruntime-genai"].obstacle("gpt2", "float32") == "doesn't know gpt2"
    assert peers["ctranslate2"].obstacle("gpt2", "int4") == "has no int4 on the CPU"
    assert peers["llama.cpp"].obstacle("gpt2", "int4") is None


def test_gguf_rows_are_in_the_order_of_neighbouring_rotation() -> None:
    pytest.importorskip("gguf")
    from scripts.peers.gguf_file import _interleave_halves

    random = np.random.default_rng(0)
    heads, size, width = 3, 8, 5
    weight = random.standard_normal((heads * size, width)).astype(np.float32)
    hidden = random.standard_normal(width).astype(np.float32)
    angles = random.uniform(0, 3, size // 2)
    cos, sin = np.cos(angles), np.sin(angles)

    halves = (weight @ hidden).reshape(heads, 2, size // 2)
    expected = np.stack(
        (halves[:, 0] * cos - halves[:, 1] * sin, halves[:, 0] * sin + halves[:, 1] * cos), -1
    )
    pairs = (_interleave_halves(weight, heads) @ hidden).reshape(heads, size // 2, 2)
    actual = np.stack(
        (pairs[..., 0] * cos - pairs[..., 1] * sin, pairs[..., 0] * sin + pairs[..., 1] * cos), -1
    )
    np.testing.assert_allclose(actual, expected, rtol=1e-5)
