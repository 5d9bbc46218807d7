"""An opened encoder: texts in, what its task is for out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.bundle import EncoderInfo, SpecialTokens
from serving.closing import Closing
from serving.contract import EMBEDDINGS, LOGITS, LOGITS_POSITIONS
from serving.encoders import answers, spans
from serving.encoders.batching import micro_batches, stacked
from serving.encoders.contract import END_LOGITS, START_LOGITS, Task
from serving.encoders.engine import EncoderEngine
from serving.encoders.results import Answer, Candidate, Classification, Span, TextEmbeddings
from serving.encoders.texts import ContextOverflow, EncodedText, Segment, Text, TextEncoder
from serving.engine import FloatArray, IntArray
from serving.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BATCH_TOKENS = 4096


class EncoderModel(Closing):
    """A bundle's encoder, with its tokenizer.

    Texts run in batches of similar length, of at most ``batch_tokens`` tokens with their padding. A
    text has up to ``encoder.max_length`` tokens, and ``context_overflow`` says what becomes of
    longer ones: "refuse" raises UserError, "truncate" drops their end, and "segments" splits
    them into parts that share ``overlap`` tokens and joins what these give. Each method raises
    UserError where the model has another task, or a text is empty.
    """

    def __init__(
        self,
        engine: EncoderEngine,
        encoder: EncoderInfo,
        tokens: SpecialTokens,
        tokenizer: "Tokenizer | None",
        *,
        batch_tokens: int = BATCH_TOKENS,
    ) -> None:
        if tokenizer is None:
            raise UserError(
                "This bundle has no tokenizer.json: export a checkpoint that has a tokenizer."
            )
        if batch_tokens < 1:
            raise UserError(f"batch_tokens is {batch_tokens}, but must be at least 1: raise it.")
        self.engine = engine
        self.encoder = encoder
        self.texts = TextEncoder(tokenizer, encoder.max_length)
        self._pad = tokens.pad or 0
        self._batch_tokens = batch_tokens

    def embed(
        self,
        texts: str | Sequence[str],
        *,
        context_overflow: ContextOverflow = "refuse",
        overlap: int | None = None,
    ) -> TextEmbeddings:
        """A vector for each text, pooled and normalised as the checkpoint says.

        That of several segments is their mean, weighted with their new tokens.
        """
        self._require("embed")
        encoded = self.texts.encode(_listed(texts), context_overflow, overlap)
        (vectors,) = self._run(encoded, (EMBEDDINGS,))
        pooled = [
            _mean(text, each) if len(each) > 1 else each[0]
            for text, each in zip(encoded, vectors, strict=True)
        ]
        joined = np.stack(pooled) if pooled else np.zeros((0, self.encoder.hidden_size or 0))
        if self.encoder.normalize:
            lengths = np.linalg.norm(joined, axis=1, keepdims=True)
            joined = joined / np.where(lengths > 0, lengths, 1)
        return TextEmbeddings(
            joined.astype(np.float32),
            [text.token_count for text in encoded],
            [text.is_truncated for text in encoded],
            [len(text.segments) for text in encoded],
        )

    def classify(
        self,
        texts: Text | Sequence[Text],
        *,
        context_overflow: ContextOverflow = "refuse",
        overlap: int | None = None,
    ) -> list[Classification]:
        """The labels of each text, or pair of texts given as a tuple."""
        self._require("text-classification")
        listed = [texts] if isinstance(texts, (str, tuple)) else list(texts)
        encoded = self.texts.encode(listed, context_overflow, overlap)
        (logits,) = self._run(encoded, (LOGITS,))
        is_alone = self.encoder.is_multi_label or len(self.encoder.labels) == 1
        results = []
        for text, own in zip(encoded, logits, strict=True):
            rows = np.stack(own).astype(np.float64)
            scores = 1 / (1 + np.exp(-rows)) if is_alone else answers.softmax(rows)
            mean = _mean(text, list(scores))
            order = np.argsort(-mean, kind="stable")
            results.append(
                Classification(
                    tuple(self.encoder.labels[index] for index in order),
                    tuple(float(mean[index]) for index in order),
                    text.token_count,
                    text.is_truncated,
                    len(text.segments),
                )
            )
        return results

    def fill_mask(self, text: str, *, top_k: int = 5) -> list[list[Candidate]]:
        """The likeliest ``top_k`` tokens for each mask in a text; raises UserError if it has none.

        A text that is too long is refused.
        """
        self._require("fill-mask")
        mask, tokenizer = self.encoder.mask_token, self.texts.tokenizer
        if mask is None:
            raise UserError("This bundle's tokenizer has no mask token: export another checkpoint.")
        (encoded,) = self.texts.encode([text], "refuse")
        ids = encoded.segments[0].tokens.ids
        places = [place for place, token in enumerate(ids) if token == mask]
        if not places:
            raise UserError(f"The text has no {tokenizer.id_to_token(mask)}: put one in it.")
        inputs = self._inputs([encoded.segments[0]])
        inputs[LOGITS_POSITIONS] = np.array([places])
        (logits,) = self.engine.run(inputs, (LOGITS,))
        return [
            answers.candidates(tokenizer, ids, place, row, top_k)
            for place, row in zip(places, logits[0], strict=True)
        ]

    def label_tokens(
        self,
        text: str,
        *,
        grouped: bool = True,
        context_overflow: ContextOverflow = "refuse",
        overlap: int | None = None,
    ) -> list[Span]:
        """The label of each token of a text or, ``grouped``, of each entity that they make up.

        Groups leave out what has the label O. Where segments overlap, a token is labelled in the
        one in which it is farther from the edge.
        """
        self._require("token-classification")
        (encoded,) = self.texts.encode([text], context_overflow, overlap)
        ((logits,),) = self._run([encoded], (LOGITS,))
        labelled = spans.label(text, encoded.segments, logits, self.encoder.labels)
        return spans.group(text, labelled) if grouped else labelled

    def answer(
        self,
        question: str,
        context: str,
        *,
        context_overflow: ContextOverflow = "refuse",
        overlap: int | None = None,
        max_answer_tokens: int = 15,
    ) -> Answer:
        """The part of ``context`` that answers a question, of up to so many tokens.

        Of several segments, the one with the likeliest answer gives it.
        """
        self._require("question-answering")
        (encoded,) = self.texts.encode([(question, context)], context_overflow, overlap)
        starts, ends = self._run([encoded], (START_LOGITS, END_LOGITS))
        best = max(
            answers.best_span(segment, start, end, max_answer_tokens)
            for segment, start, end in zip(encoded.segments, starts[0], ends[0], strict=True)
        )
        return Answer(
            context[best.start : best.end],
            best.score,
            best.start,
            best.end,
            encoded.token_count,
            encoded.is_truncated,
            len(encoded.segments),
        )

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _require(self, task: Task) -> None:
        if self.encoder.task != task:
            raise UserError(
                f"This bundle's encoder is for {self.encoder.task}, not for {task}: export a "
                f"checkpoint with a head for that, with --task {task}."
            )

    def _inputs(self, segments: Sequence[Segment]) -> dict[str, IntArray]:
        tokens = [segment.tokens for segment in segments]
        return stacked(tokens, self._pad, token_types=self.encoder.token_types)

    def _run(
        self, texts: Sequence[EncodedText], outputs: Sequence[str]
    ) -> list[list[list[FloatArray]]]:
        """Of each output, each text and each of its segments: the row, without padding."""
        segments = [segment for text in texts for segment in text.segments]
        lengths = [len(segment.tokens.ids) for segment in segments]
        rows: list[list[FloatArray]] = [[np.zeros(0, np.float32)] * len(segments) for _ in outputs]
        for batch in micro_batches(lengths, self._batch_tokens):
            inputs = self._inputs([segments[index] for index in batch])
            for own, array in zip(rows, self.engine.run(inputs, outputs), strict=True):
                for index, row in zip(batch, array, strict=True):
                    own[index] = row
        by_text: list[list[list[FloatArray]]] = []
        for own in rows:
            remaining = iter(own)
            by_text.append([[next(remaining) for _ in text.segments] for text in texts])
        return by_text


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _mean(text: EncodedText, rows: Sequence[FloatArray]) -> FloatArray:
    """The mean of what the segments of a text gave, weighted with the tokens new in each."""
    weights = [segment.new for segment in text.segments]
    mean: FloatArray = np.average(np.stack(rows), axis=0, weights=weights)
    return mean
