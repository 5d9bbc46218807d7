"""Tool calls in what models write, cut into pieces of every size, and in the API's answers."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from serving.bundle import file_info
from serving.decoding import Token
from serving.http.answer_head import AnswerHead
from serving.http.chat_answers import ChatAnswer, ChatStream
from serving.http.schemas.answers import Usage
from serving.http.tool_calls import Arguments, CallBegin, Part, ToolCallParser
from serving.http.tool_prompts import ToolUse
from tests.serving.http.running import Running, running

NAMES = frozenset({"weather", "clock"})
OSLO = '{"city": "Oslo {\\"}", "days": [1, {"a": 2}]}'
CALL = f'{{"name": "weather", "arguments": {OSLO}}}'


def tag(call: str) -> str:
    return f"<tool_call>\n{call}\n</tool_call>"


def parse(text: str, size: int, most: int | None = None) -> tuple[str, list[tuple[str, str]]]:
    """What is said, and the calls, of a text that comes in pieces of that size."""
    parser = ToolCallParser(NAMES, most)
    parts: list[Part] = []
    for at in range(0, len(text), size):
        parts += parser.push(text[at : at + size])
    said, calls = "", list[tuple[str, str]]()
    for part in [*parts, *parser.finish()]:
        match part:
            case str():
                said += part
            case CallBegin():
                assert part.index == len(calls)
                calls.append((part.name, ""))
            case Arguments():
                name, arguments = calls[part.index]
                calls[part.index] = (name, arguments + part.text)
    return said, calls


@pytest.mark.parametrize("size", [1, 2, 7, 1000])
@pytest.mark.parametrize(
    ("text", "said", "calls"),
    [
        ("Hello, world.", "Hello, world.", []),
        (tag(CALL), "", [("weather", OSLO)]),
        (f"Let me see.\n{tag(CALL)}", "Let me see.\n", [("weather", OSLO)]),
        (
            f"\n{tag(CALL)}\n{tag(CALL.replace('weather', 'clock'))}\n",
            "",
            [("weather", OSLO), ("clock", OSLO)],
        ),
        # Names that aren't among the tools are calls where tags say so.
        (tag('{"name": "other", "arguments": {}}'), "", [("other", "{}")]),
        # Another order, and arguments that are a text: read when the call is complete.
        (tag('{"arguments": {"a": 1}, "name": "clock"}'), "", [("clock", '{"a": 1}')]),
        (tag('{"name": "clock", "arguments": "{}"}'), "", [("clock", "{}")]),
        (tag('{"name": "clock"}'), "", [("clock", "{}")]),
        ("a <tool_call> b", "a <tool_call> b", []),
        (tag("nonsense"), tag("nonsense"), []),
        ("a < b and <tool", "a < b and <tool", []),
        # Without tags.
        (CALL, "", [("weather", OSLO)]),
        (f"\n  {CALL}", "", [("weather", OSLO)]),
        (CALL.replace("arguments", "parameters"), "", [("weather", OSLO)]),
        (f"[{CALL}, {CALL}]", "", [("weather", OSLO), ("weather", OSLO)]),
        ('{"parameters": {"a": 1}, "name": "clock"}', "", [("clock", '{"a": 1}')]),
        ('{"name": "other", "arguments": {}}', '{"name": "other", "arguments": {}}', []),
        ('{"answer": 42}', '{"answer": 42}', []),
        (f'{{"long": "{"x" * 300}"}}', f'{{"long": "{"x" * 300}"}}', []),
        ("[1, 2, 3] is a list", "[1, 2, 3] is a list", []),
    ],
)
def test_calls_are_found_however_the_text_is_cut(
    text: str, said: str, calls: list[tuple[str, str]], size: int
) -> None:
    assert parse(text, size) == (said, calls)


@pytest.mark.parametrize("size", [1, 5])
def test_more_calls_than_wanted_are_dropped(size: int) -> None:
    assert parse(tag(CALL) + tag(CALL), size, most=1) == ("", [("weather", OSLO)])


def test_arguments_come_while_they_are_written() -> None:
    parser = ToolCallParser(NAMES)
    assert parser.push('<tool_call>{"name": "weather", "arguments": {"ci') == [
        CallBegin(0, "weather"),
        Arguments(0, '{"ci'),
    ]
    assert parser.push('ty": "O') == [Arguments(0, 'ty": "O')]
    assert parser.push('slo"}}</tool_call>') == [Arguments(0, 'slo"}')]


def tokens(text: str, size: int, reason: Any = "stop") -> list[Token]:
    pieces = [text[at : at + size] for at in range(0, len(text), size)]
    return [Token(0, 0, piece) for piece in pieces[:-1]] + [Token(0, 0, pieces[-1], reason)]


HEAD = AnswerHead("chatcmpl-1", 0, "m", "fp_1")
USE = ToolUse(tools=[], names=NAMES)
USAGE: Usage = {
    "prompt_tokens": 1,
    "completion_tokens": 1,
    "total_tokens": 2,
    "prompt_tokens_details": {"cached_tokens": 0},
}


@pytest.mark.parametrize("size", [1, 9, 1000])
def test_a_stream_adds_up_to_the_whole_answer(size: int) -> None:
    text = f"One moment. {tag(CALL)}{tag(CALL.replace('weather', 'clock'))}"
    whole, stream = ChatAnswer(HEAD, 1, USE, None), ChatStream(HEAD, 1, USE, None, False)
    events = stream.opening()
    for token in tokens(text, size):
        whole.add(0, token)
        events += stream.chunk(0, token)
    choice = whole.document(USAGE)["choices"][0]
    assert choice["finish_reason"] == "tool_calls"
    message = choice["message"]
    assert message["content"] == "One moment. "
    assert [call["function"]["name"] for call in message["tool_calls"]] == ["weather", "clock"]
    assert json.loads(message["tool_calls"][0]["function"]["arguments"])["days"] == [1, {"a": 2}]

    content, calls, reasons = "", list[dict[str, Any]](), []
    for line in events.strip().split("\n\n"):
        chunk = json.loads(line.removeprefix("data: "))["choices"][0]
        reasons.append(chunk["finish_reason"])
        content += chunk["delta"].get("content", "")
        for call in chunk["delta"].get("tool_calls", []):
            if call["index"] == len(calls):
                assert call["type"] == "function"
                assert call["id"].startswith("call_")
                calls.append(call["function"])
            else:
                calls[call["index"]]["arguments"] += call["function"]["arguments"]
    assert content == message["content"]
    assert calls == [call["function"] for call in message["tool_calls"]]
    assert reasons == [None] * (len(reasons) - 1) + ["tool_calls"]


def test_a_call_that_is_cut_short_keeps_its_reason() -> None:
    whole = ChatAnswer(HEAD, 1, USE, None)
    for token in tokens(tag(CALL)[:60], 8, "length"):
        whole.add(0, token)
    choice = whole.document(USAGE)["choices"][0]
    assert choice["finish_reason"] == "length"
    assert choice["message"]["content"] is None
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"enum": ["Oslo", "Rome"]},
                "unit": {"$ref": "#/$defs/unit"},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
            "$defs": {"unit": {"enum": ["C", "F"]}},
        },
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
TEMPLATE = (
    "{% if tools %}{% for tool in tools %}{{ tool.function.name }} {% endfor %}{% endif %}"
    "{% for message in messages %}{{ message.role }}: {{ message.content }}"
    "{% for call in message.tool_calls %}{{ call.function.arguments | tojson }}{% endfor %}"
    "{{ message.tool_call_id }}{% endfor %}assistant:"
)
QUESTION: list[Any] = [{"role": "user", "content": "Will it rain?"}]


@pytest.fixture(scope="module")
def with_tools(trained_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """The trained model with a template that tells it of tools; it can't call any unless forced."""
    path = tmp_path_factory.mktemp("tools") / "bundle"
    shutil.copytree(trained_bundle, path)
    (path / "chat_template.jinja").write_text(TEMPLATE)
    manifest = json.loads((path / "bundle.json").read_text())
    manifest["files"]["chat_template.jinja"] = file_info(path / "chat_template.jinja").model_dump()
    (path / "bundle.json").write_text(json.dumps(manifest))
    with running({"tools": path}, capacity=256) as server:
        yield server


