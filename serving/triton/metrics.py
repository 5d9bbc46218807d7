"""Metrics of a model, through Triton's own metrics endpoint."""

import threading
from typing import Any

from serving.closing import Closing
from serving.triton.instruments import PROMPT_TOKENS, Family, Instruments
from serving.triton.record import Record
from serving.worker.messages import Load

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)

_FAMILIES = {
    "prompt_tokens": PROMPT_TOKENS,
    "new_tokens": Family("COUNTER", "serve_llm_generated_tokens_total", "Tokens generated."),
    "looked_up": Family(
        "COUNTER",
        "serve_llm_cache_lookup_tokens_total",
        "Tokens of prompts that were looked up among earlier ones.",
    ),
    "reused": Family(
        "COUNTER",
        "serve_llm_cache_hit_tokens_total",
        "Those of them whose keys and values were copied.",
    ),
    "slots": Family("GAUGE", "serve_llm_slots", "Slots for sequences."),
    "slots_in_use": Family(
        "GAUGE",
        "serve_llm_slots_in_use",
        "Sequences that decode or run their prompt.",
    ),
    "waiting": Family("GAUGE", "serve_llm_queue_length", "Sequences that wait for a slot."),
    "first_token": Family(
        "HISTOGRAM",
        "serve_llm_time_to_first_token_seconds",
        "Time from a request's arrival to its first token.",
        _SECONDS,
    ),
    "per_token": Family(
        "HISTOGRAM",
        "serve_llm_time_per_output_token_seconds",
        "Mean time between two tokens of a request.",
        _TOKEN_SECONDS,
    ),
}


class Metrics(Closing):
    """One instance's metrics; ``labels`` tell it from the others.

    Every call into Triton is a message between processes. So ended requests are kept until
    ``report`` is called, and tokens aren't reported one by one. ``pb_utils`` is the Python
    backend's module.
    """

    def __init__(self, pb_utils: Any, labels: dict[str, str], slots: int) -> None:
        self._metrics = Instruments(pb_utils, labels, _FAMILIES)
        self._metrics["slots"].set(slots)
        self._ended: list[Record] = []
        self._lock = threading.Lock()
        self._reported = Load()

    def record(self, record: Record) -> None:
        """Take a request that has ended."""
        with self._lock:
            self._ended.append(record)

    def report(self, load: Load) -> None:
        """Tell Triton what ended since the last call, and what there is to do."""
        with self._lock:
            ended, self._ended = self._ended, []
        for record in ended:
            self._report_request(record)
        if load == self._reported:
            return
        self._metrics["waiting"].set(load.waiting)
        self._metrics["slots_in_use"].set(load.prefilling + load.decoding)
        if load.prompt_tokens < self._reported.prompt_tokens:  # another engine, which begins at 0
            self._reported = Load()
        self._metrics["looked_up"].increment(load.prompt_tokens - self._reported.prompt_tokens)
        self._metrics["reused"].increment(load.reused_tokens - self._reported.reused_tokens)
        self._reported = load

    def close(self) -> None:
        """Take the metrics out of Triton."""
        self._metrics.close()

    def _report_request(self, record: Record) -> None:
        self._metrics.count_requests(record.ending)
        self._metrics["prompt_tokens"].increment(record.prompt_tokens)
        self._metrics["new_tokens"].increment(record.new_tokens)
        if record.seconds_to_first_token is not None:
            self._metrics["first_token"].observe(record.seconds_to_first_token)
        if record.seconds_per_token is not None:
            self._metrics["per_token"].observe(record.seconds_per_token)
