"""The answer to a request: output tensors from its tokens, as they come or at the end."""

from collections.abc import Sequence

import numpy as np

from serving.decoding import Token
from serving.engine import IntArray
from serving.prompts import Prompt, PromptEncoder
from serving.result import Generation
from serving.triton.requests import Array, TritonRequest


class Answer:
    """What was generated for a request and not sent yet.

    ``prefix`` is the text to begin with. ``has_texts`` says whether tokens have texts at all.
    """

    def __init__(
        self, request: TritonRequest, prompt_tokens: int, prefix: str, *, has_texts: bool
    ) -> None:
        self._request = request
        self._prompt_tokens = prompt_tokens
        self._has_texts = has_texts
        self._unsent = self._part(prefix)
        self._cum_log_prob = 0.0

    def add(self, token: Token) -> dict[str, Array] | None:
        """Take a token; returns the outputs to send now, if any.

        Streamed are parts that have a text; what comes without waits for the next one.
        """
        self._unsent.add(token)
        if token.logprobs is not None:
            self._cum_log_prob += token.logprobs.chosen
        is_part = self._request.streams and (bool(token.text) or not self._has_texts)
        if token.finish_reason is None and not is_part:
            return None
        part, self._unsent = self._unsent, self._part("")
        outputs = self._outputs([part], [self._cum_log_prob])
        if token.finish_reason is not None:
            outputs["finish_reason"] = strings([token.finish_reason])
        return outputs

    def beams(self, found: Sequence[Generation]) -> dict[str, Array]:
        """The outputs of a beam search, best first.

        There are no log-probabilities of single tokens, only of whole sequences.
        """
        for beam in found:
            beam.text = self._unsent.text + beam.text
        beams = self._request.beams
        penalty = beams.length_penalty if beams else 1.0
        totals = [(beam.score or 0.0) * len(beam.token_ids) ** penalty for beam in found]
        outputs = self._outputs(found, totals)
        outputs["finish_reason"] = strings([beam.finish_reason for beam in found])
        return outputs

    def _texts(self, sequences: Sequence[Generation]) -> dict[str, Array]:
        return {"text_output": strings([sequence.text for sequence in sequences])}

    def _part(self, text: str) -> Generation:
        return Generation(text=text, logprobs=[] if self._request.returns_log_probs else None)

    def _outputs(
        self, sequences: Sequence[Generation], cum_log_probs: Sequence[float]
    ) -> dict[str, Array]:
        ids = [sequence.token_ids for sequence in sequences]
        outputs = self._texts(sequences) | {"output_ids": _rows(ids, np.int32)}
        if self._request.returns_log_probs:
            outputs["cum_log_probs"] = np.array([cum_log_probs], np.float32)
            if all(sequence.logprobs for sequence in sequences):
                rows = [[p.chosen for p in sequence.logprobs or ()] for sequence in sequences]
                outputs["output_log_probs"] = _rows(rows, np.float32)
        if self._request.returns_num_input_tokens:
            outputs["num_input_tokens"] = np.array([[self._prompt_tokens]], np.int32)
        if self._request.returns_num_output_tokens:
            outputs["num_output_tokens"] = np.array([[len(row) for row in ids]], np.int32)
        return outputs


def echo(prompts: PromptEncoder, prompt: Prompt, prompt_ids: IntArray) -> str:
    """The text of a prompt, for an answer to begin with."""
    if isinstance(prompt, str):
        return prompt
    tokenizer = prompts.require_tokenizer()
    return tokenizer.decode(prompt_ids.tolist(), skip_special_tokens=False)


def strings(texts: Sequence[str]) -> Array:
    """A string tensor [1, n]."""
    return np.array([[text.encode() for text in texts]], np.object_)


def _rows(rows: Sequence[Sequence[float]], dtype: type[np.generic]) -> Array:
    """A tensor [1, rows, longest]; shorter rows end with zeros."""
    array = np.zeros((1, len(rows), max(map(len, rows))), dtype)
    for number, row in enumerate(rows):
        array[0, number, : len(row)] = row
    return array
