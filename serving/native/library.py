"""libllm_runtime, found and declared for ctypes; see include/llm_runtime.h."""

import ctypes
import os
from ctypes import (
    POINTER,
    c_bool,
    c_char_p,
    c_double,
    c_int,
    c_int64,
    c_size_t,
    c_uint64,
    c_void_p,
)
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving.errors import EngineError, UserError

LIBRARY = "LLM_RUNTIME_LIBRARY"
_OK, _INVALID_ARGUMENT, _NO_ROOM, _ENGINE_FAILED = 0, 1, 7, 8


class Error(ctypes.Structure):
    """llm_error."""

    _fields_ = (("message", ctypes.c_char * 512),)


class _Sized(ctypes.Structure):
    """A structure that begins with its size."""

    def __init__(self, **fields: object) -> None:
        super().__init__(size=ctypes.sizeof(self), **fields)


class Allocator(ctypes.Structure):
    """llm_allocator."""

    _fields_ = (("allocate", c_void_p), ("release", c_void_p), ("user_data", c_void_p))


class ModelOptions(_Sized):
    """llm_model_options."""

    _fields_ = (
        ("size", c_size_t),
        ("onnxruntime", c_char_p),
        ("kernels", c_char_p),
        ("provider", c_char_p),
        ("threads", c_size_t),
        ("skip_checksums", c_bool),
        ("prepack", c_bool),
        ("without_tokenizer", c_bool),
        ("allocator", Allocator),
    )


class SessionOptions(_Sized):
    """llm_session_options."""

    _fields_ = (
        ("size", c_size_t),
        ("capacity", c_size_t),
        ("rows", c_size_t),
        ("chunk", c_size_t),
    )


class Sampling(_Sized):
    """llm_sampling."""

    _fields_ = (
        ("size", c_size_t),
        ("temperature", c_double),
        ("top_k", c_size_t),
        ("top_p", c_double),
        ("min_p", c_double),
        ("repetition_penalty", c_double),
        ("presence_penalty", c_double),
        ("frequency_penalty", c_double),
        ("bias_ids", c_void_p),
        ("bias", c_void_p),
        ("bias_count", c_size_t),
    )


class Generation(_Sized):
    """llm_generation."""

    _fields_ = (
        ("size", c_size_t),
        ("prompt", c_void_p),
        ("prompt_count", c_size_t),
        ("prompt_text", c_char_p),
        ("max_new_tokens", c_size_t),
        ("min_new_tokens", c_size_t),
        ("ignore_eos", c_bool),
        ("sampling", POINTER(Sampling)),
        ("has_seed", c_bool),
        ("seed", c_uint64),
        ("on_piece", c_void_p),
        ("user_data", c_void_p),
    )


_OUT = POINTER(c_void_p)
_FAILURE = POINTER(Error)

_FUNCTIONS: dict[str, tuple[Any, ...]] = {
    "llm_version": (),
    "llm_model_open": (c_char_p, POINTER(ModelOptions), _OUT, _FAILURE),
    "llm_model_close": (c_void_p,),
    "llm_session_create": (c_void_p, POINTER(SessionOptions), _OUT, _FAILURE),
    "llm_session_free": (c_void_p,),
    "llm_session_seed": (c_void_p, c_uint64),
    "llm_prefill": (c_void_p, c_void_p, c_size_t, _FAILURE),
    "llm_decode": (c_void_p, c_int64, _FAILURE),
    "llm_rollback": (c_void_p, c_size_t, _FAILURE),
    "llm_sample": (c_void_p, POINTER(Sampling), POINTER(c_int64), _FAILURE),
    "llm_generate": (c_void_p, POINTER(Generation), c_void_p, _FAILURE),
    "llm_session_logits": (c_void_p,),
    "llm_session_step": (
        *(c_void_p, c_size_t, c_size_t, c_size_t, c_void_p, c_void_p),
        *(c_size_t, c_void_p, c_void_p, _FAILURE),
    ),
    "llm_session_cache": (
        *(c_void_p, c_size_t, c_int),
        *(POINTER(c_size_t), POINTER(c_size_t), POINTER(c_size_t)),
    ),
}
_WITHOUT_RESULT = {"llm_model_close", "llm_session_free", "llm_session_seed"}
_POINTERS = {"llm_session_logits", "llm_session_cache"}


@cache
def library() -> ctypes.CDLL:
    """The library; raises UserError if it isn't there."""
    loaded = ctypes.CDLL(str(_path()))
    for name, types in _FUNCTIONS.items():
        function = getattr(loaded, name)
        function.argtypes = types
        function.restype = c_int
        if name in _WITHOUT_RESULT:
            function.restype = None
        elif name in _POINTERS:
            function.restype = c_void_p
    loaded.llm_version.restype = c_char_p
    return loaded


def check(status: int, error: Error) -> None:
    """Raise what a status stands for: ValueError for a caller's mistake, else UserError."""
    if status == _OK:
        return
    message = error.message.decode(errors="replace")
    if status in (_INVALID_ARGUMENT, _NO_ROOM):
        raise ValueError(message)
    raise EngineError(message) if status == _ENGINE_FAILED else UserError(message)


def _path() -> Path:
    if LIBRARY in os.environ:
        return Path(os.environ[LIBRARY])
    spec = find_spec("serving.native.runtime")
    if spec is not None and spec.origin:
        return Path(spec.origin)
    raise UserError(
        "The native runtime wasn't compiled when export-llm was installed: install a C compiler "
        f"and export-llm again, or set {LIBRARY} to libllm_runtime.so, which serving/native builds."
    )


def onnxruntime_library() -> Path:
    """The C library of the wheel onnxruntime, which isn't imported; raises UserError."""
    spec = find_spec("onnxruntime")
    for directory in spec.submodule_search_locations or () if spec else ():
        for path in sorted(Path(directory, "capi").glob("libonnxruntime.so*")):
            return path
    raise UserError(
        "The installed onnxruntime has no libonnxruntime.so: install the wheel onnxruntime, or "
        "open the bundle without runtime='native'."
    )
