"""How fast a generation went, and how much memory bandwidth it achieved."""

from collections.abc import Iterator
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from serving.decoding import Token
    from serving.engine import Engine


@dataclass
class Speed:
    """Seconds and bytes of one generation from one prompt.

    ``bytes_read`` is what the decode steps must read: all weights, and the KV cache so far. What a
    draft model reads isn't counted.
    """

    prompt_tokens: int
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    bytes_read: int = 0
    steps: int = 0
    drafted: int = 0
    speculated: int = 0

    def track(self, engine: "Engine", tokens: "Iterator[Token]") -> "Iterator[Token]":
        """Pass the tokens on and take the time between them."""
        cache = engine.cache
        kv_bytes_per_token = cache.nbytes // (cache.slots * cache.capacity)
        before = perf_counter()
        for token in tokens:
            now = perf_counter()
            if self.new_tokens == 0:
                self.prefill_seconds = now - before
            else:
                self.decode_seconds += now - before
                self.drafted += token.drafted
                self.speculated += token.speculated
                if not token.speculated:
                    context = self.prompt_tokens + self.new_tokens
                    self.bytes_read += engine.weight_bytes + context * kv_bytes_per_token
                    self.steps += 1
            self.new_tokens += 1
            yield token
            before = perf_counter()

    def summary(self) -> dict[str, float]:
        """Tokens a second of both phases and the GB/s of decoding; 0 for what didn't happen.

        Also tokens per decode step, and which part of the drafted tokens spared a step.
        """
        decoded = self.steps + self.speculated
        return {
            "prefill_tokens_per_second": _rate(self.prompt_tokens, self.prefill_seconds),
            "decode_tokens_per_second": _rate(decoded, self.decode_seconds),
            "decode_gigabytes_per_second": _rate(self.bytes_read / 1e9, self.decode_seconds),
            "tokens_per_step": _rate(decoded, self.steps),
            "acceptance_rate": _rate(self.speculated, self.drafted),
        }

    def line(self) -> str:
        """One line for people."""
        rates = self.summary()
        line = (
            f"prefill {self.prompt_tokens} tokens at {rates['prefill_tokens_per_second']:,.1f}/s, "
            f"decode {self.new_tokens} tokens at {rates['decode_tokens_per_second']:,.1f}/s, "
            f"{rates['decode_gigabytes_per_second']:.2f} GB/s"
        )
        if self.drafted:
            line += (
                f", {rates['tokens_per_step']:.2f} tokens a step, "
                f"{rates['acceptance_rate']:.0%} of {self.drafted} drafted tokens accepted"
            )
        return line


def _rate(amount: float, per: float) -> float:
    return amount / per if per else 0.0
