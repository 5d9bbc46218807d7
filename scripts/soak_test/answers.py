"""Answers as a client reads them: whole ones and streams, of both endpoints."""

import json
from collections.abc import Iterable
from typing import Any

from scripts.soak_test.cases import Answer, Choice


class BrokenAnswerError(Exception):
    """An answer that isn't as the API has it: cut short, say."""


def whole_answer(document: dict[str, Any]) -> Answer:
    """The answer in a document."""
    choices = [
        Choice(
            choice["message"]["content"] if "message" in choice else choice["text"],
            choice["finish_reason"],
            _logprobs(choice["logprobs"]),
        )
        for choice in document["choices"]
    ]
    usage = document["usage"]
    return Answer(tuple(choices), usage["prompt_tokens"], usage["completion_tokens"])


def streamed_answer(lines: Iterable[str]) -> Answer:
    """The answer in a stream's lines. Raises BrokenAnswerError unless it is complete."""
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    logprobs: dict[int, tuple[float, ...]] = {}
    usage: dict[str, int] | None = None
    *events, end = [line.removeprefix("data: ") for line in lines if line]
    if end != "[DONE]":
        raise BrokenAnswerError(f"the stream ends with {end[:200]!r}")
    for event in map(json.loads, events):
        if "error" in event:
            raise BrokenAnswerError(f"an error in the stream: {event['error']}")
        for choice in event["choices"]:
            index = choice["index"]
            if index in reasons:
                raise BrokenAnswerError(f"choice {index} goes on after its end")
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            texts[index] = texts.get(index, "") + (text or "")
            if (more := _logprobs(choice["logprobs"])) is not None:
                logprobs[index] = logprobs.get(index, ()) + more
            if choice["finish_reason"] is not None:
                reasons[index] = choice["finish_reason"]
        usage = event["usage"] or usage
    if usage is None or texts.keys() != reasons.keys():
        raise BrokenAnswerError("the stream lacks its numbers of tokens, or a choice its end")
    choices = [Choice(texts[i], reasons[i], logprobs.get(i)) for i in sorted(texts)]
    return Answer(tuple(choices), usage["prompt_tokens"], usage["completion_tokens"])


def _logprobs(entries: dict[str, Any] | None) -> tuple[float, ...] | None:
    if entries is None:
        return None
    if "content" in entries:
        return tuple(entry["logprob"] for entry in entries["content"])
    return tuple(entries["token_logprobs"])
