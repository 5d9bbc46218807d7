"""Requests that Triton has gathered: run together, answered each by itself."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving.encoders.batching import Tokens
from serving.encoders.model import EncoderModel
from serving.encoders.texts import EncodedText, Segment
from serving.errors import EngineError, UserError
from serving.triton.encoders.answers import answer
from serving.triton.encoders.requests import EncoderRequest, read_request
from serving.triton.requests import Array


@dataclass(frozen=True, slots=True)
class Answer:
    """The output tensors of a request, and how many texts and tokens it had."""

    outputs: Mapping[str, Array]
    texts: int
    tokens: int


def answer_all(
    model: EncoderModel, requests: Sequence[tuple[Mapping[str, Array], Mapping[str, Any]]]
) -> list[Answer | UserError]:
    """The answer to each request, of which there are tensors and parameters, or what is wrong."""
    outcomes: list[Answer | UserError | None] = [None] * len(requests)
    read: dict[int, EncoderRequest] = {}
    for index, (tensors, parameters) in enumerate(requests):
        try:
            read[index] = read_request(model, tensors, parameters)
        except UserError as error:
            outcomes[index] = error
    for index, outcome in zip(read, _run(model, list(read.values())), strict=True):
        outcomes[index] = outcome
    return [outcome for outcome in outcomes if outcome is not None]


def warm_up(model: EncoderModel) -> None:
    """Run the engine once: the first request shall take no longer than others."""
    positions = [0] if model.encoder.task == "fill-mask" else []
    tokens = Tokens([model.encoder.mask_token or 0], [0], positions)
    model.run([EncodedText((Segment(tokens, (), (), new=1),))])


def _run(model: EncoderModel, requests: Sequence[EncoderRequest]) -> list[Answer | UserError]:
    """Run all requests together or, if the engine fails over one of them, each by itself."""
    try:
        rows = iter(model.run([text for request in requests for text in request.texts]))
    except EngineError as error:
        if len(requests) == 1:
            return [error]
        return [outcome for request in requests for outcome in _run(model, [request])]
    return [
        Answer(
            answer(model, request, [next(rows) for _ in request.texts]),
            len(request.texts),
            sum(text.token_count for text in request.texts),
        )
        for request in requests
    ]
