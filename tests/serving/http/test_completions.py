"""/v1/completions, asked with OpenAI's client and compared with Model.generate."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import serving
from serving.generation import Model
from tests.serving.http.running import Running


@pytest.fixture(scope="module")
def model(tiny_bundle: Path) -> Iterator[Model]:
    with serving.load(tiny_bundle, capacity=1024) as model:
        yield model


def test_a_completion_is_what_the_model_generates(tiny: Running, model: Model) -> None:
    for options in ({"temperature": 0}, {"temperature": 1.5, "seed": 7, "top_p": 0.9}):
        answer = tiny.openai.completions.create(
            model="tiny", prompt="hello", max_tokens=30, **options
        )
        expected = model.generate("hello", max_new_tokens=30, **options)
        assert answer.choices[0].text == expected.text
        assert answer.choices[0].finish_reason == expected.finish_reason
        assert answer.usage.prompt_tokens == 5
        assert answer.usage.completion_tokens == len(expected.token_ids)


def test_openai_defaults_hold(tiny: Running, model: Model) -> None:
    answer = tiny.openai.completions.create(model="tiny", prompt="hello", seed=3)
    expected = model.generate("hello", max_new_tokens=16, temperature=1.0, seed=3)
    assert answer.choices[0].text == expected.text


def test_a_stream_has_the_same_text_and_its_usage(tiny: Running, model: Model) -> None:
    stream = tiny.openai.completions.create(
        model="tiny",
        prompt="stream",
        max_tokens=40,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    expected = model.generate("stream", max_new_tokens=40)
    assert "".join(c.choices[0].text for c in chunks if c.choices) == expected.text
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == expected.finish_reason
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == len(expected.token_ids)
    assert len({chunk.id for chunk in chunks}) == 1


@pytest.mark.parametrize("prompt", [["ab", "cde"], [[0, 1], [2, 3, 4]]])
def test_several_prompts_have_n_choices_each(
    tiny: Running, model: Model, prompt: list[Any]
) -> None:
    answer = tiny.openai.completions.create(
        model="tiny", prompt=prompt, n=2, max_tokens=12, seed=5, temperature=2
    )
    expected = [
        model.generate(each, max_new_tokens=12, temperature=2.0, seed=seed).text
        for each in ("ab", "cde")
        for seed in (5, 6)
    ]
    assert [choice.text for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert answer.usage.prompt_tokens == 5


def test_streams_of_several_choices_are_told_apart(tiny: Running, model: Model) -> None:
    texts = dict.fromkeys(range(3), "")
    stream = tiny.openai.completions.create(
        model="tiny", prompt="abc", n=3, max_tokens=25, seed=1, temperature=2, stream=True
    )
    for chunk in stream:
        texts[chunk.choices[0].index] += chunk.choices[0].text
    for choice, text in texts.items():
        options = {"max_new_tokens": 25, "temperature": 2.0, "seed": 1 + choice}
        assert text == model.generate("abc", **options).text


def test_stop_strings_echo_and_minimum(tiny: Running, model: Model) -> None:
    free = model.generate("hello", max_new_tokens=30, ignore_eos=True).text
    stop = free[6:8]
    answer = tiny.openai.completions.create(
        model="tiny",
        prompt="hello",
        max_tokens=30,
        temperature=0,
        stop=stop,
        echo=True,
        extra_body={"ignore_eos": True},
    )
    assert answer.choices[0].text == "hello" + free[: free.index(stop)]
    assert answer.choices[0].finish_reason == "stop"
    echoed = tiny.openai.completions.create(
        model="tiny", prompt=[7, 4], max_tokens=2, echo=True, stream=True
    )
    assert next(iter(echoed)).choices[0].text == "he"


def test_logprobs_have_the_form_of_completions(tiny: Running, model: Model) -> None:
    expected = model.generate("hello", max_new_tokens=6, logprobs=2, ignore_eos=True)
    assert expected.logprobs is not None
    options: dict[str, Any] = {
        "model": "tiny",
        "prompt": "hello",
        "max_tokens": 6,
        "temperature": 0,
        "logprobs": 2,
        "extra_body": {"ignore_eos": True},
    }
    logprobs = tiny.openai.completions.create(**options).choices[0].logprobs
    assert logprobs.token_logprobs == pytest.approx([e.chosen for e in expected.logprobs], abs=1e-5)
    assert "".join(logprobs.tokens) == expected.text
    assert logprobs.text_offset == list(range(6))
    for position, entry in zip(logprobs.top_logprobs, expected.logprobs, strict=True):
        assert list(position.values()) == pytest.approx(sorted(v for _, v in entry.top), abs=1e-5)
    streamed = [
        c.choices[0].logprobs for c in tiny.openai.completions.create(**options, stream=True)
    ]
    assert [offset for each in streamed for offset in each.text_offset] == logprobs.text_offset


def test_extensions_reach_the_worker(tiny: Running, model: Model) -> None:
    options = {"top_k": 3, "min_p": 0.02, "repetition_penalty": 1.3}
    answer = tiny.openai.completions.create(
        model="tiny",
        prompt="hello",
        max_tokens=40,
        seed=2,
        temperature=1.7,
        presence_penalty=0.5,
        frequency_penalty=0.4,
        extra_body={**options, "min_tokens": 30, "speculation": "prompt-lookup", "priority": 3},
    )
    expected = model.generate(
        "hello",
        max_new_tokens=40,
        min_new_tokens=30,
        seed=2,
        temperature=1.7,
        presence_penalty=0.5,
        frequency_penalty=0.4,
        **options,
    )
    assert answer.choices[0].text == expected.text


def test_a_context_may_be_cut_or_slide(tiny: Running) -> None:
    long = "abcdefgh" * 200
    for overflow, new in (("truncate", 20), ("slide", 1500)):
        answer = tiny.openai.completions.create(
            model="tiny",
            prompt=long,
            max_tokens=new,
            extra_body={"context_overflow": overflow, "ignore_eos": True},
        )
        assert answer.usage.completion_tokens == new


def test_a_repeated_prompt_is_reported_as_cached(tiny: Running) -> None:
    prompt = "what was said before is not computed again." * 3
    usage = [
        tiny.openai.completions.create(model="tiny", prompt=prompt, max_tokens=2).usage
        for _ in range(2)
    ]
    assert usage[0].prompt_tokens_details.cached_tokens < 20
    assert usage[1].prompt_tokens_details.cached_tokens > len(prompt) - 20
