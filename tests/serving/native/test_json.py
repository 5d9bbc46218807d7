"""The native runtime's JSON reader against Python's."""

import ctypes
import json
import math
import random
import struct
from typing import Any

import pytest

from tests.serving.native.compiled import compiled

ABSENT, NULL, FALSE, TRUE, NUMBER, STRING = range(6)


class Value(ctypes.Structure):
    """``JsonValue``."""

    _fields_ = (("start", ctypes.c_void_p), ("limit", ctypes.c_void_p))


class Error(ctypes.Structure):
    """``JsonError``."""

    _fields_ = (("reason", ctypes.c_char_p), ("offset", ctypes.c_size_t))


class Items(ctypes.Structure):
    """``JsonItems``."""

    _fields_ = (
        ("name", Value),
        ("value", Value),
        ("next", ctypes.c_void_p),
        ("is_object", ctypes.c_bool),
    )


class Reader:
    """The C functions, and a document as Python has it."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        library.json_member.restype = Value
        library.json_items.restype = Items
        library.json_next.restype = ctypes.c_bool
        library.json_read.restype = ctypes.c_bool
        library.json_integer.restype = ctypes.c_bool
        library.json_double.restype = ctypes.c_bool
        library.json_string_size.restype = ctypes.c_size_t
        library.json_string_is.restype = ctypes.c_bool
        library.json_count.restype = ctypes.c_size_t

    def root(self, text: bytes) -> tuple[Value, Any]:
        """The document's root and the copy of the text that it points into."""
        copy = ctypes.create_string_buffer(text, max(len(text), 1))
        root, error = Value(), Error()
        size = ctypes.c_size_t(len(text))
        if not self.library.json_read(copy, size, ctypes.byref(root), ctypes.byref(error)):
            assert error.offset <= len(text)
            raise ValueError((error.reason or b"").decode())
        return root, copy

    def load(self, text: bytes) -> Any:
        root, copy = self.root(text)
        value = self.value(root)
        del copy
        return value

    def value(self, value: Value) -> Any:
        match self.library.json_type(value):
            case kind if kind in (NULL, FALSE, TRUE):
                return {NULL: None, FALSE: False, TRUE: True}[kind]
            case kind if kind == NUMBER:
                return self.number(value)
            case kind if kind == STRING:
                return self.string(value)
        items = self.library.json_items(value)
        pairs = []
        while self.library.json_next(ctypes.byref(items)):
            name = self.string(items.name) if items.is_object else None
            pairs.append((name, self.value(items.value)))
        assert self.library.json_count(value) == len(pairs)
        return dict(pairs) if items.is_object else [item for _, item in pairs]

    def number(self, value: Value) -> int | float:
        integer, double = ctypes.c_int64(), ctypes.c_double()
        if self.library.json_integer(value, ctypes.byref(integer)):
            return integer.value
        assert self.library.json_double(value, ctypes.byref(double))
        return double.value

    def string(self, value: Value) -> str:
        text = ctypes.create_string_buffer(self.library.json_string_size(value) + 1)
        self.library.json_string_copy(value, text)
        return text.raw[:-1].decode()


@pytest.fixture(scope="module")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    return Reader(ctypes.CDLL(str(compiled(tmp_path_factory, "json", "json.c", "json_check.c"))))


def random_string(rng: random.Random) -> str:
    characters = 'ab"\\/\b\n\0\x7fé\u2028中\ufffd😀'
    return "".join(rng.choices(characters, k=rng.randrange(9)))


def random_float(rng: random.Random) -> float:
    (number,) = struct.unpack("<d", struct.pack("<Q", rng.getrandbits(64)))
    return float(number) if math.isfinite(number) else 0.5


