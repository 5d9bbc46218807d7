"""Engines really built, on a machine without a GPU, and what a failed build says and leaves."""

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx_ir as ir
import pytest

from engines.tensorrt import builder, network, verifier
from engines.tensorrt.builder import build
from engines.tensorrt.configuration import Portability, configure
from engines.tensorrt.options import BuildOptions
from serving.bundle import DType, Target
from serving.errors import UserError
from serving.tensorrt.bindings import DECODE_PROFILE, PREFILL_PROFILE
from serving.tensorrt.library import load_library
from serving.tensorrt.log import make_log
from tests.conftest import Graphs
from tests.engines.tensorrt import decoder_graph
from tests.engines.tensorrt.decoder_graph import CAPPED_WINDOW, CAUSAL, WINDOW, decoder

pytest.importorskip("tensorrt_rtx")
SIZES: dict[str, Any] = {"max_length": 64, "batch": 3, "prefill_chunk": 16}


def build_rtx(model: ir.Model, directory: Path, **options: Any) -> builder.EngineFile:
    return build(model, directory, target="tensorrt-rtx", **(SIZES | options))


def configured(library: Any, target: Target, options: BuildOptions) -> tuple[Any, Portability]:
    rtx = load_library("tensorrt-rtx")
    config = rtx.Builder(make_log(rtx)).create_builder_config()
    return config, configure(config, library, target, options)


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_every_kind_of_layer_builds_in_every_type(tmp_path: Path, dtype: DType) -> None:
    built = build_rtx(decoder(CAUSAL, WINDOW, CAPPED_WINDOW, dtype=dtype), tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == [
        "model.tensorrt-rtx.engine",
        "model.tensorrt-rtx.json",
    ]
    assert (tmp_path / built.name).stat().st_size > 100_000
    assert built.portability.compute_capabilities == ("8.0", "8.6", "8.9", "12.0", "12.1")
    assert built.prefill_chunk == 16
    assert built.runtime_version == load_library("tensorrt-rtx").__version__


def test_a_checkpoint_builds_in_float32(tmp_path: Path, traced_graph: Graphs) -> None:
    """In float16 those of the coverage table do: see test_coverage.py."""
    built = build_rtx(traced_graph("gpt2"), tmp_path)
    assert (tmp_path / built.name).stat().st_size > 100_000


def test_an_engine_for_one_row_is_no_larger(tmp_path: Path, traced_graph: Graphs) -> None:
    sizes = []
    for batch in (1, 2):
        directory = tmp_path / str(batch)
        directory.mkdir()
        built = build_rtx(traced_graph("qwen2"), directory, batch=batch)
        sizes.append((directory / built.name).stat().st_size)
    assert sizes[0] <= 1.001 * sizes[1]


@pytest.mark.parametrize("heads", [1, 2, 3])
def test_fewer_heads_than_fused_kernels_take_build(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, heads: int
) -> None:
    monkeypatch.setattr(decoder_graph, "HEADS", heads)
    monkeypatch.setattr(decoder_graph, "KV_HEADS", 1)
    monkeypatch.setattr(decoder_graph, "WIDTH", heads * decoder_graph.DIM)
    built = build_rtx(decoder(CAUSAL, dtype="float16"), tmp_path)
    assert (tmp_path / built.name).stat().st_size > 100_000


def test_progress_goes_from_nothing_to_all(tmp_path: Path) -> None:
    told: list[tuple[str, float]] = []
    build_rtx(
        decoder(CAUSAL, dtype="float16"),
        tmp_path,
        progress=lambda phase, done: told.append((phase, done)),
    )
    shares = [done for _, done in told]
    assert (told[0], told[-1]) == (("Building engine", 0.0), ("Building engine", 1.0))
    assert shares == sorted(shares)
    within = {phase for phase, done in told if 0.1 < done < 0.9}
    assert len(within) > 5


def test_ctrl_c_ends_the_build_and_leaves_nothing(tmp_path: Path) -> None:
    told: list[str] = []

    def interrupt(phase: str, _: float) -> None:
        told.append(phase)
        if len(told) == 1:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.5)

    with pytest.raises(KeyboardInterrupt):
        build_rtx(decoder(CAUSAL, dtype="float16"), tmp_path, progress=interrupt)
    assert not list(tmp_path.iterdir())
    for thread in threading.enumerate():
        if thread.name == "tensorrt-build":
            thread.join()
    assert set(told) == {"Building engine", "Cloning network graph"}  # of a dozen phases


def test_compute_capabilities_are_those_asked_for(tmp_path: Path) -> None:
    """TensorRT itself says so: Turing has no bfloat16."""
    options = BuildOptions(compute_capabilities=("7.5", "8.6"))
    with pytest.raises(UserError, match=r"target\(s\) sm75, because .* datatypes: b16"):
        build_rtx(decoder(CAUSAL, dtype="bfloat16"), tmp_path, options=options)
    built = build_rtx(decoder(CAUSAL, dtype="float16"), tmp_path, options=options)
    assert built.portability == Portability(("7.5", "8.6"), None, False)


