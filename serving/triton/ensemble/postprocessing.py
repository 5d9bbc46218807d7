"""The last model of an ensemble: from ids to texts."""

from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from serving.errors import UserError
from serving.triton.model import error_response

if TYPE_CHECKING:
    from serving.triton.ensemble.handover import Handover


class TritonPythonModel:
    """One instance. It needs no memory: each response of the engine has all that its text needs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer of the bundle beside this version's model.py."""
        from serving.detokenizer import Vocabulary
        from serving.triton.ensemble.handover import tokenizer_digest
        from serving.triton.ensemble.tokenizing import open_prompts

        try:
            tokenizer = open_prompts(args).require_tokenizer()
        except UserError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._vocabulary = Vocabulary(tokenizer)
        self._digest = tokenizer_digest(tokenizer)

    def execute(self, requests: list[Any]) -> None:
        """Answer requests, each a response of the engine."""
        for request in requests:
            # Through the sender, which an answer to is_cancelled uses too: Triton frees what that
            # needs with the request, and would do so too soon if a response overtook it.
            sender = request.get_response_sender()
            sender.send(self._answer(request), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)

    def _answer(self, request: Any) -> Any:
        """The response to a request, None for a probe, of which the client hears nothing."""
        from serving.triton.ensemble.handover import Handover
        from serving.triton.ensemble.probes import say_gone

        tensors = {tensor.name(): tensor for tensor in request.inputs()}
        try:
            said = tensors.pop("handover", None)
            text = said.as_numpy().item().decode(errors="replace") if said else ""
            message = Handover.read(text)
            if message.error:
                return error_response(request.request_id(), message.error)
            if message.probe:
                if request.is_cancelled():
                    say_gone(message.probe)
                return None
            return self._with_texts(message, tensors)
        except UserError as error:
            return error_response(request.request_id(), str(error))

    def _with_texts(self, message: "Handover", tensors: dict[str, Any]) -> Any:
        from serving.triton.answers import strings

        message.check_tokenizer(self._digest)
        ids = tensors["output_ids"].as_numpy()[0].tolist() if "output_ids" in tensors else []
        text_output = strings(message.texts(self._vocabulary, ids))
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor("text_output", text_output), *tensors.values()]
        )
