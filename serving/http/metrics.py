"""Prometheus metrics: of requests, of tokens, and of what the workers have to do."""

from collections.abc import Callable, Iterable, Iterator
from time import perf_counter

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from serving.http.request_record import RequestRecord
from serving.http.served_model import Served

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300)
_TOKEN_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Metrics:
    """All metrics of one server; labels have as many values as it has routes and models."""

    def __init__(self, models: Iterable[Served]) -> None:
        self._registry = CollectorRegistry()
        self._requests = Histogram(
            "serve_llm_request_seconds",
            "Time from a request's arrival to the end of its answer.",
            ("route", "status"),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self.disconnects = Counter(
            "serve_llm_disconnects",
            "Requests whose client went away before the end of the answer.",
            registry=self._registry,
        )
        self._prompt_tokens = Counter(
            "serve_llm_prompt_tokens", "Tokens of prompts.", ("model",), registry=self._registry
        )
        self._new_tokens = Counter(
            "serve_llm_generated_tokens", "Tokens generated.", ("model",), registry=self._registry
        )
        self._first_token = Histogram(
            "serve_llm_time_to_first_token_seconds",
            "Time from a request's arrival to the first token of each choice.",
            ("model",),
            buckets=_SECONDS,
            registry=self._registry,
        )
        self._token_intervals = Histogram(
            "serve_llm_inter_token_seconds",
            "Time between two tokens of a choice.",
            ("model",),
            buckets=_TOKEN_SECONDS,
            registry=self._registry,
        )
        self._registry.register(_Workers(list(models)))

    def text(self) -> bytes:
        """All metrics in Prometheus' format."""
        return generate_latest(self._registry)

    def record_request(self, record: RequestRecord) -> None:
        """Count a request that has ended."""
        seconds = perf_counter() - record.begin
        self._requests.labels(record.route, str(record.status)).observe(seconds)
        if record.disconnected:
            self.disconnects.inc()

    def record_prompt(self, model: str, tokens: int) -> None:
        """Count a prompt."""
        self._prompt_tokens.labels(model).inc(tokens)

    def token_clock(self, model: str, record: RequestRecord) -> "TokenClock":
        """What measures the tokens of one choice."""
        return TokenClock(
            record,
            self._new_tokens.labels(model),
            self._first_token.labels(model),
            self._token_intervals.labels(model),
        )


class TokenClock:
    """Measures the tokens of one choice as they come."""

    def __init__(
        self, record: RequestRecord, tokens: Counter, first: Histogram, intervals: Histogram
    ) -> None:
        self._record = record
        self._tokens = tokens
        self._first = first
        self._intervals = intervals
        self._last: float | None = None

    def tick(self, tokens: int = 1) -> None:
        """Take a token, or several that have come at once."""
        now = perf_counter()
        if self._last is None:
            self._first.observe(now - self._record.begin)
            if self._record.first_token is None:
                self._record.first_token = now
        else:
            self._intervals.observe(now - self._last)
        self._last = now
        self._tokens.inc(tokens)
        self._record.new_tokens += tokens


class _Workers:
    """Asks the workers' clients when somebody reads the metrics."""

    def __init__(self, models: list[Served]) -> None:
        self._models = models

    def collect(self) -> Iterator[Metric]:
        """The metrics, with a value for each model."""
        gauges: dict[str, tuple[str, Callable[[Served], float]]] = {
            "ready": ("Whether the worker is ready.", lambda m: m.worker.opened is not None),
            "slots": ("Slots for sequences.", _slots),
            "slots_in_use": ("Sequences that decode or run their prompt.", _slots_in_use),
            "queue_length": ("Sequences that wait for a slot.", lambda m: m.worker.load.waiting),
            "sequences": ("Sequences that haven't ended.", lambda m: m.worker.in_flight),
        }
        counters: dict[str, tuple[str, Callable[[Served], float]]] = {
            "worker_restarts": (
                "Workers that died and were replaced.",
                lambda m: m.worker.restarts,
            ),
            "cache_lookup_tokens": (
                "Tokens of prompts since the worker started, looked up among earlier ones.",
                lambda m: m.worker.load.prompt_tokens,
            ),
            "cache_hit_tokens": (
                "Those of them whose keys and values were copied.",
                lambda m: m.worker.load.reused_tokens,
            ),
            "encoder_batches": (
                "Batches that an encoder ran since its worker started.",
                lambda m: m.worker.load.batches,
            ),
            "encoder_batch_tokens": (
                "Tokens in these batches.",
                lambda m: m.worker.load.batch_tokens,
            ),
            "encoder_padding_tokens": (
                "Padding beside these tokens.",
                lambda m: m.worker.load.padding_tokens,
            ),
        }
        for name, (text, value) in gauges.items():
            yield self._family(
                GaugeMetricFamily(f"serve_llm_{name}", text, labels=["model"]), value
            )
        for name, (text, value) in counters.items():
            counter = CounterMetricFamily(f"serve_llm_{name}", text, labels=["model"])
            yield self._family(counter, value)

    def _family(
        self,
        family: GaugeMetricFamily | CounterMetricFamily,
        value: Callable[[Served], float],
    ) -> Metric:
        for model in self._models:
            family.add_metric([model.name], value(model))
        return family


def _slots(model: Served) -> int:
    return model.worker.opened.slots if model.worker.opened else 0


def _slots_in_use(model: Served) -> int:
    return model.worker.load.prefilling + model.worker.load.decoding