@pytest.mark.parametrize(
    ("choice", "names"),
    [
        ("required", {"weather", "clock"}),
        ({"type": "function", "function": {"name": "weather"}}, {"weather"}),
    ],
)
def test_a_tool_that_must_be_called_is(with_tools: Running, choice: Any, names: set[str]) -> None:
    options: dict[str, Any] = {
        "model": "tools",
        "messages": QUESTION,
        "tools": [WEATHER, CLOCK],
        "tool_choice": choice,
        "seed": 1,
        "max_tokens": 100,
    }
    answer = with_tools.openai.chat.completions.create(**options).choices[0]
    (call,) = answer.message.tool_calls
    assert answer.finish_reason == "tool_calls"
    assert answer.message.content is None
    assert call.function.name in names
    arguments = json.loads(call.function.arguments)
    if call.function.name == "weather":
        jsonschema.validate(arguments, WEATHER["function"]["parameters"])

    stream = with_tools.openai.chat.completions.create(**options, stream=True)
    deltas = [c.choices[0].delta.tool_calls[0] for c in stream if c.choices[0].delta.tool_calls]
    assert deltas[0].function.name == call.function.name
    assert "".join(delta.function.arguments for delta in deltas) == call.function.arguments
    assert len(deltas) > 2


def test_tools_and_calls_reach_the_template(with_tools: Running) -> None:
    call = {"id": "call_1", "type": "function"}
    conversation: list[Any] = [
        *QUESTION,
        {
            "role": "assistant",
            "tool_calls": [{**call, "function": {"name": "clock", "arguments": '{"at": 1}'}}],
        },
        {"role": "tool", "tool_call_id": "call_1", "content": "No."},
    ]
    (model,) = with_tools.state.models
    expected = 'weather clock user: Will it rain?assistant: {"at": 1}tool: No.call_1assistant:'
    answer = with_tools.openai.chat.completions.create(
        model="tools", messages=conversation, tools=[WEATHER, CLOCK], max_tokens=1
    )
    assert answer.usage.prompt_tokens == len(model.prompts.encode(expected))
    untold = with_tools.openai.chat.completions.create(
        model="tools", messages=conversation, tools=[CLOCK], tool_choice="none", max_tokens=1
    )
    rest = expected.removeprefix("weather clock ")
    assert untold.usage.prompt_tokens == len(model.prompts.encode(rest))


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": []}, "tools"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (
            {
                "messages": [
                    {
                        "role": "assistant",
                        "tool_calls": [
                            {
                                "id": "1",
                                "type": "function",
                                "function": {"name": "f", "arguments": "["},
                            }
                        ],
                    }
                ]
            },
            "messages[0].tool_calls[0].function.arguments",
        ),
    ],
)
def test_tools_that_are_wrong_are_named(
    with_tools: Running, change: dict[str, Any], param: str
) -> None:
    body = {"model": "tools", "messages": QUESTION, "tools": [WEATHER], **change}
    response = with_tools.post("/v1/chat/completions", **body)
    assert response.status_code == 400
    assert response.json()["error"]["param"] == param


def test_a_template_without_a_place_for_tools_refuses_them(trained: Running) -> None:
    body = {"model": "trained", "messages": QUESTION, "tools": [CLOCK]}
    error = trained.post("/v1/chat/completions", **body).json()["error"]
    assert (error["param"], error["code"]) == ("tools", "unsupported_parameter")
