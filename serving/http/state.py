"""What all requests of one server share."""

from dataclasses import dataclass, field
from typing import cast

from starlette.requests import Request

from serving.errors import UserError
from serving.http.keys import KeyStore
from serving.http.metrics import Metrics
from serving.http.rate_limits import RateLimiter
from serving.http.request_limits import RequestLimits
from serving.http.served_model import ServedModels


@dataclass(slots=True)
class ServerState:
    """A server's models, its limits and what it is doing.

    ``running`` requests to the API haven't been answered completely. ``failure`` is why a model
    couldn't be opened, after which the server should end.
    """

    models: ServedModels
    limits: RequestLimits
    keys: KeyStore
    metrics: Metrics = field(init=False)
    limiter: RateLimiter = field(default_factory=RateLimiter)
    running: int = 0
    is_draining: bool = False
    failure: UserError | None = None

    def __post_init__(self) -> None:
        self.metrics = Metrics(self.models)

    @property
    def is_ready(self) -> bool:
        """Whether new requests are taken and every model can answer them."""
        return self.models.are_ready and not self.is_draining


def state_of(request: Request) -> ServerState:
    """The state of the server that got a request."""
    return cast(ServerState, request.app.state.server)
