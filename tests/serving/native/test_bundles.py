"""Bundles that the native runtime refuses, and what the Python binding says of them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import serving
from serving import UserError
from serving.bundle import DType, file_info
from serving.native.engine import NativeEngine
from serving.onnxruntime import OnnxRuntimeEngine
from tests.serving.native.building import run
from tests.serving.tiny_graph import graph_info, save_graph


def change(bundle: Path, edit: Callable[[Any], object]) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    edit(manifest)
    (bundle / "bundle.json").write_text(json.dumps(manifest))


STAGE = {"file": "model.onnx", "first_layer": 0, "layers": 1, "weight_bytes": 1}
LORA = {"name": "q", "inputs": 8, "outputs": 8, "modules": [{"name": "q"}]}
REFUSED: dict[str, Callable[[Any], object]] = {
    "newer export-llm": lambda m: m.update(format_version=2),
    "another contract": lambda m: m["graph"].update(contract_version=2),
    "LoRA adapters": lambda m: m["graph"].update(lora=[LORA]),
    "in stages": lambda m: m["engines"][0].update(stages=[STAGE]),
    "without its weights": lambda m: m["engines"][0].update(
        stripped_from={"size": 1, "sha256": "0" * 64}
    ),
    "no engine for onnxruntime": lambda m: m["engines"][0].update(target="tensorrt"),
    r"not a valid manifest \(name\)": lambda m: m["model"].update(name=3),
    r"not a valid manifest \(vocab_size\)": lambda m: m["graph"].update(vocab_size=2**40),
    r"not a valid manifest \(key_dim\)": lambda m: m["graph"]["layers"][0].update(key_dim=0),
    r"not a valid manifest \(layers\)": lambda m: m["graph"].update(layers=[]),
    r"not a valid manifest \(dtype\)": lambda m: m["graph"].update(dtype="float8"),
    r"not a valid manifest \(eos\)": lambda m: m["tokens"].update(eos=[-1]),
    r"not a valid manifest \(sha256\)": lambda m: m["files"]["model.onnx"].update(sha256="G" * 64),
    r"not a valid manifest \(the name of a file\)": lambda m: m["files"].update(
        {"../model.onnx": m["files"]["model.onnx"]}
    ),
    "isn't listed under files": lambda m: m["engines"][0].update(file="other.onnx"),
}


@pytest.mark.usefixtures("prefix")
@pytest.mark.parametrize("reason", REFUSED)
def test_what_it_does_not_run_is_refused(tiny: Path, reason: str) -> None:
    change(tiny, REFUSED[reason])
    with pytest.raises(UserError, match=reason):
        NativeEngine(tiny, graph_info(), slots=1, capacity=8)


def damage(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "its checksum differs": lambda path: damage(path / "model.onnx"),
    "bytes instead of": lambda path: (path / "model.onnx").write_bytes(b"short"),
    "lacks its file 'model.onnx'": lambda path: (path / "model.onnx").unlink(),
    "has no bundle.json": lambda path: (path / "bundle.json").unlink(),
    "no bundle directory": shutil.rmtree,
    "is encrypted": lambda path: (path / "encryption.json").write_text("{}"),
    "is not JSON": lambda path: (path / "bundle.json").write_text("{"),
}


@pytest.mark.parametrize("reason", DAMAGES)
def test_damage_is_one_sentence(prefix: Path, tiny: Path, reason: str) -> None:
    DAMAGES[reason](tiny)
    done = run(prefix / "bin" / "llm-run", tiny, "--ids", "1,2")
    assert done.returncode == 1
    assert done.stdout == ""
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_checksums_may_be_left_alone(prefix: Path, tiny: Path) -> None:
    change(tiny, lambda manifest: manifest["files"]["model.onnx"].update(sha256="0" * 64))
    program = prefix / "bin" / "llm-run"
    assert run(program, tiny, "--ids", "1,2", "-n", 2).returncode == 1
    assert run(program, tiny, "--ids", "1,2", "-n", 2, "--no-verify").returncode == 0


@pytest.mark.usefixtures("prefix")
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_steps_equal_those_of_the_python_engine(tiny: Path, dtype: DType) -> None:
    file = save_graph(tiny / "model.onnx", dtype)
    graph = graph_info(dtype)
    change(tiny, lambda manifest: manifest.update(graph=graph.model_dump()))
    change(
        tiny, lambda manifest: manifest["files"].update({file.name: file_info(file).model_dump()})
    )
    ids = np.array([[3, 1, 4, 1, 5]])
    with (
        NativeEngine(tiny, graph, slots=3, capacity=16) as native,
        OnnxRuntimeEngine(file, graph, slots=3, capacity=16) as python,
    ):
        outputs = []
        for engine in (native, python):
            prefill = engine.step(ids, np.array([0]), np.arange(5)[None], 1).copy()
            engine.cache.move(1, 2, 5)
            rows = engine.step(np.array([[2], [7]]), np.array([5, 4]), np.zeros((2, 1), int), 1)
            outputs.append((prefill, rows.copy()))
        for ours, theirs in zip(*outputs, strict=True):
            np.testing.assert_array_equal(ours, theirs)
            assert np.abs(ours).max() > 0.1
        with pytest.raises(ValueError, match="don't fit"):
            native.step(ids, np.array([12]), np.array([[4]]))
        with pytest.raises(ValueError, match="int64"):
            native.step(ids.astype(np.int32), np.array([0]), np.array([[4]]))


def test_texts_and_options(prefix: Path, tiny: Path) -> None:
    with serving.load(tiny, runtime="native") as native, serving.load(tiny) as python:
        options: dict[str, Any] = {"max_new_tokens": 40, "temperature": 1.5, "seed": 3}
        expected = python.generate("some text", **options)
        assert native.generate("some text", **options) == expected
        assert native.generate(["a", "some text"], **options)[1] == expected
    arguments = ("--max-new-tokens", 40, "--temperature", 1.5, "--seed", 3, "--kernels", "")
    done = run(prefix / "bin" / "llm-run", tiny, "--prompt", "some text", *arguments)
    assert done.stdout == expected.text + "\n"
    done = run(prefix / "bin" / "llm-run", tiny, "--prompt", "some text", "--json", *arguments)
    result = json.loads(done.stdout)
    assert (result["text"], result["token_ids"]) == (expected.text, expected.token_ids)
    assert result["finish_reason"] == expected.finish_reason
    assert result["prompt_tokens"] == expected.prompt_tokens


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"runtime": "fast"}, "must be one of python, native"),
        ({"runtime": "native", "provider": "cuda"}, "runs engines of ONNX Runtime on the CPU"),
    ],
)
def test_runtimes_that_there_are_not(tiny: Path, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        serving.load(tiny, **options)


@pytest.mark.parametrize(
    "arguments",
    [
        ("--ids", "1"),
        ("BUNDLE",),
        ("BUNDLE", "--ids", "1", "--prompt", "a"),
        ("BUNDLE", "--ids", "1", "--abacus"),
        ("BUNDLE", "--ids", "1", "-n", "-3"),
        ("BUNDLE", "--ids", "1", "-n"),
        ("BUNDLE", "--ids", "1", "--temperature", "hot"),
    ],
)
def test_what_the_command_does_not_understand(
    prefix: Path, tiny: Path, arguments: tuple[str, ...]
) -> None:
    words = [str(tiny) if word == "BUNDLE" else word for word in arguments]
    done = run(prefix / "bin" / "llm-run", *words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert "--help" in done.stderr


def test_a_chat_goes_on(prefix: Path, tiny: Path) -> None:
    program = prefix / "bin" / "llm-run"
    lines = ["--chat", "--template", "{}.", "-n", "6", "--ignore-eos", "--json", "--kernels", ""]
    done = run(program, tiny, *lines, stdin="ab\ncd\n")
    first, second = (json.loads(line) for line in done.stdout.splitlines())
    whole = f"ab.{first['text']}cd."
    alone = run(program, tiny, "--prompt", whole, *lines[3:])
    assert json.loads(alone.stdout)["text"] == second["text"]
    assert second["prompt_tokens"] == len(whole)
