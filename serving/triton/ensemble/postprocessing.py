"""The last model of an ensemble: from ids to texts."""

from collections import deque
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.errors import UserError
from serving.triton.model import error_response
from serving.triton.tensors import TOKEN_OUTPUTS, TensorSpec

if TYPE_CHECKING:
    from serving.triton.ensemble.handover import Handover

_KEPT_REQUESTS = 1024

_DTYPES: dict[str, type] = {
    "TYPE_FP32": np.float32,
    "TYPE_INT32": np.int32,
    "TYPE_STRING": np.object_,
}


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
        self._asked: deque[Any] = deque(maxlen=_KEPT_REQUESTS)

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each a response of the engine."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
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
                if self._is_cancelled(request):
                    say_gone(message.probe)
                # Without outputs: the ensemble then sends nothing to its client.
                return pb_utils.InferenceResponse(output_tensors=[])
            return self._with_texts(message, tensors)
        except UserError as error:
            return error_response(request.request_id(), str(error))

    def _is_cancelled(self, request: Any) -> bool:
        # Triton 2.51 still uses the question's memory for a moment when it has answered. That is
        # freed with the request: so requests are kept for some seconds.
        self._asked.append(request)
        return bool(request.is_cancelled())

    def _with_texts(self, message: "Handover", tensors: dict[str, Any]) -> Any:
        from serving.triton.answers import strings

        message.check_tokenizer(self._digest)
        ids = tensors["output_ids"].as_numpy()[0].tolist() if "output_ids" in tensors else []
        texts = message.texts(self._vocabulary, ids)
        missing = [_empty(spec, len(texts)) for spec in TOKEN_OUTPUTS if spec.name not in tensors]
        text_output = pb_utils.Tensor("text_output", strings(texts))
        return pb_utils.InferenceResponse(output_tensors=[text_output, *tensors.values(), *missing])


def _empty(spec: TensorSpec, rows: int) -> Any:
    """An output that wasn't asked for: an ensemble sends no response that lacks one."""
    shape = (1, rows, 0) if len(spec.dims) == 2 else (1, 0)
    return pb_utils.Tensor(spec.name, np.empty(shape, _DTYPES[spec.data_type]))