def test_a_library_that_is_too_old_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    rtx = load_library("tensorrt-rtx")
    known = SimpleNamespace(SM86=rtx.ComputeCapability.SM86)
    monkeypatch.setattr(rtx, "ComputeCapability", known)
    with pytest.raises(UserError, match=r"doesn't compile for 12\.1: leave it out"):
        configured(rtx, "tensorrt-rtx", BuildOptions(compute_capabilities=("8.6", "12.1")))


def test_zeros_of_weights_may_be_skipped_where_they_were_put() -> None:
    rtx = load_library("tensorrt-rtx")
    for sparse in (False, True):
        config, _ = configured(rtx, "tensorrt-rtx", BuildOptions(sparse_weights=sparse))
        assert config.get_flag(rtx.BuilderFlag.SPARSE_WEIGHTS) is sparse


@pytest.mark.parametrize(
    ("options", "level", "flags"),
    [
        (BuildOptions(), "AMPERE_PLUS", []),
        (BuildOptions(hardware_compatibility="none"), "NONE", []),
        (
            BuildOptions(hardware_compatibility="same-compute-capability"),
            "SAME_COMPUTE_CAPABILITY",
            [],
        ),
        (BuildOptions(version_compatible=True), "AMPERE_PLUS", ["VERSION_COMPATIBLE"]),
    ],
)
def test_modes_of_tensorrt(options: BuildOptions, level: str, flags: list[str]) -> None:
    """With TensorRT-RTX's names, which are the same, and a configuration that takes them."""
    rtx = load_library("tensorrt-rtx")
    given: list[Any] = []
    config = SimpleNamespace(clear_flag=lambda _: None, set_flag=given.append)
    portability = configure(config, rtx, "tensorrt", options)
    assert config.hardware_compatibility_level.name == level
    assert [flag.name for flag in given] == flags
    assert portability.compute_capabilities == ()
    assert portability.version_compatible is bool(flags)


def test_a_failed_build_says_why_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (network, verifier):
        monkeypatch.setattr(module, "lacks_kernel", lambda _: False)
    with pytest.raises(UserError, match=r"can't build the engine \(.*dedicated kernel"):
        build_rtx(decoder(CAUSAL, dtype="float32"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "error",
    [
        "Unexpected exception std::bad_alloc",  # seen with RLIMIT_AS; a build needs no GPU
        "[defaultAllocator.cpp::allocateAsync::52] Error Code 1: Cuda Runtime (out of memory)",
    ],
)
def test_too_little_memory_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    def starved(*_: object) -> None:
        log = make_log(load_library("tensorrt-rtx"))
        log.errors += [error, "Error Code 35: cudaErrorInsufficientDriver"]

    monkeypatch.setattr(builder, "run_interruptibly", starved)
    with pytest.raises(UserError, match=r"ran out of memory while it built .*: free memory, or"):
        build_rtx(decoder(CAUSAL, dtype="float16"), tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "model.tensorrt-rtx.engine").symlink_to("/dev/full")
    with pytest.raises(UserError, match="can't be written"):
        build_rtx(decoder(CAUSAL, dtype="float16"), tmp_path)
    assert not list(tmp_path.iterdir())


def test_a_missing_library_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(UserError, match=r"pip install 'export-llm\[tensorrt\]'"):
        build(decoder(CAUSAL), tmp_path, target="tensorrt", **SIZES)


@pytest.mark.gpu
def test_the_engine_keeps_the_contract(tmp_path: Path) -> None:
    library = load_library("tensorrt-rtx")
    model = decoder(CAUSAL, dtype="float16")
    built = build_rtx(model, tmp_path)
    runtime = library.Runtime(library.Logger())
    engine = runtime.deserialize_cuda_engine((tmp_path / built.name).read_bytes())
    names = {engine.get_tensor_name(i) for i in range(engine.num_io_tensors)}
    assert names == {value.name for value in (*model.graph.inputs, *model.graph.outputs)}
    assert engine.num_optimization_profiles == 2
    assert engine.get_tensor_dtype("logits") == library.DataType.HALF
    for part in ("key", "value"):
        past, present = f"past_key_values.0.{part}", f"present.0.{part}"
        assert engine.get_aliased_input_tensor(present) == past
        assert tuple(engine.get_tensor_shape(past)) == (-1, 2, 64, 16)
        prefill = engine.get_tensor_profile_shape(past, PREFILL_PROFILE)
        decode = engine.get_tensor_profile_shape(past, DECODE_PROFILE)
        assert (prefill[-1][0], decode[-1][0]) == (1, 3)
