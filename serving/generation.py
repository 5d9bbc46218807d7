"""The model that ``serving.load`` returns: text or tokens in, text and tokens out."""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, TypedDict, Unpack, cast, overload

import numpy as np

from serving import decoding, embedding, scoring
from serving.bundle import SpecialTokens
from serving.closing import Closing
from serving.context_overflow import ContextOverflow, keep_beginning
from serving.decoding import FinishReason, Limits, Token
from serving.detokenizer import Vocabulary
from serving.draft_length import StepCosts
from serving.draft_model import DraftModel
from serving.embedding import Embeddings, Pooling
from serving.engine import Engine, FloatArray, IntArray
from serving.errors import UserError
from serving.prompt_lookup import PromptLookup
from serving.run_ahead import RunAhead
from serving.sampling import LogProbs, SamplingParameters
from serving.scoring import Score
from serving.speculation import Speculation, SpeculationMethod

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from serving.chat import ChatTemplate, Message

TokenIds = Sequence[int]
Prompt = str | TokenIds
Prompts = Prompt | Sequence[str] | Sequence[TokenIds]


class GenerateOptions(TypedDict, total=False):
    """The keyword parameters of Model.generate, but for ``stream``."""

    max_new_tokens: int | None
    min_new_tokens: int
    temperature: float
    top_k: int
    top_p: float
    min_p: float
    repetition_penalty: float
    presence_penalty: float
    frequency_penalty: float
    seed: int | None
    stop: str | Sequence[str]
    logprobs: int | None
    ignore_eos: bool
    speculation: SpeculationMethod | None


@dataclass(slots=True)
class Generation:
    """What was generated from one prompt.

    ``token_ids`` holds generated tokens only, with the EOS token if there was one; ``text`` is
    their text without special tokens, cut before a stop string. ``logprobs`` has one entry a token
    if they were asked for.
    """

    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    finish_reason: FinishReason = "length"
    prompt_tokens: int = 0
    logprobs: list[LogProbs] | None = None

    def add(self, token: Token) -> None:
        """Append one token and its text."""
        self.token_ids.append(token.token_id)
        self.text += token.text
        if token.logprobs is not None and self.logprobs is not None:
            self.logprobs.append(token.logprobs)
        if token.finish_reason is not None:
            self.finish_reason = token.finish_reason


