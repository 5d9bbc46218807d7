"""What one process does with an encoder: opens the bundle once, and fills its batches."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypedDict

import numpy as np

from scripts.batch.encoder_lines import EncoderTask, encoder_task
from scripts.batch.lines import Line
from serving.encoders import joining
from serving.encoders.joining import Row
from serving.encoders.opening import load_encoder
from serving.encoders.text_queue import TextJob, TextQueue
from serving.encoders.texts import ContextOverflow, EncodedText
from serving.errors import UserError
from serving.sampling import no_number

# So many batches of tokens are read ahead, among which texts of one length find each other.
_AHEAD = 16

_CANDIDATES = 5
_ANSWER_TOKENS = 15


class EncoderOptions(TypedDict):
    """What holds where a line says nothing else; see EncoderModel."""

    context_overflow: ContextOverflow
    overlap: int | None


@dataclass(frozen=True, slots=True)
class _Running:
    line: Line
    task: EncoderTask
    text: EncodedText


class EncoderRunner:
    """An encoder's bundle that lines are run through.

    ``opening`` are parameters of serving.load_encoder. Raises UserError if the bundle can't be
    opened.
    """

    def __init__(self, bundle: Path, opening: dict[str, Any], options: EncoderOptions) -> None:
        self._model = load_encoder(bundle, **opening)
        self._options = options

    def __call__(self, batch: dict[str, Any]) -> dict[str, list[str]]:
        """Ray Data's interface: columns ``number`` and ``text`` of lines in, ``result`` out."""
        lines = map(Line, batch["number"].tolist(), batch["text"].tolist())
        return {"result": list(self.run(lines))}

    def run(self, lines: Iterable[Line]) -> Iterator[str]:
        """Yield the result of each line when it is there.

        Raises EngineError where the engine itself failed: no other line can go on then.
        """
        queue = TextQueue()
        running: dict[int, _Running] = {}
        ahead = 0
        for index, line in enumerate(lines):
            carried: dict[str, Any] = {}
            try:
                task = encoder_task(line, self._model.encoder.task)
                carried = task.carried
                text = self._encode(task)
            except UserError as error:
                yield line.failure(error, carried)
                continue
            running[index] = _Running(line, task, text)
            tokens = [segment.tokens for segment in text.segments]
            queue.push(TextJob(index, tokens))
            ahead += sum(each.size for each in tokens)
            while ahead > _AHEAD * self._model.batch_tokens:
                ended, size = self._run_batch(queue)
                ahead -= size
                yield from (self._result(running.pop(job.index), job) for job in ended)
        while len(queue):
            ended, _ = self._run_batch(queue)
            yield from (self._result(running.pop(job.index), job) for job in ended)

    def close(self) -> None:
        """Free the engine."""
        self._model.close()

    def _encode(self, task: EncoderTask) -> EncodedText:
        model = self._model
        overflow, overlap = task.context_overflow, task.overlap
        if overflow is None:
            overflow, overlap = self._options["context_overflow"], self._options["overlap"]
        if model.encoder.task == "fill-mask":
            overflow, overlap = "refuse", None
        (text,) = model.texts.encode([task.text], overflow, overlap)
        if model.encoder.task == "fill-mask":
            return joining.with_masks(model.encoder, model.texts.tokenizer, text)
        return text

    def _run_batch(self, queue: TextQueue) -> tuple[list[TextJob], int]:
        """Run the next batch; returns the jobs that ended with it, and its size in tokens."""
        batch = queue.next_batch(self._model.batch_tokens)
        rows = self._model.run_batch([chosen.tokens for chosen in batch])
        for (job, number), row in zip(batch, rows, strict=True):
            job.rows[number] = row
        jobs = dict.fromkeys(chosen.job for chosen in batch)
        return [job for job in jobs if job.is_done], sum(each.tokens.size for each in batch)

    def _result(self, ran: _Running, job: TextJob) -> str:
        rows = [job.rows[number] for number in range(len(job.texts))]
        if any(np.isnan(output).any() for row in rows for output in row):
            return ran.line.failure(no_number(), ran.task.carried)
        counts = {
            "tokens": ran.text.token_count,
            "truncated": ran.text.is_truncated,
            "segments": len(ran.text.segments),
        }
        return ran.line.output(ran.task.carried | counts | self._answer(ran, rows))

    def _answer(self, ran: _Running, rows: Sequence[Row]) -> dict[str, Any]:
        """What the encoder's task gives, in JSON's types."""
        encoder, text, given = self._model.encoder, ran.text, ran.task.text
        match encoder.task:
            case "embed":
                result = joining.embeddings(encoder, [text], [rows])
                return {"embedding": result.vectors[0].tolist()}
            case "text-classification":
                found = joining.classification(encoder, text, rows)
                return {"labels": found.labels, "scores": found.scores}
            case "token-classification":
                assert isinstance(given, str)
                spans = joining.labelled_spans(encoder, given, text, rows, grouped=True)
                return {"entities": [asdict(span) for span in spans]}
            case "fill-mask":
                top_k = ran.task.top_k or _CANDIDATES
                masks = joining.candidates(self._model.texts.tokenizer, text, rows, top_k)
                return {"candidates": [[asdict(each) for each in mask] for mask in masks]}
            case "question-answering":
                _, context = given
                (best,) = joining.likeliest_answers(context, text, rows, _ANSWER_TOKENS)
                span = {"score": best.score, "start": best.start, "end": best.end}
                return {"answer": best.text, **span}
