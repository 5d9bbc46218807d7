"""Requests that come and go get what they would get alone, on an engine that shows a wrong slot."""

from collections.abc import Iterator
from concurrent.futures import Future
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import serving
from serving import Model, UserError
from serving.bundle import SpecialTokens
from serving.constraints import Matcher
from serving.decoding import Failure, Token
from serving.engine import FloatArray
from serving.request_queue import Job, QueueFullError
from serving.scheduler import DeadlineError, Scheduler
from tests.serving.arrivals import Arrival, arrivals, serve
from tests.serving.counting_engine import VOCAB, CountingEngine, continuation, repetitive_token
from tests.serving.fixed_costs import FixedCosts
from tests.serving.tiny_bundle import make_bundle
from tests.serving.tiny_graph import VOCAB as TINY_VOCAB


def make_model(slots: int = 3, prefix_rows: int = 0, chunk: int = 8, **changes: Any) -> Model:
    rows = slots + prefix_rows
    engine = CountingEngine(rows, changes.pop("capacity", 100), repetitive_token)
    draft = CountingEngine(slots, 140, lambda ids: repetitive_token(ids) + (len(ids) % 7 == 0))
    model = Model(
        engine,
        SpecialTokens(**changes),
        prefill_chunk=chunk,
        draft=draft,
        slots=slots,
    )
    model._step_costs = FixedCosts(0.01)
    return model


def submit(
    scheduler: Scheduler, model: Model, index: int, prompt: list[int], **options: Any
) -> None:
    job = {
        name: options.pop(name) for name in ("priority", "client", "deadline") if name in options
    }
    scheduler.submit(Job(model.sequence(prompt, index, **options), **job))


def tokens_of(scheduler: Scheduler) -> dict[int, list[int]]:
    tokens: dict[int, list[int]] = {}
    for event in scheduler.run():
        assert isinstance(event, Token), event
        tokens.setdefault(event.index, []).append(event.token_id)
    return tokens


@settings(max_examples=200, deadline=None)
@given(
    plan=arrivals(VOCAB, [None, "prompt-lookup", "draft"], searches=True),
    slots=st.integers(1, 4),
    prefix_rows=st.integers(0, 3),
    chunk=st.sampled_from([1, 5, 64]),
    target=st.none() | st.just(1e-9),
)
def test_every_request_gets_what_it_would_get_alone(
    plan: list[Arrival], slots: int, prefix_rows: int, chunk: int, target: float | None
) -> None:
    model = make_model(slots, prefix_rows, chunk)
    scheduler = model.scheduler(target_latency=target)
    for index, result in serve(model, scheduler, plan).items():
        arrival = plan[index]
        expected = continuation(arrival.prompt, arrival.new_tokens, repetitive_token)
        if result.score is not None:
            alone = make_model(slots).generate(arrival.prompt, **arrival.options(slots))
            assert alone.score == result.score
            expected = alone.token_ids
        assert result.token_ids == expected
        assert result.finish_reason == "length"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Model]]:
    bundle = make_bundle(tmp_path_factory.mktemp("scheduler") / "bundle")
    options: dict[str, Any] = {"capacity": 128, "verify": False, "threads": 1}
    with (
        serving.load(bundle, slots=3, **options) as alone,
        serving.load(bundle, slots=3, prefill_chunk=3, **options) as plain,
        serving.load(bundle, slots=3, prefix_rows=2, **options) as keeping,
    ):
        yield {"alone": alone, "plain": plain, "keeping": keeping}


@settings(max_examples=100, deadline=None)
@given(
    plan=arrivals(TINY_VOCAB, [None, "prompt-lookup"], searches=True),
    name=st.sampled_from(["plain", "keeping"]),
)
def test_so_does_every_request_to_onnx_runtime(
    models: dict[str, Model], plan: list[Arrival], name: str
) -> None:
    model = models[name]
    for index, result in serve(model, model.scheduler(), plan).items():
        expected = models["alone"].generate(plan[index].prompt, **plan[index].options(slots=3))
        assert (result.token_ids, result.text) == (expected.token_ids, expected.text)
        assert (result.score is None) == (expected.score is None)


def test_streams_wait_for_one_chunk_at_most() -> None:
    model = make_model(slots=3, chunk=4)
    assert isinstance(model.engine, CountingEngine)
    scheduler = model.scheduler()
    submit(scheduler, model, 0, [1, 2], max_new_tokens=40)
    submit(scheduler, model, 1, [3] * 30, max_new_tokens=5)
    submit(scheduler, model, 2, [4] * 30, max_new_tokens=5)
    list(scheduler.run())
    steps = model.engine.steps
    while_first_runs = steps[1 : steps.index((1, 1, 4)) + 30]
    for before, after in pairwise(while_first_runs):
        assert before[2] == 1 or after[2] == 1, "two chunks without a decode step between them"


