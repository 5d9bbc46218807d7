"""The steps of the check, in their order: what says most in the least time comes first."""

import importlib
from collections.abc import Callable

from scripts.gpu.outcome import Recorder, Step

STEPS = (
    Step("rtx", "TensorRT-RTX starts and runs an engine", 60),
    Step("rates", "Memory bandwidth and matrix rate", 60),
    Step("parity-onnxruntime", "ONNX Runtime CUDA against transformers", 150),
    Step("parity-tensorrt-rtx", "TensorRT-RTX against transformers", 150),
    Step("speed", "Speed of Llama 3.2 1B's shape", 300),
    Step("tests", "Tests that need a GPU", 150),
)

# Where each step is: a module here, and a function in it.
_PLACES = {
    "rtx": ("rtx", "check_rtx"),
    "rates": ("rates", "measure_rates"),
    "parity-onnxruntime": ("parity", "check_onnxruntime"),
    "parity-tensorrt-rtx": ("parity", "check_tensorrt_rtx"),
    "speed": ("speed", "measure_speed"),
    "tests": ("gpu_tests", "run_tests"),
}


def find_step(name: str) -> Callable[[Recorder], None]:
    """The function of a step; what it needs is imported now."""
    module, function = _PLACES[name]
    found: Callable[[Recorder], None] = getattr(
        importlib.import_module(f"scripts.gpu.{module}"), function
    )
    return found
