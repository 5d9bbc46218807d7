"""The same application on Ray Serve: replicas, of which there are as many as the load needs.

Ray Serve imports ``serving.http.ray_app:application``, or ``serve-llm ray`` runs it.
"""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, NonNegativeFloat, PositiveFloat, PositiveInt
from ray import serve
from ray.serve import Application

from serving.errors import UserError
from serving.http.app import create_app
from serving.http.keys import KeyStore
from serving.http.logs import configure_logs
from serving.http.request_limits import RequestLimits
from serving.http.served_model import open_models
from serving.http.state import ServerState
from serving.loading import DEFAULT_SLOTS

# A replica that fails three checks in a row is replaced. A worker that died is usually back before.
_CHECK_SECONDS = 5.0


class Settings(BaseModel):
    """What is deployed, and on how much.

    ``bundles`` are directories that every node has, by the name that requests choose them by.
    ``loading`` are parameters of serving.load; each replica has ``cpus`` and ``gpus`` to itself.
    There are from ``min_replicas`` to ``max_replicas``, so many that each has about
    ``target_ongoing_requests`` (default: its slots). One that is taken away has ``drain_seconds``
    to finish its requests. ``api_keys`` is a key file that every node has. For the others see
    WorkerOptions and RequestLimits.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundles: Mapping[str, Path]
    loading: Mapping[str, Any] = {}
    limits: RequestLimits = RequestLimits()
    api_keys: Path | None = None
    target_latency: PositiveFloat | None = None
    queue_limit: PositiveInt = 128
    silent_seconds: PositiveFloat = 120.0
    min_replicas: PositiveInt = 1
    max_replicas: PositiveInt = 1
    target_ongoing_requests: PositiveFloat | None = None
    cpus: PositiveFloat = 1.0
    gpus: NonNegativeFloat = 0.0
    drain_seconds: NonNegativeFloat = 30.0
    log_level: str = "INFO"

    @property
    def slots(self) -> int:
        """Sequences that a replica runs at a time."""
        return int(self.loading.get("slots") or DEFAULT_SLOTS)

    def state(self, keys: KeyStore) -> ServerState:
        """A replica's state; raises UserError for bundles that can't be served."""
        threads = self.loading.get("threads") or max(1, int(self.cpus))
        models = open_models(
            self.bundles,
            {**self.loading, "threads": threads},
            target_latency=self.target_latency,
            queue_limit=self.queue_limit,
            silent_seconds=self.silent_seconds,
        )
        return ServerState(models, self.limits, keys)


def application(settings: Settings) -> Application:
    """The application for a configuration of Ray Serve, whose ``args`` are the settings.

    Raises UserError if there is no API key: proxies of a cluster can be reached from elsewhere.
    """
    keys = KeyStore.open(settings.api_keys)
    if not keys.keys:
        raise UserError(
            "Others could use the server, and it has no API key: make one with serve-llm keys "
            "create and give its file as api_keys, or set EXPORT_LLM_API_KEY."
        )
    return deployed(settings, keys)


def deployed(settings: Settings, keys: KeyStore) -> Application:
    """The application with these keys; if there are none everybody may use it."""

    def build() -> FastAPI:
        configure_logs(settings.log_level.upper())
        return create_app(settings.state(keys))

    @serve.ingress(build)
    class Replica:
        """A server that Ray Serve starts, asks how it is, and ends."""

        app: FastAPI  # what ``build`` made

        def __init__(self) -> None:
            self._has_started = False

        async def check_health(self) -> None:
            """Ray Serve's health check: the first one, which starting ends with, waits."""
            state: ServerState = self.app.state.server
            while not self._has_started:
                if state.failure is not None:
                    raise state.failure
                self._has_started = state.is_ready
                await asyncio.sleep(0.02)
            if not state.is_ready:
                raise UserError("The engine's process is being started again.")

    deployment: serve.Deployment = serve.deployment(
        name="serve-llm",
        ray_actor_options={"num_cpus": settings.cpus, "num_gpus": settings.gpus},
        autoscaling_config={
            "min_replicas": settings.min_replicas,
            "max_replicas": settings.max_replicas,
            "target_ongoing_requests": settings.target_ongoing_requests or settings.slots,
        },
        # More than its queue takes: the application refuses itself, as OpenAI's clients expect.
        max_ongoing_requests=2 * (settings.slots + settings.queue_limit),
        health_check_period_s=_CHECK_SECONDS,
        graceful_shutdown_timeout_s=settings.drain_seconds,
    )(Replica)
    return deployment.bind()
