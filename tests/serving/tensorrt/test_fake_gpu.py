"""The fake GPU has no call that the real libraries lack, and takes as many arguments as they do."""

import inspect
import re

import pytest

from tests.serving.tensorrt.fake_gpu import FakeContext, FakeCuda, FakeEngine, FakeTensorrt, Status


def calls(fake: type) -> dict[str, int]:
    """The public methods of a fake with their number of parameters, without self."""
    methods = inspect.getmembers(fake, inspect.isfunction)
    return {
        name: len(inspect.signature(method).parameters) - 1
        for name, method in methods
        if not name.startswith("_")
    }


def parameters(function: object) -> int:
    """How many parameters a compiled function has, by the first line of its docstring."""
    signature = re.match(r"\w+\((.*)\)", (function.__doc__ or "").strip())
    assert signature, function
    return len([part for part in signature[1].split(",") if part.strip()])


def test_cuda() -> None:
    runtime = pytest.importorskip("cuda.bindings.runtime")
    found = calls(FakeCuda)
    assert len(found) > 15
    for name, count in found.items():
        assert parameters(getattr(runtime, name)) == count, name
    for status in Status:
        assert getattr(runtime.cudaError_t, status.name).value == status.value
    for group in ("cudaMemcpyKind", "cudaStreamCaptureMode"):
        for name, value in vars(getattr(FakeCuda, group)).items():
            assert getattr(getattr(runtime, group), name) == value
    for name in ("cudaStreamNonBlocking", "cudaEventDisableTiming"):
        assert getattr(runtime, name) == getattr(FakeCuda, name)


def test_tensorrt() -> None:
    library = pytest.importorskip("tensorrt_rtx")
    for fake, real in ((FakeEngine, library.ICudaEngine), (FakeContext, library.IExecutionContext)):
        for name in calls(fake):
            assert hasattr(real, name), name
    for name in ("num_optimization_profiles", "device_memory_size_v2", "num_io_tensors"):
        assert hasattr(library.ICudaEngine, name)
    assert hasattr(library.IExecutionContext, "engine")
    assert hasattr(library.Runtime, "deserialize_cuda_engine")
    assert hasattr(library.Runtime, "engine_host_code_allowed")
    for name in (
        "create_runtime_cache",
        "dynamic_shapes_kernel_specialization_strategy",
        "set_execution_context_allocation_strategy",
        "set_runtime_cache",
    ):
        assert hasattr(library.IRuntimeConfig, name)
    for name in ("deserialize", "serialize"):
        assert hasattr(library.IRuntimeCache, name)
    for group in (
        "ExecutionContextAllocationStrategy",
        "DynamicShapesKernelSpecializationStrategy",
    ):
        for name in vars(getattr(FakeTensorrt, group)):
            assert name in getattr(library, group).__members__
