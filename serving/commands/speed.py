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

    ``bytes_read`` is what the decode steps must read: all weights, and the KV cache so far.
    """

    prompt_tokens: int
    new_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    bytes_read: int = 0

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
                context = self.prompt_tokens + self.new_tokens
                self.bytes_read += engine.weight_bytes + context * kv_bytes_per_token
            self.new_tokens += 1
            yield token
            before = perf_counter()

    def summary(self) -> dict[str, float]:
        """Tokens a second of both phases and the GB/s of decoding; 0 for what didn't happen."""
        steps = max(self.new_tokens - 1, 0)
        return {
            "prefill_tokens_per_second": _rate(self.prompt_tokens, self.prefill_seconds),
            "decode_tokens_per_second": _rate(steps, self.decode_seconds),
            "decode_gigabytes_per_second": _rate(self.bytes_read / 1e9, self.decode_seconds),
        }

    def line(self) -> str:
        """One line for people."""
        rates = self.summary()
        return (
            f"prefill {self.prompt_tokens} tokens at {rates['prefill_tokens_per_second']:,.1f}/s, "
            f"decode {self.new_tokens} tokens at {rates['decode_tokens_per_second']:,.1f}/s, "
            f"{rates['decode_gigabytes_per_second']:.2f} GB/s"
        )


def _rate(amount: float, seconds: float) -> float:
    return amount / seconds if seconds else 0.0
