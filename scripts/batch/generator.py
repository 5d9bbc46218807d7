"""What one process does: opens the bundle once, and keeps all of its slots busy."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.batch.lines import Line, Task
from serving.beam_search import BeamParameters, Found
from serving.decoding import Failure, Token
from serving.errors import UserError
from serving.generation import GenerateOptions
from serving.loading import load
from serving.request_queue import Job
from serving.result import Generation
from serving.scheduler import Scheduler
from serving.source_batches import LOOK_AHEAD

_OF_BEAMS = ("num_beams", "length_penalty", "early_stopping")


@dataclass(frozen=True, slots=True)
class _Running:
    line: Line
    carried: dict[str, Any]
    generation: Generation


class Generator:
    """A bundle that lines are generated with.

    ``opening`` are parameters of serving.load. ``options`` are those of Model.generate that hold
    where a line says nothing else. Raises UserError if the bundle can't be opened.
    """

    def __init__(self, bundle: Path, opening: dict[str, Any], options: GenerateOptions) -> None:
        self._model = load(bundle, **opening)
        self._options = options
        # Sources that wait are encoded with those that begin.
        ahead = LOOK_AHEAD if self._model.is_encoder_decoder else 0
        self._most = self._model.slots + ahead

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Ray Data's interface: columns ``number`` and ``text`` of lines in, ``result`` out."""
        lines = map(Line, batch["number"].tolist(), batch["text"].tolist())
        return {"result": list(self.run(lines))}

    def run(self, lines: Iterable[Line]) -> Iterator[str]:
        """Yield the result of each line when it is there; the next line then takes its slot.

        Raises EngineError where the engine itself failed: no other line can go on then.
        """
        scheduler = self._model.scheduler()
        running: dict[int, _Running] = {}
        for index, line in enumerate(lines):
            carried: dict[str, Any] = {}
            try:
                task = line.task()
                carried = task.carried
                job = self._job(task, index)
                scheduler.submit(job)
            except UserError as error:
                yield line.failure(error, carried)
                continue
            sequence = job.sequence
            logprobs = None if sequence.sampling.logprobs is None else []
            generation = Generation(prompt_tokens=sequence.prompt_tokens, logprobs=logprobs)
            running[index] = _Running(line, carried, generation)
            while len(running) == self._most:
                yield from _ended(scheduler, running)
        while running:
            yield from _ended(scheduler, running)

    def close(self) -> None:
        """Free the engine."""
        self._model.close()

    def _job(self, task: Task, index: int) -> Job:
        prompt = task.prompt
        if task.messages is not None:
            if self._model.is_encoder_decoder:
                raise UserError("Encoder-decoders read no conversations: give a prompt.")
            prompt = self._model.encode_chat(task.messages)
        options = self._model.completed({**self._options, **task.options}, stream=False)
        search = {name: options.pop(name) for name in _OF_BEAMS if name in options}
        beams = BeamParameters(**search)
        sequence = self._model.sequence(prompt, index, **options)
        return Job(sequence, beams=beams if beams.num_beams > 1 else None)


def _ended(scheduler: Scheduler, running: dict[int, _Running]) -> Iterator[str]:
    """Run one step; yield the results of what ended with it, which isn't running any more."""
    for event in scheduler.step():
        entry = running[event.index]
        if isinstance(event, Failure):
            del running[event.index]
            yield entry.line.failure(event.error, entry.carried)
            continue
        if isinstance(event, Found):
            del running[event.index]
            yield entry.line.result(event.generations[0], entry.carried)
            continue
        assert isinstance(event, Token)
        entry.generation.add(event)
        if event.finish_reason is not None:
            del running[event.index]
            yield entry.line.result(entry.generation, entry.carried)
