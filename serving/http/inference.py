"""``/models/{model}``: encoders, in the shape of Hugging Face's inference API."""

from typing import Annotated

import numpy as np
from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.encoders.contract import Task
from serving.http.access import Caller, find_encoder, requires
from serving.http.api_description import BEARER, ERRORS
from serving.http.encoder_tasks import TASKS
from serving.http.encoding import EncodingCall
from serving.http.errors import invalid, unsupported
from serving.http.event_stream import DisconnectedError
from serving.http.json_pieces import json_list
from serving.http.request_record import record_of
from serving.http.schemas.inference import Inference, InferenceRequest, Parameters

router = APIRouter(dependencies=[BEARER])
_caller = Depends(requires(None))
_ANSWERS = {200: {"model": Inference}, **ERRORS}

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
    return await infer(model, body, request, caller)


@router.post("/models/{model:path}", responses=_ANSWERS)
async def infer(
    model: str, body: InferenceRequest, request: Request, caller: Annotated[Caller, _caller]
) -> Response:
    """Classify texts or tokens, fill masks, answer questions or embed, as the encoder's task is."""
    encoder = find_encoder(request, caller, model)
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
