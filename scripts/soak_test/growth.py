"""Whether memory and open files are flat, once everything is warm."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, linear_regression

from scripts.soak_test.server import Sample

# So much of the run warms caches up and isn't looked at.
_WARM_UP = 0.5

# A shorter run says nothing about leaks.
_LEAST_REQUESTS = 4000

# For 1,000 requests. What one keeps of each request, its tokens say, is some KB; but memory also
# goes up by some MB at a time, and stays there, when many large answers happen to meet.
_MOST_MB = 1.0
_MOST_FILES = 1.0


@dataclass(frozen=True)
class Growth:
    """A straight line through what was measured after the warm-up.

    ``slope`` is for 1,000 requests, ``growth`` over all that were measured.
    """

    what: str
    mean: float
    highest: float
    slope: float
    growth: float


def growths(samples: Sequence[Sample]) -> list[Growth]:
    """Memory and files of both processes; nothing if there were too few requests."""
    if not samples or samples[-1].requests < _LEAST_REQUESTS:
        return []
    begin = _WARM_UP * samples[-1].requests
    warm = [sample for sample in samples if sample.requests >= begin]
    requests = [sample.requests for sample in warm]
    columns = {
        "server_mb": [sample.server_mb for sample in warm],
        "worker_mb": [sample.worker_mb for sample in warm],
        "server_files": [float(sample.server_files) for sample in warm],
        "worker_files": [float(sample.worker_files) for sample in warm],
    }
    return [_fitted(what, requests, values) for what, values in columns.items()]


def leaks(found: Sequence[Growth]) -> list[str]:
    """What grew, in words."""
    return [
        f"{each.what} grew by {each.growth:.1f} ({each.slope:.3f} for 1,000 requests)"
        for each in found
        if each.slope > (_MOST_MB if each.what.endswith("mb") else _MOST_FILES)
    ]


def _fitted(what: str, requests: Sequence[int], values: Sequence[float]) -> Growth:
    slope = linear_regression(requests, values).slope
    span = requests[-1] - requests[0]
    return Growth(what, fmean(values), max(values), 1000 * slope, span * slope)
