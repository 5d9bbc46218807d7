"""Encoder-decoders over HTTP, asked by OpenAI's and Hugging Face's own clients."""

import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from huggingface_hub import InferenceClient
from huggingface_hub.errors import BadRequestError
from tokenizers import Tokenizer
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from serving.errors import UserError
from serving.http.keys import KeyLimits, KeyStore, create_key
from serving.http.request_limits import RequestLimits
from serving.http.served_model import open_models
from tests.encoder_decoders import SEARCHING_OPTIONS, multilingual_bundle, shared_bundle
from tests.serving.http.running import Running, running
from tests.serving.test_encoder_decoder import generated, sources

NAMES = ["t5", "bart", "marian"]
TEXT = "def f(x):"
Reference = Callable[[str], PreTrainedModel]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Of the three, BART has languages and a generation_config.json that asks for a search."""
    bundles = {name: shared_bundle(tmp_path_factory, name) / "bundle" for name in NAMES}
    bundles["bart"] = multilingual_bundle(tmp_path_factory)
    with running(bundles, slots=4, capacity=None) as server:
        yield server


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Reference:
    @functools.cache
    def load(name: str) -> PreTrainedModel:
        checkpoint = shared_bundle(tmp_path_factory, name) / "checkpoint"
        return AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()

    return load


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    return Tokenizer.from_file(str(multilingual_bundle(tmp_path_factory) / "tokenizer.json"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("beams", [1, 4])
def test_completions_are_those_of_transformers(
    name: str, beams: int, served: Running, reference: Reference, tokenizer: Tokenizer
) -> None:
    options = {"num_beams": beams, "no_repeat_ngram_size": 3}
    if beams > 1:
        options["length_penalty"] = 0.6
    answer = served.openai.completions.create(
        model=name,
        prompt=sources(6),
        max_tokens=16,
        extra_body=options | {"min_tokens": 0},
    )
    expected = [
        generated(reference(name), source, **options, min_new_tokens=0) for source in sources(6)
    ]
    texts = [tokenizer.decode(ids) for ids in expected]
    assert [choice.text for choice in answer.choices] == texts
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == sum(map(len, sources(6)))
    assert answer.usage.completion_tokens == sum(map(len, expected))


def test_the_checkpoint_s_search_holds_where_a_request_says_nothing(
    served: Running, reference: Reference, tokenizer: Tokenizer
) -> None:
    source = tokenizer.encode(TEXT).ids
    expected = tokenizer.decode(generated(reference("bart"), source, **SEARCHING_OPTIONS))
    greedy = SEARCHING_OPTIONS | {"num_beams": 1, "length_penalty": None}
    streamed = tokenizer.decode(generated(reference("bart"), source, **greedy))
    assert streamed != expected
    client = served.openai.completions
    assert client.create(model="bart", prompt=TEXT).choices[0].text == expected
    # A stream, stop strings and log-probabilities exclude a search.
    chunks = client.create(model="bart", prompt=TEXT, stream=True)
    assert "".join(chunk.choices[0].text for chunk in chunks) == streamed
    logged = client.create(model="bart", prompt=TEXT, stop=["\0"], logprobs=1).choices[0]
    assert logged.text == streamed
    assert logged.logprobs is not None
    assert logged.logprobs.token_logprobs
    # What a request says goes before the default lengths.
    short = client.create(model="bart", prompt=TEXT, max_tokens=2)
    assert short.usage is not None
    assert short.usage.completion_tokens == 2
    sampled = [
        client.create(model="bart", prompt=TEXT, temperature=1.5, seed=seed).choices[0].text
        for seed in (1, 1, 2)
    ]
    assert sampled[0] == sampled[1] != sampled[2]


def test_the_best_beams(served: Running, reference: Reference, tokenizer: Tokenizer) -> None:
    source = tokenizer.encode(TEXT).ids
    answer = served.openai.completions.create(model="bart", prompt=TEXT, n=3)
    expected = generated_several(reference("bart"), source, **SEARCHING_OPTIONS)
    assert [choice.text for choice in answer.choices] == [tokenizer.decode(e) for e in expected]
    single = served.openai.completions.create(
        model="bart", prompt=TEXT, max_tokens=1, n=2, extra_body={"num_beams": 2}
    )
    assert len(single.choices) == 1  # the first token is forced: no second sequence is possible


def generated_several(model: PreTrainedModel, source: list[int], **options: Any) -> list[list[int]]:
    import torch

    ids = torch.tensor([source])
    outputs = model.generate(
        ids, attention_mask=torch.ones_like(ids), num_return_sequences=3, **options
    )
    return [row[1:].tolist() for row in outputs]


def inference(served: Running) -> InferenceClient:
    return InferenceClient(
        f"{served.url}/models/bart", provider="hf-inference", token="none", timeout=30
    )


def test_hugging_face_s_client_translates_and_summarizes(
    served: Running, reference: Reference, tokenizer: Tokenizer
) -> None:
    client = inference(served)
    source = tokenizer.encode(TEXT).ids
    expected = tokenizer.decode(generated(reference("bart"), source, **SEARCHING_OPTIONS))
    assert client.translation(TEXT).translation_text == expected
    assert client.summarization(TEXT).summary_text == expected
    options = {"num_beams": 2, "length_penalty": 2.0, "max_length": 9, "min_length": 6}
    chosen = {"num_beams": 2, "length_penalty": 2.0, "max_new_tokens": 8, "min_new_tokens": 5}
    other = generated(reference("bart"), source, **SEARCHING_OPTIONS | chosen)
    summary = client.summarization(TEXT, generate_parameters=options)
    assert summary.summary_text == tokenizer.decode(other)
    several = served.post("/models/bart", inputs=[TEXT, TEXT], parameters=options).json()
    assert [each["translation_text"] for each in several] == [tokenizer.decode(other)] * 2


def test_languages(served: Running, reference: Reference, tokenizer: Tokenizer) -> None:
    german, french = map(tokenizer.token_to_id, ("de_DE", "fr_XX"))
    source = [french, *tokenizer.encode(TEXT).ids]
    expected = generated(reference("bart"), source, **SEARCHING_OPTIONS, forced_bos_token_id=german)
    text = tokenizer.decode(expected)
    assert expected[0] == german
    translated = inference(served).translation(f"de_DE{TEXT}", src_lang="fr_XX", tgt_lang="de_DE")
    assert translated.translation_text == text
    completed = served.openai.completions.create(
        model="bart",
        prompt=f"de_DE{TEXT}",
        extra_body={"source_language": "fr_XX", "target_language": "de_DE"},
    )
    assert completed.choices[0].text == text


def test_long_sources_are_refused_or_cut(
    served: Running, reference: Reference, tokenizer: Tokenizer
) -> None:
    long = TEXT * 100
    with pytest.raises(BadRequestError, match="reads at most 256 tokens"):
        inference(served).summarization(long)
    with pytest.raises(openai.BadRequestError, match="reads at most 256") as caught:
        served.openai.completions.create(model="bart", prompt=long)
    assert caught.value.code == "context_length_exceeded"
    source = tokenizer.encode(long).ids[:256]
    expected = tokenizer.decode(generated(reference("bart"), source, **SEARCHING_OPTIONS))
    cut = inference(served).summarization(long, truncation="only_first")
    assert cut.summary_text == expected
    answer = served.openai.completions.create(
        model="bart", prompt=long, extra_body={"context_overflow": "truncate"}
    )
    assert answer.usage is not None
    assert answer.usage.prompt_tokens == 256


@pytest.mark.parametrize(
    ("path", "body", "param"),
    [
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "model"),
        ("/v1/embeddings", {"input": "x"}, "model"),
        ("/v1/completions", {"prompt": "x", "echo": True}, "echo"),
        ("/v1/completions", {"prompt": "x", "num_beams": 2, "stream": True}, "stream"),
        ("/v1/completions", {"prompt": "x", "num_beams": 2, "stop": "y"}, None),
        ("/v1/completions", {"prompt": "x", "num_beams": 2, "n": 3}, "n"),
        ("/v1/completions", {"prompt": "x", "num_beams": 5}, None),
        ("/v1/completions", {"prompt": "x", "max_tokens": 256}, "max_tokens"),
        ("/v1/completions", {"prompt": "x", "target_language": "xx_YY"}, "target_language"),
        ("/v1/completions", {"prompt": "x", "source_language": "de_DE"}, "source_language"),
        ("/models/bart", {"inputs": ""}, "inputs"),
        ("/models/bart", {"inputs": "x", "parameters": {"tgt_lang": "y"}}, "target_language"),
        ("/models/bart", {"inputs": "x", "parameters": {"top": 1}}, "parameters.top"),
    ],
)
def test_what_is_refused(
    served: Running, path: str, body: dict[str, Any], param: str | None
) -> None:
    model = {} if path.startswith("/models") else {"model": "bart"}
    answer = served.post(path, **model, **body)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"] == param


def test_decoders_search_too_but_read_no_sources(tiny: Running, served: Running) -> None:
    options = {"model": "tiny", "prompt": "hello", "max_tokens": 6}
    best = tiny.post("/v1/completions", **options, num_beams=2, n=2).json()["choices"]
    greedy = tiny.post("/v1/completions", **options, temperature=0).json()["choices"]
    assert len({choice["text"] for choice in best}) == 2
    assert greedy[0]["text"]
    refused = tiny.post("/v1/completions", **options, target_language="de_DE")
    assert refused.json()["error"]["param"] == "target_language"
    assert tiny.post("/models/tiny", inputs="x").status_code == 400
    assert served.post("/models/none", inputs="x").status_code == 404


def test_limits_keys_and_metrics_are_those_of_decoders(
    served: Running, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(served.state, "limits", RequestLimits(prompt_tokens=8, new_tokens=5))
    assert served.post("/v1/completions", model="bart", prompt=[5] * 9).status_code == 400
    assert served.post("/v1/completions", model="bart", prompt="x", max_tokens=6).status_code == 400
    before = metric(served, "serve_llm_generated_tokens_total")
    answer = served.post("/v1/completions", model="bart", prompt="x")
    new = answer.json()["usage"]["completion_tokens"]
    assert 0 < new <= 5  # the checkpoint's length yields to the server's limit
    assert metric(served, "serve_llm_generated_tokens_total") == before + new

    file = tmp_path / "keys.json"
    embeds = create_key(file, "embeds", ("embed",))
    some = create_key(file, "some", ("generate",), limits=KeyLimits(tokens_per_minute=9))
    monkeypatch.setattr(served.state, "keys", KeyStore.open(file, {}))
    assert served.post("/models/bart", inputs="x").status_code == 401
    assert keyed(served, embeds, "x").status_code == 403
    assert keyed(served, some, "x").status_code == 200
    assert keyed(served, some, "x" * 8).status_code == 400  # more than it may have in a minute


def keyed(served: Running, secret: str, text: str) -> httpx.Response:
    with served.http as client:
        headers = {"authorization": f"Bearer {secret}"}
        return client.post("/models/bart", json={"inputs": text}, headers=headers)


def metric(served: Running, name: str) -> float:
    with served.http as client:
        lines = client.get("/metrics").text.splitlines()
    return sum(
        float(line.rsplit(maxsplit=1)[1])
        for line in lines
        if line.startswith(f'{name}{{model="bart"')
    )


def test_source_capacity(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> None:
    bart = multilingual_bundle(tmp_path_factory)
    options = {"source_capacity": 64, "prefix_rows": 8, "slots": None}
    models = open_models({"bart": bart, "tiny": tiny_bundle}, options)
    loading = {model.name: model.worker._options.loading for model in models}
    assert loading["bart"]["source_capacity"] == 64
    assert loading["bart"]["prefix_rows"] == 0
    assert loading["tiny"]["prefix_rows"] == 8
    assert "source_capacity" not in loading["tiny"]
    with pytest.raises(UserError, match="no bundle is one"):
        open_models({"tiny": tiny_bundle}, options)
