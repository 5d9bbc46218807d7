"""Prompts as token ids: texts and conversations encoded, ids checked. Needs no engine."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from serving.engine import IntArray
from serving.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from serving.chat import ChatTemplate, Message, Tool

TokenIds = Sequence[int] | IntArray
Prompt = str | TokenIds


class PromptEncoder:
    """A bundle's tokenizer and chat template, either of which it may lack.

    ``vocab_size`` is the model's: ids are below it.
    """

    def __init__(
        self,
        vocab_size: int,
        tokenizer: "Tokenizer | None" = None,
        chat_template: "ChatTemplate | None" = None,
    ) -> None:
        self.vocab_size = vocab_size
        self.tokenizer = tokenizer
        self.chat_template = chat_template

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, with the special tokens that the tokenizer adds itself."""
        return self._encode(text, add_special_tokens=True)

    def encode_chat(
        self, messages: Sequence["Message"], tools: "Sequence[Tool] | None" = None
    ) -> list[int]:
        """Token ids of a conversation, ready for the assistant's reply.

        Raises UserError if the bundle has no chat template or the template refuses the messages.
        """
        if self.chat_template is None:
            raise UserError(
                "This bundle has no chat template: use generate with a plain prompt, or export a "
                "checkpoint that has one."
            )
        text = self.chat_template.render(messages, tools=tools)
        # The template writes the special tokens itself.
        return self._encode(text, add_special_tokens=False)

    def ids(self, prompt: Prompt) -> IntArray:
        """Token ids [n] of a text, or those given, checked; raises UserError for bad ones."""
        if isinstance(prompt, str):
            if not prompt:
                raise UserError("The prompt is empty: give at least one character.")
            prompt = self.encode(prompt)
        if not len(prompt):
            raise UserError("The prompt is empty: give at least one token.")
        for token_id in prompt:
            if not isinstance(token_id, (int, np.integer)) or not 0 <= token_id < self.vocab_size:
                raise UserError(
                    f"The prompt has the token id {token_id!r}, but this model's ids are whole "
                    f"numbers from 0 to {self.vocab_size - 1}: use the tokenizer that belongs to "
                    "it."
                )
        return np.array(prompt, np.int64)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:  # half of a surrogate pair, which JSON can spell
            raise UserError(
                f"The text has {text[error.start]!a} at position {error.start}, which is no "
                "character: send valid Unicode."
            ) from error
        return list(
            self.require_tokenizer().encode(text, add_special_tokens=add_special_tokens).ids
        )

    def require_tokenizer(self) -> "Tokenizer":
        """The tokenizer; raises UserError if there is none."""
        if self.tokenizer is None:
            raise UserError(
                "This bundle has no tokenizer.json: give token ids as prompts and no stop strings, "
                "or export a checkpoint that has a tokenizer."
            )
        return self.tokenizer
