"""serving.load: what it chooses, and what it refuses before an engine is opened."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import serving
from serving import UserError
from serving.bundle import open_bundle
from serving.loading import choose_engine
from serving.onnxruntime import OnnxRuntimeEngine
from tests.conftest import why_no_gpu
from tests.serving.tiny_bundle import make_bundle
from tests.serving.tiny_graph import graph_info

TENSORRT = {
    "target": "tensorrt-rtx",
    "file": "model.onnx",
    "weight_bytes": 1,
    "runtime_version": "1.7",
}


def test_a_bundle_generates(tmp_path: Path) -> None:
    with serving.load(make_bundle(tmp_path / "bundle")) as model:
        assert (model.engine.cache.slots, model.engine.cache.capacity) == (4, 4096)
        assert model.engine.weight_bytes == 2800
        one = model.generate("hello", max_new_tokens=20)
        several = model.generate(["hello", "you there?", "a"], max_new_tokens=20)
    assert several[0] == one
    assert len(one.token_ids) == 20 or one.finish_reason == "stop"


def test_generation_does_not_depend_on_slots_chunks_capacity_or_threads(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    prompts = ["hello there", "x", "what is that?", "no, not so", "it is."]
    results = []
    for options in (
        {},
        {"slots": 1},
        {"slots": 2, "prefill_chunk": 3, "threads": 1},
        {"capacity": 50},
    ):
        with serving.load(bundle, **options) as model:  # type: ignore[arg-type]
            results.append(model.generate(prompts, max_new_tokens=30, ignore_eos=True))
    assert all(result == results[0] for result in results)


def test_the_default_capacity_is_no_longer_than_the_model(tmp_path: Path) -> None:
    graph = graph_info().model_dump() | {"max_length": 100}
    with serving.load(make_bundle(tmp_path / "bundle", graph=graph)) as model:
        assert model.engine.cache.capacity == 100


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"capacity": 4097}, "capacity is 4097, .* from 1 to 4096"),
        ({"capacity": 0}, "capacity is 0"),
        ({"slots": 0}, "slots is 0, but must be at least 1"),
        ({"threads": 0}, "threads is 0"),
        ({"prefill_chunk": 0}, "prefill_chunk is 0"),
        ({"provider": "tpu"}, "provider is 'tpu', .* cpu, cuda"),
        ({"target": "tensorrt"}, "no engine for tensorrt, only for onnxruntime: .*--target"),
        ({"slots": 10**8}, "KV buffers need .* are free: .* fewer slots"),
    ],
)
def test_options_that_do_not_fit_are_one_sentence(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=message):
        serving.load(bundle, **options)


def test_limits_of_a_static_engine(tmp_path: Path) -> None:
    static = {
        "target": "onnxruntime",
        "file": "model.onnx",
        "weight_bytes": 1,
        "max_batch": 2,
        "max_sequence": 64,
        "runtime_version": "1",
    }
    bundle = make_bundle(tmp_path / "bundle", engines=[static])
    with serving.load(bundle) as model:
        assert (model.engine.cache.slots, model.engine.cache.capacity) == (2, 64)
    with pytest.raises(UserError, match="built for 64 tokens"):
        serving.load(bundle, capacity=32)
    with pytest.raises(UserError, match="slots is 3, but must be from 1 to 2"):
        serving.load(bundle, slots=3)


def test_a_draft_bundle_gets_as_many_slots_and_no_more_capacity_than_it_has(
    tmp_path: Path,
) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    graph = graph_info().model_dump() | {"max_length": 100}
    draft = make_bundle(tmp_path / "draft", graph=graph)
    with serving.load(bundle, draft=draft, slots=3) as model:
        assert model.draft is not None
        assert (model.draft.cache.slots, model.draft.cache.capacity) == (3, 100)
        plain = model.generate(["hello", "you"], max_new_tokens=200, ignore_eos=True)
        drafted = model.generate(
            ["hello", "you"], max_new_tokens=200, ignore_eos=True, speculation="draft"
        )
        assert drafted == plain
    with serving.load(bundle, draft=bundle, capacity=50) as model:
        assert model.draft is not None
        assert model.draft.cache.capacity == 50


def test_a_draft_with_other_tokens_is_refused(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    draft = make_bundle(tmp_path / "draft", letters="bacdefghijklmnopqrstuvwxyz .,!?")
    with pytest.raises(UserError, match=r"draft' has other tokens than .* same tokenizer"):
        serving.load(bundle, draft=draft)
    (draft / "tokenizer.json").unlink()
    manifest = json.loads((draft / "bundle.json").read_text())
    del manifest["files"]["tokenizer.json"]
    (draft / "bundle.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="other tokens"):
        serving.load(bundle, draft=draft)
    with serving.load(draft, draft=draft) as model:
        assert model.generate([1, 2], max_new_tokens=5, speculation="draft").token_ids


def test_a_draft_counts_in_the_memory_that_is_needed(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    model = {"name": "big", "architecture": "llama", "parameters": 1, "weight_bytes": 10**15}
    engine = {"target": "onnxruntime", "file": "model.onnx", "runtime_version": "1"}
    engines = [engine | {"weight_bytes": 10**15}]
    draft = make_bundle(tmp_path / "draft", model=model, engines=engines)
    with pytest.raises(UserError, match="need 1,000,000"):
        serving.load(bundle, draft=draft)


@pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")
def test_tensorrt_engines_need_a_gpu(tmp_path: Path) -> None:
    pytest.importorskip("cuda.bindings.runtime")
    bundle = make_bundle(tmp_path / "bundle", engines=[TENSORRT])
    for target in (None, "tensorrt-rtx"):
        with pytest.raises(UserError, match=r"NVIDIA (GPU|driver).*--target onnxruntime"):
            serving.load(bundle, target=target)  # type: ignore[arg-type]


def test_tensorrt_engines_do_not_run_on_the_cpu(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle", engines=[TENSORRT])
    with pytest.raises(UserError, match=r"provider is 'cpu', .* tensorrt-rtx run on a GPU: leave"):
        serving.load(bundle, provider="cpu")


def test_the_engine_for_onnxruntime_comes_first(tmp_path: Path) -> None:
    own = {"target": "onnxruntime", "file": "model.onnx", "weight_bytes": 1, "runtime_version": "1"}
    opened = open_bundle(make_bundle(tmp_path / "bundle", engines=[TENSORRT, own]))
    assert choose_engine(opened, None).target == "onnxruntime"
    assert choose_engine(opened, "tensorrt-rtx").target == "tensorrt-rtx"
    with pytest.raises(UserError, match="no engine for tensorrt, only for tensorrt-rtx, onnxrun"):
        choose_engine(opened, "tensorrt")


def test_a_second_engine_that_fails_closes_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, closed = make_bundle(tmp_path / "bundle"), list[OnnxRuntimeEngine]()
    broken = make_bundle(tmp_path / "broken")
    (broken / "model.onnx").write_bytes(bytes((broken / "model.onnx").stat().st_size))
    monkeypatch.setattr(OnnxRuntimeEngine, "close", lambda engine: closed.append(engine))
    with pytest.raises(UserError, match="can't open the graph"):
        serving.load(bundle, draft=broken, verify=False)
    assert len(closed) == 1


def test_a_graph_of_another_contract_is_refused(tmp_path: Path) -> None:
    graph = graph_info().model_dump() | {"contract_version": 2}
    with pytest.raises(UserError, match="contract version 2"):
        serving.load(make_bundle(tmp_path / "bundle", graph=graph))


def change_a_byte(bundle: Path) -> None:
    graph = bytearray((bundle / "model.onnx").read_bytes())
    graph[len(graph) // 2] ^= 1
    (bundle / "model.onnx").write_bytes(graph)


def test_a_changed_byte_is_found_before_the_engine_is_opened(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    change_a_byte(bundle)
    with pytest.raises(UserError, match="checksum differs"):
        serving.load(bundle)


def test_a_changed_byte_of_a_draft_is_found_too(tmp_path: Path) -> None:
    bundle, draft = make_bundle(tmp_path / "bundle"), make_bundle(tmp_path / "draft")
    change_a_byte(draft)
    with pytest.raises(UserError, match="checksum differs"):
        serving.load(bundle, draft=draft)


def test_a_broken_tokenizer_is_one_sentence(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    text = (bundle / "tokenizer.json").read_text()
    (bundle / "tokenizer.json").write_text(text.replace('"BPE"', '"XYZ"'))
    with pytest.raises(UserError, match=r"tokenizer\.json' can't be read"):
        serving.load(bundle, verify=False)


def run_python(program: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return result.stdout


def test_importing_serving_imports_almost_nothing() -> None:
    heavy = ["torch", "transformers", "onnx", "onnxruntime", "tokenizers", "numpy", "pydantic"]
    program = f"import sys, serving; print([m for m in {heavy} if m in sys.modules])"
    assert run_python(program).strip() == "[]"


def test_a_bundle_is_served_where_only_the_base_install_is(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    blocked = [
        "exporter",
        "engines",
        "tests",
        "torch",
        "transformers",
        "onnx",
        "onnxscript",
        "onnx_ir",
        "safetensors",
    ]
    program = f"""
