"""What is kept of a request for the metrics."""

from dataclasses import dataclass, field
from time import perf_counter
from typing import Literal

Ending = Literal["finished", "failed", "cancelled"]


@dataclass(slots=True)
class Record:
    """One request: times in seconds of perf_counter, and its tokens."""

    begin: float = field(default_factory=perf_counter)
    first_token: float | None = None
    last_token: float | None = None
    prompt_tokens: int = 0
    new_tokens: int = 0
    ending: Ending = "finished"

    def tick(self) -> None:
        """Count a token that has come."""
        self.last_token = perf_counter()
        if self.first_token is None:
            self.first_token = self.last_token
        self.new_tokens += 1

    @property
    def seconds_to_first_token(self) -> float | None:
        """Time to the first token, if there was one."""
        return None if self.first_token is None else self.first_token - self.begin

    @property
    def seconds_per_token(self) -> float | None:
        """Mean time from one token to the next, if there were two."""
        if self.first_token is None or self.last_token is None or self.new_tokens < 2:
            return None
        return (self.last_token - self.first_token) / (self.new_tokens - 1)
