"""Texts to tokens: long ones are refused, cut, or split into segments that overlap."""

from collections.abc import Sequence
from dataclasses import dataclass
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
        self._cutters: dict[tuple[int, bool], Tokenizer] = {}

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
                encoded.append(EncodedText((_segment(encoding, 0),)))
            elif context_overflow == "refuse":
                which = text_name(index, len(texts))
                raise UserError(
                    f"{which} has {len(encoding.ids):,} tokens, and this model takes "
                    f"{self.max_length:,}: shorten it, or have long texts truncated or split "
                    "into segments."
                )
            else:
                encoded.append(self._cut(text, context_overflow, overlap))
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
        self, text: Text, context_overflow: ContextOverflow, overlap: int | None
    ) -> EncodedText:
        shared = self.max_length // 8 if overlap is None else overlap
        is_pair = not isinstance(text, str)
        cutter = self._cutter(shared, is_pair)
        try:
            first = cutter.encode(*((text,) if isinstance(text, str) else text))
        except Exception as error:  # tokenizers raises nothing more specific
            raise UserError(
                f"The first text of a pair leaves no room for the second in {self.max_length:,} "
                "tokens: shorten it."
            ) from error
        if context_overflow == "truncate":
            return EncodedText((_segment(first, 0),), is_truncated=True)
        pieces = [first, *(each for each in first.overflowing if _goes_on(each, is_pair))]
        segments = (_segment(piece, shared if n else 0) for n, piece in enumerate(pieces))
        return EncodedText(tuple(segments))

    def _cutter(self, overlap: int, is_pair: bool) -> "Tokenizer":
        """The tokenizer with truncation, whose rest is in the encoding's ``overflowing``."""
        key = (overlap, is_pair)
        if key not in self._cutters:
            from tokenizers import Tokenizer

            cutter = Tokenizer.from_str(self.tokenizer.to_str())
            strategy = "only_second" if is_pair else "longest_first"
            cutter.enable_truncation(self.max_length, stride=overlap, strategy=strategy)
            self._cutters[key] = cutter
        return self._cutters[key]


def _goes_on(piece: Any, is_pair: bool) -> bool:
    """Whether a piece has tokens of the text that was too long."""
    return (1 if is_pair else 0) in piece.sequence_ids


def _segment(encoding: Any, shared: int) -> Segment:
    sequences = encoding.sequence_ids
    own = sum(each is not None for each in sequences)
    new = max(own - shared, 1)
    return Segment(Tokens(encoding.ids, encoding.type_ids), encoding.offsets, sequences, new)


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
