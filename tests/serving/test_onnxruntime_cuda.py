"""The CUDA engine: its addresses and bindings on the CPU, and on a GPU against the CPU engine."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import pytest

from serving import onnxruntime_cuda
from serving.engine import Engine, FloatArray
from serving.errors import UserError
from serving.kv_cache import HostBuffer, aligned_zeros
from serving.loading import load
from serving.onnxruntime import OnnxRuntimeEngine, open_session
from serving.onnxruntime_cuda import OnnxRuntimeCudaEngine, nodes_on_cpu
from tests.exports import export_bundle, once
from tests.serving.tiny_bundle import make_bundle
from tests.serving.tiny_graph import graph_info

CAPACITY, SLOTS = 32, 3
PROMPTS = ([3, 1, 4, 1, 5], [9, 2, 6], [5, 3, 5, 8, 9, 7, 9])


class HostMemory:
    """As MirroredMemory, but what stands for the GPU's memory is the host's."""

    def __init__(self, nbytes: int) -> None:
        self._device, self.host = (aligned_zeros((nbytes,), np.uint8) for _ in range(2))
        self.address = self._device.ctypes.data

    def upload(self) -> None:
        self._device[:] = self.host

    def download(self, nbytes: int) -> None:
        self.host[:nbytes] = self._device[:nbytes]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory, checkpoint: Callable[[str], Path]) -> Path:
    def make(path: Path) -> None:
        export_bundle(checkpoint("qwen2"), path, dtype="float16")

    return once(tmp_path_factory, "qwen2-float16", make)


@pytest.fixture
def on_host(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Let the CUDA engine work on the CPU; the provider options it asks for are returned."""
    asked: list[dict[str, Any]] = []

    def open_on_cpu(graph: Path, *_: object, provider_options: Any = None) -> ort.InferenceSession:
        asked.append({"graph": graph.name, **(provider_options or {})})
        options = ort.SessionOptions()
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        return ort.InferenceSession(graph, options)

    monkeypatch.setattr(onnxruntime_cuda, "open_session", open_on_cpu)
    monkeypatch.setattr(onnxruntime_cuda, "CudaBuffer", HostBuffer)
    monkeypatch.setattr(onnxruntime_cuda, "MirroredMemory", HostMemory)
    monkeypatch.setattr(onnxruntime_cuda, "_DEVICE", "cpu")
    return asked


def open_cuda(bundle: Path) -> OnnxRuntimeCudaEngine:
    graph = load_graph(bundle)
    return OnnxRuntimeCudaEngine(bundle / "model.onnx", graph, slots=SLOTS, capacity=CAPACITY)


def load_graph(bundle: Path) -> Any:
    from serving.bundle import open_bundle

    return open_bundle(bundle).manifest.graph


def run(engine: Engine) -> list[FloatArray]:
    """Prefill every slot, one of them in chunks, then decode shrinking batches."""
    seen = []
    for slot, prompt in enumerate(PROMPTS):
        for part in np.split(np.array(prompt), [2] if slot == 1 else []):
            start = 2 if slot == 1 and len(part) == 1 else 0
            last = np.array([[len(part) - 1]])
            seen.append(engine.step(part[None], np.array([start]), last, slot).copy())
    lengths = np.array([len(prompt) for prompt in PROMPTS])
    for step, rows in enumerate((3, 3, 2, 3, 1, 2)):
        ids = np.arange(rows)[:, None] + 11 * step
        zeros = np.zeros((rows, 1), np.int64)
        seen.append(engine.step(ids, lengths[:rows].copy(), zeros).copy())
        lengths[:rows] += 1
    engine.cache.move(2, 0, int(lengths[2]))
    seen.append(engine.step(np.array([[7]]), lengths[2:], np.zeros((1, 1), np.int64)).copy())
    return seen


