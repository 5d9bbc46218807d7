"""scripts/gpu_check where no GPU is: its processes, its arithmetic and the page it writes."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from time import monotonic, sleep

import numpy as np
import pytest
from click.testing import CliRunner

from exporter.parity import Comparison, Divergence, ParityReport
from exporter.versions import version_of
from scripts import gpu_check
from scripts.gpu.contestants import ChunkedContestant, EngineContestant
from scripts.gpu.gpu_tests import read_summary
from scripts.gpu.machine import driver_version
from scripts.gpu.outcome import Figure, Outcome, Recorder, Step, run_step
from scripts.gpu.page import BEGIN, END, replace_results, results_page
from scripts.gpu.parity import verdict
from scripts.gpu.rates import Rates
from scripts.gpu.rtx import build_relu, make_log
from scripts.gpu.speed import COMPILED, Round, Work, in_turns, report_rounds
from scripts.gpu.steps import STEPS, find_step
from serving.tensorrt.library import load_library
from tests.conftest import ROOT, why_no_gpu
from tests.serving.tiny_bundle import make_bundle

RECORD = 'import sys; open(sys.argv[1], \'w\').write(\'[{"name": "a", "value": "1"}]\');'


def python(code: str, name: str = "step", limit: float = 30) -> Step:
    return Step(name, f"Title of {name}", limit, (sys.executable, "-c", code))


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_without_a_gpu_it_is_one_sentence_and_nothing_is_written(tmp_path: Path) -> None:
    out = tmp_path / "gpu.md"
    command = [ROOT / "scripts" / "gpu_check", "--out", out]
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith(
        "Error: There is no NVIDIA GPU here (libcuda.so.1 not found): run"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_failing_step_does_not_stop_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = (
        python(f"{RECORD} print('first'); print('it broke | here'); sys.exit(3)", "broken"),
        python(RECORD, "whole"),
        python("import os; os.kill(os.getpid(), 11)", "crashed"),
    )
    monkeypatch.setattr(gpu_check, "STEPS", steps)
    monkeypatch.setattr(gpu_check, "why_no_gpu", lambda: None)
    monkeypatch.setattr(gpu_check, "describe_machine", lambda: {"GPU": "a <chip>"})
    out = tmp_path / "gpu.md"
    out.write_text(f"# GPU\n\nExpected.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    done = CliRunner().invoke(gpu_check.main, ["--out", str(out)])
    assert done.exit_code == 1, done.output
    page = out.read_text()
    assert page.startswith("# GPU\n\nExpected.\n\n" + BEGIN)
    assert page.endswith(f"{END}\n\nAfter.\n")
    assert "old" not in page
    assert "| GPU | a &lt;chip> |" in page
    assert "### Title of broken\n\nFailed: it broke \\| here (0 s).\n\n| what |" in page
    assert "### Title of whole\n\nDone (0 s).\n\n| what | seen | wanted |" in page
    assert "### Title of crashed\n\nFailed: it ended without a word (0 s).\n" in page
    assert page.count("| a | 1 |  |") == 2


def test_a_step_that_takes_too_long_ends_with_all_it_started(tmp_path: Path) -> None:
    code = (
        f"{RECORD} import subprocess, time;"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)']);"
        "print(child.pid, flush=True); time.sleep(60)"
    )
    begin = monotonic()
    outcome = run_step(python(code, limit=2), tmp_path, seconds_left=100)
    assert monotonic() - begin < 20
    assert outcome.reason == "it was stopped after 2 s"
    assert outcome.figures == (Figure("a", "1"),)
    child = int((tmp_path / "step.log").read_text())
    for _ in range(50):
        status = Path(f"/proc/{child}/stat")
        if not status.exists() or status.read_text().split(") ")[1][0] == "Z":
            return
        sleep(0.1)
    pytest.fail("the step's child still runs")


def test_no_step_begins_when_the_time_is_over(tmp_path: Path) -> None:
    outcome = run_step(python(RECORD), tmp_path, seconds_left=0)
    assert outcome == Outcome("Title of step", 0.0, reason="no time was left for it")
    assert list(tmp_path.iterdir()) == []


def test_every_step_has_its_function_and_a_worker_says_why_it_failed(tmp_path: Path) -> None:
    assert all(callable(find_step(step.name)) for step in STEPS)
    if why_no_gpu() is None:
        pytest.skip("there is a GPU")
    outcome = run_step(STEPS[0], tmp_path, seconds_left=60)
    assert "TensorRT-RTX can't build an engine for this chip" in outcome.reason
    assert "CUDA driver version is insufficient" in outcome.reason
    assert [figure.name for figure in outcome.figures] == ["TensorRT-RTX"]


def test_the_tiny_engine_builds_for_a_named_chip() -> None:
    library = load_library("tensorrt-rtx")
    log = make_log(library)
    plan = build_relu(library, log, library.ComputeCapability.SM89)
    assert plan is not None, log.errors
    assert plan.nbytes > 1000


def test_a_page_without_marks_gets_the_results_at_its_end(tmp_path: Path) -> None:
    page = tmp_path / "gpu.md"
    results = results_page({"GPU": "x"}, [])
    replace_results(page, results)
    assert page.read_text() == f"{BEGIN}\n\n{results}\n{END}\n"
    page.write_text("# Title\n")
    replace_results(page, results)
    replace_results(page, results)
    assert page.read_text() == f"# Title\n\n{BEGIN}\n\n{results}\n{END}\n"


def test_the_summary_of_pytest_is_read() -> None:
    output = (
        "..Fs\nSKIPPED [1] tests/a.py:3: no engine\nFAILED tests/b.py::test_c - assert 1 == 2\n"
        "1 failed, 2 passed, 1 skipped, 900 deselected, 2 errors in 3.21s\n"
    )
    counts, lines = read_summary(output)
    assert counts == {"failed": 1, "passed": 2, "skipped": 1, "deselected": 900, "error": 2}
    assert lines == output.splitlines()[1:3]
    assert read_summary("") == ({}, [])


def test_the_driver_is_found_in_both_forms_of_its_file() -> None:
    open_module = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.95.05  Release"
    assert driver_version(open_module) == "580.95.05"
    closed = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.183.01  Sun May 12 19:39:15 UTC"
    assert driver_version(closed) == "535.183.01"
    assert driver_version("") == "unknown"


def parity(status: str, divergence: Divergence | None) -> ParityReport:
    comparison = Comparison("ragged decode", 9, 0.01, 0.001, 0.995)
    return ParityReport(
        status, "transformers", "engine", 0.04, 0.01, 3.0, 64, (comparison,), divergence
    )


def test_parity_is_told_with_its_ties() -> None:
    tie = Divergence(0, 3, 1, 2, 0.001)
    text = verdict(parity("passed", None))
    assert text == (
        "64 greedy tokens equal; logits within 0.01 of 0.04 allowed; first choices agree at 99.5%"
    )
    assert "equal, with a tie;" in verdict(parity("passed", tie))
    assert verdict(parity("failed", tie)).startswith("failed: logits differ by up to 0.01")


def test_shares_follow_from_bytes_and_operations(tmp_path: Path) -> None:
    work = Work(
        weight_bytes=2_000_000_000,
        kv_bytes_per_token=1_000_000,
        layer_parameters=900_000_000,
        attention_width=1_000_000,
    )
    rates = Rates(bandwidth=1e12, matrix=100e12)
    # 512 tokens and half of 64 behind them: 2.544 GB in 2.544 ms at the bandwidth.
    assert work.decode_bound(544, rates.bandwidth) == pytest.approx(1 / 2.544e-3)
    flops = 2 * 900e6 * 512 + 2 * 1_000_000 * 512**2
    recorder = Recorder(tmp_path / "result.json")
    ours = [Round(flops / 50e12, 2.544e-3 / 0.8)] * 3
    peer = [Round(1.0, 2.544e-3 / 0.4)] * 3
    report_rounds(recorder, {"ours": ours, COMPILED: peer}, 512, work, rates)
    seen = {figure.name: figure for figure in recorder.figures}
    assert seen["ours: decode at 512 tokens"].value.endswith(
        "314 tokens/s, 80% of the memory bandwidth"
    )
    assert seen["ours: decode at 512 tokens"].wanted == "70%"
    assert "50% of the matrix rate" in seen["ours: prefill of 512 tokens"].value
    assert seen[f"ours: decode at 512 tokens beside {COMPILED}"].value == "2.00 x"
    assert seen[f"{COMPILED}: decode at 512 tokens"].wanted == ""


def test_an_engine_prefills_in_chunks_and_goes_on_where_its_cache_ends(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    prompt = [3, 1, 4, 1, 5, 9, 2]
    whole, chunked = EngineContestant(bundle, 16), ChunkedContestant(bundle, 16, 3)
    tokens = [[each.prefill(prompt)] for each in (whole, chunked)]
    for each, row in zip((whole, chunked), tokens, strict=True):
        for _ in range(20):
            row.append(each.decode(row[-1]))
    assert tokens[0] == tokens[1]
    expected = whole.model.generate(prompt, max_new_tokens=9, ignore_eos=True)
    assert tokens[0][:9] == list(expected.token_ids)


class Fake:
    """Decodes the tokens it is given, and fails at its second prompt if told to."""

    def __init__(self, fails: bool = False) -> None:
        self.prompts = 0
        self.fails = fails

    def prefill(self, prompt: Sequence[int]) -> int:
        self.prompts += 1
        if self.fails and self.prompts == 2:
            raise RuntimeError("the second prompt")
        return len(prompt)

    def decode(self, token: int) -> int:
        return token


def test_rounds_are_interleaved_and_go_on_without_who_fails() -> None:
    told: list[tuple[str, str]] = []
    good = Fake()
    rounds = in_turns(
        {"bad": Fake(fails=True), "good": good}, 4, lambda n, e: told.append((n, str(e))), 2
    )
    assert list(rounds) == ["good"]
    assert told == [("bad", "the second prompt")]
    assert len(rounds["good"]) == good.prompts - 1 == 5
    assert np.median([each.decode for each in rounds["good"]]) > 0


def test_versions_come_from_packages_modules_or_the_checkout(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import importlib.metadata as metadata

    import onnxruntime

    def not_found(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    assert version_of("onnx") == metadata.version("onnx")
    monkeypatch.setattr(metadata, "version", not_found)
    assert version_of("onnxruntime") == onnxruntime.__version__
    assert version_of("export-llm") == "checkout"
