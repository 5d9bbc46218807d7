"""Measuring models in turns: each worker answers once before any answers again."""

import random
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scripts.peers.remote import PeerError, Worker

# Threads that spin while they wait for work must have gone to sleep before another model's turn.
PAUSE_SECONDS = 0.5

# Ids that every vocabulary of a real model has, without the special ones at its start.
TOKENS = range(300, 4000)


@dataclass
class Contestant:
    """A model to measure and what was measured; ``failure`` says why it dropped out.

    ``prefill_seconds`` and ``decode_seconds`` (a token) have one value a round for each context.
    """

    name: str
    module: str
    python: Path
    settings: dict[str, Any]
    log: Path
    ready: dict[str, Any] = field(default_factory=dict)
    agreement: dict[str, Any] = field(default_factory=dict)
    load_seconds: list[float] = field(default_factory=list)
    first_token_seconds: list[float] = field(default_factory=list)
    load_peak_memory: list[int] = field(default_factory=list)
    peak_memory: int = 0
    prefill_seconds: dict[int, list[float]] = field(default_factory=dict)
    decode_seconds: dict[int, list[float]] = field(default_factory=dict)
    failure: str | None = None

    def start(self) -> Worker:
        """Load the model in a new process."""
        worker = Worker(self.module, self.python, self.settings, self.log)
        self.ready = worker.ready
        return worker

    def seconds(self, phase: str, context: int) -> list[float]:
        """Return one value a round: a whole prompt's for "prefill", a token's for "decode"."""
        return {"prefill": self.prefill_seconds, "decode": self.decode_seconds}[phase][context]

    def record(self, context: int, reply: dict[str, Any]) -> None:
        """Keep the figures of one generation."""
        times = reply["times"]
        self.prefill_seconds.setdefault(context, []).append(times[0])
        decode = (times[-1] - times[0]) / (len(times) - 1)
        self.decode_seconds.setdefault(context, []).append(decode)
        self.peak_memory = reply["peak_memory"]


class Prompts:
    """Random prompts, never the same twice, the same for every model in one turn."""

    def __init__(self, seed: int, vocab_size: int) -> None:
        self._random = random.Random(seed)
        self._tokens = range(TOKENS.start, min(TOKENS.stop, vocab_size))
        if not self._tokens:
            self._tokens = range(1, vocab_size)

    def next(self, length: int) -> list[int]:
        """Return ``length`` token ids."""
        return self._random.choices(self._tokens, k=length)


def measure_loading(
    contestants: Sequence[Contestant],
    prompts: Prompts,
    repeats: int,
    inspect: Callable[[Contestant, Worker], None],
) -> None:
    """Load every model in ``repeats`` new processes and let it answer 32 tokens with one.

    ``inspect`` is called with the first process of each, after it was measured.
    """
    for round_number in range(repeats):
        prompt = prompts.next(32)
        for contestant in in_turns(contestants, round_number):
            try:
                with contestant.start() as worker:
                    reply = worker.generate(prompt, 1)
                    load = worker.ready["load_seconds"]
                    contestant.load_seconds.append(load)
                    contestant.first_token_seconds.append(load + reply["times"][0])
                    contestant.load_peak_memory.append(reply["peak_memory"])
                    if round_number == 0:
                        inspect(contestant, worker)
            except PeerError as error:
                contestant.failure = str(error)


def measure_speed(
    contestants: Sequence[Contestant],
    prompts: Prompts,
    *,
    contexts: Sequence[int],
    new_tokens: int,
    repeats: int,
    each_round: Callable[[], None],
) -> None:
    """Generate ``new_tokens`` behind every context ``repeats`` times, model after model.

    All models stay loaded; the one that begins changes with the round. The first round warms them
    up and isn't recorded. ``each_round`` is called before each of the others.
    """
    workers: dict[str, Worker] = {}
    try:
        for contestant in in_turns(contestants, 0):
            try:
                workers[contestant.name] = contestant.start()
            except PeerError as error:
                contestant.failure = str(error)
        for round_number in range(repeats + 1):
            if round_number:
                each_round()
            for context in contexts:
                prompt = prompts.next(context)
                for contestant in in_turns(contestants, round_number):
                    time.sleep(PAUSE_SECONDS)
                    try:
                        tokens = new_tokens if round_number else 2
                        reply = workers[contestant.name].generate(prompt, tokens)
                    except PeerError as error:
                        contestant.failure = str(error)
                        continue
                    if round_number:
                        contestant.record(context, reply)
    finally:
        for worker in workers.values():
            worker.close()


def in_turns(contestants: Sequence[Contestant], round_number: int) -> Iterator[Contestant]:
    """Yield those still taking part, each time from another one on."""
    start = round_number % len(contestants)
    for contestant in [*contestants[start:], *contestants[:start]]:
        if contestant.failure is None:
            yield contestant


def summary(values: Sequence[float]) -> dict[str, float]:
    """Return median, least and most."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}