def test_steps_through_fixed_addresses_equal_the_cpu_engine(
    bundle: Path, on_host: list[dict[str, Any]]
) -> None:
    graph = load_graph(bundle)
    with OnnxRuntimeEngine(bundle / "model.onnx", graph, slots=SLOTS, capacity=CAPACITY) as engine:
        expected = run(engine)
    with open_cuda(bundle) as engine:
        found = run(engine)
        bound = {
            n: [value.data_ptr() for value in binding.get_outputs()]
            for n, binding in engine._decodes.items()
        }
    assert sorted(bound) == [1, 2, 3]
    assert len({tuple(addresses) for addresses in bound.values()}) == 1
    for ours, theirs in zip(found, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-2)
        assert np.abs(theirs).max() > 0.5
    assert on_host == [{"graph": "model.cuda.onnx", "enable_cuda_graph": "1"}]


def test_embeddings_equal_the_cpu_engine(bundle: Path, on_host: list[dict[str, Any]]) -> None:
    del on_host
    graph = load_graph(bundle)
    ids = np.array([PROMPTS[2]])
    found = []
    cpu = OnnxRuntimeEngine(bundle / "model.onnx", graph, slots=SLOTS, capacity=CAPACITY)
    for engine in (cpu, open_cuda(bundle)):
        with engine:
            parts = [engine.embed(ids[:, :4], np.array([0]), 1)]
            engine.step(ids[:, :3], np.array([0]), np.array([[2]]), 1)
            parts.append(engine.embed(ids[:, 4:], np.array([4]), 1))
            found.append(np.concatenate(parts, axis=1))
    assert found[0].shape == (1, ids.shape[1], graph.hidden_size)
    np.testing.assert_allclose(found[1], found[0], atol=2e-2)


def test_runs_name_the_graph_that_may_be_captured(
    bundle: Path, on_host: list[dict[str, Any]]
) -> None:
    del on_host
    with open_cuda(bundle) as engine:
        key = onnxruntime_cuda._GRAPH_ID
        assert engine._options("2").get_run_config_entry(key) == "2"
        engine.uncaptured = "no reason"
        assert engine._options("2") is None


