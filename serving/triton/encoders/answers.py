"""The answer to a request: output tensors from what the engine gave for its texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from serving.encoders import joining
from serving.encoders.joining import Row
from serving.encoders.model import EncoderModel
from serving.encoders.texts import EncodedText
from serving.triton.encoders.requests import EncoderRequest
from serving.triton.requests import Array

DEFAULT_CANDIDATES = 5


def answer(
    model: EncoderModel, request: EncoderRequest, rows: Sequence[Sequence[Row]]
) -> dict[str, Array]:
    """The outputs of a request, from the rows of each of its texts' segments."""
    return _OUTPUTS[model.encoder.task](model, request, rows) | _counts(request.texts)


def _embeddings(
    model: EncoderModel, request: EncoderRequest, rows: Sequence[Sequence[Row]]
) -> dict[str, Array]:
    return {"embeddings": joining.embeddings(model.encoder, request.texts, rows).vectors}


def _classifications(
    model: EncoderModel, request: EncoderRequest, rows: Sequence[Sequence[Row]]
) -> dict[str, Array]:
    found = [
        joining.classification(model.encoder, text, own)
        for text, own in zip(request.texts, rows, strict=True)
    ]
    most = request.options.top_k
    return {
        "labels": _strings([each.labels[:most] for each in found]),
        "scores": _numbers([each.scores[:most] for each in found], np.float32),
    }


def _spans(
    model: EncoderModel, request: EncoderRequest, rows: Sequence[Sequence[Row]]
) -> dict[str, Array]:
    found = [
        joining.labelled_spans(model.encoder, string, text, own, grouped=request.options.grouped)
        for text, string, own in zip(request.texts, request.strings, rows, strict=True)
    ]
    return {
        "labels": _strings([[span.label for span in each] for each in found]),
        "scores": _numbers([[span.score for span in each] for each in found], np.float32),
        "texts": _strings([[span.text for span in each] for each in found]),
        "starts": _numbers([[span.start for span in each] for each in found], np.int32),
        "ends": _numbers([[span.end for span in each] for each in found], np.int32),
    }


def _candidates(
    model: EncoderModel, request: EncoderRequest, rows: Sequence[Sequence[Row]]
) -> dict[str, Array]:
    top_k = request.options.top_k or DEFAULT_CANDIDATES
    found = [
        joining.candidates(model.texts.tokenizer, text, own, top_k)
        for text, own in zip(request.texts, rows, strict=True)
    ]
    # Every mask has as many candidates: flat rows that are filled up have whole masks behind them.
    rows_of = [[candidate for mask in masks for candidate in mask] for masks in found]
    flat = {
        "tokens": _strings([[each.token for each in row] for row in rows_of]),
        "token_ids": _numbers([[each.token_id for each in row] for row in rows_of], np.int32),
        "scores": _numbers([[each.score for each in row] for row in rows_of], np.float32),
        "texts": _strings([[each.text for each in row] for row in rows_of]),
    }
    per_mask = len(found[0][0])
    return {name: array.reshape(len(found), -1, per_mask) for name, array in flat.items()}


def _answers(
    _: EncoderModel, request: EncoderRequest, rows: Sequence[Sequence[Row]]
) -> dict[str, Array]:
    most = request.options.max_answer_tokens
    found = [
        joining.likeliest_answers(context, text, own, most)[0]
        for text, context, own in zip(request.texts, request.strings, rows, strict=True)
    ]
    return {
        "answer": _strings([[each.text] for each in found]),
        "score": _numbers([[each.score] for each in found], np.float32),
        "start": _numbers([[each.start] for each in found], np.int32),
        "end": _numbers([[each.end] for each in found], np.int32),
    }


def _counts(texts: Sequence[EncodedText]) -> dict[str, Array]:
    return {
        "num_input_tokens": _numbers([[text.token_count] for text in texts], np.int32),
        "truncated": _numbers([[text.is_truncated] for text in texts], np.bool_),
        "segments": _numbers([[len(text.segments)] for text in texts], np.int32),
    }


_OUTPUTS = {
    "embed": _embeddings,
    "text-classification": _classifications,
    "token-classification": _spans,
    "fill-mask": _candidates,
    "question-answering": _answers,
}


def _strings(rows: Sequence[Sequence[str]]) -> Array:
    return _filled([[text.encode() for text in row] for row in rows], np.object_, b"")


def _numbers(rows: Sequence[Sequence[float]], dtype: type[np.generic]) -> Array:
    return _filled(rows, dtype, 0)


def _filled(rows: Sequence[Sequence[Any]], dtype: type[np.generic], filling: Any) -> Array:
    """A tensor [n, longest], whose shorter rows end with ``filling``."""
    array = np.full((len(rows), max(map(len, rows))), filling, dtype)
    for number, row in enumerate(rows):
        array[number, : len(row)] = row
    return array
