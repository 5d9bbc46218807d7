"""What those who operate a server ask it: whether it lives, whether it is ready, what it did."""

from typing import Annotated

from fastapi import APIRouter, Depends
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from serving.http.access import Caller, requires
from serving.http.api_description import BEARER, ERRORS
from serving.http.schemas.answers import Status
from serving.http.state import state_of

router = APIRouter()


@router.get("/health", response_model=Status)
async def health() -> Status:
    """Whether the server answers."""
    return {"status": "ok"}


@router.get("/ready", response_model=Status, responses={503: {"model": Status}})
async def ready(request: Request) -> Response:
    """Whether every model can answer, and new requests are taken."""
    state = state_of(request)
    if state.is_ready:
        return JSONResponse({"status": "ready"})
    status = "draining" if state.is_draining else "loading"
    return JSONResponse({"status": status}, 503, {"retry-after": "1"})


@router.get(
    "/metrics",
    dependencies=[BEARER],
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}, **ERRORS},
)
async def metrics(request: Request, _: Annotated[Caller, Depends(requires("metrics"))]) -> Response:
    """Metrics for Prometheus."""
    return Response(state_of(request).metrics.text(), media_type=CONTENT_TYPE_LATEST)
