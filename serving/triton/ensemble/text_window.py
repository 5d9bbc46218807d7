"""Which tokens a part of a text needs to be decoded from, when what came before is forgotten."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from serving.decoding import Token
from serving.detokenizer import Detokenizer, Vocabulary
from serving.triton.ensemble.handover import Span


@dataclass(frozen=True, slots=True)
class _Piece:
    ids: Sequence[int]
    text: str


class TextWindow:
    """The last tokens of a sequence whose text is sent in parts: those with text not sent yet.

    The text goes on ``after`` some tokens, see Detokenizer.

    Before them stay the tokens of one piece of the detokenizer's more, because a decoder treats the
    first token that it is given differently. So a window doesn't grow with the answer, but only
    with what is held back: half characters, and what could be the beginning of a stop string.
    """

    def __init__(self, vocabulary: Vocabulary, after: Sequence[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._detokenizer = Detokenizer(vocabulary, after)
        # All but the first one have text to send.
        self._pieces = deque([_Piece(after, vocabulary.decode(after))])
        self._sent = 0  # characters of the second one
        self._ids: list[int] = []  # those behind the last one

    def push(self, token: Token) -> None:
        """Add a token."""
        self._ids.append(token.token_id)
        text = self._detokenizer.push(token.token_id)
        if token.finish_reason is not None:
            text += self._detokenizer.finish()
        if text:
            self._pieces.append(_Piece(self._ids, text))
            self._ids = []

    def take(self, count: int, length: int) -> tuple[Sequence[int], Span]:
        """Return the context and the span of the last ``count`` ids.

        Their text is the next ``length`` characters, which are sent then.
        """
        if not length:
            return (), Span(count, 0, 0)
        ids = [token_id for piece in self._pieces for token_id in piece.ids] + self._ids
        begin = len(self._vocabulary.decode(self._pieces[0].ids)) + self._sent
        self._advance(length)
        return ids[:-count], Span(count, begin, length)

    def _advance(self, length: int) -> None:
        self._sent += length
        while len(self._pieces) > 1 and self._sent >= len(self._pieces[1].text):
            self._pieces.popleft()
            self._sent -= len(self._pieces[0].text)
