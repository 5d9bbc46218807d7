"""Encoders in a real Triton server, against transformers."""

import json
import shlex
import subprocess
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, pipeline
from tritonclient import grpc

import serving
from scripts.triton_server.clients import client_commands
from tests.serving.triton.clients import infer_inputs, until
from tests.serving.triton.conftest import Triton

pytestmark = pytest.mark.xdist_group("triton")

Encoders = Callable[[str], Path]

TEXTS = [
    "def cached_property(func):",
    "Return a partial function application of the given arguments.",
    "x",
    "The value of a wrapper is that of the wrapped one.",
]
LONG = " ".join(TEXTS)
# Triton waits until so many texts have come, longer than a test takes.
FULL, PATIENCE = 8, 60.0

# Ids that no check of ours sees through.
_UNKNOWN_TYPE = {"input_ids": 5, "attention_mask": 1, "token_type_ids": 9}


@pytest.fixture(scope="module")
def served(shared_triton: Triton, encoder: Encoders) -> Callable[[str], str]:
    """Load an encoder, once."""
    loaded: set[str] = set()

    def load(name: str) -> str:
        if name not in loaded:
            shared_triton.serve_encoder(encoder(name) / "bundle", name)
            loaded.add(name)
        return name

    return load


@pytest.fixture(scope="module")
def gathering(shared_triton: Triton, encoder: Encoders) -> str:
    """A model of embeddings that runs as soon as FULL texts have come."""
    bundle = encoder("sentences") / "bundle"
    return shared_triton.serve_encoder(bundle, "gathering", most_texts=FULL, delay=PATIENCE)


def infer(triton: Triton, model: str, data: dict[str, list[Any]], **parameters: Any) -> Any:
    """What the server answers to columns of single values, over HTTP as curl would ask."""
    inputs = [
        {"name": name, "shape": [len(values), 1], "datatype": "BYTES", "data": values}
        for name, values in data.items()
    ]
    body = {"inputs": inputs, "parameters": parameters}
    answer = httpx.post(f"{triton.url}/v2/models/{model}/infer", json=body, timeout=60).json()
    if "error" in answer:
        return answer["error"]
    return {
        tensor["name"]: np.array(tensor["data"]).reshape(tensor["shape"])
        for tensor in answer["outputs"]
    }


def hugging_face(folder: Path, task: str, **options: Any) -> Any:
    return pipeline(task, model=str(folder / "checkpoint"), device="cpu", **options)


def embeddings(folder: Path, texts: list[str]) -> np.ndarray[Any, Any]:
    """Those of transformers: of the first token, cut to what the bundle takes, of length 1."""
    model = AutoModel.from_pretrained(folder / "checkpoint").eval()
    tokens = AutoTokenizer.from_pretrained(folder / "checkpoint")(
        texts, padding=True, truncation=True, max_length=32, return_tensors="pt"
    )
    with torch.no_grad():
        first = model(**tokens).last_hidden_state[:, 0]
    vectors: np.ndarray[Any, Any] = torch.nn.functional.normalize(first).numpy()
    return vectors


def gather(triton: Triton, model: str, requests: list[dict[str, Any]]) -> list[Any]:
    """Send requests at a time over gRPC; the embeddings of each, or its error.

    Of each there are ``inputs``, and ``parameters`` if it has any.
    """
    client = grpc.InferenceServerClient(triton.grpc)
    answers: list[Future[Any]] = [Future() for _ in requests]

    def take(future: Future[Any], result: Any, error: Any) -> None:
        future.set_result(error.message() if error else result.as_numpy("embeddings"))

    for request, future in zip(requests, answers, strict=True):
        client.async_infer(
            model,
            infer_inputs(**request["inputs"]),
            lambda result, error, future=future: take(future, result, error),
            outputs=[grpc.InferRequestedOutput("embeddings")],
            parameters=request.get("parameters"),
        )
    results = [future.result(60) for future in answers]
    client.close()
    return results


def executions(triton: Triton, model: str) -> tuple[int, int]:
    """How many texts a model has answered, and in how many calls, as Triton counts them."""
    (stats,) = httpx.get(f"{triton.url}/v2/models/{model}/stats").json()["model_stats"]
    return int(stats["inference_count"]), int(stats["execution_count"])


def test_embeddings_are_those_of_transformers(
    triton: Triton, encoder: Encoders, served: Callable[[str], str]
) -> None:
    folder, model = encoder("sentences"), served("sentences")
    wanted = embeddings(folder, TEXTS)
    answer = infer(triton, model, {"text": TEXTS})
    np.testing.assert_allclose(answer["embeddings"], wanted, atol=1e-5)
    counts = AutoTokenizer.from_pretrained(folder / "checkpoint")(TEXTS)["input_ids"]
    assert answer["num_input_tokens"][:, 0].tolist() == [len(ids) for ids in counts]
    generated = triton.generate(model, text=TEXTS[1])
    np.testing.assert_allclose(generated["embeddings"], wanted[1], atol=1e-5)
    assert (generated["truncated"], generated["segments"]) == (False, 1)


