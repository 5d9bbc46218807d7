"""The loop of an encoder, at the other end of a pipe."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import pytest

from serving.decoding import Failure
from serving.encoders.model import EncoderModel
from serving.encoders.opening import load_encoder
from serving.errors import EngineError
from serving.scheduler import DeadlineError
from serving.worker import encoder_loop
from serving.worker.encoder_loop import EncoderLoop
from serving.worker.messages import BatchProgress, Cancel, Encoded, EncodeRequest, SubmitTexts
from tests.encoders import encoder_fixture

TEXTS = ["def main(func):", "x", "Return a partial function application of the arguments.", "y z"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EncoderModel]:
    bundle = encoder_fixture(tmp_path_factory)("sentences") / "bundle"
    with load_encoder(bundle, threads=1, batch_tokens=64) as opened:
        yield opened


@contextmanager
def running(model: EncoderModel, *sent: SubmitTexts | Cancel) -> Iterator[Connection]:
    """A loop on a thread, to which this was sent before it began."""
    ours, theirs = Pipe()
    for message in sent:
        ours.send(message)

    def run() -> None:
        with pytest.raises((EOFError, EngineError, ConnectionResetError)):
            EncoderLoop(model, theirs).run()

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield ours
    finally:
        ours.close()
        thread.join(10)
        assert not thread.is_alive()


def submit(model: EncoderModel, index: int, *texts: str, **options: Any) -> SubmitTexts:
    encoded = model.texts.encode(texts, "refuse")
    tokens = [segment.tokens for text in encoded for segment in text.segments]
    return SubmitTexts(index, EncodeRequest(tokens, **options))


def outcomes(channel: Connection, wanted: int) -> tuple[dict[int, Any], list[BatchProgress]]:
    """What came of so many requests, by index, and all that was said until then."""
    found: dict[int, Any] = {}
    said: list[BatchProgress] = []
    while len(found) < wanted:
        assert channel.poll(20), "the loop says nothing"
        said.append(channel.recv())
        found |= {event.index: event for event in said[-1].events}
    return found, said


def vectors(outcome: Encoded) -> Any:
    return np.stack([row[0] for row in outcome.rows])


def test_requests_together_get_what_each_gets_alone(model: EncoderModel) -> None:
    sent = [submit(model, index, *TEXTS[index:]) for index in range(len(TEXTS))]
    with running(model, *sent) as channel:
        found, said = outcomes(channel, len(TEXTS))
        for index in range(len(TEXTS)):
            alone = model.embed(TEXTS[index:]).vectors
            np.testing.assert_allclose(vectors(found[index]), alone, atol=1e-6)
    load = said[-1].load
    texts = [text for request in sent for text in request.request.texts]
    assert load.batch_tokens == sum(len(text.ids) for text in texts)
    assert load.batches == len(said) < len(texts)
    assert load.waiting == 0


def test_a_request_of_many_texts_runs_a_batch_at_a_time(model: EncoderModel) -> None:
    many = submit(model, 0, *TEXTS * 20)
    with running(model, many, submit(model, 1, TEXTS[0])) as channel:
        first, said = outcomes(channel, 1)
        assert list(first) == [1]
        assert len(said) <= 2
        rest, _ = outcomes(channel, 1)
        assert len(vectors(rest[0])) == 80


def test_what_nobody_waits_for_is_not_run(model: EncoderModel) -> None:
    left, late, kept = (submit(model, i, TEXTS[0], seconds=s) for i, s in enumerate((9, 0.0, 9)))
    with running(model, left, late, Cancel(0), kept) as channel:
        found, said = outcomes(channel, 2)
    assert isinstance(found[1].error, DeadlineError)
    assert isinstance(found[2], Encoded)
    assert 0 not in found
    assert said[-1].load.batch_tokens == len(kept.request.texts[0].ids)


def test_whom_a_batch_answered_is_waited_for(
    model: EncoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batches take 100 seconds of a clock that stands still otherwise."""
    now, run = [0.0], model.engine.run

    def slow(*arguments: Any) -> Any:
        now[0] += 100
        return run(*arguments)

    monkeypatch.setattr(encoder_loop, "perf_counter", lambda: now[0])
    monkeypatch.setattr(model.engine, "run", slow)
    first, again = (
        [submit(model, index, "x") for index in indices] for indices in ((0, 1), (2, 3))
    )
    with running(model, *first) as channel:
        outcomes(channel, 2)
        channel.send(again[0])
        assert not channel.poll(0.2), "the first to ask again ran alone"
        channel.send(again[1])
        _, said = outcomes(channel, 2)
    assert said[-1].load.batches == 2


def test_nan_is_an_error_of_its_request_alone(
    model: EncoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = model.engine.run

    def overflowing(inputs: Any, outputs: Any) -> Any:
        found = run(inputs, outputs)
        found[0][inputs["attention_mask"].sum(1) == 3] = np.nan
        return found

    monkeypatch.setattr(model.engine, "run", overflowing)
    sent = [submit(model, 0, TEXTS[3]), submit(model, 1, TEXTS[3], "x"), submit(model, 2, TEXTS[0])]
    with running(model, *sent) as channel:
        found, _ = outcomes(channel, 3)
    assert [type(found[index]) for index in range(3)] == [Encoded, Failure, Encoded]
    assert "NaN" in str(found[1].error)


def test_an_engine_that_fails_ends_the_loop_and_all_requests(
    model: EncoderModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> Callable[..., Any]:
        raise EngineError("The engine failed.")

    monkeypatch.setattr(model.engine, "run", fail)
    long = " ".join(TEXTS[:3])
    with running(model, submit(model, 0, long, long, "x"), submit(model, 1, "x")) as channel:
        found, _ = outcomes(channel, 2)
    assert all(isinstance(each.error, EngineError) for each in found.values())
