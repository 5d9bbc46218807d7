"""``/v1/embeddings``."""

import base64
import json
from collections.abc import Iterator
from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request
from starlette.responses import Response

from serving.encoders import joining
from serving.engine import FloatArray
from serving.errors import UserError
from serving.http.access import Caller, find_model, requires
from serving.http.api_description import BEARER, ERRORS
from serving.http.encoder_decoder import refuse_encoder_decoder
from serving.http.encoding import EncodingCall
from serving.http.errors import from_user_error, invalid, unsupported
from serving.http.event_stream import DisconnectedError, unless_disconnected
from serving.http.json_pieces import json_list
from serving.http.request_record import record_of
from serving.http.schemas.answers import Embedding, Embeddings
from serving.http.schemas.embeddings import EmbeddingRequest
from serving.http.served_encoder import ServedEncoder
from serving.http.served_model import ServedModel
from serving.http.state import state_of
from serving.worker.messages import EmbedRequest

router = APIRouter(dependencies=[BEARER])
_caller = Depends(requires("embed"))


@router.post("/v1/embeddings", responses={200: {"model": Embeddings}, **ERRORS})
async def create_embeddings(
    body: EmbeddingRequest, request: Request, caller: Annotated[Caller, _caller]
) -> Response:
    """Embed texts or token ids: one vector each, of length 1 or as an encoder's checkpoint says."""
    record = record_of(request)
    model = find_model(request, caller, body.model, "embed")
    if body.dimensions not in (None, model.embedding_size):
        raise unsupported("dimensions", "This server's vectors have the model's own dimensions.")
    try:
        if isinstance(model, ServedEncoder):
            data = await _encoded(
                EncodingCall(request, caller, model, "input", body.priority or 0), body
            )
        else:
            data = await _decoded(request, caller, model, body)
    except DisconnectedError:
        record.disconnected = True
        return Response(status_code=499)  # nobody reads it; the log has it
    tokens = record.prompt_tokens
    rest = {
        "object": "list",
        "model": model.name,
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }
    content = f'{json.dumps(rest)[:-1]}, "data": {await json_list(data)}}}'
    return Response(content, headers=record.headers, media_type="application/json")


async def _encoded(call: EncodingCall, body: EmbeddingRequest) -> Iterator[Embedding]:
    """Embed with an encoder, which pools and normalises as its checkpoint says."""
    model = call.model
    if model.encoder.task != "embed":
        raise invalid(
            "model",
            f"The model '{model.name}' is an encoder for {model.encoder.task}: ask "
            f"/models/{model.name}.",
            "wrong_task",
        )
    if body.pooling is not None:
        raise unsupported(
            "pooling",
            f"The model pools as its checkpoint says ({model.encoder.pooling}): leave it out.",
        )
    overflow = body.context_overflow or "refuse"
    texts = [each for each in body.inputs if isinstance(each, str)]
    ids = [each for each in body.inputs if not isinstance(each, str)]
    encoded = [model.from_ids(each, "input", overflow) for each in ids]
    if texts:
        encoded = await model.encode(texts, "input", overflow, body.overlap)
    result = joining.embeddings(model.encoder, encoded, await call.rows(encoded))
    return (
        _embedding(at, vector, body)
        | ({"segments": segments, "truncated": truncated} if body.context_overflow else {})
        for at, (vector, segments, truncated) in enumerate(
            zip(result.vectors, result.segments, result.truncated, strict=True)
        )
    )


async def _decoded(
    request: Request, caller: Caller, model: ServedModel, body: EmbeddingRequest
) -> Iterator[Embedding]:
    """Embed with a decoder, whose hidden states are pooled."""
    state, record = state_of(request), record_of(request)
    _check_supported(body, model)
    requests = [
        EmbedRequest(
            await model.encode(text, "input"),
            pooling=body.pooling or "last",
            context_overflow="truncate" if body.context_overflow == "truncate" else "refuse",
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
    return (_embedding(at, vector, body) for at, vector in enumerate(vectors))


async def _embed_all(model: ServedModel, requests: list[EmbedRequest]) -> list[FloatArray]:
    # One after the other: the engine runs one prompt at a time.
    return [await model.worker.embed(each) for each in requests]


def _embedding(index: int, vector: FloatArray, body: EmbeddingRequest) -> Embedding:
    values: list[float] | str = vector.tolist()
    if body.encoding_format == "base64":
        values = base64.b64encode(vector.astype("<f4").tobytes()).decode()
    return {"object": "embedding", "index": index, "embedding": values}


def _check_supported(body: EmbeddingRequest, model: ServedModel) -> None:
    refuse_encoder_decoder(model, "which gives no embeddings")
    if body.context_overflow == "segments" or body.overlap is not None:
        raise unsupported(
            "overlap" if body.overlap is not None else "context_overflow",
            "Models that generate text don't embed in segments: refuse or truncate long inputs.",
        )
    opened = model.worker.opened
    if opened is not None and not opened.gives_embeddings:
        raise invalid(
            "model",
            f"The model '{model.name}' gives no embeddings: export it again with this version, for "
            "onnxruntime.",
        )
