"""/models/NAME, asked with Hugging Face's client and compared with transformers' pipelines."""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError
from transformers import AutoModel, AutoTokenizer, pipeline

from tests.encoders import likeliest_spans
from tests.serving.http.running import Running

Encoders = Callable[[str], Path]
TEXTS = [
    "def cached_property(func):",
    "Return a partial function application of the given arguments.",
]
QUESTION = "what is returned?"


@functools.cache
def hugging_face(folder: Path, task: str) -> Any:
    return pipeline(task, model=str(folder / "checkpoint"), device="cpu")


def client(server: Running, name: str) -> InferenceClient:
    return InferenceClient(model=f"{server.url}/models/{name}")


def infer(server: Running, name: str, inputs: Any, **rest: Any) -> Any:
    answer = server.post(f"/models/{name}", inputs=inputs, **rest)
    assert answer.status_code == 200, answer.text
    return answer.json()


def assert_alike(ours: list[Any], theirs: list[dict[str, Any]], *names: str) -> None:
    """That all of these fields are equal, and scores nearly."""
    for name in names:
        assert [each[name] for each in ours] == [each[name] for each in theirs]
    scores = [[each["score"] for each in found] for found in (ours, theirs)]
    np.testing.assert_allclose(*scores, atol=1e-5)


def test_text_classification(encoders: Running, encoder: Encoders) -> None:
    reference = hugging_face(encoder("own_attention"), "text-classification")
    asked = client(encoders, "own_attention")
    for text in TEXTS:
        assert_alike(asked.text_classification(text), reference(text, top_k=None), "label")
    for function in ("sigmoid", "none"):
        ours = asked.text_classification(TEXTS[0], top_k=2, function_to_apply=function)
        assert_alike(ours, reference(TEXTS[0], top_k=2, function_to_apply=function), "label")
    pair = {"text": TEXTS[0], "text_pair": TEXTS[1]}
    listed = infer(encoders, "own_attention", [pair, pair])
    assert len(listed) == 2
    assert_alike(listed[1], reference(pair, top_k=None), "label")


def test_token_classification(encoders: Running, encoder: Encoders) -> None:
    reference = hugging_face(encoder("entities"), "token-classification")
    asked, text = client(encoders, "entities"), " ".join(TEXTS)
    grouped = asked.token_classification(text)
    theirs = reference(text, aggregation_strategy="simple")
    assert grouped
    assert_alike(grouped, theirs, "entity_group", "start", "end")
    assert [each.word for each in grouped] == [text[each.start : each.end] for each in grouped]
    for ignored in (None, []):
        ours = asked.token_classification(text, aggregation_strategy="none", ignore_labels=ignored)
        given = {} if ignored is None else {"ignore_labels": ignored}
        theirs = reference(text, aggregation_strategy="none", **given)
        assert_alike(ours, theirs, "entity", "start", "end")
    assert infer(encoders, "entities", [text, "x"])[0] == [
        {name: each[name] for name in ("entity_group", "score", "word", "start", "end")}
        for each in grouped
    ]


def test_fill_mask(encoders: Running, encoder: Encoders) -> None:
    reference = hugging_face(encoder("windows"), "fill-mask")
    asked, text = client(encoders, "windows"), "return the [MASK] of func"
    names = ("token", "token_str", "sequence")
    assert_alike(asked.fill_mask(text), reference(text), *names)
    ours = asked.fill_mask(text, targets=["def", "x", "the"], top_k=2)
    assert_alike(ours, reference(text, targets=["def", "x", "the"], top_k=2), *names)
    text = "[MASK] the [MASK] of func"
    ours, theirs = asked.fill_mask(text, top_k=3), reference(text, top_k=3)
    assert len(ours) == 2
    for own, right in zip(ours, theirs, strict=True):
        assert_alike(own, right, *names)


def test_question_answering(encoders: Running, encoder: Encoders) -> None:
    checkpoint, context = encoder("relative") / "checkpoint", TEXTS[1]
    theirs = likeliest_spans(checkpoint, QUESTION, context)
    asked = client(encoders, "relative")
    best = asked.question_answering(QUESTION, context)
    several = asked.question_answering(QUESTION, context, top_k=4)
    assert isinstance(several, list)
    assert [(each.start, each.end) for each in several] == [span for span, _ in theirs[:4]]
    np.testing.assert_allclose(
        [each.score for each in several], [score for _, score in theirs[:4]], rtol=1e-4
    )
    assert best == several[0]
    assert best.answer == context[best.start : best.end]
    short = asked.question_answering(QUESTION, context, max_answer_len=1)
    (span, _), *_ = likeliest_spans(checkpoint, QUESTION, context, max_tokens=1)
    assert (short.start, short.end) == span
    question = {"question": QUESTION, "context": " ".join([context] * 9)}
    split = infer(encoders, "relative", [question], parameters={"doc_stride": 8})
    assert split[0]["answer"] == question["context"][split[0]["start"] : split[0]["end"]]


