"""The model that ``serving.load`` returns: text or tokens in, text and tokens out."""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, Unpack, cast, overload

import numpy as np

from serving import decoding, embedding, scoring
from serving.beam_search import BeamParameters, EarlyStopping, Found, check_search
from serving.bundle import SpecialTokens
from serving.closing import Closing
from serving.constraints import Constraint, Matcher
from serving.context_overflow import ContextOverflow, keep_beginning
from serving.decoding import Failure, Token
from serving.draft_length import StepCosts
from serving.draft_model import DraftModel
from serving.embedding import Embedded, EmbeddedPrompt, Embeddings, Pooling
from serving.engine import EmbeddingEngine, Engine, FloatArray
from serving.errors import UserError
from serving.generation_config import with_defaults
from serving.mixed_decoder import MixedDecoder
from serving.pacing import Pacing
from serving.prefix_cache import PrefixCache
from serving.prompts import Prompt, PromptEncoder, TokenIds
from serving.request_queue import Job, RequestQueue
from serving.result import Generation
from serving.scheduler import Scheduler
from serving.scoring import Score
from serving.sequences import SequenceBuilder, SequenceOptions, too_long
from serving.sources import SourcePrompts

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from serving.chat import ChatTemplate, Message

Prompts = Prompt | Sequence[str] | Sequence[TokenIds]


class GenerateOptions(SequenceOptions, total=False):
    """The keyword parameters of Model.generate, but for ``stream`` and ``num_return_sequences``."""

    num_beams: int
    length_penalty: float
    early_stopping: EarlyStopping


