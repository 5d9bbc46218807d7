"""``/models/{model}``: encoders and encoder-decoders, as Hugging Face's inference API has them."""

from typing import Annotated, TypeVar

import numpy as np
from fastapi import APIRouter, Depends
from fastapi.exceptions import RequestValidationError
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.encoders.contract import Task
from serving.http.access import Caller, find_encoder, find_generator, find_model, requires
from serving.http.api_description import BEARER, ERRORS
from serving.http.encoder_tasks import TASKS
from serving.http.encoding import EncodingCall
from serving.http.errors import invalid, unsupported
from serving.http.event_stream import DisconnectedError
from serving.http.json_pieces import json_list
from serving.http.request_record import record_of
from serving.http.schemas.answers import TextToText
from serving.http.schemas.common import Schema
from serving.http.schemas.inference import Inference, InferenceRequest, Parameters
from serving.http.schemas.text_to_text import TextToTextRequest
from serving.http.served_encoder import ServedEncoder
from serving.http.served_model import ServedModel
from serving.http.text_to_text import answer_text_to_text

Body = TypeVar("Body", bound=Schema)

router = APIRouter(dependencies=[BEARER])
_caller = Depends(requires(None))
_ANSWERS = {200: {"model": Inference}, **ERRORS}
_ALL_ANSWERS = {200: {"model": Inference | list[TextToText]}, **ERRORS}

# Those of every task; fill-mask refuses what isn't "refuse".
_COMMON = {"context_overflow", "overlap", "priority"}
# What the address may end with, for the tasks whose names are other ones here.
_PIPELINES: dict[str, Task] = {"feature-extraction": "embed", "sentence-similarity": "embed"}


@router.post("/models/{model:path}/pipeline/{task}", responses=_ANSWERS)
async def infer_task(
    model: str,
    task: str,
    body: InferenceRequest,
    request: Request,
    caller: Annotated[Caller, _caller],
) -> Response:
    """As ``/models/{model}``, for an encoder that has this task."""
    encoder = find_encoder(request, caller, model).encoder
    if _PIPELINES.get(task, task) != encoder.task:
        raise invalid(
            None,
            f"The model '{model}' is an encoder for {encoder.task}, not for {task}: ask "
            f"/models/{model} for that.",
            "wrong_task",
        )
    return await _encode(find_encoder(request, caller, model), body, request, caller)


@router.post("/models/{model:path}", responses=_ALL_ANSWERS)
async def infer(
    model: str,
    body: InferenceRequest | TextToTextRequest,
    request: Request,
    caller: Annotated[Caller, _caller],
) -> Response:
    """Classify texts or tokens, fill masks, answer questions, embed, translate or summarize.

    Which of them is the model's task.
    """
    found = find_model(request, caller, model, None)
    if isinstance(found, ServedModel) and found.encoder_decoder is not None:
        wish = _read_as(TextToTextRequest, body)
        return await answer_text_to_text(
            wish, request, caller, find_generator(request, caller, model)
        )
    encoder = find_encoder(request, caller, model)
    return await _encode(encoder, _read_as(InferenceRequest, body), request, caller)


async def _encode(
    encoder: ServedEncoder, body: InferenceRequest, request: Request, caller: Caller
) -> Response:
    task, record = encoder.encoder.task, record_of(request)
    _check_parameters(body, task)
    parameters = body.parameters or Parameters()
    call = EncodingCall(request, caller, encoder, "inputs", parameters.priority or 0)
    perform, _ = TASKS[task]
    try:
        answer = await perform(call, body, parameters)
    except DisconnectedError:
        record.disconnected = True
        return Response(status_code=499)  # nobody reads it; the log has it
    if isinstance(answer, np.ndarray):
        vectors = await json_list(vector.tolist() for vector in answer)
        return Response(vectors, headers=record.headers, media_type="application/json")
    return JSONResponse(answer, headers=record.headers)


def _read_as(schema: type[Body], body: Schema) -> Body:
    """A body as the model's kind reads it; raises RequestValidationError if it can't be."""
    if isinstance(body, schema):
        return body
    given = body.model_dump(exclude_unset=True)
    try:
        return schema.model_validate(given)
    except ValidationError as error:
        wrong = [{**each, "loc": ("body", *each["loc"])} for each in error.errors()]
        raise RequestValidationError(wrong, body=given) from error


def _check_parameters(body: InferenceRequest, task: Task) -> None:
    """Raise ApiError for a parameter that the task hasn't got."""
    _, own = TASKS[task]
    beside = body.model_dump(exclude={"inputs", "parameters", "options"}, exclude_none=True)
    inside = body.parameters.model_dump(exclude_none=True) if body.parameters else {}
    for name in inside:
        if name not in own | _COMMON:
            raise unsupported(f"parameters.{name}", f"'{name}' is not for {task}: leave it out.")
    for name in beside:
        if name not in own:
            raise unsupported(name, f"'{name}' is not for {task}: leave it out.")
