"""An opened encoder: texts in, what its task is for out."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from serving.bundle import EncoderInfo, SpecialTokens
from serving.closing import Closing
from serving.contract import EMBEDDINGS
from serving.encoders import joining
from serving.encoders.batching import BATCH_TOKENS, Tokens, micro_batches, stacked
from serving.encoders.contract import Task, is_per_token, output_names
from serving.encoders.engine import EncoderEngine
from serving.encoders.joining import Row
from serving.encoders.results import Answer, Candidate, Classification, Span, TextEmbeddings
from serving.encoders.texts import ContextOverflow, EncodedText, Text, TextEncoder
from serving.engine import FloatArray
from serving.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer


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
        self.batch_tokens = batch_tokens

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
        return joining.embeddings(self.encoder, encoded, self.run(encoded))

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
            joining.classification(self.encoder, text, rows)
            for text, rows in zip(encoded, self.run(encoded), strict=True)
        ]

    def fill_mask(self, text: str, *, top_k: int = 5) -> list[list[Candidate]]:
        """The likeliest ``top_k`` tokens for each mask in a text; raises UserError if it has none.

        A text that is too long is refused.
        """
        self._require("fill-mask")
        (encoded,) = self.texts.encode([text], "refuse")
        masked = joining.with_masks(self.encoder, self.texts.tokenizer, encoded)
        (rows,) = self.run([masked])
        return joining.candidates(self.texts.tokenizer, masked, rows, top_k)

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
        (rows,) = self.run([encoded])
        return joining.labelled_spans(self.encoder, text, encoded, rows, grouped=grouped)

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
        (rows,) = self.run([encoded])
        (best,) = joining.likeliest_answers(context, encoded, rows, max_answer_tokens)
        return best

    def run(self, texts: Sequence[EncodedText]) -> list[list[Row]]:
        """What the graph gives for each text and each of its segments, see run_batch."""
        tokens = [segment.tokens for text in texts for segment in text.segments]
        rows: list[Row] = [()] * len(tokens)
        for batch in micro_batches([each.size for each in tokens], self.batch_tokens):
            for index, row in zip(batch, self.run_batch([tokens[i] for i in batch]), strict=True):
                rows[index] = row
        return joining.rows_of_texts(texts, rows)

    def run_batch(self, batch: Sequence[Tokens]) -> list[Row]:
        """What the graph gives for each text of a batch: its outputs in order, without padding.

        Of embed that is the vector [hidden], for the others see serving/encoders/contract.py.
        Raises EngineError if the engine fails.
        """
        task = self.encoder.task
        names = (EMBEDDINGS,) if task == "embed" else output_names(task)
        inputs = stacked(batch, self._pad, token_types=self.encoder.token_types)
        arrays = self.engine.run(inputs, names)
        return [
            [
                _unpadded(task, name, text, array[row])
                for name, array in zip(names, arrays, strict=True)
            ]
            for row, text in enumerate(batch)
        ]

    def close(self) -> None:
        """Free the engine."""
        self.engine.close()

    def _require(self, task: Task) -> None:
        if self.encoder.task != task:
            raise UserError(
                f"This bundle's encoder is for {self.encoder.task}, not for {task}: export a "
                f"checkpoint with a head for that, with --task {task}."
            )


def _listed(texts: str | Sequence[str]) -> list[str]:
    return [texts] if isinstance(texts, str) else list(texts)


def _unpadded(task: Task, output: str, text: Tokens, row: FloatArray) -> FloatArray:
    if task == "fill-mask":
        return row[: len(text.positions)]
    return row[: len(text.ids)] if is_per_token(task, output) else row