def random_value(rng: random.Random, depth: int = 0) -> Any:
    kind = rng.randrange(8 if depth < 5 else 6)
    if kind < 2:
        return random_string(rng)
    if kind == 2:
        return rng.choice((0, -1, 2**63 - 1, -(2**63), rng.randrange(-9999, 9999)))
    if kind == 3:
        return random_float(rng)
    if kind < 6:
        return rng.choice((None, True, False))
    values = [random_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {random_string(rng): value for value in values} if kind == 6 else values


def test_reads_what_python_wrote(reader: Reader) -> None:
    rng = random.Random(0)
    for _ in range(300):
        value = random_value(rng)
        for text in (
            json.dumps(value),
            json.dumps(value, ensure_ascii=False, separators=(",", ":")),
            json.dumps(value, indent=2).replace("\n", "\r\n\t "),
        ):
            assert reader.load(text.encode()) == value


def test_agrees_with_python_on_damaged_documents(reader: Reader) -> None:
    rng = random.Random(1)
    refused = 0
    for _ in range(6000):
        text = bytearray(json.dumps(random_value(rng, 3), ensure_ascii=rng.random() < 0.5).encode())
        for _ in range(rng.randrange(1, 3)):
            at = rng.randrange(len(text) + 1)
            text[at : at + rng.randrange(2)] = rng.choices(b'{}[]",:\\\x000123-+.eEu tfn\xc3\xff')
        try:
            expected = json.loads(text.decode(), parse_constant=refuse)
            json.dumps(expected, ensure_ascii=False).encode()  # lone surrogates are no text
        except ValueError:
            refused += 1
            with pytest.raises(ValueError, match=r"."):
                reader.load(bytes(text))
            continue
        assert reader.load(bytes(text)) == as_doubles(expected)
    assert 1000 < refused < 5500


def refuse(constant: str) -> None:
    raise ValueError(constant)


def as_doubles(value: Any) -> Any:
    """The value with integers beyond 64 bits as the doubles that C sees."""
    if isinstance(value, dict):
        return {name: as_doubles(item) for name, item in value.items()}
    if isinstance(value, list):
        return [as_doubles(item) for item in value]
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        return float(value)
    return value


def test_numbers_are_the_nearest_doubles(reader: Reader) -> None:
    rng = random.Random(2)
    texts = [repr(random_float(rng)) for _ in range(500)]
    texts += [str(random_float(rng)).replace("e", "000E") for _ in range(500)]
    texts += ["1e400", "-1e400", "1e-400", "0e99999999999", "-0.0", "5e-324", "2.5e-324"]
    texts += ["0." + "0" * 400 + "1e400", "1" + "0" * 900, "1" + "0" * 900 + "e-900"]
    texts += ["9007199254740993.0", "9007199254740993" + "0" * 790 + "e-790"]
    for text in texts:
        assert reader.load(text.encode()) == float(text), text


@pytest.mark.parametrize(
    "text", [b"", b" ", b"[", b'{"a":1,}', b"[1,]", b"01", b"1.", b"NaN", b"1 2"]
)
def test_refuses_what_is_no_document(reader: Reader, text: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        reader.load(text)


def test_depth_has_a_limit(reader: Reader) -> None:
    assert reader.load(b"[" * 64 + b"]" * 64) == json.loads("[" * 64 + "]" * 64)
    with pytest.raises(ValueError, match="deep"):
        reader.load(b"[" * 65 + b"]" * 65)
    with pytest.raises(ValueError, match="deep"):
        reader.load(b'{"a":' * 1_000_000)


def test_members(reader: Reader) -> None:
    root, copy = reader.root(b'{"a": {"b": [1, "}"]}, "c": "x\\u0000y", "\\u0064": 1, "d": 2}')
    member = reader.library.json_member
    assert reader.value(member(member(root, b"a"), b"b")) == [1, "}"]
    assert reader.value(member(root, b"d")) == 2  # the last of that name, as in Python
    for absent in (member(root, b"b"), member(member(root, b"c"), b"b"), member(Value(), b"b")):
        assert reader.library.json_type(absent) == ABSENT
        assert not reader.library.json_string_is(absent, b"")
    assert not reader.library.json_string_is(member(root, b"c"), b"x")
    assert reader.string(member(root, b"c")) == "x\0y"
    del copy
