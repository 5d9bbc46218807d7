"""An encoder-decoder's prompts: the source that its encoder reads, and how its output begins."""

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.bundle import SpecialTokens
from serving.context_overflow import ContextOverflow
from serving.engine import IntArray
from serving.errors import UserError
from serving.prompts import Prompt, PromptEncoder

if TYPE_CHECKING:
    from tokenizers import Tokenizer

# How tokenizers of multilingual models write a language: M2M-100, mBART, NLLB and Marian.
_SPELLINGS = ("{}", "__{}__", ">>{}<<")
_LANGUAGE = re.compile(r"__[a-z]{2,3}__|[a-z]{2}_[A-Z]{2}|[a-z]{3}_[A-Z][a-z]{3}")


class SourcePrompts:
    """Makes sources of at most ``capacity`` tokens, and what an output begins with.

    ``tokens`` says which tokens the checkpoint puts there.
    """

    def __init__(self, prompts: PromptEncoder, tokens: SpecialTokens, capacity: int) -> None:
        self._prompts = prompts
        self._tokens = tokens
        self._capacity = capacity

    def source(
        self, prompt: Prompt, overflow: ContextOverflow, language: str | None = None
    ) -> IntArray:
        """Token ids [n] of a source, a text or ids, which is in a ``language`` if one is named.

        Of a text that doesn't fit "truncate" keeps the beginning, and the special tokens at its
        end. Raises UserError for bad ids, an unknown language, and a text that doesn't fit.
        """
        ids = self._prompts.ids(prompt)
        if language is not None:
            ids = self._in_language(ids, language)
        return ids if len(ids) <= self._capacity else self._shortened(ids, overflow)

    def beginning(
        self, decoder_prompt: Prompt | None, language: str | None
    ) -> tuple[IntArray, int | None]:
        """Tokens [n] that an output goes on from, and the one that has to come first, if any.

        An output in a ``language`` begins with its token, or goes on from it where the checkpoint
        has outputs go on from a language.
        """
        start, forced = self._tokens.decoder_start, self._tokens.forced_bos
        if start is None:
            raise UserError(
                "The bundle doesn't say which token an output goes on from: put "
                "decoder_start_token_id into the checkpoint's config.json, and export it again."
            )
        if language is not None:
            token = self._language_token(language)
            if forced is None and self._is_language(start):
                start = token
            else:
                forced = token
        if decoder_prompt is None:
            return np.array([start]), forced
        if isinstance(decoder_prompt, str):
            tokenizer = self._prompts.require_tokenizer()
            decoder_prompt = tokenizer.encode(decoder_prompt, add_special_tokens=False).ids
        first = [start] if forced is None else [start, forced]
        return np.concatenate((first, self._prompts.ids(decoder_prompt))), None

    def _in_language(self, ids: IntArray, language: str) -> IntArray:
        """The source with another language's token in place of the one that it has."""
        places = [at for at, token in enumerate(ids.tolist()) if self._is_language(token)]
        if not places:
            raise UserError(
                "This model's sources don't name their language: leave source_language out."
            )
        changed = ids.copy()
        changed[places[-1] if places[-1] == len(ids) - 1 else places[0]] = self._language_token(
            language
        )
        return changed

    def _language_token(self, language: str) -> int:
        tokenizer = self._prompts.require_tokenizer()
        for spelling in _SPELLINGS:
            text = spelling.format(language)
            token = tokenizer.token_to_id(text)
            is_word = text == language and not _LANGUAGE.fullmatch(text)
            if token is not None and token < self._prompts.vocab_size and not is_word:
                return int(token)
        known = _languages(tokenizer)
        listed = f": this model knows {', '.join(known)}." if known else ", this model names none."
        raise UserError(f"There is no token for the language {language!r}{listed}")

    def _is_language(self, token: int) -> bool:
        tokenizer = self._prompts.tokenizer
        text = tokenizer.id_to_token(token) if tokenizer is not None else None
        return text is not None and _LANGUAGE.fullmatch(text) is not None

    def _shortened(self, ids: IntArray, overflow: ContextOverflow) -> IntArray:
        if overflow != "truncate":
            raise UserError(
                f"The source's {len(ids)} tokens don't fit into the source capacity of "
                f"{self._capacity}: shorten it, take context_overflow='truncate' or open the "
                "bundle with a larger source_capacity=."
            )
        end, first = len(ids), len(ids) - self._capacity + 1
        while end > first and self._is_special(int(ids[end - 1])):
            end -= 1
        ending = ids[end:]
        return np.concatenate((ids[: self._capacity - len(ending)], ending))

    def _is_special(self, token: int) -> bool:
        return token in self._tokens.eos or self._is_language(token)


def _languages(tokenizer: "Tokenizer") -> Sequence[str]:
    """The languages that a tokenizer has tokens for, as it writes them."""
    tokens = (token.content for token in tokenizer.get_added_tokens_decoder().values())
    return sorted(token for token in tokens if _LANGUAGE.fullmatch(token))
