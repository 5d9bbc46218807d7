"""The engine's own part on a fake GPU: bindings, copies, order, graphs, and what is freed.

What TensorRT computes is not tested here; see test_gpu.py.
"""

from pathlib import Path

import numpy as np
import pytest

from serving.engine import Engine, FloatArray
from serving.errors import EngineError, UserError
from serving.onnxruntime import OnnxRuntimeEngine
from tests.serving.tensorrt.fake_gpu import FakeCuda, FakeTensorrt, Status
from tests.serving.tensorrt.tiny_engine import CAPACITY, SLOTS, open_engine
from tests.serving.tiny_graph import graph_info, save_graph


def ids_of(*rows: list[int]) -> np.ndarray:
    return np.array(rows, np.int64)


def conversation(engine: Engine) -> list[FloatArray]:
    """Long prompts, scoring, ragged decoding, a slot moved, a rollback, a part of a slot copied."""
    logits = []

    def step(ids: np.ndarray, past: list[int], positions: np.ndarray, slot: int = 0) -> None:
        logits.append(engine.step(ids, np.array(past), positions, slot).copy())

    step(ids_of([3, 1, 4, 1, 5, 9, 2]), [0], np.array([[6]]))
    step(ids_of([2, 7, 1, 8, 2, 8]), [0], np.array([[5, 0, 3]]), 1)
    step(ids_of([1, 6, 1, 8, 0]), [0], np.arange(5)[None], 2)
    for token in range(3):
        step(ids_of([token], [5], [6]), [7 + token, 6 + token, 5 + token], np.zeros((3, 1), int))
    engine.cache.move(2, 0, 8)
    step(ids_of([7], [8]), [8, 9], np.zeros((2, 1), int))
    step(ids_of([7], [9]), [9, 6], np.zeros((2, 1), int))
    step(ids_of([11]), [7], np.zeros((1, 1), int), 1)
    step(ids_of([12]), [8], np.zeros((1, 1), int), 1)
    step(ids_of([13]), [9], np.zeros((1, 1), int))
    step(ids_of([14]), [9], np.zeros((1, 1), int), 1)
    engine.cache.move(0, 1, 9, start=4)
    step(ids_of([15, 3]), [9], np.array([[1]]), 1)
    return logits


@pytest.mark.parametrize("cuda_graphs", [True, False])
def test_it_says_what_onnxruntime_says(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt], cuda_graphs: bool
) -> None:
    file = save_graph(tmp_path / "model.onnx")
    with OnnxRuntimeEngine(file, graph_info(), slots=SLOTS, capacity=CAPACITY) as reference:
        expected = conversation(reference)
    with open_engine(tmp_path, cuda_graphs=cuda_graphs) as engine:
        for got, wanted in zip(conversation(engine), expected, strict=True):
            # Float32, and prompts in chunks of another size than the reference's.
            np.testing.assert_allclose(got, wanted, atol=1e-4)
    # Of 3 rows, of 2, and of 1 in slots 0 and 1: each is enqueued once and then launched.
    assert gpu[0].launches == (5 if cuda_graphs else 0)


def test_a_context_that_cannot_be_captured_yet_is_enqueued(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]
) -> None:
    cuda, library = gpu
    library.capturable = False
    with open_engine(tmp_path) as engine:
        for length in range(4):
            engine.step(ids_of([1]), np.array([length]), np.zeros((1, 1), int))
            library.capturable = length > 0
    assert cuda.launches == 1


def test_everything_is_freed_and_it_opens_again(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]
) -> None:
    cuda, _ = gpu
    for _ in range(2):
        with open_engine(tmp_path) as engine:
            conversation(engine)
            assert cuda.blocks
            assert cuda.handles
        assert (cuda.blocks, cuda.handles) == ({}, [])


def test_logits_outlive_the_engine(tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]) -> None:
    cuda, _ = gpu
    with open_engine(tmp_path) as engine:
        for ids in (ids_of([1]), ids_of([1, 2])):
            logits = engine.step(ids, np.array([0]), np.zeros((1, 1), int))
            assert not any(np.shares_memory(logits, block) for block in cuda.blocks.values())


def test_nothing_is_allocated_by_steps(tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]) -> None:
    cuda, library = gpu
    with open_engine(tmp_path) as engine:
        blocks = set(cuda.blocks)
        conversation(engine)
        made = len(library.contexts), len(cuda.handles)
        conversation(engine)
        assert set(cuda.blocks) == blocks
        assert (len(library.contexts), len(cuda.handles)) == made
        assert len({context.memory for context in library.contexts}) == 1


