"""``/v1/models``."""

from typing import Annotated

from fastapi import APIRouter, Depends
from starlette.requests import Request

from serving.http.access import Caller, find_model, may_use, requires
from serving.http.api_description import BEARER, ERRORS
from serving.http.schemas.answers import Model, ModelList
from serving.http.state import state_of

router = APIRouter(dependencies=[BEARER])
_caller = Depends(requires(None))


@router.get("/v1/models", response_model=ModelList, responses=ERRORS)
async def list_models(request: Request, caller: Annotated[Caller, _caller]) -> ModelList:
    """The models that the caller may use."""
    models = [
        model.document
        for model in state_of(request).models.named
        if caller.key is None or may_use(caller.key, None, model.name)
    ]
    return {"object": "list", "data": models}


@router.get("/v1/models/{model:path}", response_model=Model, responses=ERRORS)
async def get_model(model: str, request: Request, caller: Annotated[Caller, _caller]) -> Model:
    """One model; names may have slashes."""
    return find_model(request, caller, model, None).document
