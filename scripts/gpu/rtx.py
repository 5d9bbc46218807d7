"""Whether TensorRT-RTX runs on this chip: one engine of one layer, built here and run."""

from typing import Any

from scripts.gpu.outcome import Recorder
from serving.errors import UserError
from serving.tensorrt.library import load_library

VALUES = [-2.0, -0.5, 0.0, 3.0]


def check_rtx(recorder: Recorder) -> None:
    """Build for the chip that is here, open and run; raises UserError with the library's reason."""
    library = load_library("tensorrt-rtx")
    log = make_log(library)
    recorder.record("TensorRT-RTX", str(library.__version__))
    plan = build_relu(library, log, library.ComputeCapability.CURRENT)
    if plan is None:
        raise UserError(f"TensorRT-RTX can't build an engine for this chip ({last(log)}).")
    recorder.record("engine built for this chip", f"{len(bytes(plan)):,} bytes")
    runtime = library.Runtime(log)
    engine = runtime.deserialize_cuda_engine(plan)
    if engine is None:
        raise UserError(f"TensorRT-RTX can't open the engine it built here ({last(log)}).")
    output = _run(engine)
    if output != [max(value, 0.0) for value in VALUES]:
        raise UserError(f"TensorRT-RTX computes the ReLU of {VALUES} as {output}.")
    recorder.record("ReLU computed by it", str(output))


def build_relu(library: Any, log: Any, capability: Any) -> Any:
    """The serialised engine of a float16 ReLU of four numbers, or None: ``log`` says why."""
    builder = library.Builder(log)
    flags = 1 << int(library.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    network = builder.create_network(flags)
    x = network.add_input("x", library.float16, (len(VALUES),))
    y = network.add_activation(x, library.ActivationType.RELU).get_output(0)
    y.name = "y"
    network.mark_output(y)
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(capability, 0)
    return builder.build_serialized_network(network, config)


def make_log(library: Any) -> Any:
    """A logger that keeps the errors in ``errors``."""

    class Log(library.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in (library.ILogger.ERROR, library.ILogger.INTERNAL_ERROR):
                self.errors.append(message.splitlines()[0])

    return Log()


def last(log: Any) -> str:
    """The last error, or that there was none."""
    return log.errors[-1] if log.errors else "it gives no reason"


def _run(engine: Any) -> list[float]:
    import torch

    x = torch.tensor(VALUES, dtype=torch.float16, device="cuda")
    y = torch.empty_like(x)
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    context = engine.create_execution_context()
    context.set_tensor_address("x", x.data_ptr())
    context.set_tensor_address("y", y.data_ptr())
    if not context.execute_async_v3(stream.cuda_stream):
        raise UserError("TensorRT-RTX can't run the engine that it built here.")
    stream.synchronize()
    values: list[float] = y.tolist()
    return values