@pytest.mark.parametrize("call", ["cudaMalloc", "cudaHostAlloc", "cudaEventCreateWithFlags"])
@pytest.mark.parametrize("after", range(3))
def test_opening_that_fails_halfway_frees_what_it_took(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt], call: str, after: int
) -> None:
    cuda, _ = gpu
    if call == "cudaEventCreateWithFlags":
        after = 0
    cuda.fail[call] = (after, Status.cudaErrorMemoryAllocation)
    message = (
        rf"{call} failed with cudaErrorMemoryAllocation \(what it means\), with 8\.0 of the "
        r"device's 8\.0 GB free: open the bundle with fewer slots"
    )
    with pytest.raises(EngineError, match=message):
        open_engine(tmp_path)
    assert (cuda.blocks, cuda.handles) == ({}, [])
    cuda.fail.clear()
    with open_engine(tmp_path) as engine:
        conversation(engine)


def test_a_step_that_fails_names_the_call_and_the_engine_opens_again(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]
) -> None:
    cuda, _ = gpu
    with open_engine(tmp_path) as engine:
        cuda.fail["cudaEventSynchronize"] = (0, Status.cudaErrorIllegalAddress)
        with pytest.raises(EngineError, match=r"cudaEventSynchronize .*IllegalAddress.* load it"):
            conversation(engine)
        cuda.fail.clear()
    assert (cuda.blocks, cuda.handles) == ({}, [])
    with open_engine(tmp_path) as engine:
        conversation(engine)


def test_a_failed_capture_leaves_no_graph_and_no_capture(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]
) -> None:
    cuda, _ = gpu
    with open_engine(tmp_path) as engine:
        cuda.fail["cudaGraphInstantiate"] = (0, Status.cudaErrorMemoryAllocation)
        with pytest.raises(EngineError, match="cudaGraphInstantiate"):
            engine.step(ids_of([1]), np.array([0]), np.zeros((1, 1), int))
        assert cuda.stream.captured is None
    assert (cuda.blocks, cuda.handles) == ({}, [])


def test_a_refused_capture_is_ended(tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]) -> None:
    cuda, library = gpu
    library.refuses_capture = True
    with open_engine(tmp_path) as engine:
        with pytest.raises(EngineError, match=r"TensorRT failed at enqueueing a step \(it gives"):
            engine.step(ids_of([1]), np.array([0]), np.zeros((1, 1), int))
        assert cuda.stream.captured is None
    assert (cuda.blocks, cuda.handles) == ({}, [])


def test_steps_that_the_engine_was_not_built_for(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]
) -> None:
    del gpu
    with open_engine(tmp_path) as engine:
        with pytest.raises(ValueError, match="capacity of 16"):
            engine.step(ids_of([1, 2]), np.array([15]), np.array([[0]]))
        with pytest.raises(ValueError, match="one row at a time"):
            engine.step(ids_of([1, 2], [3, 4]), np.array([0, 0]), np.zeros((2, 1), int))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"broken", r"can't load model\.engine here \(magic tag does not match\): see"),
        (None, r"model\.engine is not the engine that bundle\.json describes: export"),
    ],
)
def test_an_engine_that_is_not_the_manifests_is_one_sentence(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt], content: bytes | None, message: str
) -> None:
    cuda, library = gpu
    if content is None:
        library.capacity = CAPACITY + 1
    else:
        (tmp_path / "model.engine").write_bytes(content)
    with pytest.raises(UserError, match=message):
        open_engine(tmp_path)
    assert (cuda.blocks, cuda.handles) == ({}, [])


def test_compiled_kernels_are_kept_for_the_next_time(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]
) -> None:
    _, library = gpu
    file = tmp_path / "cache" / "kernels"
    open_engine(tmp_path, runtime_cache=file).close()
    assert library.loaded_caches == []
    assert [found.name for found in file.parent.iterdir()] == ["kernels"]
    open_engine(tmp_path, runtime_cache=file).close()
    assert library.loaded_caches == [b"kernels"]


def test_a_cache_directory_that_cannot_be_written_is_no_error(
    tmp_path: Path, gpu: tuple[FakeCuda, FakeTensorrt]
) -> None:
    del gpu
    (tmp_path / "file").write_text("")
    with open_engine(tmp_path, runtime_cache=tmp_path / "file" / "kernels") as engine:
        conversation(engine)
