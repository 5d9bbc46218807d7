"""Model.generate and the loop under it, with an engine that shows any wrong slot or length."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from serving import Generation, Model, Token, UserError
from serving.bundle import SpecialTokens
from tests.serving.counting_engine import VOCAB, CountingEngine, continuation

RAGGED = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10], [11, 12], [13, 1, 1, 1], [2, 2], [3]]


def make_model(
    eos: tuple[int, ...] = (), slots: int = 3, capacity: int = 100, chunk: int = 512
) -> Model:
    return Model(CountingEngine(slots, capacity), SpecialTokens(eos=eos), prefill_chunk=chunk)


def text_model(eos: tuple[int, ...] = ()) -> Model:
    """A model whose tokens are letters: id 0 is A, 26 is a, 52 a space; 60 is special."""
    letters = [*"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz 0123456"]
    vocab = {letter: index for index, letter in enumerate(letters)}
    tokenizer = Tokenizer(models.BPE(vocab, []))
    tokenizer.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    tokenizer.decoder = decoders.Fuse()
    tokenizer.add_special_tokens(["<end>", "<pad>"])
    return Model(CountingEngine(), SpecialTokens(eos=eos), tokenizer)


@pytest.mark.parametrize("slots", [1, 2, 3, 7, 20])
@pytest.mark.parametrize("chunk", [1, 2, 512])
def test_every_prompt_continues_as_if_alone(slots: int, chunk: int) -> None:
    results = make_model(slots=slots, chunk=chunk).generate(RAGGED, max_new_tokens=20)
    for ids, result in zip(RAGGED, results, strict=True):
        assert result.token_ids == continuation(ids, 20)
        assert result.finish_reason == "length"
        assert result.prompt_tokens == len(ids)


@pytest.mark.parametrize("slots", [1, 2, 3, 4, 7])
def test_sequences_that_end_at_different_times_leave_no_trace(slots: int) -> None:
    eos = (9, 50)
    prompts = [[token, token // 3, 5] for token in range(1, 40)]
    results = make_model(eos=eos, slots=slots).generate(prompts, max_new_tokens=40)
    lengths = set()
    for ids, result in zip(prompts, results, strict=True):
        expected = continuation(ids, 40)
        ends = [i for i, token in enumerate(expected) if token in eos]
        if ends:
            expected = expected[: ends[0] + 1]
        assert result.token_ids == expected
        assert result.finish_reason == ("stop" if ends else "length")
        lengths.add(len(expected))
    assert len(lengths) > 3, "the test needs sequences that end at different times"


def test_prompts_are_prefilled_in_chunks_and_decoded_together() -> None:
    model = make_model(slots=2, chunk=4)
    model.generate([[1] * 9, [2] * 3], max_new_tokens=3)
    assert isinstance(model.engine, CountingEngine)
    prefill = [(0, 1, 4), (0, 1, 4), (0, 1, 1), (1, 1, 3)]
    assert model.engine.steps == [*prefill, (0, 2, 1), (0, 2, 1)]


def test_one_prompt_gives_one_result_and_a_list_gives_a_list() -> None:
    model = text_model()
    assert isinstance(model.generate("Abc", max_new_tokens=2), Generation)
    assert isinstance(model.generate([1, 2], max_new_tokens=2), Generation)
    assert isinstance(model.generate(np.array([1, 2]), max_new_tokens=2), Generation)
    results = model.generate(["Abc"], max_new_tokens=2)
    assert isinstance(results, list)
    assert len(results) == 1
    assert len(model.generate([[1, 2], [3]], max_new_tokens=2)) == 2


def test_text_prompts_are_encoded_and_results_decoded() -> None:
    model = text_model()
    assert model.tokenizer is not None
    result = model.generate("Hello", max_new_tokens=12)
    ids = model.tokenizer.encode("Hello").ids
    assert len(ids) == 5
    assert result.token_ids == continuation(ids, 12)
    assert result.text == model.tokenizer.decode(result.token_ids)


def test_without_max_new_tokens_the_capacity_is_filled() -> None:
    result = make_model(capacity=30).generate([1, 2, 3])
    assert result.token_ids == continuation([1, 2, 3], 27)
    assert result.finish_reason == "length"


def test_eos_is_part_of_the_ids_and_not_of_the_text() -> None:
    model = text_model()
    ids = next(ids for ids in RAGGED if 60 in continuation(ids, 60))
    model = text_model(eos=(60,))
    result = model.generate(ids, max_new_tokens=60)
    assert result.token_ids[-1] == 60
    assert result.finish_reason == "stop"
    assert "<end>" not in result.text
    longer = model.generate(ids, max_new_tokens=60, ignore_eos=True)
    assert longer.token_ids == continuation(ids, 60)


def test_min_new_tokens_holds_eos_back() -> None:
    ids = [1, 2, 3]
    first = continuation(ids, 1)[0]
    model = make_model(eos=(first,))
    assert model.generate(ids, max_new_tokens=9).token_ids == [first]
    held = model.generate(ids, max_new_tokens=9, min_new_tokens=5)
    assert first not in held.token_ids[:5]
    assert len(held.token_ids) >= 5


def test_min_new_tokens_without_an_eos_the_model_has() -> None:
    expected = continuation([1, 2], 6)
    for model in (make_model(), make_model(eos=(VOCAB + 5,))):
        result = model.generate([1, 2], max_new_tokens=6, min_new_tokens=3)
        assert result.token_ids == expected


def test_stop_strings_cut_the_text() -> None:
    model = text_model()
    whole = model.generate("Hello", max_new_tokens=40).text
    stop = whole[10:13]
    result = model.generate("Hello", max_new_tokens=40, stop=["nowhere!", stop])
    assert result.text == whole[: whole.index(stop)]
    assert result.finish_reason == "stop"
    assert len(result.token_ids) < 40
    assert model.generate("Hello", max_new_tokens=40, stop=stop).text == result.text


def test_streamed_texts_add_up() -> None:
    model = text_model(eos=(60, 61))
    prompts = ["Hello", "abc", "x y z", "Q", "RSTU"]
    options: dict[str, Any] = {"max_new_tokens": 30, "stop": ["ab", "Zz"]}
    results = model.generate(prompts, **options)
    streamed = [Generation() for _ in prompts]
    for token in model.generate(prompts, stream=True, **options):
        assert isinstance(token, Token)
        streamed[token.index].add(token)
    for result, pieces in zip(results, streamed, strict=True):
        assert (pieces.token_ids, pieces.text) == (result.token_ids, result.text)
        assert pieces.finish_reason == result.finish_reason


def test_logprobs_are_of_the_models_own_distribution() -> None:
    model = make_model()
    options: dict[str, Any] = {"max_new_tokens": 5, "logprobs": 3}
    plain = model.generate([1, 2, 3], **options)
    assert plain.logprobs is not None
    assert len(plain.logprobs) == 5
    weights = [math.exp(-abs(i - plain.token_ids[0]) / 8) for i in range(VOCAB)]
    assert plain.logprobs[0].chosen == pytest.approx(-math.log(sum(weights)))
    assert plain.logprobs[0].top[0] == (plain.token_ids[0], plain.logprobs[0].chosen)
    assert len(plain.logprobs[0].top) == 3
    sampled = model.generate([1, 2, 3], temperature=5.0, top_k=1, **options)
    assert sampled.logprobs == plain.logprobs
    assert model.generate([1, 2, 3], max_new_tokens=5).logprobs is None


def test_a_seed_makes_results_independent_of_the_batch() -> None:
    options: dict[str, Any] = {"max_new_tokens": 20, "temperature": 1.0, "seed": 7}
    alone = [make_model().generate(ids, **options).token_ids for ids in RAGGED]
    together = make_model(slots=2).generate(list(reversed(RAGGED)), **options)
    assert [result.token_ids for result in reversed(together)] == alone
    other = make_model().generate(RAGGED[0], **options | {"seed": 8})
    assert other.token_ids != alone[0]


def test_penalties_change_what_is_generated() -> None:
    model = make_model()
    plain = model.generate([0], max_new_tokens=10).token_ids
    assert plain == [0] * 10
    for penalty in ("presence_penalty", "frequency_penalty"):
        assert len(set(model.generate([0], max_new_tokens=10, **{penalty: 2.0}).token_ids)) > 3


def test_logits_of_all_positions_come_in_chunks() -> None:
    ids = list(range(1, 20))
    whole, chunked = make_model().logits(ids), make_model(chunk=4).logits(ids)
    assert whole.shape == (19, VOCAB)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(whole, chunked)
    assert whole[-1].argmax() == continuation(ids, 1)[0]


def test_kv_memory_stays_where_it_is() -> None:
    model = make_model(capacity=1200)
    before = {key: buffer.address for key, buffer in model.engine.cache.buffers.items()}
    model.generate([[1], [2], [3], [4]], max_new_tokens=1000)
    assert {key: buffer.address for key, buffer in model.engine.cache.buffers.items()} == before


def test_a_second_generation_may_not_touch_the_first_ones_slots() -> None:
    model = make_model()
    stream = model.generate([1, 2], max_new_tokens=5, stream=True)
    next(stream)
    for attempt in (lambda: model.generate([3], max_new_tokens=1), lambda: model.logits([1])):
        with pytest.raises(UserError, match="generating already"):
            attempt()
    assert len(list(stream)) == 4
    assert model.generate([3], max_new_tokens=1).token_ids == continuation([3], 1)


def test_an_abandoned_stream_frees_the_model() -> None:
    model = make_model()
    stream = model.generate([1, 2], max_new_tokens=5, stream=True)
    next(stream)
    del stream
    assert model.generate([3], max_new_tokens=1).token_ids == continuation([3], 1)


def test_a_model_is_a_context_manager() -> None:
    with make_model() as model:
        pass
    assert isinstance(model.engine, CountingEngine)
    assert model.engine.is_closed


Call = Callable[[Model], object]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.generate(""), "prompt is empty"),
        (lambda m: m.generate([]), "no prompt"),
        (lambda m: m.generate([[1], []]), "prompt is empty"),
        (lambda m: m.generate(["a", ""]), "prompt is empty"),
        (lambda m: m.generate([1, VOCAB]), r"token id 64, .* from 0 to 63"),
        (lambda m: m.generate([1, -1]), "token id -1"),
        (lambda m: m.generate([[1, 1.5]]), r"token id 1\.5"),
        (lambda m: m.generate([1] * 101), r"101 tokens .* larger capacity="),
        (lambda m: m.generate([1] * 100), "capacity of 100"),
        (lambda m: m.generate([1] * 50, max_new_tokens=51), "51 new ones don't fit"),
        (lambda m: m.generate([1] * 50, min_new_tokens=51), "51 new ones don't fit"),
        (lambda m: m.generate([1], max_new_tokens=0), "max_new_tokens is 0"),
        (lambda m: m.generate([1], max_new_tokens=3, min_new_tokens=4), "min_new_tokens is 4"),
        (lambda m: m.generate([1], min_new_tokens=-1), "min_new_tokens is -1"),
        (lambda m: m.generate([1], temperature=-1), "temperature is -1"),
        (lambda m: m.generate([1], temperature=math.nan), "temperature is nan"),
        (lambda m: m.generate([1], top_p=2), "top_p is 2"),
        (lambda m: m.generate([1], logit_bias={64: 1}), "token id 64, .* from 0 to 63"),
        (lambda m: m.generate([1], logit_bias={3: 101}), "logit_bias of token 3 is 101"),
        (lambda m: m.generate([1], logit_bias={-1: 1}), "token id of logit_bias is -1"),
        (lambda m: m.generate([1], stop=[""]), "stop string is empty"),
        (lambda m: m.generate([1], bad_words=["a", ""]), "bad word is empty"),
        (lambda m: m.generate([1], bad_words_ids=[[]]), "bad word is empty"),
        (lambda m: m.generate([1], bad_words_ids=[[1, VOCAB]]), "bad_words_ids .* id 64"),
        (lambda m: m.generate([1], bad_words_ids=[[-1]]), "bad_words_ids .* id -1"),
        (lambda m: m.logits([1] * 101), "101 tokens don't fit"),
        (lambda m: m.logits([]), "prompt is empty"),
        (lambda m: m.encode_chat([{"role": "user", "content": "x"}]), "no chat template"),
    ],
)
def test_bad_input_is_one_sentence_before_anything_runs(call: Call, message: str) -> None:
    model = text_model()
    with pytest.raises(UserError, match=message) as caught:
        call(model)
    assert str(caught.value).endswith(".")
    assert isinstance(model.engine, CountingEngine)
    assert model.engine.steps == []


def test_streams_refuse_bad_input_when_they_are_made() -> None:
    with pytest.raises(UserError, match="capacity"):
        make_model().generate([1] * 200, stream=True)


@pytest.mark.parametrize(
    "call",
    [
        lambda m: m.generate("text"),
        lambda m: m.generate([1], stop="x"),
        lambda m: m.generate([1], bad_words="x"),
    ],
)
def test_without_a_tokenizer_text_is_refused(call: Call) -> None:
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        call(make_model())
