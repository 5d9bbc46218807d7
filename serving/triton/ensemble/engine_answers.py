"""Answers without texts: with them goes what postprocessing must know to make texts of ids."""

from collections.abc import Sequence

from serving.decoding import Token
from serving.detokenizer import Vocabulary
from serving.engine import IntArray
from serving.generation import Model
from serving.result import Generation
from serving.triton.answers import Answer, strings
from serving.triton.ensemble.handover import Handover, Span, tokenizer_digest
from serving.triton.ensemble.text_window import TextWindow
from serving.triton.requests import Array, TritonRequest


class Answers:
    """Makes the answers of an engine."""

    def __init__(self) -> None:
        self._model: Model | None = None

    def __call__(self, model: Model, request: TritonRequest, prompt_ids: IntArray, /) -> Answer:
        """See MakeAnswer."""
        if model is not self._model:  # it is opened again after an engine failed
            tokenizer = model.prompts.require_tokenizer()
            self._model = model
            self._vocabulary = Vocabulary(tokenizer)
            self._digest = tokenizer_digest(tokenizer)
        prompt = Handover(tokenizer=self._digest)
        if request.handover:
            prompt = Handover.read(request.handover)
            prompt.check_tokenizer(self._digest)
        return EngineAnswer(request, prompt_ids, prompt, self._vocabulary)


class EngineAnswer(Answer):
    """What was generated for a request and not sent yet.

    Parts are sent when the single model would send them, with the same text.
    """

    def __init__(
        self, request: TritonRequest, prompt_ids: IntArray, prompt: Handover, vocabulary: Vocabulary
    ) -> None:
        super().__init__(request, len(prompt_ids), "", has_texts=True)
        self._prompt = prompt
        self._after = vocabulary.ending(prompt_ids)
        self._vocabulary = vocabulary
        self._window = TextWindow(vocabulary, self._after)
        self._prefix = prompt.prefix

    def add(self, token: Token) -> dict[str, Array] | None:
        """Take a token; returns the outputs to send now, if any."""
        self._window.push(token)
        return super().add(token)

    def _texts(self, sequences: Sequence[Generation]) -> dict[str, Array]:
        if self._request.beams is not None:
            context: Sequence[int] = self._after
            begin = len(self._vocabulary.decode(context))
            spans = [Span(len(beam.token_ids), begin, len(beam.text)) for beam in sequences]
        else:
            (part,) = sequences
            context, span = self._window.take(len(part.token_ids), len(part.text))
            spans = [span]
        prefix, self._prefix = self._prefix, ""
        message = Handover(
            tokenizer=self._prompt.tokenizer, prefix=prefix, context=context, spans=spans
        )
        return {"handover": strings([message.write()])}
