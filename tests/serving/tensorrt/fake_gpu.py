"""A GPU that isn't there: CUDA's calls over host memory, and TensorRT's over ONNX Runtime.

Stricter than the real ones where a mistake would go unseen there: work of a stream runs only when
it is waited for, fresh memory is all NaN, addresses must be aligned, shapes must be a profile's,
and a context that was captured must not be changed.
"""

import ctypes
import enum
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime as ort

from serving.contract import ELEMENT_TYPE, INPUT_IDS, INT64, LOGITS, LOGITS_POSITIONS, PAST_LENGTHS

TOTAL, ALIGNMENT = 8 * 10**9, 256
SMALL = (INPUT_IDS, PAST_LENGTHS, LOGITS_POSITIONS)


class Status(enum.Enum):
    cudaSuccess = 0  # noqa: N815
    cudaErrorMemoryAllocation = 2  # noqa: N815
    cudaErrorIllegalAddress = 700  # noqa: N815


OK = Status.cudaSuccess


class Stream:
    def __init__(self) -> None:
        self.work: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None

    def __int__(self) -> int:
        return id(self)

    def add(self, work: Callable[[], None]) -> None:
        (self.work if self.captured is None else self.captured).append(work)

    def wait(self, last: Callable[[], None] | None = None) -> None:
        """Run what is enqueued, up to ``last`` if that is still to come."""
        count = self.work.index(last) + 1 if last in self.work else 0 if last else len(self.work)
        for _ in range(count):
            self.work.pop(0)()


