"""Texts to tokens: long ones are refused, cut, or split into segments that overlap."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, get_args

from serving.encoders.batching import Tokens
from serving.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

ContextOverflow = Literal["refuse", "truncate", "segments"]
Text = str | tuple[str, str]


@dataclass(frozen=True, slots=True)
class Segment:
    """A text, or a part of it that was too long.

    ``offsets`` are where each token is in the text, in characters, ``sequences`` which text of a
    pair it belongs to (None: a special token), and ``new`` counts the tokens that no segment before
    has.
    """

    tokens: Tokens
    offsets: Sequence[tuple[int, int]]
    sequences: Sequence[int | None]
    new: int


@dataclass(frozen=True, slots=True)
class EncodedText:
    """A text in one segment or several; ``is_truncated`` says that its end is missing."""

    segments: tuple[Segment, ...]
    is_truncated: bool = False

    @property
    def token_count(self) -> int:
        """Tokens that an engine reads, those of overlaps every time."""
        return sum(len(segment.tokens.ids) for segment in self.segments)


class TextEncoder:
    """A bundle's tokenizer, for texts of up to ``max_length`` tokens, special ones included."""

    def __init__(self, tokenizer: "Tokenizer", max_length: int) -> None:
        self.tokenizer = tokenizer
        self.max_length = max_length

    def encode(
        self, texts: Sequence[Text], context_overflow: ContextOverflow, overlap: int | None = None
    ) -> list[EncodedText]:
        """Encode texts or pairs of them.

        What is longer than ``max_length`` is refused, cut at its end, or split into segments that
        share ``overlap`` tokens (default: an eighth of ``max_length``); of a pair, its second text.
        Raises UserError for an empty text, one that is refused, and an overlap without room.
        """
        self._check(texts, context_overflow, overlap)
        encodings = self.tokenizer.encode_batch(list(texts))
        encoded = []
        for index, (text, encoding) in enumerate(zip(texts, encodings, strict=True)):
            if len(encoding.ids) <= self.max_length:
                encoded.append(EncodedText((_whole(encoding),)))
            elif context_overflow == "refuse":
                which = text_name(index, len(texts))
                raise UserError(
                    f"{which} has {len(encoding.ids):,} tokens, and this model takes "
                    f"{self.max_length:,}: shorten it, or have long texts truncated or split "
                    "into segments."
                )
            else:
                is_pair = not isinstance(text, str)
                encoded.append(self._cut(encoding, is_pair, context_overflow, overlap))
        return encoded

    def _check(self, texts: Sequence[Text], context_overflow: str, overlap: int | None) -> None:
        if context_overflow not in get_args(ContextOverflow):
            allowed = ", ".join(repr(choice) for choice in get_args(ContextOverflow))
            raise UserError(
                f"context_overflow is {context_overflow!r}, but must be one of {allowed}."
            )
        if overlap is not None and not 0 <= overlap < self.max_length // 2:
            raise UserError(
                f"overlap is {overlap}, but must be from 0 to {self.max_length // 2 - 1}, less "
                "than half of a segment: change it."
            )
        for index, text in enumerate(texts):
            for part in (text,) if isinstance(text, str) else text:
                _check_text(text_name(index, len(texts)), part)

    def _cut(
        self, encoding: Any, is_pair: bool, context_overflow: ContextOverflow, overlap: int | None
    ) -> EncodedText:
        """What becomes of a text that is too long, or a pair whose second text is."""
        whole = _whole(encoding)
        cut = [place for place, each in enumerate(whole.sequences) if each == int(is_pair)]
        begin, end = cut[0], cut[-1] + 1
        room = self.max_length - begin - (len(whole.sequences) - end)
        is_truncated = context_overflow == "truncate"
        shared = 0 if is_truncated else self.max_length // 8 if overlap is None else overlap
        if room <= shared:
            raise UserError(
                f"The first text of a pair leaves no room for the second in {self.max_length:,} "
                "tokens: shorten it."
            )
        starts = range(begin, max(end - shared, begin + 1), room - shared)
        segments = (
            _part(whole, slice(begin), slice(start, min(start + room, end)), slice(end, None))
            for start in (starts[:1] if is_truncated else starts)
        )
        first, *others = segments
        later = (replace(each, new=max(each.new - shared, 1)) for each in others)
        return EncodedText((first, *later), is_truncated)


def _whole(encoding: Any) -> Segment:
    tokens = Tokens(encoding.ids, encoding.type_ids)
    return _segment(tokens, encoding.offsets, encoding.sequence_ids)


def _part(whole: Segment, *parts: slice) -> Segment:
    """These parts of a text, one after the other."""

    def joined(values: Sequence[Any]) -> list[Any]:
        return [value for part in parts for value in values[part]]

    tokens = Tokens(joined(whole.tokens.ids), joined(whole.tokens.types))
    return _segment(tokens, joined(whole.offsets), joined(whole.sequences))


def _segment(
    tokens: Tokens, offsets: Sequence[tuple[int, int]], sequences: Sequence[int | None]
) -> Segment:
    new = sum(each is not None for each in sequences)
    return Segment(tokens, offsets, sequences, max(new, 1))


def text_name(index: int, count: int) -> str:
    """What a sentence calls one of so many texts."""
    return f"Text {index + 1}" if count > 1 else "The text"


def _check_text(which: str, text: str) -> None:
    if not isinstance(text, str):
        raise UserError(f"{which} is {type(text).__name__}, and not a string: give text.")
    if not text.strip():
        raise UserError(f"{which} is empty: give at least one character that isn't a space.")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
        raise UserError(
            f"{which} has {text[error.start]!a} at position {error.start}, which is no character: "
            "send valid Unicode."
        ) from error
