"""Greedy requests whose answers are known: what the engine gives alone."""

import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import serving
from serving import Generation, Model
from serving.constraints import Constraint

CAPACITY = 512
_LETTERS = "abcdefilnorstu 0123456789"
_SCHEMA = {
    "type": "object",
    "properties": {
        "a": {"type": "integer", "minimum": 0, "maximum": 999},
        "b": {"type": "boolean"},
        "c": {"enum": ["on", "off"]},
    },
    "required": ["a", "b", "c"],
    "additionalProperties": False,
}


@dataclass(frozen=True, slots=True)
class Choice:
    """One text of an answer; ``logprobs`` are those of its tokens, if they were asked for."""

    text: str
    finish_reason: str
    logprobs: tuple[float, ...] | None = None

    def equals(self, other: "Choice") -> bool:
        """Whether they are the same; log-probabilities may differ in the last digits."""
        mine, others = self.logprobs or (), other.logprobs or ()
        return (
            (self.text, self.finish_reason) == (other.text, other.finish_reason)
            and len(mine) == len(others)
            and all(abs(a - b) < 1e-4 for a, b in zip(mine, others, strict=True))
        )


@dataclass(frozen=True, slots=True)
class Answer:
    """All choices of a request, and its numbers of tokens."""

    choices: tuple[Choice, ...]
    prompt_tokens: int
    completion_tokens: int

    def equals(self, other: "Answer") -> bool:
        """Whether they are the same."""
        numbers = (self.prompt_tokens, self.completion_tokens)
        return (
            numbers == (other.prompt_tokens, other.completion_tokens)
            and len(self.choices) == len(other.choices)
            and all(a.equals(b) for a, b in zip(self.choices, other.choices, strict=True))
        )


@dataclass(frozen=True, slots=True)
class Case:
    """A request to ``path``, whose ``body`` doesn't say whether it streams, and its answer."""

    path: str
    body: dict[str, Any]
    answer: Answer


def make_cases(bundle: Path, count: int, draw: random.Random) -> list[Case]:
    """Draw requests for the bundle's model, which has the name "model", and answer them."""
    with serving.load(bundle, slots=1, capacity=CAPACITY, prefix_rows=0, threads=1) as model:
        has_chats = model.prompts.chat_template is not None
        return [
            _chat(model, draw) if has_chats and draw.random() < 0.4 else _completion(model, draw)
            for _ in range(count)
        ]


def _completion(model: Model, draw: random.Random) -> Case:
    options, fields = _options(draw)
    prompts = [_text(draw) for _ in range(draw.choice((1, 1, 1, 2, 3)))]
    n = draw.choice((1, 1, 1, 2)) if len(prompts) == 1 else 1
    body = {"prompt": prompts if len(prompts) > 1 else prompts[0], "n": n, **fields}
    if draw.random() < 0.3:
        options["logprobs"] = body["logprobs"] = draw.randrange(4)
    body["max_tokens"] = options["max_new_tokens"]
    results = [model.generate(prompt, **options) for prompt in prompts]
    return Case("/v1/completions", {"model": "model", **body}, _answer(model, results, n))


def _chat(model: Model, draw: random.Random) -> Case:
    options, fields = _options(draw)
    messages = [{"role": "user", "content": _text(draw)}]
    if draw.random() < 0.5:  # a beginning that many have in common
        messages.insert(0, {"role": "system", "content": _LETTERS * 3})
    n = draw.choice((1, 1, 2))
    body = {"messages": messages, "n": n, **fields}
    if draw.random() < 0.3:
        top = draw.randrange(4)
        options["logprobs"] = top
        body |= {"logprobs": True, "top_logprobs": top}
    if draw.random() < 0.25:
        options |= {"constraint": Constraint.json_schema(_SCHEMA), "max_new_tokens": 60}
        named = {"name": "answer", "schema": _SCHEMA}
        body["response_format"] = {"type": "json_schema", "json_schema": named}
    body["max_completion_tokens"] = options["max_new_tokens"]
    result = model.generate(model.prompts.encode_chat(messages, None), **options)  # type: ignore[arg-type]
    return Case("/v1/chat/completions", {"model": "model", **body}, _answer(model, [result], n))


def _options(draw: random.Random) -> tuple[dict[str, Any], dict[str, Any]]:
    """What ``generate`` and a request have in common, and how each says it.

    A penalty and a bias keep texts from being alike.
    """
    options: dict[str, Any] = {
        "max_new_tokens": draw.randint(1, 40),
        "temperature": 0.0,
        "frequency_penalty": draw.choice((0.0, 0.4, 0.9)),
    }
    if draw.random() < 0.3:
        options["ignore_eos"] = True
    fields = {name: value for name, value in options.items() if name != "max_new_tokens"}
    if draw.random() < 0.5:
        bias = {draw.randrange(20): round(draw.uniform(-3, 3), 2) for _ in range(4)}
        options["logit_bias"] = bias
        fields["logit_bias"] = {str(token_id): value for token_id, value in bias.items()}
    if draw.random() < 0.4:
        stop = [*draw.sample(_LETTERS, draw.randint(1, 3)), "".join(draw.choices(_LETTERS, k=2))]
        options["stop"], fields["stop"] = tuple(stop), stop
    return options, fields


def _text(draw: random.Random) -> str:
    return "".join(draw.choices(_LETTERS, k=draw.randint(1, 60)))


def _answer(model: Model, results: list[Generation], n: int) -> Answer:
    choices = [_choice(model, result) for result in results for _ in range(n)]
    return Answer(
        tuple(choices),
        sum(result.prompt_tokens for result in results),
        n * sum(len(result.token_ids) for result in results),
    )


def _choice(model: Model, result: Generation) -> Choice:
    if result.logprobs is None:
        return Choice(result.text, result.finish_reason)
    # The server reports no log-probability of the EOS token, which is no part of the text.
    ends = result.finish_reason == "stop" and result.token_ids[-1] in model.tokens.eos
    logprobs = [each.chosen for each in result.logprobs]
    return Choice(result.text, result.finish_reason, tuple(logprobs[:-1] if ends else logprobs))
