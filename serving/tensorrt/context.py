"""Execution contexts: an engine's state for steps of one profile, enqueued or captured."""

from collections.abc import Iterable
from contextlib import suppress
from typing import Any

from serving.errors import EngineError
from serving.tensorrt.bindings import Binding
from serving.tensorrt.cuda import CudaError, call, release, runtime_api


class StepContext:
    """An execution context for steps of one profile, on one stream.

    After ``capture`` the context belongs to its CUDA graph: TensorRT asks for one context a graph,
    since what was captured refers to its state. So it is bound only once then.
    """

    def __init__(self, execution: Any, profile: int, activations: int, log: Any, stream: Any):
        self._execution = execution
        self._log = log
        self._stream = stream
        self._bound: dict[str, Binding] = {}
        self._graph: Any = None
        execution.set_device_memory(activations, execution.engine.device_memory_size_v2)
        selected = execution.set_optimization_profile_async(profile, int(stream))
        check(selected, f"selecting profile {profile}", log)

    @property
    def is_captured(self) -> bool:
        """Whether ``launch`` can run the step."""
        return self._graph is not None

    def bind(self, bindings: Iterable[Binding]) -> None:
        """Set addresses and shapes; what is set already costs nothing."""
        if self._graph is not None:
            raise ValueError("the context was captured as it is bound")
        for binding in bindings:
            if self._bound.get(binding.name) == binding:
                continue
            bound = self._execution.set_tensor_address(binding.name, binding.address)
            if binding.shape is not None:
                bound = self._execution.set_input_shape(binding.name, binding.shape) and bound
            check(bound, f"binding {binding.name} as {binding.shape}", self._log)
            self._bound[binding.name] = binding

    def enqueue(self) -> None:
        """Enqueue the step as it is bound."""
        self._log.clear()
        done = self._execution.execute_async_v3(int(self._stream))
        check(done, "enqueueing a step", self._log)

    def capture(self) -> None:
        """Capture the step as it is bound; ``enqueue`` must have run it once before.

        Nothing runs. A context that TensorRT says can't be captured stays as it is.
        """
        # TensorRT-RTX alone has this question: it compiles kernels while steps run.
        capturable = getattr(self._execution, "is_stream_capturable", None)
        if capturable is not None and not capturable(int(self._stream)):
            return
        # Other threads, such as the compiler's, may call CUDA meanwhile.
        mode = runtime_api().cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call("cudaStreamBeginCapture", self._stream, mode)
        try:
            self.enqueue()
        except BaseException:
            with suppress(CudaError):
                release("cudaGraphDestroy", call("cudaStreamEndCapture", self._stream))
            raise
        graph = call("cudaStreamEndCapture", self._stream)
        try:
            self._graph = call("cudaGraphInstantiate", graph, 0)
        finally:
            release("cudaGraphDestroy", graph)

    def launch(self) -> None:
        """Enqueue the captured step."""
        call("cudaGraphLaunch", self._graph, self._stream)

    def close(self) -> None:
        """Free the graph and the context."""
        if self._graph is not None:
            release("cudaGraphExecDestroy", self._graph)
            self._graph = None
        self._execution = None


def check(done: object, what: str, log: Any) -> None:
    """Raise EngineError with TensorRT's own reason if it didn't do what it was asked."""
    if not done:
        reason = log.errors[-1] if log.errors else "it gives no reason"
        raise EngineError(
            f"TensorRT failed at {what} ({reason}): close the model and load it again."
        )
