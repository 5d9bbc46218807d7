"""Beam searches beside streams: whose slots, whose turn, and how they end."""

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from serving import Model, UserError
from serving.beam_search import BeamParameters, Found
from serving.bundle import SpecialTokens
from serving.decoding import Failure, Token
from serving.engine import FloatArray
from serving.request_queue import Job, QueueFullError
from serving.scheduler import DeadlineError, Outcome, Scheduler
from tests.serving.counting_engine import CountingEngine, continuation

PROMPT = [5, 9, 1, 30, 2, 2, 7, 8, 1]


def make_model(
    slots: int = 4, rows: int = 0, engine: type[CountingEngine] = CountingEngine
) -> Model:
    return Model(engine(slots + rows), SpecialTokens(), prefill_chunk=4, slots=slots)


def submit(
    scheduler: Scheduler, model: Model, index: int, prompt: list[int], new: int, beams: int = 1
) -> Job:
    job = Job(model.sequence(prompt, index, max_new_tokens=new))
    job.beams = BeamParameters(beams) if beams > 1 else None
    scheduler.submit(job)
    return job


def step_until(scheduler: Scheduler, condition: Callable[[], Any]) -> None:
    while not condition():
        scheduler.step()


def texts(events: list[Outcome]) -> dict[int, list[int]]:
    """What streams got and searches found."""
    found: dict[int, list[int]] = {}
    for event in events:
        if isinstance(event, Found):
            found[event.index] = event.generations[0].token_ids
        elif isinstance(event, Token):
            found.setdefault(event.index, []).append(event.token_id)
    return found


def best(prompt: list[int], new: int, beams: int) -> list[int]:
    result = make_model().generate(prompt, max_new_tokens=new, num_beams=beams)
    return result.token_ids


def test_chunks_streams_and_a_search_take_turns() -> None:
    model = make_model(slots=5)
    assert isinstance(model.engine, CountingEngine)
    scheduler = model.scheduler()
    submit(scheduler, model, 0, [1], 60)
    submit(scheduler, model, 1, PROMPT, 20, beams=3)
    submit(scheduler, model, 2, [2] * 30, 3)
    got = texts(list(scheduler.run()))
    assert got[0] == continuation([1], 60)
    assert got[1] == best(PROMPT, 20, 3)
    steps = model.engine.steps
    chunks = [(2, 1, 4), (2, 1, 4), (2, 1, 1)]
    assert [step for step in steps if step[0] == 2] == [*chunks, *[(2, 3, 1)] * 19]
    # Between two tokens of the stream there are a chunk and a step of the search at most.
    decoded = [at for at, step in enumerate(steps) if step[0] == 0 and step[2] == 1]
    gaps = [steps[at + 1 : to] for at, to in pairwise(decoded)]
    assert max(map(len, gaps)) == 2
    assert max(sum(rows == 3 for _, rows, _ in gap) for gap in gaps) == 1
    assert max(sum(rows == 1 for _, rows, _ in gap) for gap in gaps) == 1


def test_nothing_overtakes_a_search_that_waits_for_slots() -> None:
    model = make_model()
    scheduler = model.scheduler()
    submit(scheduler, model, 0, [1], 30)
    submit(scheduler, model, 1, [2], 5)
    step_until(scheduler, lambda: len(scheduler.active) == 2)
    submit(scheduler, model, 2, PROMPT, 5, beams=3)
    submit(scheduler, model, 3, PROMPT, 5, beams=2)
    for index in range(4, 8):
        submit(scheduler, model, index, [index], 3)
    step_until(scheduler, lambda: scheduler.prefill)
    assert scheduler.prefill is not None
    assert scheduler.prefill.job.sequence.index == 2
    assert len(scheduler.active) == 1, "the other stream has ended"
    events = list(scheduler.run())
    ends = [e.index for e in events if isinstance(e, Found) or e.finish_reason]  # type: ignore[union-attr]
    assert ends[0] == 2
    assert texts(events)[3] == best(PROMPT, 5, 2)


def test_streams_have_the_slots_that_a_search_leaves() -> None:
    model = make_model()
    scheduler = model.scheduler()
    submit(scheduler, model, 0, PROMPT, 40, beams=3)
    for index in range(1, 4):
        submit(scheduler, model, index, [index], 50)
    while scheduler.search is None:
        scheduler.step()
    most = 0
    while scheduler.search:
        scheduler.step()
        most = max(most, len(scheduler.active))
    assert most == 1
    step_until(scheduler, lambda: len(scheduler.active) == 3)