class Model(Closing):
    """An engine with its tokenizer, ready to generate; a context manager that closes the engine.

    One generation runs at a time, over the engine's slots. Without a ``tokenizer`` prompts must be
    token ids and texts are empty.
    """

    def __init__(
        self,
        engine: Engine,
        tokens: SpecialTokens,
        tokenizer: "Tokenizer | None" = None,
        chat_template: "ChatTemplate | None" = None,
        prefill_chunk: int = 512,
        draft: Engine | None = None,
    ) -> None:
        if prefill_chunk < 1:
            raise UserError(f"prefill_chunk is {prefill_chunk}, but must be at least 1: raise it.")
        self.engine = engine
        self.draft = draft
        self.tokens = tokens
        self.tokenizer = tokenizer
        self.chat_template = chat_template
        # A tokenizer may have ids that the model can't produce.
        self._eos = tuple(i for i in tokens.eos if i < engine.vocab_size)
        self._chunk = prefill_chunk
        self._vocabulary = Vocabulary(tokenizer) if tokenizer else None
        self._step_costs = StepCosts()
        self._in_use = threading.Lock()

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
    def generate(
        self,
        prompts: Prompts,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        temperature: float = 0.0,
        top_k: int = 0,
        top_p: float = 1.0,
        min_p: float = 0.0,
        repetition_penalty: float = 1.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        seed: int | None = None,
        stop: str | Sequence[str] = (),
        logprobs: int | None = None,
        stream: bool = False,
        ignore_eos: bool = False,
        speculation: SpeculationMethod | None = None,
    ) -> Generation | list[Generation] | Iterator[Token]:
        """Generate from one prompt (text or token ids) or from a list of them.

        Returns one Generation for one prompt, a list in the prompts' order for a list, and with
        ``stream`` an iterator of Tokens, whose texts add up to each prompt's text. Without
        ``max_new_tokens`` a sequence ends with an EOS token or when the capacity is full.
        ``min_new_tokens`` forbids EOS tokens before; ``ignore_eos`` goes on after them. For the
        sampling parameters see SamplingParameters. ``speculation`` drafts tokens and verifies
        several in one step, where that is faster: by "prompt-lookup" in the text so far, or by the
        "draft" model that the bundle was opened with.

        Raises UserError for anything that can't be run, before anything runs.
        """
        sampling = SamplingParameters(
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
            min_p=min_p,
            repetition_penalty=repetition_penalty,
            presence_penalty=presence_penalty,
            frequency_penalty=frequency_penalty,
            seed=seed,
            logprobs=logprobs,
        )
        limits = Limits(
            capacity=self.engine.cache.capacity,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            eos=() if ignore_eos else self._eos,
            stop=(stop,) if isinstance(stop, str) else tuple(stop),
        )
        self._check_limits(limits)
        advance = self._advance(speculation, sampling, limits)
        batch, is_single = _as_batch(prompts)
        encoded = [self._prompt_ids(prompt, limits) for prompt in batch]
        tokens = self._run(encoded, sampling, limits, advance)
        if stream:
            return tokens
        results = [
            Generation(prompt_tokens=len(ids), logprobs=None if logprobs is None else [])
            for ids in encoded
        ]
        for token in tokens:
            results[token.index].add(token)
        return results[0] if is_single else results

    def logits(self, token_ids: TokenIds) -> FloatArray:
        """Run ``token_ids`` through one slot; returns the logits of every position [n, vocab].

        Raises UserError if they are empty, out of range or more than the capacity.
        """
        ids = self._check_ids(token_ids)
        if len(ids) > self.engine.cache.capacity:
            raise self._too_long(f"{len(ids)} tokens")
        with self._exclusive():
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
        progress: scoring.Progress | None = None,
    ) -> Score:
        """Log-probabilities of the tokens of a text, each after those before it.

        ``logprobs`` asks for so many of the likeliest tokens in the place of each too. A text of
        more than ``window`` tokens (default: the capacity) is refused; "truncate" scores its
        beginning, and "slide" all of it, in windows that begin ``stride`` tokens apart (default:
        half a window). ``progress`` is told how many tokens were scored so far, and of how many.

        Raises UserError for anything that can't be run, before anything runs.
        """
        window = self.engine.cache.capacity if window is None else window
        stride = window // 2 if stride is None else stride
        scoring.check_windows(window, stride, self.engine.cache.capacity)
        encoding = self._require_tokenizer().encode(prompt) if isinstance(prompt, str) else None
        whole = self._check_ids(encoding.ids if encoding else cast(TokenIds, prompt))
        ids = keep_beginning(whole, window, context_overflow, ("refuse", "truncate", "slide"))
        with self._exclusive():
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
    ) -> Embeddings:
        """Embed texts: the last hidden states of each, pooled to one vector.

        ``pooling`` takes the "last" token's, or the "mean" of all; ``normalize`` makes vectors of
        length 1. A prompt longer than the capacity is refused; "truncate" keeps its beginning.

        Raises UserError for anything that can't be run, before anything runs.
        """
        engine = embedding.require_embeddings(self.engine)
        embedding.check_pooling(pooling)
        capacity = engine.cache.capacity
        whole = [
            self._check_ids(self.encode(prompt) if isinstance(prompt, str) else prompt)
            for prompt in _as_batch(prompts)[0]
        ]
        kept = [
            keep_beginning(ids, capacity, context_overflow, ("refuse", "truncate")) for ids in whole
        ]
        with self._exclusive():
            vectors = [
                embedding.embed(engine, ids, pooling, normalize, self._chunk) for ids in kept
            ]
        return Embeddings(
            np.stack(vectors),
            [len(ids) for ids in kept],
            [len(ids) < len(all_ids) for ids, all_ids in zip(kept, whole, strict=True)],
        )

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with the special tokens that the tokenizer adds itself."""
        return list(self._require_tokenizer().encode(text).ids)

    def encode_chat(self, messages: Sequence["Message"]) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply.

        Raises UserError if the bundle has no chat template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise UserError(
                "This bundle has no chat template: use generate with a plain prompt, or export a "
                "checkpoint that has one."
            )
        text = self.chat_template.render(messages)
        # The template writes the special tokens itself.
        return list(self._require_tokenizer().encode(text, add_special_tokens=False).ids)

    def close(self) -> None:
        """Free the engines and their buffers."""
        self.engine.close()
        if self.draft is not None:
            self.draft.close()

    def _run(
        self,
        prompts: list[IntArray],
        sampling: SamplingParameters,
        limits: Limits,
        advance: decoding.Advance,
    ) -> Iterator[Token]:
        sequences = [
            decoding.Sequence(index, ids, sampling, limits, self._vocabulary)
            for index, ids in enumerate(prompts)
        ]
        with self._exclusive():
            yield from decoding.generate(self.engine, sequences, self._chunk, advance)

    def _advance(
        self, speculation: SpeculationMethod | None, sampling: SamplingParameters, limits: Limits
    ) -> decoding.Advance:
        chooser = self.engine.chooser
        if speculation is None:
            chooses = chooser is not None and chooser.takes(sampling, limits.min_new_tokens)
            return RunAhead(chooser).advance if chooser and chooses else decoding.decode
        if speculation == "prompt-lookup":
            return Speculation(PromptLookup, self._step_costs).advance
        if speculation != "draft":
            raise UserError(
                f"speculation is {speculation!r}, but must be 'prompt-lookup', 'draft' or None: "
                "change it."
            )
        if self.draft is None:
            raise UserError(
                "There is no draft model: open the bundle with draft= a smaller model's bundle, or "
                "take speculation='prompt-lookup'."
            )
        draft_model = DraftModel(self.draft, self.engine.vocab_size, self._chunk)
        return Speculation(draft_model.open, self._step_costs).advance

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

    def _prompt_ids(self, prompt: Prompt, limits: Limits) -> IntArray:
        if isinstance(prompt, str):
            if not prompt:
                raise UserError("The prompt is empty: give at least one character.")
            prompt = self.encode(prompt)
        ids = self._check_ids(prompt)
        new = max(limits.max_new_tokens or 1, limits.min_new_tokens)
        if len(ids) + new > limits.capacity:
            raise self._too_long(f"The prompt's {len(ids)} tokens and {new} new ones")
        return ids

    def _check_ids(self, token_ids: TokenIds) -> IntArray:
        if not len(token_ids):
            raise UserError("The prompt is empty: give at least one token.")
        vocab = self.engine.vocab_size
        for token_id in token_ids:
            if not isinstance(token_id, (int, np.integer)) or not 0 <= token_id < vocab:
                raise UserError(
                    f"The prompt has the token id {token_id!r}, but this model's ids are whole "
                    f"numbers from 0 to {vocab - 1}: use the tokenizer that belongs to it."
                )
        return np.array(token_ids, np.int64)

    def _too_long(self, tokens: str) -> UserError:
        return UserError(
            f"{tokens} don't fit into the capacity of {self.engine.cache.capacity}: "
            "shorten the prompt, ask for fewer tokens or open the bundle with a larger capacity=."
        )

    def _check_limits(self, limits: Limits) -> None:
        most, least = limits.max_new_tokens, limits.min_new_tokens
        if most is not None and most < 1:
            raise UserError(f"max_new_tokens is {most}, but must be at least 1: raise it.")
        if least < 0 or (most is not None and least > most):
            raise UserError(
                f"min_new_tokens is {least}, but must be from 0 to max_new_tokens: change it."
            )
        if "" in limits.stop:
            raise UserError("A stop string is empty: leave it out.")
        if limits.stop:
            self._require_tokenizer()

    def _require_tokenizer(self) -> "Tokenizer":
        if self.tokenizer is None:
            raise UserError(
                "This bundle has no tokenizer.json: give token ids as prompts and no stop strings, "
                "or export a checkpoint that has a tokenizer."
            )
        return self.tokenizer


def _as_batch(prompts: Prompts) -> tuple[list[Prompt], bool]:
    """Return the prompts as a list, and whether they were a single one."""
    if isinstance(prompts, str):
        return [prompts], True
    if not len(prompts):
        raise UserError("There is no prompt: give at least one.")
    if isinstance(prompts[0], (int, np.integer)):
        return [cast(TokenIds, prompts)], True
    return list(cast(Sequence[Prompt], prompts)), False
