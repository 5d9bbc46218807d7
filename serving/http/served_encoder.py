"""An encoder's bundle that is served: its worker, and what the server itself knows of it."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any, TypeVar

from serving.bundle import Bundle
from serving.encoders import joining
from serving.encoders.batching import BATCH_TOKENS, Tokens
from serving.encoders.joining import Row
from serving.encoders.texts import ContextOverflow, EncodedText, Segment, Text, TextEncoder
from serving.errors import UserError
from serving.http.errors import invalid, queue_full, unavailable
from serving.http.schemas.answers import Model
from serving.loading import load_tokenizer
from serving.worker.client import WorkerClient
from serving.worker.messages import EncodeRequest, WorkerOptions

Result = TypeVar("Result")


class ServedEncoder:
    """An encoder's bundle under a name that requests choose it by.

    Raises UserError if the bundle has no tokenizer.
    """

    def __init__(self, name: str, bundle: Bundle, options: WorkerOptions) -> None:
        tokenizer = load_tokenizer(bundle)
        if tokenizer is None:
            raise UserError(
                f"The bundle of {name!r} has no tokenizer.json: export a checkpoint that has a "
                "tokenizer."
            )
        self.name = name
        self.encoder = bundle.manifest.require_encoder()
        self.embedding_size = self.encoder.hidden_size
        self.texts = TextEncoder(tokenizer, self.encoder.max_length)
        self.worker = WorkerClient(options)
        self._created = int(datetime.fromisoformat(bundle.manifest.created).timestamp())
        self._most_requests = options.queue_limit
        self._most_tokens = None
        if options.queue_limit is not None:
            budget = options.loading.get("batch_tokens") or BATCH_TOKENS
            self._most_tokens = options.queue_limit * budget
        self._tokens = 0

    @property
    def document(self) -> Model:
        """The model as ``/v1/models`` describes it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self._created,
            "owned_by": "export-llm",
            "max_model_len": self.encoder.max_length,
            "max_source_len": None,
            "has_chat_template": False,
            "task": self.encoder.task,
        }

    async def encode(
        self,
        texts: Sequence[Text],
        param: str,
        context_overflow: ContextOverflow = "refuse",
        overlap: int | None = None,
    ) -> list[EncodedText]:
        """Tokens of texts; ``param`` is where they come from. Raises ApiError."""
        return await self.beside(param, self.texts.encode, texts, context_overflow, overlap)

    def from_ids(
        self, ids: Sequence[int], param: str, context_overflow: ContextOverflow
    ) -> EncodedText:
        """Token ids as they are, without special tokens; raises ApiError."""
        vocab_size, most = self.encoder.vocab_size, self.encoder.max_length
        if max(ids) >= vocab_size:
            raise invalid(param, f"Token id {max(ids)} is not one of {vocab_size}: change it.")
        is_long = len(ids) > most
        if is_long and context_overflow != "truncate":
            raise invalid(
                param,
                f"An input has {len(ids):,} token ids, and this model takes {most:,}: send fewer, "
                "have them truncated, or send text, which can be split into segments.",
            )
        kept = ids[:most]
        segment = Segment(Tokens(kept, [0] * len(kept)), (), (), len(kept))
        return EncodedText((segment,), is_long)

    async def run(
        self, texts: Sequence[EncodedText], priority: int, client: str, seconds: float
    ) -> list[list[Row]]:
        """What the graph gives for each text and each of its segments.

        Raises ApiError if too much waits already, and UserError as WorkerClient.generate does.
        """
        tokens = [segment.tokens for text in texts for segment in text.segments]
        with self._place(sum(each.size for each in tokens)):
            request = EncodeRequest(tokens, priority, client, seconds)
            return joining.rows_of_texts(texts, await self.worker.encode(request))

    async def beside(self, param: str, work: Callable[..., Result], *arguments: Any) -> Result:
        """Do what takes time beside the event loop; ``param`` is what a refusal is about."""
        try:
            return await asyncio.to_thread(work, *arguments)
        except UserError as error:
            raise invalid(param, str(error)) from error

    @contextmanager
    def _place(self, tokens: int) -> Iterator[None]:
        """A place in the queue, which holds so many requests, and batches full of tokens."""
        if self.worker.opened is None:
            raise unavailable(
                f"The model {self.name!r} is being loaded: try again in some seconds.",
                "model_loading",
            )
        if self._most_requests is not None and self.worker.in_flight >= self._most_requests:
            raise queue_full(
                f"{self.worker.in_flight} requests wait for {self.name!r}, and "
                f"{self._most_requests} may: try again later."
            )
        if self._most_tokens is not None and 0 < self._tokens > self._most_tokens - tokens:
            raise queue_full(
                f"{self._tokens:,} tokens wait for {self.name!r}, and {self._most_tokens:,} may: "
                "try again later."
            )
        self._tokens += tokens
        try:
            yield
        finally:
            self._tokens -= tokens
