"""What OpenAPI says of the endpoints, beyond what FastAPI finds out."""

from typing import Any

from fastapi import Depends, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.security import HTTPBearer

from serving.http.schemas.answers import ErrorDocument

Responses = dict[int | str, dict[str, Any]]

# Says that a key may be sent; serving/http/access.py looks at it.
BEARER = Depends(HTTPBearer(auto_error=False, description="An API key, where the server has any."))

# What every endpoint of the API may answer beside what it should.
ERRORS: Responses = {
    status: {"model": ErrorDocument}
    for status in (400, 401, 403, 404, 408, 413, 429, 500, 503, 504)
}


def answers(document: Any) -> Responses:
    """A document, or a stream of its parts."""
    return {200: {"model": document, "content": {"text/event-stream": {"schema": {}}}}}


def describe(app: FastAPI) -> dict[str, Any]:
    """The description: keys are needed where there are any, and 422 is never answered, but 400."""
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, description=app.description, routes=app.routes
        )
        for path in document["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
                if "security" in operation:
                    operation["security"].append({})
        for name in ("HTTPValidationError", "ValidationError"):
            document["components"]["schemas"].pop(name, None)
        app.openapi_schema = document
    return app.openapi_schema
