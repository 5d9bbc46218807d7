"""Our own engines in the native runtime: llm_generate, called with a clock in its callback."""

import ctypes
from ctypes import POINTER, byref, c_bool, c_int64, c_void_p
from time import perf_counter

import numpy as np

from serving import kernels
from serving.bundle import open_bundle
from serving.native.library import (
    Error,
    Generation,
    ModelOptions,
    SessionOptions,
    check,
    library,
    onnxruntime_library,
)

_OnPiece = ctypes.CFUNCTYPE(c_bool, POINTER(c_int64), c_void_p)  # a piece begins with its id


class Runner:
    """A bundle opened without comparing checksums, as no peer compares any."""

    version = library().llm_version().decode()

    def __init__(self, model: str, precision: str, threads: int, capacity: int) -> None:  # noqa: ARG002
        self._error, self._model, self._session = Error(), c_void_p(), c_void_p()
        own = kernels.library()
        options = ModelOptions(
            onnxruntime=str(onnxruntime_library()).encode(),
            kernels=str(own).encode() if own else b"",
            threads=threads,
            skip_checksums=True,
            without_tokenizer=True,
        )
        graph = open_bundle(model, verify=False).manifest.graph
        self._vocab_size, self.kv_precision = graph.vocab_size, graph.dtype
        self._call("llm_model_open", model.encode(), byref(options), byref(self._model))
        session = SessionOptions(capacity=capacity)
        self._call("llm_session_create", self._model, byref(session), byref(self._session))

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """See worker.Runner."""
        tokens: list[int] = []
        times: list[float] = []

        def on_piece(piece: "ctypes._Pointer[c_int64]", _: int | None) -> bool:
            times.append(perf_counter() - before)
            tokens.append(piece[0])
            return True

        ids = (c_int64 * len(prompt))(*prompt)
        callback = _OnPiece(on_piece)
        wish = Generation(
            prompt=ctypes.addressof(ids),
            prompt_count=len(prompt),
            max_new_tokens=new_tokens,
            ignore_eos=True,
            on_piece=ctypes.cast(callback, c_void_p),
        )
        before = perf_counter()
        self._call("llm_rollback", self._session, 0)
        self._call("llm_generate", self._session, byref(wish), None)
        return tokens, times

    def logits(self, prompt: list[int]) -> list[float]:
        """See worker.Runner."""
        ids = (c_int64 * len(prompt))(*prompt)
        self._call("llm_rollback", self._session, 0)
        self._call("llm_prefill", self._session, ids, len(prompt))
        address = library().llm_session_logits(self._session)
        values = (ctypes.c_float * self._vocab_size).from_address(address)
        return np.ctypeslib.as_array(values).tolist()

    def _call(self, name: str, *arguments: object) -> None:
        check(getattr(library(), name)(*arguments, self._error), self._error)