def test_a_batch_is_prefilled_before_it_is_decoded() -> None:
    model = make_model(slots=2, chunk=4)
    assert isinstance(model.engine, CountingEngine)
    scheduler = model.scheduler(fills_slots_first=True)
    submit(scheduler, model, 0, [1] * 5, max_new_tokens=2)
    submit(scheduler, model, 1, [2] * 3, max_new_tokens=2)
    list(scheduler.run())
    assert model.engine.steps == [(0, 1, 4), (0, 1, 1), (1, 1, 3), (0, 2, 1)]


def test_cancelling_frees_the_slot_at_once() -> None:
    model = make_model(slots=2, chunk=4)
    scheduler = model.scheduler()
    for index in range(4):
        submit(scheduler, model, index, [index + 1] * 10, max_new_tokens=50)
    while len(scheduler.active) < 2:
        scheduler.step()
    assert scheduler.cancel(0)
    assert len(scheduler.active) == 1
    assert scheduler.cancel(3), "one that waits"
    assert not scheduler.cancel(3)
    scheduler.step()
    assert scheduler.prefill is not None
    assert scheduler.cancel(2), "one whose prompt is being run"
    assert scheduler.prefill is None
    tokens = tokens_of(scheduler)
    assert set(tokens) == {1}
    assert continuation([2] * 10, 50, repetitive_token)[-len(tokens[1]) :] == tokens[1]


def test_a_prompt_goes_on_when_the_only_stream_is_cancelled() -> None:
    model = make_model(slots=2, chunk=4)
    scheduler = model.scheduler()
    submit(scheduler, model, 0, [1], max_new_tokens=50)
    submit(scheduler, model, 1, [2] * 20, max_new_tokens=3)
    while not (scheduler.active and scheduler.prefill):
        scheduler.step()
    scheduler.cancel(0)
    assert tokens_of(scheduler) == {1: continuation([2] * 20, 3, repetitive_token)}


def test_priorities_go_first_and_clients_take_turns() -> None:
    model = make_model(slots=1)
    scheduler = model.scheduler()
    for index in range(3):
        submit(scheduler, model, index, [1], max_new_tokens=1, client="busy")
    submit(scheduler, model, 3, [1], max_new_tokens=1, client="other")
    submit(scheduler, model, 4, [1], max_new_tokens=1, client="busy", priority=1)
    order = [event.index for event in scheduler.run()]
    assert order == [4, 0, 3, 1, 2]


def waiting_for_a_matcher(model: Model, index: int, **options: Any) -> Job:
    return Job(model.sequence([1, 2], index, max_new_tokens=3), matcher=Future(), **options)


def test_a_sequence_waits_for_its_matcher_and_lets_others_pass() -> None:
    model = make_model(slots=1)
    scheduler = model.scheduler()
    first, second = (waiting_for_a_matcher(model, index) for index in (0, 1))
    for job in (first, second):
        scheduler.submit(job)
    submit(scheduler, model, 2, [1, 2], max_new_tokens=3)
    submit(scheduler, model, 3, [1, 2], max_new_tokens=3, client="other")
    assert not scheduler.is_held_up
    passed = [event for _ in range(6) for event in scheduler.step()]
    assert {event.index for event in passed} == {2, 3}
    assert scheduler.is_held_up
    assert not scheduler.is_idle
    assert scheduler.step() == []
    assert first.matcher is not None
    assert second.matcher is not None
    matcher = Matching()
    second.matcher.set_result(cast(Matcher, matcher))
    first.matcher.set_exception(UserError("no constraint"))
    assert not scheduler.is_held_up
    failure, *tokens = scheduler.run()
    assert isinstance(failure, Failure)
    assert (failure.index, str(failure.error)) == (0, "no constraint")
    ids = [token.token_id for token in tokens if isinstance(token, Token) and token.index == 1]
    assert ids == matcher.accepted == continuation([1, 2], 3, repetitive_token)


class Matching:
    """A matcher that allows everything."""

    is_complete = False

    def __init__(self) -> None:
        self.accepted: list[int] = []

    def mask(self, logits: FloatArray) -> FloatArray:
        return logits

    def accept(self, token_id: int) -> None:
        self.accepted.append(token_id)


def test_what_waits_for_a_matcher_can_be_cancelled_and_late() -> None:
    now = 0.0
    model = make_model()
    scheduler = model.scheduler(queue_limit=2)
    scheduler._clock = lambda: now
    scheduler.submit(waiting_for_a_matcher(model, 0))
    scheduler.submit(waiting_for_a_matcher(model, 1, deadline=5.0))
    with pytest.raises(QueueFullError):
        scheduler.submit(waiting_for_a_matcher(model, 2))
    assert scheduler.cancel(0)
    now = 5.0
    (late,) = scheduler.step()
    assert isinstance(late, Failure)
    assert isinstance(late.error, DeadlineError)
    scheduler.submit(waiting_for_a_matcher(model, 3))
    assert scheduler.clear() == [3]
    assert scheduler.is_idle