class FakeCuda:
    """What serving calls of cuda.bindings.runtime; ``blocks`` are allocations not freed yet."""

    cudaError_t = Status  # noqa: N815
    cudaStreamNonBlocking, cudaEventDisableTiming = 1, 2  # noqa: N815
    cudaMemcpyKind = SimpleNamespace(  # noqa: N815
        cudaMemcpyHostToDevice=1, cudaMemcpyDeviceToHost=2, cudaMemcpyDeviceToDevice=3
    )
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal=1)  # noqa: N815

    def __init__(self) -> None:
        self.blocks: dict[int, Any] = {}
        self.handles: list[Any] = []
        self.launches = 0
        self.fail: dict[str, tuple[int, Status]] = {}

    def __getattribute__(self, name: str) -> Any:
        value = super().__getattribute__(name)
        after, status = super().__getattribute__("fail").get(name, (None, None))
        if after is None:
            return value
        self.fail[name] = (after - 1, status)
        return value if after > 0 else lambda *_: (status, None)

    def cudaGetErrorName(self, status: Status) -> tuple[Status, bytes]:  # noqa: N802
        return OK, status.name.encode()

    def cudaGetErrorString(self, status: Status) -> tuple[Status, bytes]:  # noqa: ARG002, N802
        return OK, b"what it means"

    def cudaMemGetInfo(self) -> tuple[Status, int, int]:  # noqa: N802
        return OK, TOTAL - sum(block.nbytes for block in self.blocks.values()), TOTAL

    def cudaMalloc(self, nbytes: int) -> tuple[Status, int]:  # noqa: N802
        block = np.full(nbytes + ALIGNMENT, 0xFF, np.uint8)
        address = block.ctypes.data + -block.ctypes.data % ALIGNMENT
        self.blocks[address] = block
        return OK, address

    def cudaHostAlloc(self, nbytes: int, flags: int) -> tuple[Status, int]:  # noqa: ARG002, N802
        return self.cudaMalloc(nbytes)

    def cudaFree(self, address: int) -> tuple[Status]:  # noqa: N802
        del self.blocks[address]
        return (OK,)

    cudaFreeHost = cudaFree  # noqa: N815

    def cudaMemsetAsync(self, to: int, value: int, size: int, stream: Stream) -> tuple[Status]:  # noqa: N802
        stream.add(lambda: ctypes.memset(to, value, size) and None)
        return (OK,)

    def cudaMemcpyAsync(  # noqa: N802
        self,
        to: int,
        origin: int,
        size: int,
        kind: int,  # noqa: ARG002
        stream: Stream,
    ) -> tuple[Status]:
        stream.add(lambda: ctypes.memmove(to, origin, size) and None)
        return (OK,)

    def cudaMemcpy2DAsync(  # noqa: N802
        self,
        to: int,
        to_pitch: int,
        origin: int,
        pitch: int,
        width: int,
        height: int,
        kind: int,  # noqa: ARG002
        stream: Stream,
    ) -> tuple[Status]:
        def copy() -> None:
            for row in range(height):
                ctypes.memmove(to + row * to_pitch, origin + row * pitch, width)

        stream.add(copy)
        return (OK,)

    def _handle(self, made: Any) -> Any:
        self.handles.append(made)
        return made

    def _drop(self, handle: Any) -> tuple[Status]:
        self.handles.remove(handle)
        return (OK,)

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Status, Stream]:  # noqa: ARG002, N802
        self.stream = self._handle(Stream())
        return OK, self.stream

    def cudaEventCreateWithFlags(self, flags: int) -> tuple[Status, list[Any]]:  # noqa: ARG002, N802
        return OK, self._handle([])

    cudaStreamDestroy = cudaEventDestroy = _drop  # noqa: N815
    cudaGraphDestroy = cudaGraphExecDestroy = _drop  # noqa: N815

    def cudaEventRecord(self, event: list[Any], stream: Stream) -> tuple[Status]:  # noqa: N802
        def arrived() -> None:
            pass

        stream.add(arrived)
        event[:] = [stream, arrived]
        return (OK,)

    def cudaEventSynchronize(self, event: list[Any]) -> tuple[Status]:  # noqa: N802
        stream, arrived = event
        stream.wait(arrived)
        return (OK,)

    def cudaStreamSynchronize(self, stream: Stream) -> tuple[Status]:  # noqa: N802
        stream.wait()
        return (OK,)

    def cudaStreamBeginCapture(self, stream: Stream, mode: int) -> tuple[Status]:  # noqa: ARG002, N802
        stream.captured = []
        return (OK,)

    def cudaStreamEndCapture(self, stream: Stream) -> tuple[Status, Any]:  # noqa: N802
        graph, stream.captured = [*(stream.captured or ()), "graph"], None
        return OK, self._handle(graph)

    def cudaGraphInstantiate(self, graph: list[Any], flags: int) -> tuple[Status, Any]:  # noqa: ARG002, N802
        return OK, self._handle([*graph[:-1], "executable"])

    def cudaGraphLaunch(self, graph: list[Any], stream: Stream) -> tuple[Status]:  # noqa: N802
        self.launches += 1
        for work in graph[:-1]:
            stream.add(work)
        return (OK,)


class FakeTensorrt:
    """What serving calls of tensorrt_rtx; an "engine" is a graph that ONNX Runtime runs."""

    __version__ = "1.7"
    ExecutionContextAllocationStrategy = SimpleNamespace(USER_MANAGED="user")
    DynamicShapesKernelSpecializationStrategy = SimpleNamespace(LAZY="lazy", EAGER="eager")

    class ILogger:
        ERROR, INTERNAL_ERROR, WARNING = 1, 0, 2

    def __init__(self, cuda: FakeCuda, chunk: int, batch: int, capacity: int) -> None:
        self.cuda = cuda
        self.rows, self.tokens = (1, batch), (chunk, 1)
        self.capacity = capacity
        self.contexts: list[FakeContext] = []
        self.loaded_caches: list[bytes] = []
        self.capturable = True
        self.refuses_capture = False

    def Runtime(self, log: Any) -> Any:  # noqa: N802
        def deserialize(content: Any) -> Any:
            graph = bytes(content)
            if graph.startswith(b"broken"):
                log.log(self.ILogger.ERROR, "magic tag does not match")
                return None
            return FakeEngine(self, graph)

        return SimpleNamespace(deserialize_cuda_engine=deserialize)


