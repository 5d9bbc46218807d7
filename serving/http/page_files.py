"""The chat page at ``/``: its files as they are, and what a browser may do with them."""

from pathlib import Path

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import FileResponse

_DIRECTORY = Path(__file__).parent / "page"
# Not from the machine's registry of types, which may say something else.
_TYPES = {
    ".css": "text/css",
    ".html": "text/html",
    ".js": "text/javascript",
    ".svg": "image/svg+xml",
}
# The page loads its own files and talks to this server, and to nobody else. Trusted types make
# browsers refuse text as HTML, should a later change try that with a model's answer.
_POLICY = (
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "img-src 'self'",
    "connect-src 'self'",
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
)
_HEADERS = {
    "cache-control": "no-cache",
    "content-security-policy": "; ".join(_POLICY),
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
}


async def _send(request: Request) -> FileResponse:
    file = _DIRECTORY / (request.url.path.rpartition("/")[2] or "index.html")
    return FileResponse(file, media_type=_TYPES[file.suffix], headers=_HEADERS)


# A route a file: whatever else is asked for stays the API's to refuse.
router = APIRouter()
for _path in ("/", *(f"/{file.name}" for file in sorted(_DIRECTORY.iterdir()))):
    router.add_route(_path, _send, include_in_schema=False)
