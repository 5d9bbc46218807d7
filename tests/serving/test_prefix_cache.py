"""What prompts have in common is computed once."""

from typing import Any

import numpy as np

from serving import Model
from serving.bundle import SpecialTokens
from serving.prefix_cache import SHORTEST, PrefixCache
from tests.serving.counting_engine import CountingEngine, continuation

SYSTEM = list(range(1, 41))


def make_model(slots: int = 2, prefix_rows: int = 2, **options: Any) -> Model:
    return Model(CountingEngine(slots + prefix_rows, 100), SpecialTokens(), slots=slots, **options)


def prompt_tokens_run(model: Model, prompt: list[int]) -> int:
    """How many tokens of a prompt the engine ran; what it generated must be right."""
    assert isinstance(model.engine, CountingEngine)
    model.engine.steps.clear()
    assert model.generate(prompt, max_new_tokens=3).token_ids == continuation(prompt, 3)
    return sum(tokens for _, _, tokens in model.engine.steps) - 2


def test_a_shared_beginning_is_run_once() -> None:
    model = make_model()
    assert prompt_tokens_run(model, [*SYSTEM, 50]) == 41
    assert prompt_tokens_run(model, [*SYSTEM, 51, 52]) == 2
    assert prompt_tokens_run(model, [*SYSTEM, 51, 52]) == 1, "the last token has the logits"
    assert prompt_tokens_run(model, [*SYSTEM[:30], 3]) == 1
    assert prompt_tokens_run(model, [60, *SYSTEM]) == 41
    statistics = make_model().prefixes
    assert statistics is not None
    assert model.prefixes is not None
    assert model.prefixes.statistics.reused == 40 + 41 + 30


def test_a_conversation_goes_on_where_it_was() -> None:
    model = make_model(prefix_rows=1)
    turn = [*SYSTEM, 50]
    answer = model.generate(turn, max_new_tokens=5).token_ids
    assert prompt_tokens_run(model, [*turn, *answer, 9, 9]) == 3  # the newest token wasn't cached


def test_prompts_of_one_batch_share_too() -> None:
    model = make_model(slots=4, prefix_rows=1)
    assert isinstance(model.engine, CountingEngine)
    results = model.generate([[*SYSTEM, 50]] * 4, max_new_tokens=2)
    assert all(r.token_ids == continuation([*SYSTEM, 50], 2) for r in results)
    assert [tokens for _, _, tokens in model.engine.steps] == [41, 1, 1, 1, 1]


def test_without_rows_nothing_is_kept() -> None:
    model = make_model(prefix_rows=0)
    for _ in range(2):
        assert prompt_tokens_run(model, [*SYSTEM, 50]) == 41


def test_what_was_used_least_recently_goes() -> None:
    model = make_model(prefix_rows=2)
    texts = {name: [first] * 20 for name, first in (("a", 1), ("b", 2), ("c", 3))}
    for name in "ab":
        prompt_tokens_run(model, texts[name])
    assert prompt_tokens_run(model, texts["a"]) == 1
    prompt_tokens_run(model, texts["c"])  # in place of b
    assert prompt_tokens_run(model, texts["a"]) == 1
    assert prompt_tokens_run(model, texts["b"]) == 20


def test_short_beginnings_are_not_looked_after() -> None:
    model = make_model()
    prompt_tokens_run(model, SYSTEM[: SHORTEST - 4])
    assert prompt_tokens_run(model, SYSTEM[: SHORTEST - 4]) == SHORTEST - 4


def test_an_adapter_shares_with_itself_alone() -> None:
    engine = CountingEngine(4, 100)
    prefixes = PrefixCache(engine.cache, 2)
    ids = np.array(SYSTEM)
    engine.step(ids[None], np.array([0]), np.array([[0]]), 0)
    prefixes.keep(0, ids, adapter=1)
    assert prefixes.reuse(1, ids, 0, []) == 0
    assert prefixes.reuse(1, ids, 1, []) == len(ids) - 1
    assert engine.keys[1, : len(ids) - 1].tolist() == SYSTEM[:-1]