class FakeEngine:
    num_optimization_profiles = 2
    device_memory_size_v2 = 1000

    def __init__(self, library: FakeTensorrt, graph: bytes) -> None:
        self.library = library
        options = ort.SessionOptions()
        options.log_severity_level = 3
        self.session = ort.InferenceSession(graph, options, ["CPUExecutionProvider"])
        values = [*self.session.get_inputs(), *self.session.get_outputs()]
        self.names = [value.name for value in values]
        self.num_io_tensors = len(values)

    def get_tensor_name(self, index: int) -> str:
        return self.names[index]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        value = next(v for v in self.session.get_inputs() if v.name == name)
        return (-1, value.shape[1], self.library.capacity, value.shape[3])

    def create_runtime_config(self) -> Any:
        def make_cache() -> Any:
            loaded = self.library.loaded_caches
            return SimpleNamespace(deserialize=loaded.append, serialize=lambda: b"kernels")

        return SimpleNamespace(
            create_runtime_cache=make_cache,
            set_execution_context_allocation_strategy=lambda strategy: strategy,
            set_runtime_cache=lambda cache: cache,
        )

    def create_execution_context(self, config: Any) -> "FakeContext":  # noqa: ARG002
        context = FakeContext(self)
        self.library.contexts.append(context)
        return context


class FakeContext:
    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine
        self.addresses: dict[str, int] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.memory: tuple[int, int] | None = None
        self.is_captured = False
        self.enqueued: Any = None

    def set_device_memory(self, address: int, size: int) -> None:
        assert address % ALIGNMENT == 0
        self.memory = (address, size)

    def set_optimization_profile_async(self, profile: int, stream: int) -> bool:  # noqa: ARG002
        self.profile = profile
        return True

    def is_stream_capturable(self, stream: int) -> bool:  # noqa: ARG002
        return self.engine.library.capturable

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert address % ALIGNMENT == 0, f"{name} is not aligned"
        assert not self.is_captured, "a captured context was changed"
        assert name in self.engine.names
        self.addresses[name] = address
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        assert not self.is_captured, "a captured context was changed"
        library = self.engine.library
        most = (library.rows[self.profile], library.tokens[self.profile])
        if name in SMALL and any(not 1 <= n <= m for n, m in zip(shape, most, strict=False)):
            return False
        self.shapes[name] = shape
        return True

    def execute_async_v3(self, stream: int) -> bool:
        assert self.memory is not None
        assert self.memory[1] == self.engine.device_memory_size_v2
        own = self.engine.library.cuda.stream
        assert stream == int(own)
        state = (dict(self.addresses), dict(self.shapes))
        if own.captured is not None:
            assert self.enqueued == state, "captured without enqueueing it once before"
            if self.engine.library.refuses_capture:
                return False
            self.is_captured = True
        self.enqueued = state
        own.add(lambda: self._run(*state))
        return True

    def _run(self, addresses: dict[str, int], shapes: dict[str, tuple[int, ...]]) -> None:
        binding, element = self.engine.session.io_binding(), ELEMENT_TYPE["float32"]
        for name, shape in shapes.items():
            kind = INT64 if name in SMALL else element
            binding.bind_input(name, "cpu", 0, kind, shape, addresses[name])
            if name.startswith("past_key_values"):
                present = name.replace("past_key_values", "present")
                binding.bind_output(present, "cpu", 0, element, shape, addresses[present])
        (logits,) = [v for v in self.engine.session.get_outputs() if v.name == LOGITS]
        shape = (*shapes[LOGITS_POSITIONS], logits.shape[2])
        binding.bind_output(LOGITS, "cpu", 0, element, shape, addresses[LOGITS])
        self.engine.session.run_with_iobinding(binding)
