"""Tool calls in what a model writes, found while it comes.

Two forms are known. Hermes and Qwen write ``<tool_call>{"name": "f", "arguments": {}}</tool_call>``
with text around it. With Llama the whole text is such an object or a list of them, and the
arguments may be called "parameters".
"""

import json
import re
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any

_BEGIN, _END = "<tool_call>", "</tool_call>"
_HEADER = re.compile(
    r'\s*[\[,]?\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
# An object that doesn't begin as a call within so many characters is an answer in JSON.
_HEADER_CHARACTERS = 160


@dataclass(frozen=True, slots=True)
class CallBegin:
    """Call number ``index`` begins; its arguments follow."""

    index: int
    name: str


@dataclass(frozen=True, slots=True)
class Arguments:
    """More of the arguments of call number ``index``, which together are a JSON text."""

    index: int
    text: str


Part = str | CallBegin | Arguments


class ToolCallParser:
    """Splits a text that comes in pieces into what is said and what is called.

    An object without tags is a call if it names one of the functions ``names``. Calls beyond
    ``most`` are dropped.
    """

    def __init__(self, names: Collection[str], most: int | None = None) -> None:
        self._names = names
        self._most = most
        self._text = ""  # what wasn't read yet
        self._parts: list[Part] = []
        # How to read on: each returns whether it read something and there may be more to read.
        self._read: Callable[[], bool] = self._read_start
        self._object = _ObjectEnd()
        self._is_tagged = False
        self.calls = 0

    def push(self, piece: str) -> list[Part]:
        """Add text; return what is certain."""
        self._text += piece
        while self._read():
            pass
        return self._take_parts()

    def finish(self) -> list[Part]:
        """Return what was held back; nothing may be pushed after it."""
        if self._read == self._read_bare_head:
            self._call_or_say(self._text, self._text, self._names)
        elif self._read == self._read_tagged_head:
            self._call_or_say(self._text, _BEGIN + self._text)
        elif self._read in (self._read_start, self._read_text):
            self._say(self._text)
        return self._take_parts()

    def _read_start(self) -> bool:
        """What isn't space comes first and tells whether all of the text is a call."""
        first = self._text.lstrip()
        if not first or (first != _BEGIN and _BEGIN.startswith(first)):
            return False
        if first[0] in "{[":
            return self._go_on(self._read_bare_head)
        # Space before a tag is no answer.
        tagged = first.startswith(_BEGIN)
        return self._go_on(self._read_text, len(self._text) - len(first) if tagged else 0)

    def _read_text(self) -> bool:
        """Say everything up to a tag, and hold back what may become one."""
        begin = self._text.find(_BEGIN)
        if begin >= 0:
            self._say(self._text[:begin])
            return self._go_on(self._read_tagged_head, begin + len(_BEGIN))
        certain = len(self._text) - _overlap(self._text, _BEGIN)
        self._say(self._text[:certain])
        self._text = self._text[certain:]
        return False

    def _read_tagged_head(self) -> bool:
        if header := _HEADER.match(self._text):
            return self._begin_call(header)
        end = self._text.find(_END)
        if end < 0:
            return False
        body = self._text[:end]
        self._call_or_say(body, _BEGIN + body + _END)
        return self._go_on(self._read_text, end + len(_END))

    def _read_bare_head(self) -> bool:
        header = _HEADER.match(self._text)
        if header and header[1] in self._names:
            return self._begin_call(header)
        if header is None and len(self._text) < _HEADER_CHARACTERS:
            return False
        return self._go_on(self._read_text)

    def _read_arguments(self) -> bool:
        end = self._object.push(self._text)
        text = self._text if end is None else self._text[:end]
        if text:
            self._add(Arguments(self.calls - 1, text))
        self._text = self._text[len(text) :]
        if end is None:
            return False
        return self._go_on(self._read_tagged_end if self._is_tagged else self._read_bare_end)

    def _read_tagged_end(self) -> bool:
        end = self._text.find(_END)
        return end >= 0 and self._go_on(self._read_text, end + len(_END))

    def _read_bare_end(self) -> bool:
        """Behind the call's brace there may be another call of a list, and nothing else."""
        rest = self._text.lstrip()
        another = re.match(r"\}\s*(?=,)", rest)
        if another is None:
            return False
        return self._go_on(self._read_bare_head, len(self._text) - len(rest) + another.end())

    def _go_on(self, read: Callable[[], bool], begin: int = 0) -> bool:
        """Read what begins there in another way."""
        self._text = self._text[begin:]
        self._read = read
        return True

    def _begin_call(self, header: re.Match[str]) -> bool:
        self._is_tagged = self._read == self._read_tagged_head
        self._object = _ObjectEnd()
        self.calls += 1
        self._add(CallBegin(self.calls - 1, header[1]))
        return self._go_on(self._read_arguments, header.end())

    def _call_or_say(self, text: str, said: str, names: Collection[str] | None = None) -> None:
        """Take a complete text for what it is: calls (of ``names``, if given), or an answer."""
        calls = _calls_in(text)
        if not calls or (names is not None and any(name not in names for name, _ in calls)):
            self._say(said)
            return
        for name, arguments in calls:
            self.calls += 1
            self._add(CallBegin(self.calls - 1, name))
            self._add(Arguments(self.calls - 1, arguments))

    def _say(self, text: str) -> None:
        # Line breaks between calls are no answer.
        if text and not (self.calls and text.isspace()):
            self._parts.append(text)

    def _add(self, part: CallBegin | Arguments) -> None:
        if self._most is None or part.index < self._most:
            self._parts.append(part)

    def _take_parts(self) -> list[Part]:
        parts, self._parts = self._parts, []
        return parts


class _ObjectEnd:
    """Finds where a JSON object ends that comes in pieces."""

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = self._escaped = False

    def push(self, piece: str) -> int | None:
        """How much of a piece belongs to the object, or None if all does and more will come."""
        for at, character in enumerate(piece):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self._depth += 1
            elif character in "}]":
                self._depth -= 1
                if not self._depth:
                    return at + 1
        return None


def _calls_in(text: str) -> list[tuple[str, str]]:
    """Names and arguments of the calls that a text is; none if it is anything else."""
    try:
        document = json.loads(text)
    except ValueError:
        return []
    calls = []
    for entry in document if isinstance(document, list) else [document]:
        call = _call_of(entry)
        if call is None:
            return []
        calls.append(call)
    return calls


def _call_of(entry: Any) -> tuple[str, str] | None:
    if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
        return None
    arguments = entry.get("arguments", entry.get("parameters", {}))
    text = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    return entry["name"], text


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that begins a tag."""
    lengths = range(min(len(tag) - 1, len(text)), 0, -1)
    return next((length for length in lengths if text.endswith(tag[:length])), 0)
