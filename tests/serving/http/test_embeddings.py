"""/v1/embeddings, asked with OpenAI's client and compared with Model.embed."""

from pathlib import Path
from typing import Any

import httpx
import numpy as np
import openai
import pytest

import serving
from tests.serving.http.running import Running

TEXTS = ["def main():", "import os\n" * 30]


def test_vectors_are_those_of_the_model(trained: Running, trained_bundle: Path) -> None:
    with serving.load(trained_bundle, capacity=256) as model:
        last = model.embed(TEXTS).vectors
        mean = model.embed([model.encode(text) for text in TEXTS], pooling="mean").vectors
        tokens = sum(len(model.encode(text)) for text in TEXTS)
    answer = trained.openai.embeddings.create(model="trained", input=TEXTS)  # asks for base64
    np.testing.assert_allclose([d.embedding for d in answer.data], last, atol=1e-6)
    assert [d.index for d in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == answer.usage.total_tokens == tokens
    as_numbers = trained.openai.embeddings.create(
        model="trained", input=TEXTS, encoding_format="float", extra_body={"pooling": "mean"}
    )
    np.testing.assert_allclose([d.embedding for d in as_numbers.data], mean, atol=1e-6)


def test_one_input_may_be_a_text_or_token_ids(trained: Running) -> None:
    single = trained.openai.embeddings.create(model="trained", input=[5, 6, 7]).data
    several = trained.openai.embeddings.create(model="trained", input=[[5, 6, 7], [8]]).data
    assert single[0].embedding == several[0].embedding
    assert len(several) == 2


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"input": ""}, "input"),
        ({"input": []}, "input"),
        ({"input": "a " * 400}, "input"),
        ({"input": [10**9]}, "input"),
        ({"input": "a", "dimensions": 8}, "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format"),
        ({"input": "a", "pooling": "max"}, "pooling"),
        ({}, "input"),
    ],
)
def test_bad_input_names_the_parameter(trained: Running, body: dict[str, Any], param: str) -> None:
    answer = httpx.post(f"{trained.url}/v1/embeddings", json={"model": "trained", **body})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_truncation_is_asked_for(trained: Running) -> None:
    answer = trained.openai.embeddings.create(
        model="trained", input="a " * 400, extra_body={"context_overflow": "truncate"}
    )
    assert len(answer.data) == 1


def test_a_model_without_embeddings_says_so(tiny: Running) -> None:
    with pytest.raises(openai.BadRequestError, match="gives no embeddings") as caught:
        tiny.openai.embeddings.create(model="tiny", input="abc")
    assert caught.value.param == "model"
