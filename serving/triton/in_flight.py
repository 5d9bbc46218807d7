"""Requests that haven't ended: each with its answer and the way to its client."""

import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from serving.beam_search import Found
from serving.closing import Closing
from serving.decoding import Failure, Token
from serving.engine import IntArray
from serving.errors import UserError
from serving.generation import Model
from serving.scheduler import Outcome
from serving.triton.answers import Answer, echo
from serving.triton.engine_thread import EngineThread
from serving.triton.record import Record
from serving.triton.requests import Array, TritonRequest, read_request
from serving.worker.messages import Cancel, Load, Request, Submit

# A model that can't be opened again is tried again after so long.
RETRY_SECONDS = 5.0

ENGINE_FAILED = "The engine failed and is started again: send the request again."

_log = logging.getLogger(__name__)


class Responder(Protocol):
    """The way to a request's client."""

    def send(self, outputs: Mapping[str, Array], *, last: bool) -> None:
        """Send output tensors; nothing may come after the ``last``."""
        ...

    def fail(self, reason: str) -> None:
        """End with an error."""
        ...

    def confirm_cancelled(self) -> None:
        """End as cancelled."""
        ...

    def is_cancelled(self) -> bool:
        """Whether the client has gone away or cancelled."""
        ...


class MakeAnswer(Protocol):
    """Makes the answer to a request, of which nothing was generated yet."""

    def __call__(self, model: Model, request: TritonRequest, prompt_ids: IntArray, /) -> Answer:
        """Return it; raises UserError for what is wrong with the request."""
        ...


def text_answer(model: Model, request: TritonRequest, prompt_ids: IntArray) -> Answer:
    """The answer of a model that makes texts itself."""
    prefix = echo(model.prompts, request.prompt, prompt_ids) if request.echoes else ""
    return Answer(request, len(prompt_ids), prefix, has_texts=model.tokenizer is not None)


@dataclass(slots=True)
class _Running:
    responder: Responder
    answer: Answer
    record: Record


class InFlight(Closing):
    """The requests that a model works on; ``ended`` is told of each that has ended.

    ``scheduling`` are parameters of Model.scheduler; ``answer`` makes the requests' answers. If the
    engine fails, all requests end with an error and the model is opened again: Triton doesn't
    replace a process that is lost. Closing ends what runs with an error, too. Raises UserError if
    the model can't be opened.
    """

    def __init__(
        self,
        open_model: Callable[[], Model],
        ended: Callable[[Record], None],
        scheduling: Mapping[str, Any],
        answer: MakeAnswer = text_answer,
    ) -> None:
        self._open_model = open_model
        self._ended = ended
        self._scheduling = scheduling
        self._answer = answer
        self._indices = count()
        self._running: dict[int, _Running] = {}
        self._lock = threading.Lock()  # whoever takes a request out of _running may end it
        self._is_closed = threading.Event()
        self._engine: EngineThread | None = self._start()

    @property
    def load(self) -> Load:
        """What the engine had to do after its last step."""
        engine = self._engine
        return engine.load if engine else Load()

    def begin(
        self, tensors: Mapping[str, Array], responder: Responder, seconds: float | None
    ) -> None:
        """Let the engine begin a request, which is given up after so many ``seconds``.

        What is wrong with the request is sent as its error.
        """
        record, engine = Record(), self._engine
        try:
            if engine is None:
                raise UserError("The engine is being started again: try again in some seconds.")
            request = read_request(tensors, engine.model.completed)
            prompt_ids = engine.model.prompts.ids(request.prompt)
            answer = self._answer(engine.model, request, prompt_ids)
        except UserError as error:
            self._fail(responder, record, str(error))
            return
        record.prompt_tokens = len(prompt_ids)
        index = next(self._indices)
        with self._lock:
            self._running[index] = _Running(responder, answer, record)
        work = Request(prompt_ids, request.options, seconds=seconds, beams=request.beams)
        engine.send(Submit(index, work))
        if self._engine is not engine and self._take(index):  # it failed meanwhile
            self._fail(responder, record, ENGINE_FAILED)

    def forget_cancelled(self) -> None:
        """Take out the requests whose clients have gone away."""
        for index, running in list(self._running.items()):
            if running.responder.is_cancelled() and self._take(index):
                if engine := self._engine:
                    engine.send(Cancel(index))
                running.responder.confirm_cancelled()
                running.record.ending = "cancelled"
                self._ended(running.record)

    def close(self) -> None:
        """End the engine, then whatever still runs."""
        self._is_closed.set()
        if engine := self._engine:
            engine.close()
        self._fail_all("The model is being unloaded: send the request again.")

    def _start(self) -> EngineThread:
        return EngineThread(
            self._open_model(), self._deliver, self._engine_failed, **self._scheduling
        )

    def _engine_failed(self, failed: EngineThread) -> None:
        self._engine = None
        self._fail_all(ENGINE_FAILED)
        threading.Thread(target=self._replace, args=(failed,), daemon=True).start()

    def _replace(self, failed: EngineThread) -> None:
        """Open the model again, trying until it works."""
        failed.close()
        while not self._is_closed.is_set():
            try:
                self._engine = self._start()
                return
            except UserError:
                _log.exception("the engine can't be started again yet")
                self._is_closed.wait(RETRY_SECONDS)

    def _fail_all(self, reason: str) -> None:
        for index in list(self._running):
            if running := self._take(index):
                self._fail(running.responder, running.record, reason)

    def _take(self, index: int) -> _Running | None:
        """Take a request out, unless another thread has: whoever gets it ends it."""
        with self._lock:
            return self._running.pop(index, None)

    def _deliver(self, outcome: Outcome) -> None:
        match outcome:
            case Token():
                self._deliver_token(outcome)
            case Found():
                self._deliver_beams(outcome)
            case Failure():
                if running := self._take(outcome.index):
                    self._fail(running.responder, running.record, str(outcome.error))

    def _deliver_token(self, token: Token) -> None:
        running = self._running.get(token.index)
        if running is None:  # cancelled meanwhile
            return
        running.record.tick()
        outputs, last = running.answer.add(token), token.finish_reason is not None
        if outputs is None or (last and not self._take(token.index)):
            return
        running.responder.send(outputs, last=last)
        if last:
            self._ended(running.record)

    def _deliver_beams(self, found: Found) -> None:
        if running := self._take(found.index):
            running.record.new_tokens = sum(len(beam.token_ids) for beam in found.generations)
            running.responder.send(running.answer.beams(found.generations), last=True)
            self._ended(running.record)

    def _fail(self, responder: Responder, record: Record, reason: str) -> None:
        responder.fail(reason)
        record.ending = "failed"
        self._ended(record)
