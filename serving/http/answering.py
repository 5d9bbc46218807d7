"""From a generation to an answer: whole or streamed, in the form that the endpoint has."""

import json
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Any, Protocol

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.decoding import Token
from serving.errors import UserError
from serving.http.errors import from_user_error
from serving.http.event_stream import DisconnectedError, EventStream, unless_disconnected
from serving.http.generating import Generation
from serving.http.request_record import RequestRecord, record_of
from serving.http.schemas.answers import Usage
from serving.http.state import state_of

# The answer's last bytes may take a little longer than the generation.
_SENDING_SECONDS = 30.0

Tokens = AsyncGenerator[tuple[int, Token], None]


class WholeForm(Protocol):
    """How an endpoint answers at once."""

    def add(self, choice: int, token: Token) -> None:
        """Take the next token of a choice."""
        ...

    def document(self, usage: Usage) -> Any:
        """The answer, once all choices have ended."""
        ...


class StreamForm(Protocol):
    """How an endpoint streams; every method returns server-sent events, or nothing."""

    def opening(self) -> str:
        """What comes before all tokens."""
        ...

    def chunk(self, choice: int, token: Token) -> str:
        """What the next token of a choice adds."""
        ...

    def closing(self, usage: Usage) -> str:
        """What comes after all tokens."""
        ...


async def answer_whole(
    request: Request, generation: Generation, form: WholeForm, param: str | None
) -> Response:
    """Generate everything, then answer; ``param`` is what a refusal of the worker is about."""
    record = record_of(request)
    tokens = generation.run(state_of(request), record)

    async def collect() -> None:
        async with aclosing(tokens):
            async for choice, token in tokens:
                form.add(choice, token)
                record.finish_reason = token.finish_reason

    try:
        await unless_disconnected(request.receive, collect())
    except UserError as error:
        raise from_user_error(error, param) from error
    except DisconnectedError:
        record.disconnected = True
        return Response(status_code=499)  # nobody reads it; the log has it
    return JSONResponse(form.document(_usage(record)), headers=record.headers)


async def answer_stream(
    request: Request, generation: Generation, form: StreamForm, param: str | None
) -> Response:
    """Wait for the first token, for until then an error still has its status; then stream."""
    record = record_of(request)
    tokens = generation.run(state_of(request), record)
    try:
        first = await unless_disconnected(request.receive, anext(tokens))
    except UserError as error:
        raise from_user_error(error, param) from error
    except DisconnectedError:
        await tokens.aclose()
        record.disconnected = True
        return Response(status_code=499)
    seconds = state_of(request).limits.request_seconds + _SENDING_SECONDS
    return EventStream(_events(first, tokens, form, record, param), record.headers, seconds)


async def _events(
    first: tuple[int, Token],
    tokens: Tokens,
    form: StreamForm,
    record: RequestRecord,
    param: str | None,
) -> AsyncGenerator[str, None]:
    async with aclosing(tokens):
        yield form.opening() + form.chunk(*first)
        try:
            async for choice, token in tokens:
                if events := form.chunk(choice, token):
                    yield events
                record.finish_reason = token.finish_reason
        except UserError as error:
            failure = from_user_error(error, param)
            record.error = failure.code or failure.kind
            yield f"data: {json.dumps(failure.document)}\n\n"
        else:
            yield form.closing(_usage(record))


def _usage(record: RequestRecord) -> Usage:
    return {
        "prompt_tokens": record.prompt_tokens,
        "completion_tokens": record.new_tokens,
        "total_tokens": record.prompt_tokens + record.new_tokens,
        "prompt_tokens_details": {"cached_tokens": record.cached_tokens},
    }
