"""Metrics in Triton's own metrics endpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from serving.closing import Closing

_ENDINGS = ("finished", "failed", "cancelled")
_REQUESTS = "serve_llm_requests_total"


@dataclass(frozen=True, slots=True)
class Family:
    """Metrics of one name; ``buckets`` are upper bounds, of a histogram alone."""

    kind: Literal["COUNTER", "GAUGE", "HISTOGRAM"]
    name: str
    description: str
    buckets: tuple[float, ...] = ()


# Of decoders and encoders alike.
PROMPT_TOKENS = Family("COUNTER", "serve_llm_prompt_tokens_total", "Tokens of prompts.")


class Instruments(Closing):
    """One instance's metrics, by their keys, and its requests by their ending.

    ``labels`` tell the instance from others. Every call into Triton is a message between processes.
    ``pb_utils`` is the Python backend's module.
    """

    def __init__(
        self, pb_utils: Any, labels: dict[str, str], families: Mapping[str, Family]
    ) -> None:
        requests = Family("COUNTER", _REQUESTS, "Requests that have ended, by their end.")
        self._families = {key: _made(pb_utils, family) for key, family in families.items()}
        self._requests = _made(pb_utils, requests)
        self._metrics = {
            key: self._families[key].Metric(labels=labels, **_buckets(family))
            for key, family in families.items()
        }
        self._endings = {
            ending: self._requests.Metric(labels=labels | {"ending": ending}) for ending in _ENDINGS
        }

    def __getitem__(self, key: str) -> Any:
        """The metric, as Triton has it."""
        return self._metrics[key]

    def count_requests(self, ending: str, count: int = 1) -> None:
        """Count requests that have ended so."""
        self._endings[ending].increment(count)

    def close(self) -> None:
        """Take the metrics out of Triton, which happens where their objects end."""
        self._metrics.clear()
        self._endings.clear()
        self._families.clear()
        del self._requests


def _made(pb_utils: Any, family: Family) -> Any:
    kinds = pb_utils.MetricFamily
    return kinds(name=family.name, description=family.description, kind=getattr(kinds, family.kind))


def _buckets(family: Family) -> dict[str, list[float]]:
    return {"buckets": list(family.buckets)} if family.buckets else {}
