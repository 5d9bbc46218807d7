"""A real Triton server's generate endpoints, by curl, against the bundle itself."""

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import serving
from serving.generation import Model
from tests.serving.triton.conftest import Triton

pytestmark = pytest.mark.xdist_group("triton")

PROMPTS = ("def main(", "class Parser", "import os\n", "# é 😀 ")


@pytest.fixture(scope="module")
def model(trained_bundle: Path) -> Iterator[Model]:
    with serving.load(trained_bundle, threads=1, capacity=256) as opened:
        yield opened


def curl(triton: Triton, model: str, endpoint: str, **body: Any) -> str:
    url = f"{triton.url}/v2/models/{model}/{endpoint}"
    command = ["curl", "-sN", "--max-time", "60", url, "-d", json.dumps(body)]
    return subprocess.run(command, capture_output=True, check=True).stdout.decode()


def events(text: str) -> list[dict[str, Any]]:
    """The JSON of server-sent events."""
    lines = [line.removeprefix("data: ") for line in text.splitlines() if line]
    return [json.loads(line) for line in lines]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_generate_is_what_serve_llm_generate_prints(
    triton: Triton, trained: str, trained_bundle: Path, prompt: str
) -> None:
    command = ["serve-llm", "generate", trained_bundle, prompt, "--max-new-tokens", "24", "--json"]
    printed = json.loads(subprocess.run(command, capture_output=True, check=True).stdout)
    answer = json.loads(curl(triton, trained, "generate", text_input=prompt, max_tokens=24))
    assert answer["text_output"] == printed["text"]
    assert answer["output_ids"] == printed["token_ids"]
    assert answer["finish_reason"] == printed["finish_reason"]
    assert answer["model_version"] == "1"


def test_a_stream_of_parts_adds_up(triton: Triton, trained: str, model: Model) -> None:
    parts = events(
        curl(
            triton,
            trained,
            "generate_stream",
            text_input="def main(",
            max_tokens=24,
            stream=True,
            return_log_probs=True,
            return_num_output_tokens=True,
        )
    )
    expected = model.generate("def main(", max_new_tokens=24, logprobs=0)
    assert len(parts) > 10
    assert "".join(part["text_output"] for part in parts) == expected.text
    assert sum(part["num_output_tokens"] for part in parts) == 24
    assert [part.get("finish_reason") for part in parts[:-1]] == [None] * (len(parts) - 1)
    assert parts[-1]["finish_reason"] == "length"
    assert expected.logprobs is not None
    total = sum(entry.chosen for entry in expected.logprobs)
    assert parts[-1]["cum_log_probs"] == pytest.approx(total, rel=1e-5)


def test_a_stream_without_stream_is_one_part(triton: Triton, trained: str, model: Model) -> None:
    (part,) = events(curl(triton, trained, "generate_stream", text_input="def main(", max_tokens=8))
    assert part["text_output"] == model.generate("def main(", max_new_tokens=8).text


def test_sampling_parameters_mean_what_they_mean_elsewhere(
    triton: Triton, trained: str, model: Model
) -> None:
    given: dict[str, Any] = {
        "temperature": 0.8,
        "top_k": 20,
        "top_p": 0.9,
        "min_p": 0.01,
        "repetition_penalty": 1.2,
        "presence_penalty": 0.5,
        "frequency_penalty": 0.25,
        "seed": 2**63 + 5,
    }
    answer = triton.generate(trained, text_input="class Parser", max_tokens=40, **given)
    assert answer["text_output"] == model.generate("class Parser", max_new_tokens=40, **given).text
    # Whoever chooses among tokens wants them drawn.
    drawn = triton.generate(trained, text_input="class Parser", max_tokens=40, top_p=0.9, seed=3)
    expected = model.generate("class Parser", max_new_tokens=40, temperature=1.0, top_p=0.9, seed=3)
    assert drawn["text_output"] == expected.text


def test_stop_and_bad_words(triton: Triton, trained: str, model: Model) -> None:
    plain = model.generate("class Parser", max_new_tokens=40).text
    stop, bad = plain[10:13], plain.split()[1]
    answer = triton.generate(
        trained, text_input="class Parser", max_tokens=40, stop_words=["zzz", stop]
    )
    assert answer["text_output"] == plain[: plain.index(stop)]
    assert answer["finish_reason"] == "stop"
    # Clients send empty strings for none.
    same = triton.generate(
        trained, text_input="class Parser", max_tokens=40, stop_words="", bad_words=""
    )
    assert same["text_output"] == plain
    without = triton.generate(trained, text_input="class Parser", max_tokens=40, bad_words=[bad])
    expected = model.generate("class Parser", max_new_tokens=40, bad_words=[bad])
    assert without["text_output"] == expected.text != plain