def test_long_texts(triton: Triton, encoder: Encoders, served: Callable[[str], str]) -> None:
    folder, model = encoder("sentences"), served("sentences")
    assert "and this model takes 32" in infer(triton, model, {"text": [LONG]})
    cut = infer(triton, model, {"text": [LONG, "x"]}, context_overflow="truncate")
    np.testing.assert_allclose(cut["embeddings"], embeddings(folder, [LONG, "x"]), atol=1e-5)
    assert cut["truncated"][:, 0].tolist() == [True, False]
    whole = infer(triton, model, {"text": [LONG]}, context_overflow="segments", overlap=6)
    with serving.load_encoder(folder / "bundle", threads=1) as opened:
        wanted = opened.embed(LONG, context_overflow="segments", overlap=6)
    assert whole["segments"].tolist() == [wanted.segments]
    np.testing.assert_allclose(whole["embeddings"], wanted.vectors, atol=1e-5)


def test_ids_in_place_of_a_text(triton: Triton, encoder: Encoders, gathering: str) -> None:
    """They run together whatever their lengths, padded or not, though the engine fails over one."""
    folder = encoder("sentences")
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    padded = tokenizer(TEXTS[:2], padding=True, return_tensors="np")
    alone = [tokenizer(text, return_tensors="np") for text in (*TEXTS, TEXTS[0])]
    unknown_type = {name: np.full((1, 1), value) for name, value in _UNKNOWN_TYPE.items()}
    before = executions(triton, gathering)
    requests = [{"inputs": dict(each)} for each in (padded, unknown_type, *alone)]
    answers = gather(triton, gathering, requests)
    # Triton counts after it has answered.
    until(lambda: executions(triton, gathering)[0] == before[0] + FULL)
    assert executions(triton, gathering)[1] == before[1] + 1
    wanted = embeddings(folder, TEXTS)
    np.testing.assert_allclose(answers[0], wanted[:2], atol=1e-5)
    assert "The engine failed" in answers[1]
    np.testing.assert_allclose(np.concatenate(answers[2:6]), wanted, atol=1e-5)


def test_requests_run_together_and_fail_alone(
    triton: Triton, encoder: Encoders, gathering: str
) -> None:
    counted, failures = "serve_llm_texts_total", 'serve_llm_requests_total{ending="failed"'
    good = [{"inputs": {"text": text}} for text in TEXTS]
    cut = {"inputs": {"text": LONG}, "parameters": {"context_overflow": "truncate"}}
    bad = [
        ({"inputs": {"text": " "}}, "The text is empty"),
        ({"inputs": {"text": LONG}}, "and this model takes 32"),
        ({"inputs": {"text": "x"}, "parameters": {"top_k": 3}}, "no parameter 'top_k' for embed"),
    ]
    before, texts = executions(triton, gathering), triton.metric(counted, gathering)
    failed = triton.metric(failures, gathering)
    answers = gather(triton, gathering, [*(request for request, _ in bad), cut, *good])
    # Triton counts after it has answered.
    until(lambda: executions(triton, gathering)[0] == before[0] + FULL)
    assert executions(triton, gathering)[1] == before[1] + 1
    for answer, (_, reason) in zip(answers, bad, strict=False):
        assert reason in answer
    wanted = embeddings(encoder("sentences"), [LONG, *TEXTS])
    np.testing.assert_allclose(np.concatenate(answers[len(bad) :]), wanted, atol=1e-5)
    assert triton.metric(failures, gathering) == failed + len(bad)
    assert triton.metric(counted, gathering) == FULL - len(bad) + texts


@pytest.mark.parametrize(
    ("inputs", "reason"),
    [
        ({"input_ids": [5], "text": "x"}, "exclude each other"),
        ({"input_ids": np.array([[512]])}, "an id that isn't from 0 to 511"),
        ({"input_ids": np.array([[-1]])}, "an id that isn't from 0 to 511"),
        ({"input_ids": np.full((1, 33), 5)}, "33 tokens, and this model takes from 1 to 32"),
        ({"input_ids": [5, 6], "attention_mask": [1]}, "make them alike"),
        ({"input_ids": [5, 6], "attention_mask": [0, 1]}, "pad on the right"),
        ({"input_ids": [5], "attention_mask": [0]}, "0 tokens"),
        ({"attention_mask": [1], "text": "x"}, "leave it out"),
        ({"text": np.array([[b"\xff"]], np.object_)}, "isn't UTF-8"),
        ({"text": np.array([[1]])}, "expects 'BYTES'"),
        ({"text": np.array([b"x"], np.object_)}, "unexpected shape"),
        ({"text": np.array([[b"x", b"y"]], np.object_)}, "unexpected shape"),
    ],
)
def test_bad_requests(
    triton: Triton, served: Callable[[str], str], inputs: dict[str, Any], reason: str
) -> None:
    arrays = {
        name: np.array([value]) if isinstance(value, list) else value
        for name, value in inputs.items()
    }
    (answer,) = gather(triton, served("sentences"), [{"inputs": arrays}])
    assert reason in answer


