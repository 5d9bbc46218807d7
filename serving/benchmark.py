"""How fast a bundle loads, prefills and decodes, and what of the memory's bandwidth it achieves."""

import json
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from serving.bundle import Target
from serving.commands.speed import Speed
from serving.errors import UserError
from serving.generation import Model

BANDWIDTH_BYTES = 1 << 30  # far more than any cache holds


@dataclass(frozen=True)
class Statistic:
    """Median and range of repeated measurements."""

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Statistic":
        """Summarise at least one value."""
        return cls(statistics.median(values), min(values), max(values))


@dataclass(frozen=True)
class ContextSpeed:
    """Speed behind prompts of ``context`` tokens; rates are per second.

    ``decode_gigabytes_per_second`` counts what a step must read: all weights, and the KV cache so
    far.
    """

    context: int
    time_to_first_token: Statistic
    prefill_tokens_per_second: Statistic
    decode_tokens_per_second: Statistic
    decode_gigabytes_per_second: Statistic


@dataclass(frozen=True)
class LoadCost:
    """Opening a bundle in a new process, with its files in the page cache.

    ``load_seconds`` ends when a prompt can be given, ``first_token_seconds`` adds a prompt of 32
    tokens or fewer. ``peak_memory`` is in bytes and counts mapped files (VmHWM).
    """

    load_seconds: Statistic
    first_token_seconds: Statistic
    peak_memory: Statistic


def measure_speed(
    model: Model,
    contexts: Sequence[int],
    *,
    new_tokens: int,
    repeats: int,
    progress: Callable[[], None] = lambda: None,
) -> list[ContextSpeed]:
    """Time ``new_tokens`` tokens behind a prompt of each context, ``repeats`` times in turns.

    Every prompt is different, so that nothing kept from one can help the next. ``progress`` is
    called after each of ``len(contexts) * (repeats + 1)`` generations: each context is warmed up.
    """
    random = np.random.default_rng(0)
    runs: dict[int, list[Speed]] = {context: [] for context in contexts}
    for repeat in range(repeats + 1):
        for context in contexts:
            speed = _time_generation(model, context, new_tokens, random)
            if repeat:
                runs[context].append(speed)
            progress()
    return [_summary(context, speeds) for context, speeds in runs.items()]


def _time_generation(
    model: Model, context: int, new_tokens: int, random: np.random.Generator
) -> Speed:
    prompt = random.integers(model.engine.vocab_size, size=context).tolist()
    tokens = model.generate(prompt, max_new_tokens=new_tokens, ignore_eos=True, stream=True)
    speed = Speed(context)
    for _ in speed.track(model.engine, tokens):
        pass
    return speed


def _summary(context: int, speeds: list[Speed]) -> ContextSpeed:
    rates = [speed.summary() for speed in speeds]

    def statistic(name: str) -> Statistic:
        return Statistic.of([rate[name] for rate in rates])

    return ContextSpeed(
        context,
        Statistic.of([speed.prefill_seconds for speed in speeds]),
        statistic("prefill_tokens_per_second"),
        statistic("decode_tokens_per_second"),
        statistic("decode_gigabytes_per_second"),
    )


def measure_loading(
    bundle: Path,
    *,
    threads: int | None,
    capacity: int,
    repeats: int,
    target: Target | None = None,
    key_file: str | None = None,
) -> LoadCost:
    """Open a bundle in ``repeats`` new processes, one after the other.

    Raises UserError if one of them can't open it.
    """
    parameters = {"capacity": capacity, "threads": threads, "target": target, "key_file": key_file}
    options = json.dumps(parameters)
    command = [sys.executable, "-m", "serving.fresh_load", str(bundle), options]
    figures = []
    for _ in range(repeats):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            last = done.stderr.strip().rpartition("\n")[2]
            raise UserError(f"A new process can't open {str(bundle)!r} ({last}): free memory.")
        figures.append(json.loads(done.stdout))
    return LoadCost(
        *(
            Statistic.of([figure[name] for figure in figures])
            for name in ("load_seconds", "first_token_seconds", "peak_memory")
        )
    )


def read_bandwidth(threads: int, repeats: int = 5) -> Statistic:
    """Measure how many GB/s ``threads`` threads read together, from memory to registers.

    The maximum of bytes is what numpy computes with the widest loads and the least arithmetic.
    """
    parts = np.split(np.ones(BANDWIDTH_BYTES // threads * threads, np.uint8), threads)
    rates = []
    with ThreadPoolExecutor(threads) as pool:
        for _ in range(repeats + 1):
            before = perf_counter()
            list(pool.map(np.max, parts))
            rates.append(BANDWIDTH_BYTES / (perf_counter() - before) / 1e9)
    return Statistic.of(rates[1:])


def peak_memory() -> int:
    """Return the most bytes that this process had in memory, mapped files included (VmHWM).

    Returns 0 where Linux doesn't tell.
    """
    status = Path("/proc/self/status")
    if not status.exists():
        return 0
    fields = dict(line.split(":", 1) for line in status.read_text().splitlines())
    return int(fields["VmHWM"].removesuffix("kB")) * 1024
