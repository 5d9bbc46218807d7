"""/v1/chat/completions, asked with OpenAI's client and compared with the model and its template."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from transformers import AutoTokenizer

import serving
from serving.generation import Model
from tests.serving.http.running import Running

QUESTION = [{"role": "user", "content": "What does os.path.join do?"}]


@pytest.fixture(scope="module")
def model(trained_bundle: Path) -> Iterator[Model]:
    with serving.load(trained_bundle, capacity=256) as model:
        yield model


def test_a_chat_is_what_the_model_says_after_the_template(
    trained: Running, model: Model, trained_checkpoint: Path
) -> None:
    messages: list[Any] = [{"role": "system", "content": "Be brief."}, *QUESTION]
    tokenizer = AutoTokenizer.from_pretrained(trained_checkpoint)
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True)["input_ids"]
    expected = model.generate(ids, max_new_tokens=24)
    answer = trained.openai.chat.completions.create(
        model="trained", messages=messages, max_completion_tokens=24, temperature=0
    )
    assert answer.choices[0].message.content == expected.text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == expected.finish_reason
    assert answer.usage.prompt_tokens == len(ids)
    assert len(expected.text) > 10


def test_parts_of_text_and_the_developer_role(trained: Running) -> None:
    def answer(*messages: Any) -> str | None:
        completion = trained.openai.chat.completions.create(
            model="trained", messages=messages, max_tokens=16, temperature=0
        )
        return completion.choices[0].message.content

    parts = [{"type": "text", "text": "What does "}, {"type": "text", "text": "copy.copy do?"}]
    plain = {"role": "user", "content": "What does copy.copy do?"}
    assert answer({"role": "user", "content": parts}) == answer(plain)
    assert answer({"role": "developer", "content": "x"}, plain) == answer(
        {"role": "system", "content": "x"}, plain
    )


def test_a_stream_begins_with_the_role_and_ends_with_the_usage(trained: Running) -> None:
    options: dict[str, Any] = {
        "model": "trained",
        "messages": QUESTION,
        "max_tokens": 24,
        "temperature": 0,
    }
    whole = trained.openai.chat.completions.create(**options)
    chunks = list(
        trained.openai.chat.completions.create(
            **options, stream=True, stream_options={"include_usage": True}
        )
    )
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-2].choices[0].finish_reason == whole.choices[0].finish_reason
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in chunks[:-1])


def test_logprobs_have_the_form_of_chats(trained: Running, model: Model) -> None:
    ids = model.encode_chat(QUESTION)  # type: ignore[arg-type]
    expected = model.generate(ids, max_new_tokens=64, logprobs=3)
    assert expected.logprobs is not None
    options: dict[str, Any] = {
        "model": "trained",
        "messages": QUESTION,
        "max_tokens": 64,
        "temperature": 0,
        "logprobs": True,
        "top_logprobs": 3,
    }
    content = trained.openai.chat.completions.create(**options).choices[0].logprobs.content
    assert expected.finish_reason == "stop"  # so the last token is EOS, no part of the answer
    assert [e.logprob for e in content] == pytest.approx(
        [e.chosen for e in expected.logprobs[:-1]], abs=1e-4
    )
    assert b"".join(bytes(e.bytes) for e in content).decode() == expected.text
    assert [len(e.top_logprobs) for e in content] == [3] * len(content)
    assert all(e.top_logprobs[0].token == e.token for e in content)
    stream = trained.openai.chat.completions.create(**options, stream=True)
    entries = [e for c in stream if c.choices[0].logprobs for e in c.choices[0].logprobs.content]
    assert [e.token for e in entries] == [e.token for e in content]


def test_several_answers_differ_by_their_seeds(trained: Running, model: Model) -> None:
    answer = trained.openai.chat.completions.create(
        model="trained", messages=QUESTION, n=3, seed=-1, max_tokens=12
    )
    ids = model.encode_chat(QUESTION)  # type: ignore[arg-type]
    expected = [
        model.generate(ids, max_new_tokens=12, temperature=1.0, seed=seed).text
        for seed in (2**64 - 1, 0, 1)
    ]
    assert [choice.message.content for choice in answer.choices] == expected


def test_models_are_listed(trained: Running) -> None:
    (model,) = trained.openai.models.list().data
    assert model.id == "trained"
    assert trained.openai.models.retrieve("trained") == model


SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"colour": {"enum": ["red", "green"]}, "size": {"enum": [1, 2]}},
    "required": ["colour", "size"],
    "additionalProperties": False,
}


def test_an_answer_may_be_held_to_json(trained: Running) -> None:
    def answer(response_format: dict[str, Any], **options: Any) -> Any:
        completion = trained.openai.chat.completions.create(
            model="trained",
            messages=QUESTION,
            response_format=response_format,
            max_tokens=200,
            **options,
        )
        assert completion.choices[0].finish_reason == "stop"
        return json.loads(completion.choices[0].message.content)

    named = {"type": "json_schema", "json_schema": {"name": "thing", "schema": SCHEMA}}
    for seed in range(5):
        jsonschema.validate(answer(named, seed=seed), SCHEMA)
    assert isinstance(answer({"type": "json_object"}, temperature=0), dict)


def test_a_schema_that_can_not_be_used_is_named(trained: Running) -> None:
    schema = {"type": "string", "pattern": "("}
    response = trained.post(
        "/v1/chat/completions",
        model="trained",
        messages=QUESTION,
        response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
    )
    assert response.status_code == 400
    assert response.json()["error"]["param"] == "response_format"


def test_a_bias_decides(trained: Running, model: Model) -> None:
    token_id = model.encode("def")[0]
    answer = trained.openai.chat.completions.create(
        model="trained", messages=QUESTION, max_tokens=4, logit_bias={str(token_id): 100}
    )
    assert answer.choices[0].message.content == model.tokenizer.decode([token_id] * 4)