PHASES: dict[str, Callable[[Scheduler], Any]] = {
    "waits": lambda scheduler: len(scheduler.active) == 2,
    "prompt": lambda scheduler: scheduler.prefill and scheduler.prefill.done == 8,
    "searches": lambda scheduler: scheduler.search,
}


@pytest.mark.parametrize("end", ["cancel", "deadline", "clear"])
@pytest.mark.parametrize("phase", PHASES)
def test_a_search_ends_wherever_it_is(phase: str, end: str) -> None:
    now = 0.0
    model = make_model(slots=4 if phase == "waits" else 5, rows=2)
    scheduler = model.scheduler()
    scheduler._clock = lambda: now
    submit(scheduler, model, 0, [1], 60)
    submit(scheduler, model, 1, [2], 60)
    submit(scheduler, model, 2, PROMPT * 2, 60, beams=3).deadline = 5.0
    step_until(scheduler, lambda: PHASES[phase](scheduler))
    if end == "clear":
        assert sorted(scheduler.clear()) == [0, 1, 2]
        assert scheduler.is_idle
    elif end == "cancel":
        assert scheduler.cancel(2)
        assert not scheduler.cancel(2)
        assert set(texts(list(scheduler.run()))) == {0, 1}
    else:
        now = 5.0
        late = [event for event in scheduler.run() if not isinstance(event, Token)]
        assert [(each.index, type(each.error)) for each in late] == [(2, DeadlineError)]  # type: ignore[union-attr]
    submit(scheduler, model, 3, PROMPT, 9, beams=4)
    assert texts(list(scheduler.run())) == {3: best(PROMPT, 9, 4)}


class Overflowing(CountingEngine):
    """Gives NaN for rows that begin with 9 and are as long as ``at``."""

    at = 0

    def step(self, *arguments: Any) -> FloatArray:
        logits = super().step(*arguments)
        first_slot = arguments[3] if len(arguments) > 3 else 0
        for row, past in enumerate(arguments[1]):
            if self.keys[first_slot + row, 0] == 9 and past >= self.at:
                logits[row] = np.nan
        return logits


@pytest.mark.parametrize("at", [0, 15])
def test_a_search_that_fails_leaves_the_others_alone(at: int) -> None:
    model = make_model(engine=Overflowing)
    assert isinstance(model.engine, Overflowing)
    model.engine.at = at
    scheduler = model.scheduler()
    submit(scheduler, model, 0, [1], 40)
    submit(scheduler, model, 1, [9, *PROMPT], 20, beams=3)
    submit(scheduler, model, 2, PROMPT, 20, beams=3)
    events = list(scheduler.run())
    (failure,) = [event for event in events if isinstance(event, Failure)]
    assert (failure.index, type(failure.error)) == (1, UserError)
    assert texts(events) == {0: continuation([1], 40), 2: best(PROMPT, 20, 3)}


def test_a_search_that_is_not_possible_is_refused_when_it_comes() -> None:
    model = make_model()
    scheduler = model.scheduler(queue_limit=1)
    with pytest.raises(UserError, match="num_beams is 5, but there are 4 slots"):
        submit(scheduler, model, 0, PROMPT, 5, beams=5)
    sampled = model.sequence(PROMPT, temperature=1.0)
    with pytest.raises(UserError, match="temperature can't be combined"):
        scheduler.submit(Job(sampled, beams=BeamParameters(2)))
    submit(scheduler, model, 0, PROMPT, 5, beams=4)
    with pytest.raises(QueueFullError):
        submit(scheduler, model, 1, PROMPT, 5, beams=4)


def test_a_search_takes_known_prefixes_and_keeps_nothing() -> None:
    model = make_model(rows=3)
    assert isinstance(model.engine, CountingEngine)
    assert model.prefixes is not None
    prompt = list(range(1, 31))
    expected = best(prompt, 12, 4)
    model.generate(prompt, max_new_tokens=1)
    model.engine.steps.clear()
    kept = model.engine.keys[4:].copy()
    assert model.generate(prompt, max_new_tokens=12, num_beams=4).token_ids == expected
    assert model.engine.steps[:2] == [(0, 1, 1), (0, 4, 1)]
    assert (model.engine.keys[4:] == kept).all()
