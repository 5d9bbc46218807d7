"""The first model of an ensemble: from a prompt's text to ids."""

from typing import Any

import numpy as np
import triton_python_backend_utils as pb_utils

from serving.errors import UserError
from serving.triton.model import error_response, input_tensors


class TritonPythonModel:
    """One instance; it needs no memory of requests."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the tokenizer of the bundle beside this version's model.py."""
        from serving.triton.ensemble.handover import tokenizer_digest
        from serving.triton.ensemble.tokenizing import open_prompts

        try:
            self._prompts = open_prompts(args)
        except UserError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._digest = tokenizer_digest(self._prompts.require_tokenizer())

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer requests, each with its prompt's ids or an error."""
        return [self._answer(request) for request in requests]

    def _answer(self, request: Any) -> Any:
        from serving.triton.answers import echo, strings
        from serving.triton.ensemble.handover import Handover
        from serving.triton.requests import read_prompt

        try:
            prompt, echoes = read_prompt(input_tensors(request))
            ids = self._prompts.ids(prompt)
        except UserError as error:
            return error_response(request.request_id(), str(error))
        prefix = echo(self._prompts, prompt, ids) if echoes else ""
        message = Handover(tokenizer=self._digest, prefix=prefix)
        outputs = {"input_ids": ids[None].astype(np.int32), "handover": strings([message.write()])}
        return pb_utils.InferenceResponse(
            output_tensors=[pb_utils.Tensor(name, array) for name, array in outputs.items()]
        )
