"""A bundle that is served: its worker, and what the server itself knows of it."""

import asyncio
import copy
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self, cast

from serving.bundle import Bundle, open_bundle
from serving.chat import Message, Tool
from serving.engine import IntArray
from serving.errors import UserError
from serving.http.encoder_decoder import (
    EncoderDecoder,
    check_source_capacity,
    has_sources,
    loading_for,
)
from serving.http.errors import invalid, queue_full, unavailable
from serving.http.schemas.answers import Model
from serving.http.served_encoder import ServedEncoder
from serving.http.token_texts import TokenTexts
from serving.loading import load_prompts
from serving.opening import ENCODER_OPTIONS
from serving.prompts import PromptEncoder, TokenIds
from serving.sampling import SamplingOptions, SamplingParameters
from serving.worker.client import WorkerClient
from serving.worker.messages import Opened, WorkerOptions

# What generation_config.json may say of sampling that this server's requests may say too.
_SAMPLING = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty")


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What a bundle is known by: ``created`` in seconds since 1970, and a hash."""

    created: int
    text: str


class ServedModel:
    """A bundle under a name that requests choose it by.

    ``adapter`` is the LoRA adapter that its answers are computed with, or None.
    """

    def __init__(self, name: str, bundle: Bundle, options: WorkerOptions) -> None:
        self.name = name
        self.adapter: str | None = None
        self.adapters = tuple(options.loading.get("adapters") or ())
        self.prompts: PromptEncoder = load_prompts(bundle)
        self.texts = TokenTexts(self.prompts.tokenizer)
        self.worker = WorkerClient(options)
        self._queue_limit = options.queue_limit
        self.eos = bundle.manifest.tokens.eos
        self.has_draft = options.loading.get("draft") is not None
        self.encoder_decoder = EncoderDecoder.of(bundle)
        self.sampling = _default_sampling(bundle)
        self.fingerprint = _fingerprint(bundle)
        self.embedding_size = bundle.manifest.graph.hidden_size

    def with_adapter(self, adapter: str) -> Self:
        """The same model and worker as NAME:ADAPTER, which is computed with that adapter."""
        adapted = copy.copy(self)
        adapted.name, adapted.adapter = f"{self.name}:{adapter}", adapter
        return adapted

    @property
    def document(self) -> Model:
        """The model as ``/v1/models`` describes it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.fingerprint.created,
            "owned_by": "export-llm",
            "max_model_len": self.worker.opened.capacity if self.worker.opened else None,
            "max_source_len": self.worker.opened.source_capacity if self.worker.opened else None,
            "has_chat_template": self.takes_chats,
            "task": "text-generation",
        }

    @property
    def takes_chats(self) -> bool:
        """Whether it goes on with conversations."""
        return self.prompts.chat_template is not None and self.encoder_decoder is None

    @property
    def capacity(self) -> int:
        """Most tokens of a sequence, prompt included; raises ApiError while there is no worker."""
        return self._opened.capacity

    @property
    def source_capacity(self) -> int:
        """Most tokens of an encoder-decoder's source; raises ApiError while there is no worker."""
        return self._opened.source_capacity or 0

    @property
    def _opened(self) -> Opened:
        if self.worker.opened is None:
            raise unavailable(
                f"The model {self.name!r} is being loaded: try again in some seconds.",
                "model_loading",
            )
        return self.worker.opened

    def check_room(self, sequences: int) -> None:
        """Raise ApiError if the worker's queue has no room for so many more sequences.

        The worker would refuse those that don't fit, perhaps after others have begun.
        """
        load = self.worker.load
        waiting = self.worker.in_flight - load.decoding - load.prefilling
        if self._queue_limit is not None and waiting + sequences > self._queue_limit:
            raise queue_full(
                f"{waiting} sequences wait for {self.name!r}, and {self._queue_limit} may: try "
                "again later."
            )

    async def encode(self, prompt: str | Sequence[int], param: str = "prompt") -> IntArray:
        """Token ids [n] of a prompt, or those given; ``param`` is where it comes from."""
        return await self._encode(param, self.prompts.ids, prompt)

    async def encode_chat(
        self, messages: Sequence[Message], tools: Sequence[Tool] | None
    ) -> IntArray:
        """Token ids [n] of a conversation, ready for the assistant's reply."""
        return await self._encode("messages", self.prompts.encode_chat, messages, tools)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Text of token ids; raises UserError if the bundle has no tokenizer."""
        text: str = self.prompts.require_tokenizer().decode(token_ids, skip_special_tokens=False)
        return text

    async def _encode(
        self, param: str, encode: Callable[..., TokenIds], *arguments: Any
    ) -> IntArray:
        """Encode beside the event loop, which a long text would hold up."""
        try:
            return self.prompts.ids(await asyncio.to_thread(encode, *arguments))
        except UserError as error:
            raise invalid(param, str(error)) from error


Served = ServedModel | ServedEncoder


class ServedModels:
    """All models of a server, by name; iterating gives those that have a worker of their own."""

    def __init__(self, models: Sequence[Served]) -> None:
        self._models = tuple(models)
        self.generators = [model for model in models if isinstance(model, ServedModel)]
        self.encoders = [model for model in models if isinstance(model, ServedEncoder)]
        adapted = [model.with_adapter(name) for model in self.generators for name in model.adapters]
        self._named: dict[str, Served] = {model.name: model for model in (*models, *adapted)}

    def __iter__(self) -> Iterator[Served]:
        return iter(self._models)

    @property
    def named(self) -> Iterable[Served]:
        """Whatever a request may name: models, and models with an adapter."""
        return self._named.values()

    def get(self, name: str) -> Served | None:
        """The model of that name."""
        return self._named.get(name)

    @property
    def are_ready(self) -> bool:
        """Whether every worker is."""
        return all(model.worker.opened is not None for model in self)

    async def start(self) -> None:
        """Start all workers; returns when all are ready. Raises UserError if one can't be."""
        await asyncio.gather(*(model.worker.start() for model in self))

    async def close(self) -> None:
        """End all workers; requests that still run fail."""
        await asyncio.gather(*(model.worker.close() for model in self))