import sys
class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in {blocked}:
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Absent())
import serving
from serving import *
import serving.cli
with load({str(bundle)!r}) as model:
    result = model.generate("hello", max_new_tokens=5, temperature=1.0, seed=1)
    model.encode_chat([{{"role": "user", "content": "hi"}}])
print(len(result.token_ids))
"""
    assert 1 <= int(run_python(program)) <= 5


def test_unknown_names_are_not_invented() -> None:
    with pytest.raises(AttributeError, match="nothing"):
        _ = serving.nothing
    assert all(getattr(serving, name) for name in serving.__all__)


def test_peak_of_generation_is_its_buffers(tmp_path: Path) -> None:
    """1,000 tokens through one slot neither move the KV cache nor make the process grow."""
    import psutil

    bundle = make_bundle(tmp_path / "bundle")
    with serving.load(bundle, slots=1) as model:
        addresses = [buffer.address for buffer in model.engine.cache.buffers.values()]
        model.generate("warm up", max_new_tokens=1000, ignore_eos=True)
        before = psutil.Process().memory_info().rss
        result = model.generate("hello", max_new_tokens=1000, ignore_eos=True)
        grown = psutil.Process().memory_info().rss - before
        assert [buffer.address for buffer in model.engine.cache.buffers.values()] == addresses
    assert len(result.token_ids) == 1000
    assert grown < 2e6
    assert json.loads((bundle / "bundle.json").read_text())["format_version"] == 1
