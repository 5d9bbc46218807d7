"""Deploying the application on a Ray cluster for a while, or on one that is started for it."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager

import ray
from ray import serve

from serving.errors import UserError
from serving.http.keys import KeyStore
from serving.http.listening import Listening
from serving.http.ray_app import Settings, deployed

_NAME = "serve-llm"


@contextmanager
def serving_on_ray(
    settings: Settings, keys: KeyStore, listening: Listening, address: str | None
) -> Iterator[None]:
    """Deploy when entered, and drain and take away when left.

    ``address`` is that of a cluster to join; without one, Ray is started on this machine. Where
    Serve runs on a cluster already, it goes on to listen where it does. Raises UserError if there
    is no such cluster or the application doesn't start.
    """
    settings.state(keys)  # what can't be served is refused before anything is started
    try:
        ray.init(
            address, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING
        )
    except ConnectionError as error:
        raise UserError(
            f"There is no Ray cluster at {address} ({error}): check --address, or leave it out to "
            "start one here."
        ) from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    try:
        certificate = listening.certificate
        serve.start(
            http_options={
                "host": listening.host,
                "port": listening.port,
                "ssl_certfile": str(certificate.chain) if certificate else None,
                "ssl_keyfile": str(certificate.key) if certificate else None,
            },
            logging_config={"enable_access_log": False, "log_level": "WARNING"},
        )
        try:
            serve.run(deployed(settings, keys), name=_NAME)
            yield
        except RuntimeError as error:  # that is all that Ray Serve tells
            raise UserError(_reason()) from error
        finally:
            serve.delete(_NAME)
    finally:
        ray.shutdown()


def _reason() -> str:
    application = serve.status().applications[_NAME]
    messages = [each.message for each in application.deployments.values()]
    last = "\n".join([application.message, *messages]).strip().splitlines()[-1]
    kind, _, message = last.partition(": ")
    return message if kind.startswith("serving.errors.") else f"Ray Serve can't start ({last})"
