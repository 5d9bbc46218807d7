"""The bare engine: our scheduler in one process, without a server."""

from collections import deque
from importlib.metadata import version
from time import perf_counter

import serving
from scripts.load.timing import Timeline
from serving.decoding import Failure, Token
from serving.request_queue import Job


class Runner:
    """A bundle opened with ``slots`` slots and ``prefix_rows`` rows for what was computed."""

    version = f"export-llm {version('export-llm')}"

    def __init__(
        self, model: str, threads: int, slots: int, capacity: int, prefix_rows: int = 0
    ) -> None:
        self._model = serving.load(
            model, threads=threads, slots=slots, capacity=capacity, prefix_rows=prefix_rows
        )

    def run(self, streams: int, prompts: list[list[int]], new_tokens: int) -> list[Timeline]:
        """See worker.Runner."""
        scheduler = self._model.scheduler()
        timelines: list[Timeline] = []
        waiting = deque(prompts)

        def send_next() -> None:
            sequence = self._model.sequence(
                waiting.popleft(), len(timelines), max_new_tokens=new_tokens, ignore_eos=True
            )
            timelines.append(Timeline(perf_counter()))
            scheduler.submit(Job(sequence))

        for _ in range(min(streams, len(prompts))):
            send_next()
        for event in scheduler.run():
            if isinstance(event, Failure):
                raise event.error
            timelines[event.index].times.append(perf_counter())
            timelines[event.index].tokens += 1
            if isinstance(event, Token) and event.finish_reason is not None and waiting:
                send_next()
        return timelines
