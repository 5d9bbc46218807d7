"""``/v1/embeddings``."""

import base64
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.engine import FloatArray
from serving.errors import UserError
from serving.http.access import Caller, find_model, requires
from serving.http.api_description import BEARER, ERRORS
from serving.http.encoder_decoder import refuse_encoder_decoder
from serving.http.errors import from_user_error, invalid, unsupported
from serving.http.event_stream import DisconnectedError, unless_disconnected
from serving.http.request_record import record_of
from serving.http.schemas.answers import Embedding, Embeddings
from serving.http.schemas.embeddings import EmbeddingRequest
from serving.http.served_model import ServedModel
from serving.http.state import state_of
from serving.worker.messages import EmbedRequest

router = APIRouter(dependencies=[BEARER])
_caller = Depends(requires("embed"))


@router.post("/v1/embeddings", responses={200: {"model": Embeddings}, **ERRORS})
async def create_embeddings(
    body: EmbeddingRequest, request: Request, caller: Annotated[Caller, _caller]
) -> Response:
    """Embed texts or token ids: one vector each, of length 1."""
    state, record = state_of(request), record_of(request)
    model = find_model(request, caller, body.model, "embed")
    _check_supported(body, model)
    requests = [
        EmbedRequest(
            await model.encode(text, "input"),
            pooling=body.pooling or "last",
            context_overflow=body.context_overflow or "refuse",
            priority=body.priority or 0,
            adapter=model.adapter,
            client=caller.client,
            seconds=state.limits.request_seconds,
        )
        for text in body.inputs
    ]
    tokens = sum(len(each.prompt_ids) for each in requests)
    with caller.admitted(state, record, tokens):
        record.prompt_tokens = tokens
        state.metrics.record_prompt(model.name, tokens)
        try:
            vectors = await unless_disconnected(request.receive, _embed_all(model, requests))
        except UserError as error:
            raise from_user_error(error, "input") from error
        except DisconnectedError:
            record.disconnected = True
            return Response(status_code=499)  # nobody reads it; the log has it
    answer: Embeddings = {
        "object": "list",
        "data": [_embedding(at, vector, body) for at, vector in enumerate(vectors)],
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    return JSONResponse(answer, headers=record.headers)


async def _embed_all(model: ServedModel, requests: list[EmbedRequest]) -> list[FloatArray]:
    # One after the other: the engine runs one prompt at a time.
    return [await model.worker.embed(each) for each in requests]


def _embedding(index: int, vector: FloatArray, body: EmbeddingRequest) -> Embedding:
    values: list[float] | str = vector.tolist()
    if body.encoding_format == "base64":
        values = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": values}


def _check_supported(body: EmbeddingRequest, model: ServedModel) -> None:
    if body.dimensions is not None:
        raise unsupported("dimensions", "This server's vectors have the model's own dimensions.")
    refuse_encoder_decoder(model, "which gives no embeddings")
    opened = model.worker.opened
    if opened is not None and not opened.gives_embeddings:
        raise invalid(
            "model",
            f"The model '{model.name}' gives no embeddings: export it again with this version, for "
            "onnxruntime.",
        )
