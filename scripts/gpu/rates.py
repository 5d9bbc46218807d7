"""What the chip gives: its memory bandwidth and its rate of half-precision matrix products."""

import statistics
from collections.abc import Callable
from dataclasses import dataclass

import torch

from scripts.gpu.outcome import Recorder

_COPIED = 1 << 30  # bytes, far more than any cache holds
_ORDER = 8192  # of the matrices
_REPEATS = 20


@dataclass(frozen=True)
class Rates:
    """Bytes a second of a copy, reads and writes counted, and FLOP a second of a half product."""

    bandwidth: float
    matrix: float


def measure_rates(recorder: Recorder) -> None:
    """Record both rates."""
    rates = rates_of_device()
    recorder.record("device copy of 1 GiB, read and written", f"{rates.bandwidth / 1e9:,.0f} GB/s")
    recorder.record(f"float16 product of order {_ORDER}", f"{rates.matrix / 1e12:,.1f} TFLOP/s")


def rates_of_device() -> Rates:
    """Medians, timed by events on the device."""
    source = torch.ones(_COPIED, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = median_seconds(lambda: target.copy_(source))
    matrix = torch.randn(_ORDER, _ORDER, dtype=torch.float16, device="cuda") / 64
    product = torch.empty_like(matrix)
    multiply = median_seconds(lambda: torch.matmul(matrix, matrix, out=product))
    return Rates(2 * _COPIED / copy, 2 * _ORDER**3 / multiply)


def median_seconds(work: Callable[[], object]) -> float:
    """The median time on the device of work that is given to it ``_REPEATS`` times."""
    times = []
    for repeat in range(_REPEATS + 3):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        work()
        end.record()
        end.synchronize()
        if repeat >= 3:
            times.append(begin.elapsed_time(end) / 1e3)
    return statistics.median(times)
