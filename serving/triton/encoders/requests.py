"""What a request to an encoder asks for: its texts, encoded, and the options of its task."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from serving.encoders.batching import Tokens
from serving.encoders.contract import TOKEN_TYPE_IDS
from serving.encoders.joining import with_masks
from serving.encoders.model import EncoderModel
from serving.encoders.texts import ContextOverflow, EncodedText, Segment, Text, text_name
from serving.errors import UserError
from serving.triton.requests import Array, decoded

# A candidate takes some time: a request for the whole vocabulary would hold up others.
MOST_CANDIDATES = 100

_ALLOWED = {
    "embed": {"context_overflow", "overlap"},
    "fill-mask": {"top_k"},
    "text-classification": {"context_overflow", "overlap", "top_k"},
    "token-classification": {"context_overflow", "overlap", "grouped"},
    "question-answering": {"context_overflow", "overlap", "max_answer_tokens"},
}


@dataclass(frozen=True, slots=True)
class Options:
    """A request's parameters, see EncoderModel's methods; ``top_k`` None is the task's default."""

    context_overflow: ContextOverflow = "refuse"
    overlap: int | None = None
    top_k: int | None = None
    grouped: bool = True
    max_answer_tokens: int = 15


@dataclass(frozen=True, slots=True)
class EncoderRequest:
    """A request, read; ``strings`` are what spans of its texts are cut from, if it has texts."""

    texts: Sequence[EncodedText]
    strings: Sequence[str]
    options: Options


def read_request(
    model: EncoderModel, tensors: Mapping[str, Array], parameters: Mapping[str, Any]
) -> EncoderRequest:
    """Read a request's tensors and parameters; raises UserError for what can't be used."""
    options = _options(model, parameters)
    if "input_ids" in tensors:
        return EncoderRequest(_from_ids(model, tensors, options), (), options)
    for name in ("attention_mask", TOKEN_TYPE_IDS):
        if name in tensors:
            raise UserError(f"{name} goes with input_ids, not with a text: leave it out.")
    texts = _texts(tensors)
    encoded = model.texts.encode(texts, options.context_overflow, options.overlap)
    strings = [text if isinstance(text, str) else text[1] for text in texts]
    return EncoderRequest(_asking(model, encoded), strings, options)


def _asking(model: EncoderModel, texts: Sequence[EncodedText]) -> list[EncodedText]:
    """Texts that ask for the logits of their masks, if that is the model's task."""
    if model.encoder.task != "fill-mask":
        return list(texts)
    return [
        with_masks(model.encoder, model.texts.tokenizer, text, text_name(index, len(texts)))
        for index, text in enumerate(texts)
    ]


def _options(model: EncoderModel, parameters: Mapping[str, Any]) -> Options:
    allowed = _ALLOWED[model.encoder.task]
    for name, value in parameters.items():
        if name not in allowed:
            raise UserError(
                f"There is no parameter {name!r} for {model.encoder.task}: leave it out; there are "
                f"{', '.join(sorted(allowed))}."
            )
        _check_type(name, value)
    _check_range(parameters, "max_answer_tokens", model.encoder.max_length)
    most = MOST_CANDIDATES if model.encoder.task == "fill-mask" else len(model.encoder.labels)
    _check_range(parameters, "top_k", most)
    return Options(**parameters)


def _check_type(name: str, value: Any) -> None:
    kind = {"context_overflow": str, "grouped": bool}.get(name, int)
    if type(value) is not kind:  # True is an int otherwise
        wanted = {str: "a string", bool: "true or false", int: "a whole number"}[kind]
        raise UserError(f"{name} is {value!r}, but must be {wanted}.")


def _check_range(parameters: Mapping[str, Any], name: str, most: int) -> None:
    value = parameters.get(name)
    if value is not None and not 1 <= value <= most:
        raise UserError(f"{name} is {value}, but must be from 1 to {most}.")


def _texts(tensors: Mapping[str, Array]) -> list[Text]:
    """The texts, or pairs of them."""
    names = ("question", "context") if "question" in tensors else ("text", "text_pair")
    first, second = (_strings(name, tensors[name]) if name in tensors else [] for name in names)
    if not first:
        raise UserError("There is no text: send text or, where the model takes them, input_ids.")
    return list(zip(first, second, strict=True)) if second else cast(list[Text], first)


def _strings(name: str, tensor: Array) -> list[str]:
    return [decoded(name, value) for value in tensor[:, 0]]


def _from_ids(
    model: EncoderModel, tensors: Mapping[str, Array], options: Options
) -> list[EncodedText]:
    """Texts that a client has tokenized itself, with their special tokens."""
    if any(name in tensors for name in ("text", "text_pair")):
        raise UserError("text and input_ids exclude each other: send one of them.")
    if options.context_overflow != "refuse" or options.overlap is not None:
        raise UserError("context_overflow and overlap are for texts: leave them out for input_ids.")
    ids = tensors["input_ids"]
    mask = tensors.get("attention_mask")
    types = tensors.get(TOKEN_TYPE_IDS)
    for name, other in (("attention_mask", mask), (TOKEN_TYPE_IDS, types)):
        if other is not None and other.shape != ids.shape:
            raise UserError(
                f"{name} has the shape {list(other.shape)}, but input_ids has "
                f"{list(ids.shape)}: make them alike."
            )
    encoded = []
    for row in range(len(ids)):
        name = text_name(row, len(ids))
        count = ids.shape[1] if mask is None else _length(name, mask[row])
        own = [] if types is None else types[row, :count].tolist()
        tokens = Tokens(ids[row, :count].tolist(), own or [0] * count)
        _check_tokens(model, name, tokens)
        encoded.append(EncodedText((Segment(tokens, (), (), new=1),)))
    return _asking(model, encoded)


def _length(name: str, mask: Array) -> int:
    """How many tokens a mask lets through."""
    count = int(mask.sum())
    if not ((mask[:count] == 1).all() and (mask[count:] == 0).all()):
        raise UserError(
            f"The attention_mask of {_lower(name)} isn't ones and then zeros: pad on the right."
        )
    return count


def _check_tokens(model: EncoderModel, name: str, tokens: Tokens) -> None:
    longest, vocab_size = model.encoder.max_length, model.encoder.vocab_size
    if not 1 <= len(tokens.ids) <= longest:
        raise UserError(
            f"{name} has {len(tokens.ids):,} tokens, and this model takes from 1 to {longest:,}: "
            "send as many."
        )
    if min(tokens.ids) < 0 or max(tokens.ids) >= vocab_size:
        raise UserError(
            f"{name} has an id that isn't from 0 to {vocab_size - 1:,}: send the ids of this "
            "model's tokenizer."
        )


def _lower(name: str) -> str:
    return name[0].lower() + name[1:]
