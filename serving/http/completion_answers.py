"""Answers of ``/v1/completions``: whole and in pieces."""

import json
from collections.abc import Sequence
from typing import Any

from serving.decoding import Token
from serving.http.answer_head import AnswerHead, ChunkTemplate
from serving.http.logprobs import CompletionLogProbsWriter
from serving.http.schemas.answers import CompletionChoice, Usage
from serving.http.token_texts import TokenTexts


class CompletionStream:
    """Writes the chunks of choices, which begin with the texts ``echoes`` (maybe empty).

    With ``texts`` they have log-probabilities, which the tokens must have.
    """

    def __init__(
        self, head: AnswerHead, echoes: Sequence[str], texts: TokenTexts | None, has_usage: bool
    ) -> None:
        self._template = ChunkTemplate(head, "text_completion", has_usage)
        self._echoes = echoes
        self._writers = _writers(texts, echoes)

    def opening(self) -> str:
        """The prompts, where they are asked for."""
        chunks = (
            self._chunk(choice, echo, "null", "null")
            for choice, echo in enumerate(self._echoes)
            if echo
        )
        return "".join(chunks)

    def chunk(self, choice: int, token: Token) -> str:
        """What a token adds; nothing if it is held back."""
        reason = token.finish_reason
        if self._writers is None:
            if not token.text and reason is None:
                return ""
            logprobs = "null"
        else:
            logprobs = json.dumps(self._writers[choice].write([token]))
        return self._chunk(choice, token.text, logprobs, json.dumps(reason))

    def closing(self, usage: Usage) -> str:
        """The numbers of tokens, if they were asked for, and the end."""
        return self._template.closing(usage)

    def _chunk(self, choice: int, text: str, logprobs: str, reason: str) -> str:
        return self._template.chunk(
            f'{{"index":{choice},"text":{json.dumps(text)},"logprobs":{logprobs},'
            f'"finish_reason":{reason}}}'
        )


class CompletionAnswer:
    """Gathers choices; for ``echoes`` and ``texts`` see CompletionStream."""

    def __init__(self, head: AnswerHead, echoes: Sequence[str], texts: TokenTexts | None) -> None:
        self._head = head
        self._echoes = echoes
        self._tokens: list[list[Token]] = [[] for _ in echoes]
        self._writers = _writers(texts, echoes)

    def add(self, choice: int, token: Token) -> None:
        """Take a choice's next token."""
        self._tokens[choice].append(token)

    def document(self, usage: Usage) -> dict[str, Any]:
        """The answer."""
        # A search finds fewer sequences where fewer are possible.
        choices = [self._choice(index) for index, tokens in enumerate(self._tokens) if tokens]
        return {**self._head.fields("text_completion"), "choices": choices, "usage": usage}

    def _choice(self, index: int) -> CompletionChoice:
        tokens = self._tokens[index]
        return {
            "index": index,
            "text": self._echoes[index] + "".join(token.text for token in tokens),
            "logprobs": self._writers[index].write(tokens) if self._writers else None,
            "finish_reason": tokens[-1].finish_reason,
        }


def _writers(
    texts: TokenTexts | None, echoes: Sequence[str]
) -> list[CompletionLogProbsWriter] | None:
    if texts is None:
        return None
    return [CompletionLogProbsWriter(texts, len(echo)) for echo in echoes]