def test_feature_extraction_and_similarity(encoders: Running, encoder: Encoders) -> None:
    checkpoint = encoder("sentences") / "checkpoint"
    model = AutoModel.from_pretrained(checkpoint).eval()
    tokens = AutoTokenizer.from_pretrained(checkpoint)(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        first = model(**tokens).last_hidden_state[:, 0]
    wanted = torch.nn.functional.normalize(first).numpy()
    asked = client(encoders, "sentences")
    np.testing.assert_allclose(asked.feature_extraction(TEXTS), wanted, atol=1e-5)
    single = asked.feature_extraction(TEXTS[1], normalize=True, truncate=True)
    np.testing.assert_allclose(single, wanted[1:], atol=1e-5)
    alike = asked.sentence_similarity(TEXTS[0], TEXTS)
    np.testing.assert_allclose(alike, [1, wanted[0] @ wanted[1]], atol=1e-5)
    named = InferenceClient(model=f"{encoders.url}/models/sentences/pipeline/feature-extraction")
    np.testing.assert_allclose(named.feature_extraction(TEXTS), wanted, atol=1e-5)


LONG = "x " * 40
MASKS = "[MASK] " * 17


@pytest.mark.parametrize(
    ("name", "body", "param", "message"),
    [
        ("entities", {"inputs": ""}, "inputs", "is empty"),
        ("entities", {"inputs": "a \ud800"}, "inputs", "no character"),
        ("entities", {"inputs": []}, "inputs", "at least 1"),
        ("entities", {"inputs": ["a"] * 129}, "inputs", "at most 128"),
        ("entities", {"inputs": 5}, "inputs", "Invalid value"),
        ("entities", {"inputs": {"text": "a", "text_pair": "b"}}, "inputs", "takes a text"),
        ("relative", {"inputs": "a"}, "inputs", "a question and its context"),
        ("sentences", {"inputs": LONG}, "inputs", "has 42 tokens, and this model takes 32"),
        ("windows", {"inputs": "no mask"}, "inputs", r"has no \[MASK\]"),
        ("windows", {"inputs": MASKS}, "inputs", "17 masks, but at most 16"),
        ("windows", {"inputs": "[MASK]", "parameters": {"targets": ["zzzz"]}}, "targets", "'zzzz'"),
        ("windows", {"inputs": "[MASK]", "parameters": {"stride": 3}}, "stride", "not for fill"),
        ("entities", {"inputs": "a", "parameters": {"top_k": 3}}, "top_k", "not for token"),
        ("entities", {"inputs": "a", "normalize": True}, "normalize", "not for token"),
        (
            "entities",
            {"inputs": "a", "parameters": {"aggregation_strategy": "max"}},
            "aggregation_strategy",
            "needs words",
        ),
        (
            "entities",
            {"inputs": "a", "parameters": {"ignore_labels": []}},
            "ignore_labels",
            "isn't grouped",
        ),
        (
            "relative",
            {
                "inputs": {"question": "a", "context": "b"},
                "parameters": {"align_to_words": True},
            },
            "align_to_words",
            "begin and end with tokens",
        ),
        ("sentences", {"inputs": "a", "dimensions": 8}, "dimensions", "32 dimensions"),
        ("sentences", {"inputs": "a", "normalize": False}, "normalize", "length 1"),
        ("sentences", {"inputs": "a", "prompt_name": "query"}, "prompt_name", "no prompts"),
        ("sentences", {"inputs": "a", "colour": 1}, "colour", "Unrecognized"),
    ],
)
def test_bad_requests_name_the_parameter_and_say_why(
    encoders: Running, name: str, body: dict[str, Any], param: str, message: str
) -> None:
    answer = encoders.post(f"/models/{name}", **body)
    assert answer.status_code == 400, answer.text
    error = answer.json()["error"]
    assert error["param"].removeprefix("parameters.") == param
    assert re.search(message, error["message"])


def test_a_refusal_reaches_hugging_faces_client(encoders: Running) -> None:
    with pytest.raises(BadRequestError, match="The text is empty"):
        client(encoders, "own_attention").text_classification(" ")


def code_of(answer: httpx.Response) -> Any:
    assert 400 <= answer.status_code < 500, answer.text
    return answer.json()["error"]["code"]


def test_the_wrong_endpoint_for_a_task_says_which_is_right(encoders: Running) -> None:
    chat = {"model": "sentences", "messages": [{"role": "user", "content": "hi"}]}
    wrong = [
        encoders.post("/v1/chat/completions", **chat),
        encoders.post("/v1/completions", model="entities", prompt="a"),
        encoders.post("/v1/embeddings", model="entities", input="a"),
        encoders.post("/models/tiny", inputs="a"),
        encoders.post("/models/entities/pipeline/fill-mask", inputs="a"),
    ]
    assert [code_of(answer) for answer in wrong] == ["wrong_task"] * 5
    assert code_of(encoders.post("/models/nobody", inputs="a")) == "model_not_found"
    answer = encoders.post("/v1/completions", model="tiny", prompt="hello", max_tokens=4)
    assert answer.status_code == 200


def test_models_are_listed_with_their_tasks(encoders: Running) -> None:
    tasks = {model.id: model.model_extra["task"] for model in encoders.openai.models.list()}
    assert tasks == {
        "sentences": "embed",
        "windows": "fill-mask",
        "own_attention": "text-classification",
        "entities": "token-classification",
        "relative": "question-answering",
        "tiny": "text-generation",
    }
