"""``scripts/batch_generate`` in one process; tests/test_ray.py runs it on Ray."""

import fcntl
import json
import resource
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import serving
from scripts.batch.command import main
from scripts.batch.generator import Generator
from scripts.batch.lines import Line
from tests.encoder_decoders import multilingual_bundle
from tests.serving.tiny_bundle import make_bundle

# Each with the options that it should be generated with.
LINES: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"id": "a", "prompt": "hello", "topic": {"of": "greetings"}}, {"max_new_tokens": 5}),
    ({"id": 2, "prompt": [3, 4, 5], "max_new_tokens": 3}, {"max_new_tokens": 3}),
    ({"prompt": "hello", "stop": "e"}, {"max_new_tokens": 5, "stop": "e"}),
    (
        {"prompt": "hi", "temperature": 1.0, "seed": 3},
        {"max_new_tokens": 5, "temperature": 1.0, "seed": 3},
    ),
    (
        {"prompt": "hi", "logit_bias": {"7": 100}},
        {"max_new_tokens": 5, "logit_bias": {7: 100.0}},
    ),
]
BAD = [
    ("{not json", "The line can't be read (Invalid JSON"),
    ({"prompt": "x", "max_new_tokens": "many"}, "max_new_tokens can't be read"),
    ({"prompt": "x", "temperature": -1}, "temperature is -1"),
    ({"prompt": ""}, "The prompt is empty"),
    ({"topic": 1}, "either prompt or messages"),
    ({"prompt": "x", "messages": []}, "either prompt or messages"),
    ({"prompt": "x", "text": "y"}, "The field 'text' is one of the results' own"),
    ({"prompt": "x" * 5000}, "don't fit into the capacity"),
]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("batch") / "tiny")


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def run(*arguments: object) -> Result:
    options = ["--local", "--json", "--max-new-tokens", 5, "--threads", 1]
    return CliRunner().invoke(main, list(map(str, [*arguments, *options])))


def results(path: Path) -> dict[Any, dict[str, Any]]:
    text = path.read_text()
    assert text.endswith("\n")
    lines = [json.loads(line) for line in text.splitlines()]
    found = {line.get("id", line.get("line")): line for line in lines}
    assert len(found) == len(lines), "a line was done twice"
    return found


def test_each_line_is_generated_as_alone_with_its_own_options(bundle: Path, tmp_path: Path) -> None:
    inputs = write(
        tmp_path / "in.jsonl",
        *[line for line, _ in LINES[:2]],
        "",
        *[line for line, _ in LINES[2:]],
    )
    done = run(bundle, inputs, tmp_path / "out.jsonl")
    assert done.exit_code == 0, done.output
    found = results(tmp_path / "out.jsonl")
    keys = ["a", 2, 4, 5, 6]  # the third line is empty
    assert set(found) == set(keys)
    with serving.load(bundle, threads=1) as model:
        for key, (line, options) in zip(keys, LINES, strict=True):
            alone = model.generate(line["prompt"], **options)
            assert found[key]["text"] == alone.text
            assert found[key]["finish_reason"] == alone.finish_reason
            assert found[key]["prompt_tokens"] == alone.prompt_tokens
            assert found[key]["new_tokens"] == len(alone.token_ids)
    assert found["a"]["topic"] == {"of": "greetings"}
    assert found[4]["finish_reason"] == "stop"
    summary = json.loads(done.stdout)
    assert (summary["lines"], summary["earlier"], summary["failed"]) == (5, 0, 0)
    assert summary["new_tokens"] == sum(line["new_tokens"] for line in found.values())


def test_conversations_and_logprobs(bundle: Path, tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}]
    inputs = write(tmp_path / "in.jsonl", {"messages": messages, "logprobs": 2})
    assert run(bundle, inputs, tmp_path / "out.jsonl").exit_code == 0
    (found,) = results(tmp_path / "out.jsonl").values()
    with serving.load(bundle, threads=1) as model:
        alone = model.generate(model.encode_chat(messages), max_new_tokens=5, logprobs=2)
    assert found["text"] == alone.text
    assert alone.logprobs is not None
    chosen = [each["chosen"] for each in found["logprobs"]]
    assert chosen == pytest.approx([each.chosen for each in alone.logprobs], abs=1e-5)


def test_a_bad_line_is_a_result_and_stops_no_other(bundle: Path, tmp_path: Path) -> None:
    good = {"prompt": "hello"}
    inputs = write(tmp_path / "in.jsonl", good, *[line for line, _ in BAD], good)
    done = run(bundle, inputs, tmp_path / "out.jsonl")
    assert done.exit_code == 1
    assert json.loads(done.stdout)["failed"] == len(BAD)
    found = results(tmp_path / "out.jsonl")
    for number, (_, reason) in enumerate(BAD, 2):
        assert reason in found[number]["error"]
        assert "text" not in found[number]
    assert found[1]["text"] == found[len(BAD) + 2]["text"]

    again = run(bundle, inputs, tmp_path / "out.jsonl")
    assert again.exit_code == 1  # they are still failed
    assert results(tmp_path / "out.jsonl") == found


