"""The loop of an engine, at the other end of a channel."""

import queue
import threading
from collections.abc import Iterator

import numpy as np
import pytest

from serving.constraints import Constraint, Matcher
from serving.decoding import Failure, Token
from serving.generation import Model
from serving.scheduler import Outcome
from serving.worker.loop import EngineLoop
from serving.worker.messages import Cancel, Progress, Request, Submit
from tests.serving.test_constraints import random_model
from tests.serving.test_detokenizer import byte_level

WORD = Constraint.regex("[a-z]{3}")


class Channel:
    """Two queues; None closes it."""

    def __init__(self) -> None:
        self._incoming: queue.Queue[Submit | Cancel | None] = queue.Queue()
        self._first: list[Submit | Cancel | None] = []
        self.outgoing: queue.Queue[Progress] = queue.Queue()

    def put(self, message: Submit | Cancel | None) -> None:
        self._incoming.put(message)

    def poll(self, timeout: float | None = 0.0) -> bool:
        try:
            if not self._first:
                self._first = [self._incoming.get(block=timeout != 0, timeout=timeout)]
        except queue.Empty:
            return False
        return True

    def recv(self) -> Submit | Cancel:
        message = self._first.pop()
        if message is None:
            raise EOFError
        return message

    def send(self, progress: Progress) -> None:
        self.outgoing.put(progress)

    def events(self) -> Iterator[Outcome]:
        while True:
            yield from self.outgoing.get(timeout=10).events


@pytest.fixture
def model() -> Model:
    return random_model(byte_level())


@pytest.fixture
def channel(model: Model) -> Iterator[Channel]:
    """A channel to a loop on a thread, which ends with the test."""
    channel = Channel()

    def run() -> None:
        with pytest.raises(EOFError):
            EngineLoop(model, model.scheduler(), channel).run()

    thread = threading.Thread(target=run)
    thread.start()
    yield channel
    channel.put(None)
    thread.join()


def request(new_tokens: int, constraint: Constraint | None = None) -> Request:
    options = {"max_new_tokens": new_tokens, "ignore_eos": True, "constraint": constraint}
    return Request(np.array([5]), options)  # type: ignore[arg-type]


def test_streams_go_on_while_a_constraint_is_compiled(
    model: Model, channel: Channel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = [model.generate([5], **request(9, given).options) for given in (None, WORD)]
    compiled, compile_ = threading.Event(), model.matcher

    def compile_slowly(constraint: Constraint) -> Matcher:
        assert compiled.wait(10)
        return compile_(constraint)

    monkeypatch.setattr(model, "matcher", compile_slowly)
    channel.put(Submit(0, request(9, WORD)))
    channel.put(Submit(1, request(9)))
    channel.put(Submit(2, request(9, WORD)))
    channel.put(Submit(3, request(9, Constraint.regex("["))))
    channel.put(Cancel(2))
    tokens: dict[int, list[int]] = {}
    failed: list[int] = []
    for event in channel.events():
        if isinstance(event, Failure):
            failed.append(event.index)
        elif isinstance(event, Token):
            tokens.setdefault(event.index, []).append(event.token_id)
            if event.index == 1 and event.finish_reason:
                compiled.set()
        if len(tokens.get(0, ())) == 3 and failed:
            break
    assert [tokens[1], tokens[0]] == [result.token_ids for result in expected]
    assert set(tokens) == {0, 1}
    assert failed == [3]
