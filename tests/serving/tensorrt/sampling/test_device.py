"""The kernels on a GPU give what the host's build of their source gives, bit for bit."""

from collections.abc import Iterator

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from serving.sampling import SamplingParameters
from serving.tensorrt.sampling.parameters import Rows, device_rows
from serving.tensorrt.sampling.sampler import DeviceSampler, LogitsDType, call
from tests.serving.tensorrt.sampling.host_build import HostBuild

pytestmark = pytest.mark.gpu
driver = pytest.importorskip("cuda.bindings.driver")

PARAMETERS = [
    SamplingParameters(),
    SamplingParameters(temperature=0.7),
    SamplingParameters(temperature=1.3, top_k=5),
    SamplingParameters(temperature=1.0, top_p=0.9),
    SamplingParameters(temperature=1.0, min_p=0.05),
    SamplingParameters(temperature=0.8, top_k=40, top_p=0.95, min_p=0.02),
]


@pytest.fixture
def stream() -> Iterator[int]:
    """A stream of device 0, whose primary context is current meanwhile."""
    call(driver.cuInit, 0)
    call(driver.cuCtxPushCurrent, call(driver.cuDevicePrimaryCtxRetain, 0))
    made = call(driver.cuStreamCreate, driver.CUstream_flags.CU_STREAM_NON_BLOCKING)
    yield int(made)
    call(driver.cuStreamDestroy, made)
    call(driver.cuCtxPopCurrent)
    call(driver.cuDevicePrimaryCtxRelease, 0)


def mixed_rows(n: int) -> Rows:
    return device_rows([PARAMETERS[i % len(PARAMETERS)] for i in range(n)], range(n), [0] * n)


def on_device(
    logits: npt.NDArray[np.generic],
    rows: Rows,
    dtype: LogitsDType,
    stream: int,
    steps: int,
    graph: bool,
) -> npt.NDArray[np.int64]:
    """Token ids [steps, n] of the same logits [n, vocab] each time."""
    n, vocab = logits.shape
    of_logits, of_tokens = (int(call(driver.cuMemAlloc, size)) for size in (logits.nbytes, 8 * n))
    call(driver.cuMemcpyHtoD, of_logits, logits.tobytes(), logits.nbytes)
    tokens = np.full((steps, n), -2, np.int64)
    with DeviceSampler(n, vocab, dtype) as sampler:
        sampler.write(0, rows, stream)
        if graph:
            relaxed = driver.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
            call(driver.cuStreamBeginCapture, stream, relaxed)
            sampler.launch(of_logits, of_tokens, 0, n, stream)
            captured = call(driver.cuStreamEndCapture, stream)
            runnable = call(driver.cuGraphInstantiate, captured, 0)
        for step in tokens:
            if graph:
                call(driver.cuGraphLaunch, runnable, stream)
            else:
                sampler.launch(of_logits, of_tokens, 0, n, stream)
            call(driver.cuStreamSynchronize, stream)
            call(driver.cuMemcpyDtoH, step.ctypes.data, of_tokens, step.nbytes)
    call(driver.cuMemFree, of_logits)
    call(driver.cuMemFree, of_tokens)
    return tokens


@pytest.mark.parametrize("graph", [False, True], ids=["launched", "captured"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize(("n", "vocab"), [(1, 151_936), (6, 151_936), (6, 7), (300, 1001)])
def test_the_device_equals_the_host_build(
    host: HostBuild, stream: int, n: int, vocab: int, dtype: LogitsDType, graph: bool
) -> None:
    values = np.random.default_rng(vocab).standard_normal((n, vocab)) * 3
    logits = values.astype(getattr(ml_dtypes, dtype, dtype))
    if n > 1:
        logits[1, vocab // 2] = np.nan
        logits[-1] = -np.inf
    for start in range(len(PARAMETERS) if n == 1 else 1):
        rows = mixed_rows(n + start)[start:].copy()
        tokens = on_device(logits, rows.copy(), dtype, stream, steps=3, graph=graph)
        bits = logits if dtype == "float32" else logits.view(np.uint16)
        expected = [host.sample(bits, rows, dtype) for _ in range(3)]
        np.testing.assert_array_equal(tokens, expected)