def test_token_ids_in_place_of_a_text(triton: Triton, trained: str, model: Model) -> None:
    ids = model.encode("def main(")
    answer = triton.generate(
        trained,
        input_ids=ids,
        max_tokens=8,
        return_num_input_tokens=True,
        return_num_output_tokens=True,
    )
    assert answer["output_ids"] == model.generate(ids, max_new_tokens=8).token_ids
    assert (answer["num_input_tokens"], answer["num_output_tokens"]) == (len(ids), 8)


def test_the_prompt_comes_before_the_answer_if_asked_for(
    triton: Triton, trained: str, model: Model
) -> None:
    text = model.generate("def main(", max_new_tokens=8).text
    for prompt in ({"text_input": "def main("}, {"input_ids": model.encode("def main(")}):
        answer = triton.generate(trained, **prompt, max_tokens=8, exclude_input_in_output=False)
        assert answer["text_output"] == "def main(" + text


def test_beams(triton: Triton, trained: str, model: Model) -> None:
    answer = triton.generate(
        trained,
        text_input="class Parser",
        max_tokens=12,
        beam_width=3,
        length_penalty=0.5,
        temperature=1.0,
        return_log_probs=True,
    )
    expected = model.generate(
        "class Parser", max_new_tokens=12, num_beams=3, length_penalty=0.5, num_return_sequences=3
    )
    assert answer["text_output"] == [beam.text for beam in expected]
    totals = [(beam.score or 0.0) * len(beam.token_ids) ** 0.5 for beam in expected]
    assert answer["cum_log_probs"] == pytest.approx(totals, rel=1e-5)


@pytest.mark.parametrize(
    ("kind", "guide", "matches"),
    [
        ("json_schema", '{"enum": ["é😀", "ab"]}', lambda text: json.loads(text) in ("é😀", "ab")),
        ("regex", "[a-c]{5}", lambda text: len(text) == 5 and set(text) <= set("abc")),
        ("choice", '["yes", "no"]', lambda text: text in ("yes", "no")),
    ],
)
def test_guided_decoding(triton: Triton, trained: str, kind: str, guide: str, matches: Any) -> None:
    answer = triton.generate(
        trained,
        text_input="x = ",
        max_tokens=60,
        guided_decoding_guide_type=kind,
        guided_decoding_guide=guide,
    )
    assert matches(answer["text_output"])


BAD_REQUESTS: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": 5}, "There is no prompt"),
    ({"text_input": ""}, "There is no prompt"),
    ({"text_input": "a", "input_ids": [1]}, "exclude each other"),
    ({"text_input": 3}, "Unable to parse"),
    ({"text_input": ["a", "b"]}, "batch-size must be <= 1"),
    ({"text_input": "a", "max_tokens": 0}, "max_tokens is 0"),
    ({"text_input": "a", "max_tokens": "many"}, "Unable to parse"),
    ({"text_input": "a", "max_tokens": [1, 2]}, "batch size does not match"),
    ({"text_input": "a", "max_tokens": 100_000}, "don't fit into the capacity"),
    ({"text_input": "a " * 300, "max_tokens": 1}, "don't fit into the capacity"),
    ({"input_ids": [1_000_000], "max_tokens": 1}, "ids are whole numbers from 0"),
    ({"text_input": "a", "temperature": -1}, "temperature is -1"),
    ({"text_input": "a", "top_p": 0}, "top_p is 0"),
    ({"text_input": "a", "beam_width": 0}, "beam_width is 0"),
    ({"text_input": "a", "beam_width": 99}, "slots"),
    ({"text_input": "a", "beam_width": 2, "stream": True}, "exclude each other"),
    ({"text_input": "a", "guided_decoding_guide_type": "poem"}, "must be one of json"),
    ({"text_input": "a", "guided_decoding_guide": "{}"}, "guided_decoding_guide_type"),
    (
        {"text_input": "a", "guided_decoding_guide_type": "regex", "guided_decoding_guide": "("},
        "regular expression",
    ),
    ({"text_input": "a", "adapter": "sql"}, "no adapter 'sql'"),
]


@pytest.mark.parametrize(("body", "reason"), BAD_REQUESTS, ids=lambda value: str(value)[:60])
def test_a_bad_request_gets_its_own_error(
    triton: Triton, trained: str, body: dict[str, Any], reason: str
) -> None:
    assert reason in json.loads(curl(triton, trained, "generate", **body))["error"]