def test_a_graph_that_cannot_be_captured_runs_without(
    bundle: Path, on_host: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = onnxruntime_cuda.open_session

    def refuse(graph: Path, *rest: Any, provider_options: Any = None) -> ort.InferenceSession:
        if provider_options:
            raise UserError("it has memory copies.")
        return opened(graph, *rest)

    monkeypatch.setattr(onnxruntime_cuda, "open_session", refuse)
    with open_cuda(bundle) as engine:
        assert engine.uncaptured == "it has memory copies."
        assert "without a CUDA graph (it has memory copies.)" in engine.remarks[-1]
        assert len(run(engine)) == 11
    assert on_host == [{"graph": "model.cuda.onnx"}]


def test_a_capture_that_fails_at_run_time_is_done_without(
    bundle: Path, on_host: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken(ort.InferenceSession):
        def run_with_iobinding(self, *_: object) -> None:
            raise RuntimeError("operation not permitted when stream is capturing\nat line 1")

    opened = onnxruntime_cuda.open_session

    def open_broken(graph: Path, *rest: Any, provider_options: Any = None) -> Any:
        if provider_options:
            options = ort.SessionOptions()
            options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
            return Broken(graph, options)
        return opened(graph, *rest)

    monkeypatch.setattr(onnxruntime_cuda, "open_session", open_broken)
    with open_cuda(bundle) as engine:
        assert engine.uncaptured == "operation not permitted when stream is capturing"
        assert len(run(engine)) == 11
    assert on_host == [{"graph": "model.cuda.onnx"}]


def test_bundles_of_before_run_without_a_cuda_graph(
    bundle: Path, on_host: list[dict[str, Any]], tmp_path: Path
) -> None:
    for file in ("model.onnx", "model.onnx.data"):
        (tmp_path / file).symlink_to(bundle / file)
    graph = load_graph(bundle)
    with OnnxRuntimeCudaEngine(
        tmp_path / "model.onnx", graph, slots=SLOTS, capacity=CAPACITY
    ) as engine:
        assert engine.uncaptured == "the bundle has no model.cuda.onnx"
    assert on_host == [{"graph": "model.onnx"}]


def test_operators_without_a_kernel_are_counted_and_told(
    bundle: Path, on_host: list[dict[str, Any]]
) -> None:
    del on_host
    with open_cuda(bundle) as engine:
        assert engine.on_cpu["GroupQueryAttention"] == 2
        engine.on_cpu = Counter({"GroupQueryAttention": 2, "Squeeze": 1})
        (remark,) = engine.remarks
        assert "no CUDA kernel for 2 GroupQueryAttention of" in remark
        assert "Squeeze" not in remark


def test_loading_warns_of_what_is_slow(bundle: Path, on_host: list[dict[str, Any]]) -> None:
    with (
        pytest.warns(UserWarning, match="no CUDA kernel for .* 2 GroupQueryAttention"),
        load(bundle, provider="cuda", slots=1, capacity=CAPACITY) as model,
    ):
        assert isinstance(model.engine, OnnxRuntimeCudaEngine)
    assert on_host == [{"graph": "model.cuda.onnx", "enable_cuda_graph": "1"}]


def test_float32_bundles_are_refused_before_anything_is_opened(tmp_path: Path) -> None:
    bundle = make_bundle(tmp_path / "bundle")
    with pytest.raises(UserError, match=r"takes no float32: export .* --fp16"):
        load(bundle, provider="cuda")


def test_a_missing_provider_is_one_sentence(tmp_path: Path) -> None:
    if "CUDAExecutionProvider" in ort.get_available_providers():
        pytest.skip("this onnxruntime has the CUDA provider")
    with pytest.raises(UserError, match="install onnxruntime-gpu"):
        OnnxRuntimeCudaEngine(
            tmp_path / "model.onnx", graph_info("float16"), slots=1, capacity=CAPACITY
        )


needs_cuda_provider = pytest.mark.skipif(
    "CUDAExecutionProvider" not in ort.get_available_providers(),
    reason="this onnxruntime has no CUDA provider",
)


@pytest.mark.gpu
@needs_cuda_provider
def test_cuda_equals_the_cpu_with_captured_steps(bundle: Path) -> None:
    graph = load_graph(bundle)
    with OnnxRuntimeEngine(bundle / "model.onnx", graph, slots=SLOTS, capacity=CAPACITY) as engine:
        expected = run(engine)
    with open_cuda(bundle) as engine:
        assert engine.remarks == []
        found, again = run(engine), run(engine)
    for ours, repeated, theirs in zip(found, again, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=2e-2)
        np.testing.assert_allclose(repeated, ours, atol=2e-3)


@pytest.mark.gpu
@needs_cuda_provider
def test_nothing_but_lengths_runs_on_the_cpu(bundle: Path) -> None:
    session = open_session(bundle / "model.cuda.onnx", "cuda", None)
    assert set(nodes_on_cpu(session)) <= {"Shape", "Cast", "Squeeze"}


@pytest.mark.gpu
def test_memory_of_the_gpu_is_zeroed_copied_and_bounded() -> None:
    from serving.cuda import CudaBuffer, DeviceMemory, MirroredMemory

    mirror = MirroredMemory(512)
    mirror.host[:] = np.arange(512) % 251
    mirror.upload()
    mirror.host[:] = 0
    mirror.download(100)
    assert mirror.host[:100].tolist() == list(range(100))
    assert not mirror.host[100:].any()
    CudaBuffer((3, 2, 8, 16), "float16").move(2, 0, 4)
    with pytest.raises(MemoryError, match="cuMemAlloc_v2 failed: CUDA_ERROR_OUT_OF_MEMORY"):
        DeviceMemory(1 << 48)
