"""What comes out of a generation."""

from dataclasses import dataclass, field

from serving.decoding import FinishReason, Token
from serving.sampling import LogProbs


@dataclass(slots=True)
class Generation:
    """What was generated from one prompt.

    ``token_ids`` holds generated tokens only, with the EOS token if there was one; ``text`` is
    their text without special tokens, cut before a stop string. ``logprobs`` has one entry a token
    if they were asked for. ``score`` is that of a beam search: the sum of log-probabilities divided
    by the number of tokens to the power of the length penalty.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"
    prompt_tokens: int = 0
    logprobs: list[LogProbs] | None = None
    score: float | None = None

    def add(self, token: Token) -> None:
        """Append one token and its text."""
        self.token_ids.append(token.token_id)
        self.text += token.text
        if token.logprobs is not None and self.logprobs is not None:
            self.logprobs.append(token.logprobs)
        if token.finish_reason is not None:
            self.finish_reason = token.finish_reason
