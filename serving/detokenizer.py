"""From token ids to text, piece by piece, without half characters and without lost spaces."""

from collections.abc import Sequence

from tokenizers import Tokenizer

from serving.engine import IntArray

REPLACEMENT = "\ufffd"
_BYTE_TOKENS = ("<0x%02X>", "<0x%02x>")


class Vocabulary:
    """What detokenisers need to know of a tokenizer: which ids are silent, which are raw bytes."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        added = tokenizer.get_added_tokens_decoder()
        self.special = frozenset(i for i, token in added.items() if token.special)
        tokens = (spelling % byte for spelling in _BYTE_TOKENS for byte in range(256))
        ids = {tokenizer.token_to_id(token) for token in tokens} - {None}
        self.bytes = frozenset(ids if "ByteFallback" in str(tokenizer.decoder) else ())

    def is_silent(self, token_id: int) -> bool:
        """Whether decoding skips this id: a special token, or one that the tokenizer lacks."""
        return token_id in self.special or self.tokenizer.id_to_token(token_id) is None

    def decode(self, token_ids: Sequence[int], after: Sequence[int] = ()) -> str:
        """Text of ``token_ids`` without special tokens, as it goes on ``after`` others."""
        if not after:
            return self.tokenizer.decode(token_ids, skip_special_tokens=True)
        return self.decode([*after, *token_ids])[len(self.decode(after)) :]

    def ending(self, token_ids: Sequence[int] | IntArray) -> list[int]:
        """What a text that goes on from ``token_ids`` is decoded after: the last of them, or none.

        A decoder may strip the space that a text begins with, and this one doesn't begin there. It
        does behind a special token, and a character that isn't complete is no text to go on from.
        """
        begin = len(token_ids)
        while begin and int(token_ids[begin - 1]) in self.bytes:  # a run of them is decoded as one
            begin -= 1
        last = [int(i) for i in token_ids[begin:]] or [int(i) for i in token_ids[-1:]]
        is_text = not any(map(self.is_silent, last)) and not self.decode(last).endswith(REPLACEMENT)
        return last if is_text else []


class Detokenizer:
    """Text of one sequence, as its tokens arrive, which goes on ``after`` others.

    The pieces add up to ``tokenizer.decode`` of all the tokens without special ones. Only a short
    window is decoded again: the tokens since the last piece, and those of that piece, because a
    decoder treats the first token it is given differently (it strips a space).
    """

    def __init__(self, vocabulary: Vocabulary, after: Sequence[int] = ()) -> None:
        self._vocabulary = vocabulary
        self._window = list(after)
        self._given = len(after)  # so many tokens of the window,
        self._given_text = vocabulary.decode(after)  # and this text of it, were returned before

    def push(self, token_id: int) -> str:
        """Add a token; return the text that is now certain, maybe none."""
        if self._vocabulary.is_silent(token_id):
            return ""
        self._window.append(token_id)
        # A decoder takes a run of byte tokens as one: any of them may still spoil it.
        if token_id in self._vocabulary.bytes:
            return ""
        text = self._vocabulary.decode(self._window)
        if text.endswith(REPLACEMENT):
            return ""
        piece = text[len(self._given_text) :]
        del self._window[: self._given]
        self._given = len(self._window)
        self._given_text = self._vocabulary.decode(self._window)
        return piece

    def finish(self) -> str:
        """Return the text held back, half characters included; nothing may be pushed after it."""
        return self._vocabulary.decode(self._window)[len(self._given_text) :]


class StopStrings:
    """Cuts a text that comes in pieces before the stop string that is complete first.

    What could be the beginning of a stop string is held back until that is decided, so where the
    text is cut doesn't depend on the pieces.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.found = False

    def push(self, piece: str) -> str:
        """Add text; return what is certain to come before any stop string, and set ``found``."""
        text = self._held + piece
        matches = [(at + len(stop), at) for stop in self._stops if (at := text.find(stop)) >= 0]
        if matches:
            self.found = True
            self._held = ""
            return text[: min(matches)[1]]
        cut = len(text) - self._overlap(text)
        self._held = text[cut:]
        return text[:cut]

    def finish(self) -> str:
        """Return the text held back."""
        held, self._held = self._held, ""
        return held

    def _overlap(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        longest = max((len(stop) - 1 for stop in self._stops), default=0)
        for length in range(min(longest, len(text)), 0, -1):
            if any(stop.startswith(text[-length:]) for stop in self._stops):
                return length
        return 0
