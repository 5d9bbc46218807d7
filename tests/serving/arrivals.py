"""Random requests that come, wait, are cancelled and end, and what a scheduler makes of them."""

from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from serving import Generation, Model
from serving.beam_search import BeamParameters, Found
from serving.decoding import Failure, SpeculationMethod
from serving.request_queue import Job
from serving.scheduler import Scheduler

# Prompts begin with one of these, so that they have something in common.
BEGINNINGS = [list(range(1, 25)), [7, 3] * 12, []]


@dataclass(frozen=True)
class Arrival:
    """A request that comes before step ``at``, and is cancelled ``patience`` steps later.

    One that ``searches`` has two beams or three, where there are so many slots.
    """

    at: int
    prompt: list[int]
    new_tokens: int
    patience: int | None
    speculation: SpeculationMethod | None
    priority: int
    client: str
    adapter: str | None = None
    searches: bool = False

    def options(self, slots: int) -> dict[str, Any]:
        """Parameters of Model.generate with so many slots."""
        common = {"ignore_eos": True, "adapter": self.adapter}
        if self.searches and slots > 1:
            beams = min(slots, 2 + self.priority)
            return common | {"num_beams": beams, "max_new_tokens": 1 + self.new_tokens // 4}
        return common | {"max_new_tokens": self.new_tokens}


def arrivals(
    vocab: int,
    methods: list[SpeculationMethod | None],
    adapters: tuple[str | None, ...] = (None,),
    *,
    searches: bool = False,
) -> st.SearchStrategy[list[Arrival]]:
    """Between one and twelve requests, many of them at about the same time."""
    tail = st.lists(st.integers(0, vocab - 1), min_size=1, max_size=30)
    prompt = st.builds(lambda beginning, end: beginning + end, st.sampled_from(BEGINNINGS), tail)
    arrival = st.builds(
        Arrival,
        at=st.integers(0, 30),
        prompt=prompt,
        new_tokens=st.integers(1, 40),
        patience=st.none() | st.integers(0, 30),
        speculation=st.sampled_from(methods),
        priority=st.integers(0, 1),
        client=st.sampled_from("ab"),
        adapter=st.sampled_from(adapters),
        searches=st.just(False) if not searches else st.sampled_from([False, False, True]),
    )
    return st.lists(arrival, min_size=1, max_size=12)


def serve(model: Model, scheduler: Scheduler, plan: list[Arrival]) -> dict[int, Generation]:
    """Run a plan to its end; returns what was not cancelled, by the arrival's number.

    No scheduler needs more steps than one for each token and each chunk.
    """
    results: dict[int, Generation] = {}
    for step in range(1000):
        for index, arrival in enumerate(plan):
            if arrival.at == step:
                options = arrival.options(model.slots)
                beams = options.pop("num_beams", None)
                if beams is None:
                    options["speculation"] = arrival.speculation
                sequence = model.sequence(arrival.prompt, index, **options)
                job = Job(sequence, arrival.priority, arrival.client)
                job.beams = BeamParameters(beams) if beams else None
                scheduler.submit(job)
                results[index] = Generation()
            gives_up = arrival.patience is not None and arrival.at + arrival.patience == step
            if gives_up and scheduler.cancel(index):
                del results[index]
        for event in scheduler.step():
            assert not isinstance(event, Failure), event.error
            if isinstance(event, Found):
                results[event.index] = event.generations[0]
            else:
                results[event.index].add(event)
        if scheduler.is_idle and step > max(arrival.at for arrival in plan):
            return results
    raise AssertionError("a request never ended")
