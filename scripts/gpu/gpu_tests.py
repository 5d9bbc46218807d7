"""The tests marked gpu, as pytest tells them."""

import re
import subprocess
import sys

from scripts.gpu.outcome import ROOT, Recorder
from serving.errors import UserError

_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|deselected)\b")


def run_tests(recorder: Recorder) -> None:
    """Run them; raises UserError if one fails, or none passes."""
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "--continue-on-collection-errors"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    print(done.stdout, done.stderr)
    counts, lines = read_summary(done.stdout)
    for state in ("passed", "failed", "error", "skipped"):
        recorder.record(state, str(counts.get(state, 0)))
    for line in lines:
        state, _, rest = line.partition(" ")
        recorder.record(state.lower(), rest)
    if done.returncode:
        raise UserError(f"pytest ended with code {done.returncode}: see the rows above.")
    if not counts.get("passed"):
        raise UserError("no test marked gpu passed: see why they were skipped.")


def read_summary(output: str) -> tuple[dict[str, int], list[str]]:
    """The counts in pytest's last line, by state, and its lines on what did not pass."""
    lines = output.strip().splitlines()
    last = lines[-1] if lines else ""
    counts = {state.rstrip("s"): int(number) for number, state in _COUNT.findall(last)}
    states = ("FAILED ", "ERROR ", "SKIPPED ")
    return counts, [line for line in lines if line.startswith(states)]