@pytest.mark.parametrize("rest", ["", '{"id": "r5", "te', '{"id": "r5", "text": "abc"}'])
def test_what_is_done_is_kept_and_a_cut_off_line_is_done_again(
    rest: str, bundle: Path, tmp_path: Path
) -> None:
    inputs = write(tmp_path / "in.jsonl", *[{"id": f"r{i}", "prompt": "hello"} for i in range(6)])
    output = write(tmp_path / "out.jsonl", *[{"id": f"r{i}", "text": "kept"} for i in range(3)])
    output.write_text(output.read_text() + rest)
    done = run(bundle, inputs, output)
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["earlier"] == 3
    texts = {key: line["text"] for key, line in results(output).items()}
    assert [texts[f"r{i}"] for i in range(3)] == ["kept"] * 3
    assert len({texts[f"r{i}"] for i in range(3, 6)} - {"kept", "abc"}) == 1


def test_sources_with_their_languages(
    tmp_path_factory: pytest.TempPathFactory, tmp_path: Path
) -> None:
    bundle = multilingual_bundle(tmp_path_factory)
    lines: list[dict[str, Any]] = [
        {"prompt": "def f(x):", "target_language": "fr_XX"},
        {"prompt": "de_DE def f(x):", "source_language": "fr_XX", "target_language": "de_DE"},
        {"prompt": "import os", "num_beams": 1},
        {"prompt": "import sys", "temperature": 1.5, "seed": 2},
        {"prompt": "x", "num_beams": 2, "length_penalty": 2.0},
    ] + [{"prompt": f"def f{number}(x):"} for number in range(6)]
    bad = [
        {"prompt": "x", "target_language": "xx_YY"},
        {"prompt": "x " * 300},
        {"prompt": "x", "num_beams": 9},
        {"messages": [{"role": "user", "content": "x"}]},
    ]
    reasons = ["no token for the language", "source capacity of 256", "4 slots", "no conversations"]
    inputs, output = write(tmp_path / "in.jsonl", *lines, *bad), tmp_path / "out.jsonl"
    write(output, {"line": 6, "text": "kept"})
    arguments = [bundle, inputs, output, "--local", "--json", "--threads", 1]
    done = CliRunner().invoke(main, list(map(str, arguments)))
    assert json.loads(done.stdout)["failed"] == len(bad), done.output
    found = results(output)
    assert found[6]["text"] == "kept"
    del lines[5]
    with serving.load(bundle, threads=1) as model:
        for number, line in zip([1, 2, 3, 4, 5, 7, 8, 9, 10, 11], lines, strict=True):
            options = model.completed({**line, "prompt": None}, stream=False)
            alone = model.generate(line["prompt"], **options)
            assert found[number]["text"] == alone.text, line
            assert found[number]["prompt_tokens"] == alone.prompt_tokens
            assert found[number]["new_tokens"] == len(alone.token_ids)
    for number, reason in enumerate(reasons, 12):
        assert reason in found[number]["error"]


def test_refusals(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = write(tmp_path / "in.jsonl", {"id": 1, "prompt": "x"}, {"id": 1, "prompt": "y"})
    output = tmp_path / "out.jsonl"
    assert "Lines 1 and 2 of" in run(bundle, inputs, output).stderr
    write(inputs, {"id": 1, "prompt": "x"})
    refused = run(bundle, inputs, inputs)
    assert "is no result of scripts/batch_generate" in refused.stderr
    assert inputs.read_text() == '{"id": 1, "prompt": "x"}\n'
    assert "There is no bundle" in run(tmp_path / "none", inputs, output).stderr
    assert "can't be read" in run(bundle, tmp_path / "none", output).stderr
    assert "can't be written" in run(bundle, inputs, tmp_path).stderr
    with output.open("a") as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        assert "Another run is writing" in run(bundle, inputs, output).stderr
    assert run(bundle, inputs, output, "--concurrency", 2).exit_code == 2

    monkeypatch.setitem(sys.modules, "ray", None)
    without = CliRunner().invoke(main, list(map(str, [bundle, inputs, output])))
    assert without.exit_code == 1
    assert "install export-llm[ray], or take --local" in without.stderr


def test_a_full_disk_is_one_sentence_and_loses_nothing(bundle: Path, tmp_path: Path) -> None:
    inputs = write(tmp_path / "in.jsonl", *[{"prompt": "hello"}] * 5)
    output = tmp_path / "out.jsonl"
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (250, most))  # in the middle of the third line
    try:
        done = run(bundle, inputs, output)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert done.exit_code == 1
    assert "The output can't be written" in done.stderr
    assert len(output.read_bytes()) == 250
    again = run(bundle, inputs, output)
    assert again.exit_code == 0, again.output
    assert json.loads(again.stdout)["earlier"] == 2
    assert set(results(output)) == {1, 2, 3, 4, 5}


def test_a_line_that_fails_on_its_way_stops_no_other(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with closing(Generator(bundle, {"threads": 1}, {"max_new_tokens": 5})) as generator:
        engine = generator._model.engine
        step = engine.step

        def overflowing(input_ids: Any, *rest: Any) -> Any:
            logits = step(input_ids, *rest)
            return np.full_like(logits, np.nan) if input_ids.shape[1] == 3 else logits

        monkeypatch.setattr(engine, "step", overflowing)
        prompts = ["hello", "abc", "hello"]
        texts = [json.dumps({"id": i, "prompt": p, "k": i}) for i, p in enumerate(prompts)]
        lines = [json.loads(each) for each in generator.run(map(Line, range(3), texts))]
    found = {line["id"]: line for line in lines}
    assert "The engine returned NaN" in found[1]["error"]
    assert found[1]["k"] == 1
    assert found[0]["text"] == found[2]["text"] != ""
