"""Answers of ``/v1/chat/completions``: whole and in pieces."""

import json
import uuid
from collections.abc import Sequence
from typing import Any

from serving.decoding import Token
from serving.http.answer_head import AnswerHead, ChunkTemplate
from serving.http.logprobs import chat_logprobs
from serving.http.schemas.answers import (
    CalledFunction,
    ChatChoice,
    ChatMessage,
    FinishReason,
    PositionLogProbs,
    ToolCall,
    Usage,
)
from serving.http.token_texts import TokenTexts
from serving.http.tool_calls import Arguments, CallBegin, Part, ToolCallParser
from serving.http.tool_prompts import ToolUse


class ChatStream:
    """Writes the chunks of ``n`` choices.

    With ``texts`` they have log-probabilities, which the tokens must have.
    """

    def __init__(
        self,
        head: AnswerHead,
        n: int,
        tools: ToolUse | None,
        texts: TokenTexts | None,
        has_usage: bool,
    ) -> None:
        self._template = ChunkTemplate(head, "chat.completion.chunk", has_usage)
        self._parsers = _parsers(n, tools)
        self._texts = texts
        self._n = n

    def opening(self) -> str:
        """The choices' roles."""
        delta = '{"role":"assistant","content":""}'
        return "".join(self._chunk(choice, delta, "null") for choice in range(self._n))

    def chunk(self, choice: int, token: Token) -> str:
        """What a token adds; nothing if it is held back."""
        logprobs = self._logprobs(token)
        if self._parsers is None:
            deltas = [_say(token.text)] if token.text else []
            reason: FinishReason | None = token.finish_reason
        else:
            parser = self._parsers[choice]
            deltas = [_delta(part) for part in _parts(parser, token)]
            reason = _finish_reason(parser, token)
        if not deltas and logprobs != "null":
            deltas = [_say("")]
        events = []
        for delta in deltas:
            events.append(self._chunk(choice, delta, logprobs))
            logprobs = "null"
        if reason is not None:
            events.append(self._chunk(choice, "{}", "null", json.dumps(reason)))
        return "".join(events)

    def closing(self, usage: Usage) -> str:
        """The numbers of tokens, if they were asked for, and the end."""
        return self._template.closing(usage)

    def _chunk(self, choice: int, delta: str, logprobs: str, reason: str = "null") -> str:
        return self._template.chunk(
            f'{{"index":{choice},"delta":{delta},"logprobs":{logprobs},"finish_reason":{reason}}}'
        )

    def _logprobs(self, token: Token) -> str:
        if self._texts is None or token.logprobs is None:
            return "null"
        entry = chat_logprobs(token.logprobs, token.token_id, self._texts)
        return json.dumps({"content": [entry], "refusal": None})


class ChatAnswer:
    """Gathers ``n`` choices; for ``texts`` see ChatStream."""

    def __init__(
        self, head: AnswerHead, n: int, tools: ToolUse | None, texts: TokenTexts | None
    ) -> None:
        self._head = head
        self._parsers = _parsers(n, tools)
        self._choices = [_GatheredChoice() for _ in range(n)]
        self._texts = texts

    def add(self, choice: int, token: Token) -> None:
        """Take a choice's next token."""
        gathered = self._choices[choice]
        if self._texts is not None and token.logprobs is not None:
            gathered.logprobs.append(chat_logprobs(token.logprobs, token.token_id, self._texts))
        if self._parsers is None:
            gathered.content.append(token.text)
            gathered.finish_reason = token.finish_reason
        else:
            gathered.add(_parts(self._parsers[choice], token))
            gathered.finish_reason = _finish_reason(self._parsers[choice], token)

    def document(self, usage: Usage) -> dict[str, Any]:
        """The answer."""
        has_logprobs = self._texts is not None
        choices = [each.document(at, has_logprobs) for at, each in enumerate(self._choices)]
        return {**self._head.fields("chat.completion"), "choices": choices, "usage": usage}


class _GatheredChoice:
    def __init__(self) -> None:
        self.content: list[str] = []
        self.calls: list[ToolCall] = []
        self.logprobs: list[PositionLogProbs] = []
        self.finish_reason: FinishReason | None = None

    def add(self, parts: Sequence[Part]) -> None:
        for part in parts:
            match part:
                case str():
                    self.content.append(part)
                case CallBegin():
                    function: CalledFunction = {"name": part.name, "arguments": ""}
                    self.calls.append({"id": _call_id(), "type": "function", "function": function})
                case Arguments():
                    self.calls[part.index]["function"]["arguments"] += part.text

    def document(self, index: int, has_logprobs: bool) -> ChatChoice:
        content = "".join(self.content)
        message: ChatMessage = {
            "role": "assistant",
            "content": content if content or not self.calls else None,
            "refusal": None,
        }
        if self.calls:
            message["tool_calls"] = self.calls
        return {
            "index": index,
            "message": message,
            "logprobs": {"content": self.logprobs, "refusal": None} if has_logprobs else None,
            "finish_reason": self.finish_reason or "length",
        }


def _parsers(n: int, tools: ToolUse | None) -> list[ToolCallParser] | None:
    if tools is None:
        return None
    return [ToolCallParser(tools.names, tools.most) for _ in range(n)]


def _parts(parser: ToolCallParser, token: Token) -> list[Part]:
    parts = parser.push(token.text)
    return parts + parser.finish() if token.finish_reason is not None else parts


def _finish_reason(parser: ToolCallParser, token: Token) -> FinishReason | None:
    is_call = token.finish_reason == "stop" and parser.calls > 0
    return "tool_calls" if is_call else token.finish_reason


def _delta(part: Part) -> str:
    """A chunk's delta in JSON."""
    match part:
        case str():
            return _say(part)
        case CallBegin():
            call: dict[str, Any] = {
                "index": part.index,
                "id": _call_id(),
                "type": "function",
                "function": {"name": part.name, "arguments": ""},
            }
        case Arguments():
            call = {"index": part.index, "function": {"arguments": part.text}}
    return json.dumps({"tool_calls": [call]})


def _say(text: str) -> str:
    return f'{{"content":{json.dumps(text)}}}'


def _call_id() -> str:
    return f"call_{uuid.uuid4().hex[:24]}"
