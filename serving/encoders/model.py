"""An opened encoder: texts in, what its task is for out."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.bundle import EncoderInfo, SpecialTokens
from serving.closing import Closing
from serving.contract import EMBEDDINGS, LOGITS_POSITIONS
from serving.encoders import reading
from serving.encoders.batching import BATCH_TOKENS, micro_batches, stacked
from serving.encoders.contract import Task, output_names
from serving.encoders.engine import EncoderEngine
from serving.encoders.results import Answer, Candidate, Classification, Span, TextEmbeddings
from serving.encoders.texts import (
    ContextOverflow,
    EncodedText,
    Segment,
    Text,
    TextEncoder,
    text_name,
)
from serving.engine import FloatArray, IntArray
from serving.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# Of each output and each segment: the row.
Rows = list[list[FloatArray]]


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
        vectors = [
            reading.embedding(self.encoder, text, rows)
            for text, (rows,) in zip(encoded, self.run(encoded), strict=True)
        ]
        joined = np.stack(vectors) if vectors else np.zeros((0, self.encoder.hidden_size or 0))
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
        return [
            reading.classification(self.encoder, text, rows)
            for text, (rows,) in zip(encoded, self.run(encoded), strict=True)
        ]

    def fill_mask(self, text: str, *, top_k: int = 5) -> list[list[Candidate]]:
        """The likeliest ``top_k`` tokens for each mask in a text; raises UserError if it has none.

        A text that is too long is refused.
        """
        self._require("fill-mask")
        encoded = self.texts.encode([text], "refuse")
        self.check_masks(encoded)
        ((rows,),) = self.run(encoded)
        return reading.filled_masks(self.texts.tokenizer, self.encoder, encoded[0], rows, top_k)

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
        ((rows,),) = self.run([encoded])
        return reading.labelled_spans(self.encoder, encoded, text, rows, grouped=grouped)

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
        ((starts, ends),) = self.run([encoded])
        return reading.answer(encoded, context, starts, ends, max_answer_tokens)

    def check_masks(self, texts: Sequence[EncodedText]) -> None:
        """Raise UserError if one of the texts has no mask to fill."""
        mask, tokenizer = self.encoder.mask_token, self.texts.tokenizer
        if mask is None:
            raise UserError("This bundle's tokenizer has no mask token: export another checkpoint.")
        for index, text in enumerate(texts):
            if mask not in text.segments[0].tokens.ids:
                which, token = text_name(index, len(texts)), tokenizer.id_to_token(mask)
                raise UserError(f"{which} has no {token}: put one in it.")

    def run(self, texts: Sequence[EncodedText]) -> list[Rows]:
        """What the graph gives for each text.

        Rows of tokens may go on behind the text's, where padding was. Of embeddings it is the
        vectors alone.
        """
        outputs = (EMBEDDINGS,) if self.encoder.task == "embed" else output_names(self.encoder.task)
        segments = [segment for text in texts for segment in text.segments]
        none: FloatArray = np.zeros(0, np.float32)
        rows = [[none] * len(segments) for _ in outputs]
        for batch in self._batches(segments):
            inputs = self._inputs([segments[index] for index in batch])
            for own, array in zip(rows, self.engine.run(inputs, outputs), strict=True):
                for index, row in zip(batch, array, strict=True):
                    own[index] = row
        remaining = [iter(own) for own in rows]
        return [[[next(own) for _ in text.segments] for own in remaining] for text in texts]

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _require(self, task: Task) -> None:
        if self.encoder.task != task:
            raise UserError(
                f"This bundle's encoder is for {self.encoder.task}, not for {task}: export a "
                f"checkpoint with a head for that, with --task {task}."
            )

    def _batches(self, segments: Sequence[Segment]) -> Iterator[list[int]]:
        """Indices of the segments of each batch, which have as many masks as each other.

        So no row of logits, which are as many as the vocabulary has tokens, is of no mask.
        """
        masks = [len(self._mask_places(segment)) for segment in segments]
        for count in sorted(set(masks)):
            alike = [index for index, own in enumerate(masks) if own == count]
            lengths = [len(segments[index].tokens.ids) for index in alike]
            for batch in micro_batches(lengths, self._batch_tokens):
                yield [alike[index] for index in batch]

    def _mask_places(self, segment: Segment) -> list[int]:
        """Where logits are wanted, if only there."""
        if self.encoder.task != "fill-mask":
            return []
        return reading.mask_places(self.encoder, segment.tokens.ids)

    def _inputs(self, segments: Sequence[Segment]) -> dict[str, IntArray]:
        tokens = [segment.tokens for segment in segments]
        inputs = stacked(tokens, self._pad, token_types=self.encoder.token_types)
        if self.encoder.task == "fill-mask":
            inputs[LOGITS_POSITIONS] = np.array(
                [self._mask_places(each) for each in segments], np.int64
            )
        return inputs


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)