def open_models(
    bundles: Mapping[str, Path],
    loading: Mapping[str, Any],
    *,
    target_latency: float | None = None,
    queue_limit: int | None = 128,
    silent_seconds: float = 120.0,
) -> ServedModels:
    """Check the bundles, by name, and read their tokenizers; the workers are started later.

    ``loading`` are parameters of serving.load and serving.load_encoder, of which each bundle gets
    its own; for the others see WorkerOptions. Raises UserError for a bundle that can't be served.
    """
    opened = {
        name: open_bundle(path, loading.get("verify", True), loading.get("key_file"))
        for name, path in bundles.items()
    }
    check_source_capacity(opened, loading)
    models: list[Served] = []
    for name, bundle in opened.items():
        # Checked once: a worker that takes another's place should be there soon.
        loaded = {**_loading_for(bundle, loading), "verify": False}
        options = WorkerOptions(bundles[name], loaded, target_latency, queue_limit, silent_seconds)
        served = ServedModel if bundle.manifest.encoder is None else ServedEncoder
        models.append(served(name, bundle, options))
    return ServedModels(models)


def _loading_for(bundle: Bundle, loading: Mapping[str, Any]) -> dict[str, Any]:
    """Of the parameters for all bundles of a server, those for one of them."""
    if bundle.manifest.encoder is not None:
        return {name: value for name, value in loading.items() if name in ENCODER_OPTIONS}
    others = {name: value for name, value in loading.items() if name != "batch_tokens"}
    return loading_for(bundle, others)


def _default_sampling(bundle: Bundle) -> SamplingOptions:
    """What holds where a request says nothing: OpenAI's temperature of 1, or the bundle's own.

    Encoder-decoders have other defaults. Raises UserError if generation_config.json has a value
    that no sampler takes.
    """
    if has_sources(bundle):
        return {}
    file = bundle.file("generation_config.json")
    config = json.loads(file.read_text("utf-8")) if file else {}
    given = {name: config[name] for name in _SAMPLING if config.get(name) is not None}
    sampling = cast(SamplingOptions, {"temperature": 1.0, **given})
    SamplingParameters(**sampling)
    return sampling


def _fingerprint(bundle: Bundle) -> Fingerprint:
    manifest = bundle.manifest
    created = datetime.fromisoformat(str(manifest.created))
    digest = hashlib.sha256(manifest.model_dump_json().encode()).hexdigest()
    return Fingerprint(int(created.timestamp()), f"fp_{digest[:10]}")
