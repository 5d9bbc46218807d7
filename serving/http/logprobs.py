"""Log-probabilities in the two forms that OpenAI's API has."""

from collections.abc import Sequence

from serving.decoding import Token
from serving.http.schemas.answers import CompletionLogProbs, PositionLogProbs, TokenLogProb
from serving.http.token_texts import TokenTexts
from serving.sampling import LogProbs


def chat_logprobs(token: LogProbs, token_id: int, texts: TokenTexts) -> PositionLogProbs:
    """One token's entry in a chat answer's logprobs.content."""
    chosen = _token_logprob(token_id, token.chosen, texts)
    likeliest = [_token_logprob(each, logprob, texts) for each, logprob in token.top]
    return {**chosen, "top_logprobs": likeliest}


class CompletionLogProbsWriter:
    """Writes the logprobs of a completion, whose text is ``offset`` characters long already."""

    def __init__(self, texts: TokenTexts, offset: int = 0) -> None:
        self._texts = texts
        self._offset = offset

    def write(self, tokens: Sequence[Token]) -> CompletionLogProbs:
        """The entries of the next tokens."""
        entries: CompletionLogProbs = {
            "tokens": [],
            "token_logprobs": [],
            "top_logprobs": [],
            "text_offset": [],
        }
        for token in tokens:
            if token.logprobs is None:
                continue
            entries["tokens"].append(self._texts.text(token.token_id))
            entries["token_logprobs"].append(token.logprobs.chosen)
            entries["top_logprobs"].append(self._likeliest(token.logprobs))
            entries["text_offset"].append(self._offset)
            self._offset += len(token.text)
        return entries

    def _likeliest(self, logprobs: LogProbs) -> dict[str, float]:
        """By text; of two tokens with one text the likelier counts."""
        reverse = reversed(logprobs.top)
        return {self._texts.text(token_id): logprob for token_id, logprob in reverse}


def _token_logprob(token_id: int, logprob: float, texts: TokenTexts) -> TokenLogProb:
    return {
        "token": texts.text(token_id),
        "logprob": logprob,
        "bytes": list(texts.bytes(token_id)),
    }
