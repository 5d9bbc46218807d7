"""Requests that haven't ended: each with its answer and the way to its client."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count
from typing import Any, Protocol

from serving.closing import Closing
from serving.decoding import Failure, Token
from serving.engine import IntArray
from serving.errors import UserError
from serving.generation import Model
from serving.scheduler import Outcome
from serving.triton.answers import Answer
from serving.triton.engine_thread import EngineThread
from serving.triton.record import Record
from serving.triton.requests import Array, TritonRequest, read_request
from serving.worker.messages import Cancel, Load, Request, Submit


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


@dataclass(slots=True)
class _Running:
    responder: Responder
    answer: Answer
    record: Record


class InFlight(Closing):
    """The requests that a model works on; ``ended`` is told of each that has ended.

    ``scheduling`` are parameters of Model.scheduler. Closing it ends what runs with an error.
    """

    def __init__(
        self, model: Model, ended: Callable[[Record], None], scheduling: Mapping[str, Any]
    ) -> None:
        self._model = model
        self._ended = ended
        self._indices = count()
        self._running: dict[int, _Running] = {}
        self._lock = threading.Lock()  # whoever takes a request out of _running may end it
        self._engine = EngineThread(model, self._deliver, **scheduling)

    @property
    def load(self) -> Load:
        """What the engine had to do after its last step."""
        return self._engine.load

    @property
    def engine_failed(self) -> bool:
        """Whether the engine can't go on."""
        return self._engine.has_failed

    def begin(
        self, tensors: Mapping[str, Array], responder: Responder, seconds: float | None
    ) -> None:
        """Let the engine begin a request, which is given up after so many ``seconds``.

        What is wrong with the request is sent as its error.
        """
        record = Record()
        try:
            request = read_request(tensors)
            prompt_ids = self._model.prompts.ids(request.prompt)
            answer = self._answer(request, prompt_ids)
        except UserError as error:
            self._fail(responder, record, str(error))
            return
        record.prompt_tokens = len(prompt_ids)
        index = next(self._indices)
        with self._lock:
            self._running[index] = _Running(responder, answer, record)
        self._engine.send(Submit(index, Request(prompt_ids, request.options, seconds=seconds)))

    def forget_cancelled(self) -> None:
        """Take out the requests whose clients have gone away."""
        for index, running in list(self._running.items()):
            if running.responder.is_cancelled() and self._take(index):
                self._engine.send(Cancel(index))
                running.responder.confirm_cancelled()
                running.record.ending = "cancelled"
                self._ended(running.record)

    def close(self) -> None:
        """End the engine, then whatever still runs."""
        self._engine.close()
        for index in list(self._running):
            if running := self._take(index):
                reason = "The model is being unloaded: send the request again."
                self._fail(running.responder, running.record, reason)

    def _answer(self, request: TritonRequest, prompt_ids: IntArray) -> Answer:
        prefix = ""
        if request.echoes:
            is_text = isinstance(request.prompt, str)
            prefix = str(request.prompt) if is_text else self._decode(prompt_ids)
        has_texts = self._model.tokenizer is not None
        return Answer(request, len(prompt_ids), prefix, has_texts=has_texts)

    def _decode(self, token_ids: IntArray) -> str:
        tokenizer = self._model.prompts.require_tokenizer()
        return str(tokenizer.decode(token_ids.tolist(), skip_special_tokens=False))

    def _take(self, index: int) -> _Running | None:
        """Take a request out, unless another thread has: whoever gets it ends it."""
        with self._lock:
            return self._running.pop(index, None)

    def _deliver(self, outcome: Outcome) -> None:
        match outcome:
            case Token():
                self._deliver_token(outcome)
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

    def _fail(self, responder: Responder, record: Record, reason: str) -> None:
        responder.fail(reason)
        record.ending = "failed"
        self._ended(record)
