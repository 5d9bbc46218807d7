"""The application: routes, middleware, error handlers, and the workers' life."""

import asyncio
import functools
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from serving.errors import UserError
from serving.http import chat, completions, embeddings, inference, models, operations, page_files
from serving.http.api_description import describe
from serving.http.errors import (
    ApiError,
    answer_api_error,
    answer_http_exception,
    answer_unexpected_error,
    answer_validation_error,
)
from serving.http.observing import Observing
from serving.http.request_limits import BodyLimits
from serving.http.state import ServerState

_log = logging.getLogger(__name__)


def create_app(state: ServerState) -> FastAPI:
    """The application; it starts the workers, and answers 503 until they are ready."""
    app = FastAPI(
        title="export-llm",
        version=version("export-llm"),
        description="OpenAI's API over bundles that export-llm made.",
        lifespan=_lifespan,
        redoc_url=None,
    )
    app.state.server = state
    app.openapi = functools.partial(describe, app)  # type: ignore[method-assign]
    for endpoints in (models, chat, completions, embeddings, inference, operations, page_files):
        app.include_router(endpoints.router)
    app.add_exception_handler(ApiError, answer_api_error)
    app.add_exception_handler(RequestValidationError, answer_validation_error)
    app.add_exception_handler(HTTPException, answer_http_exception)
    app.add_exception_handler(Exception, answer_unexpected_error)
    app.add_middleware(BodyLimits, limits=state.limits)
    app.add_middleware(Observing, state=state)
    return app


@asynccontextmanager
async def _lifespan(app: FastAPI) -> AsyncIterator[None]:
    """Start the workers beside the server, which says meanwhile that it isn't ready."""
    state: ServerState = app.state.server
    starting = asyncio.create_task(_start(state))
    yield
    starting.cancel()
    await asyncio.gather(starting, return_exceptions=True)
    await state.models.close()


async def _start(state: ServerState) -> None:
    try:
        await state.models.start()
    except UserError as error:
        state.failure = error
        return
    _log.info("ready")
