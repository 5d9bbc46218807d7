"""Requests of a model whose engine fails, and whose clients go away, without a server."""

import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from serving.bundle import SpecialTokens
from serving.engine import FloatArray
from serving.errors import EngineError, UserError
from serving.generation import Model
from serving.triton import in_flight as module
from serving.triton.in_flight import ENGINE_FAILED, InFlight
from serving.triton.record import Record
from serving.triton.requests import Array
from tests.serving.counting_engine import CountingEngine, continuation
from tests.serving.triton.clients import until

PROMPT = [3, 1, 4]


class FailingEngine(CountingEngine):
    """Fails at a step once it is told to."""

    fails: type[Exception] | None = None

    def step(self, *arguments: Any, **named: Any) -> FloatArray:
        if self.fails is not None:
            raise self.fails("the device is lost")
        return super().step(*arguments, **named)


@dataclass
class Responses:
    """A client that notes what it gets."""

    is_gone: bool = False
    token_ids: list[int] = field(default_factory=list)
    error: str | None = None
    ends: int = 0

    def send(self, outputs: Mapping[str, Array], *, last: bool) -> None:
        self.token_ids += outputs["output_ids"].ravel().tolist()
        self.ends += last

    def fail(self, reason: str) -> None:
        self.error = reason
        self.ends += 1

    def confirm_cancelled(self) -> None:
        self.error = "cancelled"
        self.ends += 1

    def is_cancelled(self) -> bool:
        return self.is_gone


class Service:
    """Requests in flight over engines that a test can break."""

    def __init__(self) -> None:
        self.engines: list[FailingEngine] = []
        self.ended: list[Record] = []
        self.may_open = threading.Event()
        self.may_open.set()
        self.in_flight = InFlight(self._open, self.ended.append, {})

    def ask(self, max_tokens: int) -> Responses:
        responses = Responses()
        tensors = {
            "input_ids": np.array([PROMPT], np.int32),
            "max_tokens": np.array([[max_tokens]], np.int32),
            "stream": np.array([[True]]),
        }
        self.in_flight.begin(tensors, responses, None)
        return responses

    def _open(self) -> Model:
        if not self.may_open.is_set():
            raise UserError("The device isn't back yet: wait.")
        self.engines.append(FailingEngine(slots=2, capacity=100_000))
        return Model(self.engines[-1], SpecialTokens())


@pytest.mark.parametrize("error", [EngineError, ZeroDivisionError])
def test_an_engine_that_fails_is_opened_again(
    error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RETRY_SECONDS", 0.01)
    service = Service()
    with service.in_flight:
        running = [service.ask(50_000) for _ in range(3)]  # one of them waits
        until(lambda: bool(running[0].token_ids))
        service.may_open.clear()
        service.engines[0].fails = error
        until(lambda: all(one.ends == 1 for one in running))
        # One of the engine's own errors is said to whom it concerns.
        assert {one.error for one in running} <= {ENGINE_FAILED, "the device is lost"}
        until(lambda: service.engines[0].is_closed)
        meanwhile = service.ask(5)
        assert "being started again" in str(meanwhile.error)
        service.may_open.set()
        until(lambda: len(service.engines) == 2 and not service.ask(1).error)
        after = service.ask(5)
        until(lambda: after.ends == 1)
        assert after.token_ids == continuation(PROMPT, 5)
    assert all(one.ends == 1 for one in [*running, meanwhile])


def test_whoever_goes_away_is_forgotten_and_nobody_else() -> None:
    service = Service()
    with service.in_flight:
        gone, waiting, other = service.ask(50_000), service.ask(50_000), service.ask(10)
        until(lambda: bool(gone.token_ids))
        gone.is_gone = waiting.is_gone = True
        service.in_flight.forget_cancelled()
        until(lambda: other.ends == 1)
        assert (gone.error, waiting.error, other.error) == ("cancelled", "cancelled", None)
        assert other.token_ids == continuation(PROMPT, 10)
    assert (gone.ends, waiting.ends) == (1, 1)
    assert sorted(record.ending for record in service.ended) == [
        "cancelled",
        "cancelled",
        "finished",
    ]


def test_closing_ends_what_runs() -> None:
    service = Service()
    with service.in_flight:
        running = service.ask(50_000)
        until(lambda: bool(running.token_ids))
    assert "unloaded" in str(running.error)
    assert running.ends == 1
    assert service.engines[0].is_closed
