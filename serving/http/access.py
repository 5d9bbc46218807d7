"""Who makes a request and what they may ask for: API keys, their scopes and their rates."""

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from starlette.requests import Request

from serving.http.errors import ApiError, invalid
from serving.http.keys import Key, Scope
from serving.http.rate_limits import RateLimitError, TooManyTokensError
from serving.http.request_record import RequestRecord, record_of
from serving.http.served_encoder import ServedEncoder
from serving.http.served_model import Served, ServedModel
from serving.http.state import ServerState, state_of


@dataclass(frozen=True, slots=True)
class Caller:
    """Who makes a request: a key, or where there are none, an address; queues are fair to each."""

    client: str
    key: Key | None

    @contextmanager
    def admitted(self, state: ServerState, record: RequestRecord, tokens: int) -> Iterator[None]:
        """Take so many tokens, and a place among its requests, from the key's limits.

        At the end what wasn't used is given back. Raises ApiError if there aren't so many left.
        """
        if self.key is None:
            yield
            return
        try:
            reservation = state.limiter.admit(self.key, tokens)
        except RateLimitError as error:
            raise ApiError(
                429,
                str(error),
                kind="rate_limit_error",
                code="rate_limit_exceeded",
                headers=error.headers,
            ) from error
        except TooManyTokensError as error:
            raise invalid(None, str(error), "too_many_tokens") from error
        with reservation:
            record.headers |= reservation.headers
            try:
                yield
            finally:
                reservation.settle(record.prompt_tokens + record.new_tokens)


def requires(scope: Scope | None) -> Callable[[Request], Awaitable[Caller]]:
    """The dependency of an endpoint that needs a key with that scope (None: any valid one).

    Where no key was ever made, everybody may use the server: it listens on loopback only.
    """

    async def authenticate(request: Request) -> Caller:
        keys = state_of(request).keys
        if keys.is_open:
            return Caller(request.client.host if request.client else "", None)
        scheme, _, secret = request.headers.get("authorization", "").partition(" ")
        key = keys.authenticate(secret.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise ApiError(
                401,
                "Incorrect API key provided: send a valid one as Authorization: Bearer KEY.",
                kind="authentication_error",
                code="invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        record = record_of(request)
        record.key = key.name
        if scope is not None and not key.allows(scope):
            raise _forbidden(f"This API key may not be used for {scope}.")
        return Caller(key.name, key)

    return authenticate


def find_model(request: Request, caller: Caller, name: str, scope: Scope | None) -> Served:
    """The model that a request names. Raises ApiError if there is none, or it isn't allowed."""
    model = state_of(request).models.get(name)
    if model is None:
        raise ApiError(
            404, f"The model '{name}' does not exist.", param="model", code="model_not_found"
        )
    record = record_of(request)
    record.model = name
    if caller.key is not None and not may_use(caller.key, scope, name):
        raise _forbidden(f"This API key may not use the model '{name}'.", "model")
    return model


def find_generator(request: Request, caller: Caller, name: str) -> ServedModel:
    """The model that a request generates with; raises ApiError as find_model does."""
    model = find_model(request, caller, name, "generate")
    if isinstance(model, ServedEncoder):
        endpoint = "/v1/embeddings" if model.encoder.task == "embed" else f"/models/{name}"
        raise invalid(
            "model",
            f"The model '{name}' is an encoder for {model.encoder.task}, which generates no text: "
            f"ask {endpoint}.",
            "wrong_task",
        )
    return model


def find_encoder(request: Request, caller: Caller, name: str) -> ServedEncoder:
    """The encoder that a request names; raises ApiError as find_model does."""
    model = find_model(request, caller, name, None)
    if isinstance(model, ServedModel):
        raise invalid(
            "model",
            f"The model '{name}' generates text and is no encoder: ask /v1/chat/completions or "
            "/v1/completions.",
            "wrong_task",
        )
    scope: Scope = "embed" if model.encoder.task == "embed" else "classify"
    if caller.key is not None and not caller.key.allows(scope):
        raise _forbidden(f"This API key may not be used for {scope}.")
    return model


def may_use(key: Key, scope: Scope | None, model: str) -> bool:
    """Whether a key may use a model, for anything if there is no scope."""
    if scope is None:
        return key.models is None or model in key.models
    return key.allows(scope, model)


def _forbidden(message: str, param: str | None = None) -> ApiError:
    return ApiError(403, message, kind="permission_error", param=param, code="not_allowed")
