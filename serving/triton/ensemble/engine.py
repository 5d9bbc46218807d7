"""The engine of an ensemble: from ids to ids."""

from time import perf_counter
from typing import TYPE_CHECKING, Any

from serving.triton import model
from serving.triton.ensemble.probes import PROBE_SECONDS, Probes

if TYPE_CHECKING:
    from serving.engine import IntArray
    from serving.generation import Model
    from serving.triton.answers import Answer
    from serving.triton.in_flight import Responder
    from serving.triton.requests import Array, TritonRequest


class TritonPythonModel(model.TritonPythonModel):
    """One instance; its responses say how to make texts of their ids."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle, and run it once before it is ready."""
        from serving.triton.ensemble.engine_answers import Answers

        self._answers = Answers()
        self._probes = Probes()
        super().initialize(args)

    def finalize(self) -> None:
        """Free everything; requests that still run end with an error."""
        super().finalize()
        self._probes.close()

    def _answer(
        self, opened: "Model", request: "TritonRequest", prompt_ids: "IntArray"
    ) -> "Answer":
        return self._answers(opened, request, prompt_ids)

    def _responder(self, request: Any) -> "Responder":
        if any(tensor.name() == "handover" for tensor in request.inputs()):
            return _EnsembleResponder(request, self._probes)
        return model.TritonResponder(request)


class _EnsembleResponder(model.TritonResponder):
    """The way to the client of an ensemble, through postprocessing."""

    def __init__(self, request: Any, probes: Probes) -> None:
        super().__init__(request)
        self._probes = probes
        self._key = probes.open()
        self._asked = perf_counter()

    def fail(self, reason: str) -> None:
        """Let postprocessing end with an error.

        Triton 24.10 never frees an ensemble's request if one step fails while another one runs:
        postprocessing fails last.
        """
        self.send(self._message(error=reason), last=True)

    def confirm_cancelled(self) -> None:
        """End without a word: nobody listens."""
        self._send(None, last=True)

    def is_cancelled(self) -> bool:
        """Whether postprocessing has said so; asks it again if the last time was long ago."""
        if perf_counter() - self._asked >= PROBE_SECONDS:
            self._asked = perf_counter()
            self.send(self._message(probe=self._key), last=False)
        return self._probes.is_gone(self._key)

    def _send(self, response: Any, *, last: bool) -> None:
        super()._send(response, last=last)
        if last:
            self._probes.close_key(self._key)

    def _message(self, *, error: str = "", probe: str = "") -> dict[str, "Array"]:
        from serving.triton.answers import strings
        from serving.triton.ensemble.handover import Handover

        return {"handover": strings([Handover(error=error, probe=probe).write()])}
