"""``scripts/batch_generate`` with bundles of encoders, in one process."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import serving
from scripts.batch.command import main
from tests.encoders import encoder_fixture

Encoders = Callable[[str], Path]
TEXTS = ["def main(func):", "x", "Return a partial function application.", "import os " * 30]
QUESTION = {"question": "what is returned?", "context": TEXTS[2]}
# What each encoder is asked, and the results' fields that its task is for.
ASKED: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "sentences": ({"text": TEXTS[0]}, ("embedding",)),
    "own_attention": ({"text": TEXTS[0], "text_pair": TEXTS[2]}, ("labels", "scores")),
    "entities": ({"text": TEXTS[2]}, ("entities",)),
    "windows": ({"text": "return the [MASK] of func", "top_k": 2}, ("candidates",)),
    "relative": (QUESTION, ("answer", "score", "start", "end")),
}


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Encoders:
    return encoder_fixture(tmp_path_factory)


def run(*arguments: object) -> Result:
    options = ["--local", "--json", "--threads", 1]
    return CliRunner().invoke(main, list(map(str, [*arguments, *options])))


def write(path: Path, *lines: Any) -> Path:
    texts = [line if isinstance(line, str) else json.dumps(line) for line in lines]
    path.write_text("".join(f"{text}\n" for text in texts))
    return path


def results(path: Path) -> dict[Any, dict[str, Any]]:
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    found = {line.get("id", line.get("line")): line for line in lines}
    assert len(found) == len(lines), "a line was done twice"
    return found


def alone(name: str, model: Any, line: dict[str, Any]) -> dict[str, Any]:
    """What the model gives for a line by itself."""
    match name:
        case "sentences":
            return {"embedding": model.embed(line["text"]).vectors[0].tolist()}
        case "own_attention":
            return asdict(model.classify((line["text"], line["text_pair"]))[0])
        case "entities":
            return {"entities": [asdict(span) for span in model.label_tokens(line["text"])]}
        case "windows":
            (mask,) = model.fill_mask(line["text"], top_k=line["top_k"])
            return {"candidates": [[asdict(each) for each in mask]]}
        case _:
            found = asdict(model.answer(line["question"], line["context"]))
            return {"answer": found["text"], **found}


@pytest.mark.parametrize("name", ASKED)
def test_each_task_gives_what_the_model_gives(name: str, encoder: Encoders, tmp_path: Path) -> None:
    bundle, (line, fields) = encoder(name) / "bundle", ASKED[name]
    inputs = write(tmp_path / "in.jsonl", {"id": "a", "topic": [1], **line}, line)
    done = run(bundle, inputs, tmp_path / "out.jsonl")
    assert done.exit_code == 0, done.output
    found = results(tmp_path / "out.jsonl")
    assert set(found) == {"a", 2}
    assert found["a"]["topic"] == [1]
    with serving.load_encoder(bundle, threads=1) as model:
        wanted = json.loads(json.dumps(alone(name, model, line)))
    for field in fields:
        assert nearly(found[2][field], wanted[field])
    assert "text" not in found["a"]
    assert json.loads(done.stdout)["tokens"] == sum(each["tokens"] for each in found.values())


def nearly(ours: Any, theirs: Any) -> bool:
    """Whether two documents are equal, and their numbers nearly."""
    if isinstance(ours, dict):
        return ours.keys() == theirs.keys() and all(nearly(ours[k], theirs[k]) for k in ours)
    if isinstance(ours, list):
        return len(ours) == len(theirs) and all(map(nearly, ours, theirs))
    return bool(ours == theirs or ours == pytest.approx(theirs, abs=1e-6))


def test_many_lines_in_few_batches_are_each_as_alone(encoder: Encoders, tmp_path: Path) -> None:
    bundle = encoder("sentences") / "bundle"
    lines = [{"id": n, "text": TEXTS[n % 3] + " x" * (n % 7)} for n in range(60)]
    inputs = write(tmp_path / "in.jsonl", *lines)
    done = run(bundle, inputs, tmp_path / "out.jsonl", "--batch-tokens", 30)
    assert done.exit_code == 0, done.output
    found = results(tmp_path / "out.jsonl")
    with serving.load_encoder(bundle, threads=1) as model:
        wanted = model.embed([str(line["text"]) for line in lines])
    ours = np.array([found[number]["embedding"] for number in range(60)])
    np.testing.assert_allclose(ours, wanted.vectors, atol=1e-6)
    assert [found[number]["tokens"] for number in range(60)] == wanted.prompt_tokens


def test_long_texts_are_refused_cut_or_split_as_asked(encoder: Encoders, tmp_path: Path) -> None:
    bundle = encoder("sentences") / "bundle"
    inputs = write(
        tmp_path / "in.jsonl",
        {"text": TEXTS[3]},
        {"text": TEXTS[3], "context_overflow": "truncate"},
        {"text": TEXTS[3], "overlap": 4},
    )
    assert run(bundle, inputs, tmp_path / "refused.jsonl").exit_code == 1
    refused = results(tmp_path / "refused.jsonl")
    assert "this model takes 32" in refused[1]["error"]
    assert (refused[2]["segments"], refused[2]["truncated"]) == (1, True)
    assert refused[3]["segments"] > 1
    assert run(bundle, inputs, tmp_path / "split.jsonl", "--overlap", 4).exit_code == 0
    split = results(tmp_path / "split.jsonl")
    assert split[1]["embedding"] == refused[3]["embedding"]
    assert split[2]["truncated"]


def test_bad_lines_are_results_and_what_is_done_is_kept(encoder: Encoders, tmp_path: Path) -> None:
    bundle, output = encoder("sentences") / "bundle", tmp_path / "out.jsonl"
    bad = [
        ("{not json", "The line can't be read (Invalid JSON"),
        ({"text": 5}, "text can't be read"),
        ({"text": " "}, "The text is empty"),
        ({"prompt": "x"}, "The line needs text"),
        ({"text": "x", "text_pair": "y"}, "text_pair is for text-classification, not for embed"),
        ({"text": "x", "top_k": 3}, "top_k is for fill-mask, not for embed"),
        ({"text": "x", "tokens": 3}, "The field 'tokens' is one of the results' own"),
    ]
    inputs = write(tmp_path / "in.jsonl", *[line for line, _ in bad], {"id": 1, "text": "x"})
    output.write_text('{"id": 1, "embedding": "kept"}\n{"id": 2, "emb')
    done = run(bundle, inputs, output)
    assert done.exit_code == 1
    summary = json.loads(done.stdout)
    assert (summary["earlier"], summary["failed"]) == (1, len(bad))
    lines = [json.loads(line) for line in output.read_text().splitlines()]
    assert lines[0] == {"id": 1, "embedding": "kept"}
    for line, (_, reason) in zip(lines[1:], bad, strict=True):
        assert reason in line["error"]


def test_refusals(encoder: Encoders, tmp_path: Path) -> None:
    bundle = encoder("sentences") / "bundle"
    inputs = write(tmp_path / "in.jsonl", {"id": 1, "text": "x"})
    output = tmp_path / "out.jsonl"
    for options, reason in (
        (["--max-new-tokens", 5], "--max-new-tokens is for models that generate text"),
        (["--slots", 5], "--slots is for models that generate text"),
        (["--context-overflow", "slide"], "Encoders' texts don't grow"),
        (["--context-overflow", "truncate", "--overlap", 2], "--overlap splits long texts"),
    ):
        refused = run(bundle, inputs, output, *options)
        assert refused.exit_code == 1
        assert reason in refused.stderr
        assert not output.exists()
    assert "is no result of scripts/batch_generate" in run(bundle, inputs, inputs).stderr