def test_a_full_queue_refuses() -> None:
    model = make_model(slots=1)
    scheduler = model.scheduler(queue_limit=2)
    submit(scheduler, model, 0, [1], max_new_tokens=1)
    submit(scheduler, model, 1, [1], max_new_tokens=1)
    with pytest.raises(QueueFullError, match="2 requests are waiting"):
        submit(scheduler, model, 2, [1], max_new_tokens=1)
    assert set(tokens_of(scheduler)) == {0, 1}


def test_deadlines_end_what_waits_and_what_runs() -> None:
    now = 0.0
    model = make_model(slots=1)
    scheduler = model.scheduler()
    scheduler._clock = lambda: now
    submit(scheduler, model, 0, [1, 2], max_new_tokens=50, deadline=5.0)
    submit(scheduler, model, 1, [1, 2], max_new_tokens=50, deadline=4.0)
    submit(scheduler, model, 2, [1, 2], max_new_tokens=3)
    events = scheduler.step() + scheduler.step()
    assert {event.index for event in events} == {0}
    now = 4.5
    (late, token) = scheduler.step()
    assert isinstance(late, Failure)
    assert isinstance(late.error, DeadlineError)
    assert (late.index, token.index) == (1, 0)
    now = 5.0
    assert [event.index for event in scheduler.step()] == [0, 2]
    assert tokens_of(scheduler) == {2: continuation([1, 2], 3, repetitive_token)[1:]}


def test_one_sequence_that_fails_leaves_the_others_alone() -> None:
    class Overflowing(CountingEngine):
        def step(self, *arguments: Any) -> Any:
            logits = super().step(*arguments)
            logits[self.keys[: len(logits), 0] == 9] = float("nan")
            return logits

    engine = Overflowing(3, 100, repetitive_token)
    model = Model(engine, SpecialTokens())
    scheduler = model.scheduler(fills_slots_first=True)
    for index, first in enumerate([5, 9, 6]):
        submit(scheduler, model, index, [first, 2], max_new_tokens=10)
    events = list(scheduler.run())
    failures = [event for event in events if isinstance(event, Failure)]
    assert [(failure.index, type(failure.error)) for failure in failures] == [(1, UserError)]
    for index, first in ((0, 5), (2, 6)):
        own = [e.token_id for e in events if isinstance(e, Token) and e.index == index]
        assert own == continuation([first, 2], 10, repetitive_token)
    with pytest.raises(UserError, match="NaN"):
        model.generate([9, 2], max_new_tokens=2)


@pytest.mark.parametrize("prefix_rows", [0, 3])
def test_a_full_context_slides(prefix_rows: int) -> None:
    """What was forgotten is gone: the rest continues as a text of its own would."""
    model = make_model(slots=2, prefix_rows=prefix_rows, capacity=48, chunk=5)
    prompt = [3, 1, 4, 1, 5, 9, 2, 6]
    results = model.generate(
        [prompt, [8, 8]], max_new_tokens=70, context_overflow="slide", ignore_eos=True
    )
    # A second time, where prefixes of contexts before and after sliding were kept.
    again = model.generate(prompt, max_new_tokens=70, context_overflow="slide", ignore_eos=True)
    assert again.token_ids == results[0].token_ids
    for start, result in zip((prompt, [8, 8]), results, strict=True):
        context = list(start)
        for token in result.token_ids:
            if len(context) > 48:
                context = context[:4] + context[-20:]
            assert token == repetitive_token(context)
            context.append(token)


def test_a_prompt_that_does_not_fit_is_cut_as_asked() -> None:
    model = make_model(capacity=24)
    prompt = [index * 7 % VOCAB for index in range(40)]
    with pytest.raises(UserError, match="40 tokens and 3 new ones don't fit"):
        model.generate(prompt, max_new_tokens=3)
    cut = model.generate(prompt, max_new_tokens=3, context_overflow="truncate")
    assert cut.token_ids == continuation(prompt[-21:], 3, repetitive_token)
    assert cut.prompt_tokens == 21
    slid = model.generate(prompt, max_new_tokens=3, context_overflow="slide")
    assert slid.token_ids == continuation(prompt[:4] + prompt[-8:], 3, repetitive_token)
    with pytest.raises(UserError, match="24 new ones don't fit"):
        model.generate(prompt, max_new_tokens=24, context_overflow="truncate")
    with pytest.raises(UserError, match="give max_new_tokens"):
        model.generate(prompt, context_overflow="slide")