class Model(Closing):
    """An engine with its tokenizer, ready to generate; a context manager that closes the engine.

    One generation runs at a time, over the engine's first ``slots`` slots (default: all). Rows
    behind them keep what finished sequences computed, for prompts that begin alike. Without a
    ``tokenizer`` prompts must be token ids and texts are empty. ``adapters`` are the engine's
    numbers of LoRA adapters by their names. ``defaults`` are options of ``generate`` that an
    encoder-decoder's checkpoint wants for its outputs; whoever generates takes them, or not.
    """

    def __init__(
        self,
        engine: Engine,
        tokens: SpecialTokens,
        tokenizer: "Tokenizer | None" = None,
        chat_template: "ChatTemplate | None" = None,
        prefill_chunk: int = 512,
        draft: Engine | None = None,
        slots: int | None = None,
        adapters: Mapping[str, int] | None = None,
        defaults: Mapping[str, Any] | None = None,
    ) -> None:
        if prefill_chunk < 1:
            raise UserError(f"prefill_chunk is {prefill_chunk}, but must be at least 1: raise it.")
        self.engine = engine
        self.draft = draft
        self.tokens = tokens
        self.slots = slots or engine.cache.slots
        self.prompts = PromptEncoder(engine.vocab_size, tokenizer, chat_template)
        self.adapters = dict(adapters or {})
        self.defaults = dict(defaults or {})
        source = engine.cache.source
        self._sequences = SequenceBuilder(
            self.prompts,
            tokens,
            engine.cache.capacity,
            has_draft=draft is not None,
            adapters=self.adapters,
            sources=SourcePrompts(self.prompts, tokens, source.capacity) if source else None,
        )
        self._chunk = prefill_chunk
        self._step_costs = StepCosts()
        has_rows = self.slots < engine.cache.slots
        self.prefixes = PrefixCache(engine.cache, self.slots) if has_rows else None
        self._in_use = threading.Lock()

    @property
    def tokenizer(self) -> "Tokenizer | None":
        """The bundle's tokenizer."""
        return self.prompts.tokenizer

    @property
    def gives_embeddings(self) -> bool:
        """Whether ``embed`` is possible."""
        return (
            not self.is_encoder_decoder
            and isinstance(self.engine, EmbeddingEngine)
            and self.engine.hidden_size is not None
        )

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether prompts are sources that an encoder reads."""
        return self.engine.cache.source is not None

    @overload  # a str is a Sequence[str] too, but the first match wins
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, *, stream: Literal[False] = False, **options: Unpack[GenerateOptions]
    ) -> Generation: ...
    @overload
    def generate(
        self,
        prompts: Sequence[str] | Sequence[TokenIds],
        *,
        stream: Literal[False] = False,
        **options: Unpack[GenerateOptions],
    ) -> list[Generation]: ...
    @overload
    def generate(
        self, prompts: Prompts, *, stream: Literal[True], **options: Unpack[GenerateOptions]
    ) -> Iterator[Token]: ...
    @overload
    def generate(  # type: ignore[overload-overlap]
        self, prompts: Prompt, *, num_return_sequences: int, **options: Unpack[GenerateOptions]
    ) -> list[Generation]: ...
    @overload
    def generate(
        self,
        prompts: Sequence[str] | Sequence[TokenIds],
        *,
        num_return_sequences: int,
        **options: Unpack[GenerateOptions],
    ) -> list[list[Generation]]: ...
    def generate(
        self,
        prompts: Prompts,
        *,
        stream: bool = False,
        num_return_sequences: int | None = None,
        num_beams: int = 1,
        length_penalty: float = 1.0,
        early_stopping: EarlyStopping = False,
        **options: Unpack[SequenceOptions],
    ) -> Generation | list[Generation] | list[list[Generation]] | Iterator[Token]:
        """Generate from one prompt (text or token ids) or from a list of them.

        Returns one Generation for one prompt, a list in the prompts' order for a list, and with
        ``stream`` an iterator of Tokens, whose texts add up to each prompt's text. For the options
        see SequenceBuilder.build. ``num_beams`` above 1 is a beam search, for whose parameters see
        BeamParameters; with ``num_return_sequences`` a prompt's result is the list of so many
        Generations, best first.

        Raises UserError for anything that can't be run, before anything runs.
        """
        beams = BeamParameters(num_beams, length_penalty, early_stopping, num_return_sequences)
        batch, is_single = _as_batch(prompts)
        sequences = [self.sequence(prompt, at, **options) for at, prompt in enumerate(batch)]
        if num_beams > 1:
            check_search(self.slots, beams, sequences[0], stream=stream)
            outcomes = self._run(sequences, beams)
            found = {each.index: each.generations for each in outcomes if isinstance(each, Found)}
            groups = [found[sequence.index] for sequence in sequences]
            best = [group[0] for group in groups] if num_return_sequences is None else groups
            return best[0] if is_single else best
        results = [
            Generation(
                prompt_tokens=sequence.prompt_tokens,
                logprobs=None if sequence.sampling.logprobs is None else [],
            )
            for sequence in sequences
        ]
        tokens = (token for token in self._run(sequences) if isinstance(token, Token))
        if stream:
            return tokens
        for token in tokens:
            results[token.index].add(token)
        return results[0] if is_single else results

    def sequence(
        self, prompt: Prompt, index: int = 0, **options: Unpack[SequenceOptions]
    ) -> decoding.Sequence:
        """Return a sequence, ready for a scheduler; see SequenceBuilder.build."""
        return self._sequences.build(prompt, index, **options)

    def completed(self, options: Mapping[str, Any], *, stream: bool) -> dict[str, Any]:
        """Options of ``generate``, and of the ``defaults`` those that go with them.

        See generation_config.with_defaults.
        """
        if not self.defaults:
            return dict(options)
        most = self.engine.cache.capacity - 1  # an output goes on from one token
        return with_defaults(options, self.defaults, most, stream=stream)

    def matcher(self, constraint: Constraint) -> Matcher:
        """Compile a constraint for request_queue.Job; see SequenceBuilder.matcher."""
        return self._sequences.matcher(constraint)

    def scheduler(
        self,
        *,
        target_latency: float | None = None,
        queue_limit: int | None = None,
        fills_slots_first: bool = False,
    ) -> Scheduler:
        """Return a scheduler over this model's slots; only one may be in use at a time.

        ``target_latency`` (seconds) is the time between two tokens of a stream that it aims at,
        ``queue_limit`` the most sequences that may wait. With ``fills_slots_first`` prompts run
        before anything is decoded, which serves a batch sooner and a stream later.
        """
        engine = self.engine
        draft = DraftModel(self.draft, engine.vocab_size, self._chunk) if self.draft else None
        return Scheduler(
            engine,
            MixedDecoder(engine, draft, self._step_costs),
            Pacing(self._chunk, self.slots, target_latency),
            queue=RequestQueue(queue_limit),
            prefixes=self.prefixes,
            fills_slots_first=fills_slots_first,
        )

    def logits(self, token_ids: TokenIds, *, adapter: str | None = None) -> FloatArray:
        """Run ``token_ids`` through one slot; returns the logits of every position [n, vocab].

        Raises UserError if they are empty, out of range or more than the capacity, or there is no
        such adapter.
        """
        ids = self.prompts.ids(token_ids)
        if len(ids) > self.engine.cache.capacity:
            raise too_long(f"{len(ids)} tokens", self.engine.cache.capacity)
        with self._first_slot(adapter):
            rows = []
            for start in range(0, len(ids), self._chunk):
                chunk = ids[None, start : start + self._chunk]
                positions = np.arange(chunk.shape[1])[None]
                rows.append(self.engine.step(chunk, np.array([start]), positions)[0].copy())
            return np.concatenate(rows)

    def score(
        self,
        prompt: Prompt,
        *,
        logprobs: int | None = None,
        context_overflow: ContextOverflow = "refuse",
        window: int | None = None,
        stride: int | None = None,
        adapter: str | None = None,
        progress: scoring.Progress | None = None,
    ) -> Score:
        """Log-probabilities of the tokens of a text, each after those before it.

        ``logprobs`` asks for so many of the likeliest tokens in the place of each too. A text of
        more than ``window`` tokens (default: the capacity) is refused; "truncate" scores its
        beginning, and "slide" all of it, in windows that begin ``stride`` tokens apart (default:
        half a window). ``adapter`` names a LoRA adapter. ``progress`` is told how many tokens were
        scored so far, and of how many.

        Raises UserError for anything that can't be run, before anything runs.
        """
        window = self.engine.cache.capacity if window is None else window
        stride = window // 2 if stride is None else stride
        scoring.check_windows(window, stride, self.engine.cache.capacity)
        encoding = (
            self.prompts.require_tokenizer().encode(prompt) if isinstance(prompt, str) else None
        )
        whole = self.prompts.ids(encoding.ids if encoding else prompt)
        ids = keep_beginning(whole, window, context_overflow, ("refuse", "truncate", "slide"))
        with self._first_slot(adapter):
            values, top = scoring.score(
                self.engine,
                ids,
                window=window,
                stride=stride,
                chunk=self._chunk,
                logprobs=logprobs,
                progress=progress,
            )
        size = scoring.scored_bytes(cast(str, prompt), encoding, len(ids)) if encoding else None
        return Score(ids.tolist(), values, top, len(ids) < len(whole), size)

    def embed(
        self,
        prompts: Prompts,
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        context_overflow: ContextOverflow = "refuse",
        adapter: str | None = None,
    ) -> Embeddings:
        """Embed texts: the last hidden states of each, pooled to one vector.

        ``pooling`` takes the "last" token's, or the "mean" of all; ``normalize`` makes vectors of
        length 1. A prompt longer than the capacity is refused; "truncate" keeps its beginning.
        ``adapter`` names a LoRA adapter.

        Raises UserError for anything that can't be run, before anything runs.
        """
        texts = [
            self.embedded_prompt(
                prompt,
                at,
                pooling=pooling,
                normalize=normalize,
                context_overflow=context_overflow,
                adapter=adapter,
            )
            for at, prompt in enumerate(_as_batch(prompts)[0])
        ]
        vectors = {e.index: e.vector for e in self._run(texts) if isinstance(e, Embedded)}
        return Embeddings(
            np.stack([vectors[text.index] for text in texts]),
            [len(text.prompt_ids) for text in texts],
            [text.is_truncated for text in texts],
        )

    def embedded_prompt(
        self,
        prompt: Prompt,
        index: int = 0,
        *,
        pooling: Pooling = "last",
        normalize: bool = True,
        context_overflow: ContextOverflow = "refuse",
        adapter: str | None = None,
    ) -> EmbeddedPrompt:
        """Return a prompt that a scheduler embeds, see ``embed``; its outcome bears ``index``."""
        if self.is_encoder_decoder:
            raise UserError("Encoder-decoders embed no text: export an encoder or a decoder.")
        engine = embedding.require_embeddings(self.engine)
        embedding.check_pooling(pooling)
        number = self._sequences.adapter_number(adapter)
        whole, capacity = self.prompts.ids(prompt), engine.cache.capacity
        ids = keep_beginning(whole, capacity, context_overflow, ("refuse", "truncate"))
        is_truncated = len(ids) < len(whole)
        return EmbeddedPrompt(
            index, ids, pooling, normalize, is_truncated=is_truncated, adapter=number
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``; see PromptEncoder.encode."""
        return self.prompts.encode(text)

    def encode_chat(self, messages: Sequence["Message"]) -> list[int]:
        """Token ids of a conversation; see PromptEncoder.encode_chat."""
        return self.prompts.encode_chat(messages)

    def close(self) -> None:
        """Free the engines and their buffers."""
        self.engine.close()
        if self.draft is not None:
            self.draft.close()

    def _run(
        self, sequences: Sequence[decoding.Sequence], beams: BeamParameters | None = None
    ) -> Iterator[Token | Embedded | Found]:
        with self._exclusive():
            scheduler = self.scheduler(fills_slots_first=True)
            for sequence in sequences:
                scheduler.submit(Job(sequence, beams=beams))
            for event in scheduler.run():
                if isinstance(event, Failure):
                    raise event.error
                yield event

    @contextmanager
    def _first_slot(self, adapter: str | None) -> Iterator[None]:
        """Take the engine for one text in the first slot, which has this adapter or none."""
        if self.is_encoder_decoder:
            raise UserError("Encoder-decoders score no text by itself: use generate.")
        number = self._sequences.adapter_number(adapter)
        with self._exclusive():
            self.engine.cache.adapter_ids[0] = number
            yield

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        # Two generations at once would write to the same slots.
        if not self._in_use.acquire(blocking=False):
            raise UserError(
                "This model is generating already: finish or close that stream first, or load the "
                "bundle twice."
            )
        try:
            yield
        finally:
            self._in_use.release()


def _as_batch(prompts: Prompts) -> tuple[list[Prompt], bool]:
    """Return the prompts as a list, and whether they were a single one."""
    if isinstance(prompts, str):
        return [prompts], True
    if not len(prompts):
        raise UserError("There is no prompt: give at least one.")
    if isinstance(prompts[0], (int, np.integer)):
        return [cast(TokenIds, prompts)], True
    return list(cast(Sequence[Prompt], prompts)), False
