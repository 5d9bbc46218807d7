"""The native tokenizer, called through ctypes."""

import ctypes
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from tests.conftest import ROOT

HARNESS = ROOT / "tests" / "serving" / "native" / "tokenizer_harness.c"
SOURCES = (
    *(
        "buffer.c",
        "character_set.c",
        "detokenizer.c",
        "failure.c",
        "json.c",
        "json_check.c",
        "memory.c",
    ),
    *("regex.c", "regex_classes.c", "regex_compiler.c", "tokenizer.c", "tokenizer_added.c"),
    *("tokenizer_bpe.c", "tokenizer_decoder.c", "tokenizer_normalizer.c", "tokenizer_pattern.c"),
    *("tokenizer_splitter.c", "tokenizer_vocabulary.c", "unicode.c", "unicode_nfc.c"),
)
OK, DAMAGED, UNSUPPORTED, OUT_OF_MEMORY = 0, 4, 5, 6


class Error(ctypes.Structure):
    """``llm_error``."""

    _fields_ = (("message", ctypes.c_char * 512),)


class Allocator(ctypes.Structure):
    """``llm_allocator``; zeros are malloc and free."""

    _fields_ = (("pointers", ctypes.c_void_p * 3),)


class NativeError(Exception):
    """A status that isn't LLM_OK."""

    def __init__(self, status: int, error: Error) -> None:
        super().__init__(error.message.decode(errors="replace"))
        self.status = status


class NativeTokenizer:
    """A tokenizer from the text of a tokenizer.json."""

    def __init__(self, library: Path, json: str) -> None:
        self._library = ctypes.CDLL(str(library))
        self._pointer = ctypes.c_void_p()
        text = json.encode()
        self._call(
            "open",
            text,
            ctypes.c_size_t(len(text)),
            ctypes.byref(Allocator()),
            ctypes.byref(self._pointer),
        )

    def __del__(self) -> None:
        self._library.harness_close(self._pointer)

    def _call(self, name: str, *arguments: object) -> None:
        error = Error()
        status = getattr(self._library, f"harness_{name}")(*arguments, ctypes.byref(error))
        if status != OK:
            raise NativeError(status, error)

    def encode(self, texts: Sequence[bytes], *, special: bool = False) -> list[list[int]]:
        """The tokens of each text."""
        joined = b"".join(texts)
        ends = (ctypes.c_size_t * len(texts))()
        end = 0
        for i, text in enumerate(texts):
            end += len(text)
            ends[i] = end
        capacity = 4 * len(joined) + 32 * len(texts)
        ids = (ctypes.c_int64 * capacity)()
        id_ends = (ctypes.c_size_t * len(texts))()
        self._call(
            "encode",
            *(self._pointer, joined, ends, ctypes.c_size_t(len(texts)), ctypes.c_bool(special)),
            *(ids, ctypes.c_size_t(capacity), id_ends),
        )
        return [ids[start:end] for start, end in pairwise([0, *id_ends])]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """The text of tokens. It fails if it isn't UTF-8."""
        text, size = ctypes.c_void_p(), ctypes.c_size_t()
        self._call(
            "decode",
            *(self._pointer, (ctypes.c_int64 * len(ids))(*ids), ctypes.c_size_t(len(ids))),
            *(ctypes.c_bool(skip_special_tokens), ctypes.byref(text), ctypes.byref(size)),
        )
        return ctypes.string_at(text, size.value).decode()

    def stream(self, ids: Sequence[int], prompt: int = 0) -> list[str]:
        """The piece that each token adds behind the first ``prompt`` ones, and the end's."""
        count = len(ids) - prompt + 1
        ends, out = (ctypes.c_size_t * count)(), ctypes.create_string_buffer(1024 * count)
        self._call(
            "stream",
            *(self._pointer, (ctypes.c_int64 * len(ids))(*ids), ctypes.c_size_t(len(ids))),
            *(ctypes.c_size_t(prompt), out, ends, ctypes.byref(Allocator())),
        )
        return [out.raw[start:end].decode() for start, end in pairwise([0, *ends])]
