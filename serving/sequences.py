"""Sequences of prompts and options, checked before anything runs."""

from collections.abc import Mapping
from collections.abc import Sequence as Several
from typing import Unpack

import numpy as np

from serving.bad_words import BadWords, spellings
from serving.bundle import SpecialTokens
from serving.constraints import Constraint, ConstraintCompiler, Matcher
from serving.context_overflow import ContextOverflow, check_overflow
from serving.decoding import Limits, Sequence, SpeculationMethod
from serving.detokenizer import Vocabulary
from serving.engine import IntArray
from serving.errors import UserError
from serving.prompts import Prompt, PromptEncoder
from serving.sampling import SamplingOptions, SamplingParameters
from serving.sources import SourcePrompts


class SequenceOptions(SamplingOptions, total=False):
    """The keyword parameters of SequenceBuilder.build."""

    max_new_tokens: int | None
    min_new_tokens: int
    stop: str | Several[str]
    bad_words: str | Several[str]
    bad_words_ids: Several[Several[int]]
    ignore_eos: bool
    speculation: SpeculationMethod | None
    context_overflow: ContextOverflow
    constraint: Constraint | None
    adapter: str | None
    decoder_prompt: Prompt | None
    source_language: str | None
    target_language: str | None


class SequenceBuilder:
    """Makes the sequences that a model's scheduler runs.

    No sequence has more than ``capacity`` tokens; any of ``eos`` ends one. ``has_draft`` says that
    there is a model to draft with. ``adapters`` are the engine's numbers of LoRA adapters by
    their names. ``sources`` makes the sources of an encoder-decoder.
    """

    def __init__(
        self,
        prompts: PromptEncoder,
        tokens: SpecialTokens,
        capacity: int,
        *,
        has_draft: bool = False,
        adapters: Mapping[str, int] | None = None,
        sources: SourcePrompts | None = None,
    ) -> None:
        self._prompts = prompts
        self._tokens = tokens
        self._sources = sources
        # A tokenizer may have ids that the model can't produce.
        self._eos = tuple(i for i in tokens.eos if i < prompts.vocab_size)
        self._capacity = capacity
        self._has_draft = has_draft
        self._adapters = adapters or {}
        tokenizer = prompts.tokenizer
        self._vocabulary = Vocabulary(tokenizer) if tokenizer else None
        self._constraints = ConstraintCompiler(tokenizer, self._eos) if tokenizer else None

    def build(
        self,
        prompt: Prompt,
        index: int = 0,
        *,
        max_new_tokens: int | None = None,
        min_new_tokens: int = 0,
        stop: str | Several[str] = (),
        bad_words: str | Several[str] = (),
        bad_words_ids: Several[Several[int]] = (),
        ignore_eos: bool = False,
        speculation: SpeculationMethod | None = None,
        context_overflow: ContextOverflow = "refuse",
        constraint: Constraint | None = None,
        adapter: str | None = None,
        decoder_prompt: Prompt | None = None,
        source_language: str | None = None,
        target_language: str | None = None,
        **sampling: Unpack[SamplingOptions],
    ) -> Sequence:
        """Return a sequence, ready for a scheduler, whose tokens and failures bear ``index``.

        Without ``max_new_tokens`` a sequence ends with an EOS token or when the capacity is full.
        ``min_new_tokens`` forbids EOS tokens before; ``ignore_eos`` goes on after them. The last
        token of a bad word, given as text in ``bad_words`` or as token ids in ``bad_words_ids``,
        never comes behind its others; those that are an EOS token alone are passed over. For the
        sampling parameters see SamplingParameters. ``speculation`` drafts tokens and verifies
        several in one step, where that is faster: by "prompt-lookup" in the text so far, or by the
        "draft" model that the bundle was opened with. ``context_overflow`` says what becomes of a
        text that doesn't fit: "refuse" it, "truncate" the prompt's beginning, or "slide", which
        forgets the oldest tokens whenever the capacity is full. The text follows the
        ``constraint``, and ends with it. ``adapter`` names one of the LoRA adapters that the bundle
        was opened with. An encoder-decoder's prompt is its source, which is in the
        ``source_language``; its output goes on from the ``decoder_prompt``, in the
        ``target_language``. Languages are called what the tokenizer calls them.

        Raises UserError for anything that can't be run, and ConstraintError if a text can't be held
        to its constraint.
        """
        beginning = self._beginning(decoder_prompt, source_language, target_language)
        limits = Limits(
            capacity=self._capacity,
            max_new_tokens=max_new_tokens,
            min_new_tokens=min_new_tokens,
            eos=() if ignore_eos else self._eos,
            stop=_texts(stop),
            slides=context_overflow == "slide",
            forced_bos=beginning[1],
            forced_eos=self._tokens.forced_eos,
        )
        never = (*bad_words_ids, *self._tokens.bad_words)
        words = self._bad_words(_texts(bad_words), never, limits.eos)
        parameters = SamplingParameters(**sampling, bad_words=words)
        check_overflow(context_overflow, ("refuse", "truncate", "slide"))
        self._check_limits(limits)
        self._check_speculation(speculation)
        self._check_bias(parameters)
        source_ids = None
        if self._sources is not None:
            source_ids = self._sources.source(prompt, context_overflow, source_language)
            prompt = beginning[0]
        ids = self._fitted(self._prompts.ids(prompt), limits, context_overflow)
        return Sequence(
            index,
            ids,
            parameters,
            limits,
            self._vocabulary,
            speculation=speculation,
            matcher=None if constraint is None else self.matcher(constraint),
            adapter=self.adapter_number(adapter),
            source_ids=source_ids,
        )

    def _beginning(
        self,
        decoder_prompt: Prompt | None,
        source_language: str | None,
        target_language: str | None,
    ) -> tuple[Prompt, int | None]:
        """What an output goes on from and has to begin with; nothing without an encoder."""
        if self._sources is not None:
            return self._sources.beginning(decoder_prompt, target_language)
        given = {
            "decoder_prompt": decoder_prompt,
            "source_language": source_language,
            "target_language": target_language,
        }
        for name, value in given.items():
            if value is not None:
                raise UserError(f"{name} is for encoder-decoders, and this is none: leave it out.")
        return (), None

    def adapter_number(self, name: str | None) -> int:
        """The engine's number of an adapter, 0 for None; raises UserError if there is none such."""
        if name is None:
            return 0
        if name not in self._adapters:
            known = ", ".join(map(repr, self._adapters))
            raise UserError(
                f"There is no adapter {name!r}{f', only {known}' if known else ''}: open the "
                "bundle with adapters={name: directory}."
            )
        return self._adapters[name]

    def matcher(self, constraint: Constraint) -> Matcher:
        """Compile a constraint; threads may do so. Raises UserError if it can't be used."""
        self._prompts.require_tokenizer()
        assert self._constraints is not None
        return self._constraints.matcher(constraint)

    def _check_bias(self, sampling: SamplingParameters) -> None:
        vocab = self._prompts.vocab_size
        for token_id in sampling.logit_bias:
            if token_id >= vocab:
                raise UserError(
                    f"logit_bias has the token id {token_id}, but this model's ids go from 0 to "
                    f"{vocab - 1}: leave it out."
                )

    def _bad_words(
        self, texts: tuple[str, ...], ids: Several[Several[int]], eos: tuple[int, ...]
    ) -> BadWords | None:
        if not texts and not ids:
            return None
        if "" in texts or not all(map(len, ids)):
            raise UserError("A bad word is empty: leave it out.")
        words = [tuple(word) for word in ids]
        vocab = self._prompts.vocab_size
        for token_id in (token_id for word in words for token_id in word):
            if not isinstance(token_id, (int, np.integer)) or not 0 <= token_id < vocab:
                raise UserError(
                    f"bad_words_ids has the token id {token_id!r}, but this model's ids are whole "
                    f"numbers from 0 to {vocab - 1}: leave that word out."
                )
        for text in texts:
            spelled = spellings(self._prompts.require_tokenizer(), text)
            words += [word for word in spelled if max(word) < vocab]
        words = [word for word in words if len(word) > 1 or word[0] not in eos]
        return BadWords(words) if words else None

    def _fitted(self, ids: IntArray, limits: Limits, overflow: ContextOverflow) -> IntArray:
        """The prompt [n], or the end of it that fits; raises UserError if it doesn't and must."""
        new = max(limits.max_new_tokens or 1, limits.min_new_tokens)
        if len(ids) + new <= limits.capacity or overflow == "slide":
            return ids
        room = limits.capacity - new
        if overflow == "refuse" or room < 1:
            raise too_long(f"The prompt's {len(ids)} tokens and {new} new ones", self._capacity)
        return ids[-room:]

    def _check_limits(self, limits: Limits) -> None:
        most, least = limits.max_new_tokens, limits.min_new_tokens
        if most is not None and most < 1:
            raise UserError(f"max_new_tokens is {most}, but must be at least 1: raise it.")
        if least < 0 or (most is not None and least > most):
            raise UserError(
                f"min_new_tokens is {least}, but must be from 0 to max_new_tokens: change it."
            )
        if most is None and limits.slides:
            raise UserError(
                "A text whose context slides has no end of its own: give max_new_tokens."
            )
        if "" in limits.stop:
            raise UserError("A stop string is empty: leave it out.")
        if limits.stop:
            self._prompts.require_tokenizer()

    def _check_speculation(self, method: SpeculationMethod | None) -> None:
        if method not in (None, "prompt-lookup", "draft"):
            raise UserError(
                f"speculation is {method!r}, but must be 'prompt-lookup', 'draft' or None: "
                "change it."
            )
        if method == "draft" and not self._has_draft:
            raise UserError(
                "There is no draft model: open the bundle with draft= a smaller model's bundle, or "
                "take speculation='prompt-lookup'."
            )


def _texts(given: str | Several[str]) -> tuple[str, ...]:
    return (given,) if isinstance(given, str) else tuple(given)


def too_long(tokens: str, capacity: int) -> UserError:
    """Return the error of so many ``tokens``, in words."""
    return UserError(
        f"{tokens} don't fit into the capacity of {capacity}: "
        "shorten the prompt, ask for fewer tokens or open the bundle with a larger capacity=."
    )