def test_classification(triton: Triton, encoder: Encoders, served: Callable[[str], str]) -> None:
    folder, model = encoder("own_attention"), served("own_attention")
    theirs = hugging_face(folder, "text-classification", top_k=None)
    pairs = {"text": TEXTS[:2], "text_pair": TEXTS[2:]}
    for data in ({"text": TEXTS}, pairs):
        answer = infer(triton, model, data)
        rows = [dict(zip(data, row, strict=True)) for row in zip(*data.values(), strict=True)]
        for labels, scores, row in zip(answer["labels"], answer["scores"], rows, strict=True):
            wanted = theirs(row)
            assert labels.tolist() == [each["label"] for each in wanted]
            np.testing.assert_allclose(scores, [each["score"] for each in wanted], atol=1e-5)
    assert infer(triton, model, pairs, top_k=1)["labels"].shape == (2, 1)
    assert "top_k is 4, but must be from 1 to 3" in infer(triton, model, pairs, top_k=4)


def test_masks(triton: Triton, encoder: Encoders, served: Callable[[str], str]) -> None:
    folder, model = encoder("windows"), served("windows")
    texts = ["return the [MASK] of func", "[MASK] a [MASK]"]
    theirs = hugging_face(folder, "fill-mask")
    answer = infer(triton, model, {"text": texts}, top_k=3)
    wanted = [[theirs(texts[0], top_k=3)], theirs(texts[1], top_k=3)]
    for row, masks in enumerate(wanted):
        for place, each in enumerate(masks):
            assert answer["token_ids"][row, place].tolist() == [one["token"] for one in each]
            scores = [one["score"] for one in each]
            np.testing.assert_allclose(answer["scores"][row, place], scores, atol=1e-5)
    assert answer["texts"][0, 0].tolist() == [one["sequence"] for one in wanted[0][0]]
    # What the first text has no mask for is empty.
    assert answer["tokens"][0, 1].tolist() == [""] * 3
    assert answer["scores"][0, 1].tolist() == [0.0] * 3
    refused = infer(triton, model, {"text": [texts[0], "no mask"]})
    assert "Text 2 has no [MASK]: put one in it" in refused


def test_entities(triton: Triton, encoder: Encoders, served: Callable[[str], str]) -> None:
    folder, model = encoder("entities"), served("entities")
    answer = infer(triton, model, {"text": TEXTS})
    theirs = hugging_face(folder, "token-classification", aggregation_strategy="simple")
    for row, text in enumerate(TEXTS):
        spans = theirs(text)
        for output, field in (("labels", "entity_group"), ("starts", "start"), ("ends", "end")):
            own = answer[output][row]
            assert own[: len(spans)].tolist() == [span[field] for span in spans]
            assert not any(own[len(spans) :])
        assert answer["texts"][row, : len(spans)].tolist() == [
            text[span["start"] : span["end"]] for span in spans
        ]
    assert answer["labels"].size
    tokens = infer(triton, model, {"text": TEXTS}, grouped=False)
    assert tokens["labels"].shape[1] == tokens["num_input_tokens"].max() - 2


def test_answers(triton: Triton, encoder: Encoders, served: Callable[[str], str]) -> None:
    bundle, model = encoder("relative") / "bundle", served("relative")
    data = {"question": ["what is returned?"] * 2, "context": [TEXTS[1], LONG * 3]}
    parameters = {"context_overflow": "segments", "overlap": 8, "max_answer_tokens": 4}
    found = infer(triton, model, data, **parameters)
    with serving.load_encoder(bundle, threads=1) as opened:
        for row, pair in enumerate(zip(*data.values(), strict=True)):
            wanted = opened.answer(*pair, **parameters)
            assert found["answer"][row, 0] == wanted.text
            assert (found["start"][row, 0], found["end"][row, 0]) == (wanted.start, wanted.end)
            assert found["score"][row, 0] == pytest.approx(wanted.score, rel=1e-4)
            assert found["segments"][row, 0] == wanted.segments
    assert found["segments"][1, 0] > 1


def test_printed_commands(triton: Triton, served: Callable[[str], str]) -> None:
    models = {
        served(name) for name in ("sentences", "windows", "own_attention", "entities", "relative")
    }
    commands = [shlex.split(line) for line in client_commands(triton.url)]
    # Other tests' models are there too, whose commands have options before the address.
    own = {command[1].split("/")[-2]: command for command in commands if "/" in command[1]}
    for model in models:
        done = subprocess.run([*own[model], "--silent"], capture_output=True, text=True, check=True)
        answer = json.loads(done.stdout)
        assert answer.keys() > {"num_input_tokens", "truncated", "segments"}, answer


def test_a_model_that_goes_leaves_nothing(triton: Triton, encoder: Encoders) -> None:
    server = psutil.Process(triton.server.pid)
    before = {process.pid for process in server.children(recursive=True)}
    triton.serve_encoder(encoder("sentences") / "bundle", "passing")
    assert triton.generate("passing", text="x")["num_input_tokens"] == 3
    assert triton.metric("serve_llm_batch_texts_count", "passing") == 1
    triton.unload("passing")
    until(lambda: {process.pid for process in server.children(recursive=True)} == before)
    assert not triton.metric("serve_llm_requests_total", "passing")
