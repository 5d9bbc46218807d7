"""Metrics of an encoder's model."""

from collections.abc import Sequence
from typing import Any

from serving.closing import Closing
from serving.errors import UserError
from serving.triton.encoders.batch import Answer
from serving.triton.instruments import PROMPT_TOKENS, Family, Instruments

_FAMILIES = {
    "texts": Family("COUNTER", "serve_llm_texts_total", "Texts that were answered."),
    "tokens": PROMPT_TOKENS,
    "batch": Family(
        "HISTOGRAM",
        "serve_llm_batch_texts",
        "Texts that Triton gave to the engine at a time.",
        (1, 2, 4, 8, 16, 32, 64, 128, 256),
    ),
}


class EncoderMetrics(Closing):
    """One instance's metrics; ``labels`` tell it from the others."""

    def __init__(self, pb_utils: Any, labels: dict[str, str]) -> None:
        self._instruments = Instruments(pb_utils, labels, _FAMILIES)

    def record(self, outcomes: Sequence[Answer | UserError]) -> None:
        """Take the requests of one batch."""
        answers = [outcome for outcome in outcomes if isinstance(outcome, Answer)]
        if failed := len(outcomes) - len(answers):
            self._instruments.count_requests("failed", failed)
        if answers:
            texts = sum(answer.texts for answer in answers)
            self._instruments.count_requests("finished", len(answers))
            self._instruments["texts"].increment(texts)
            self._instruments["tokens"].increment(sum(answer.tokens for answer in answers))
            self._instruments["batch"].observe(texts)

    def close(self) -> None:
        """Take the metrics out of Triton."""
        self._instruments.close()
