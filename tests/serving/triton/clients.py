"""Clients of a Triton server: tensors for its gRPC endpoint, and streams of responses."""

from __future__ import annotations

import queue
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tritonclient import grpc

SECONDS = 60

_TYPES = {"i4": "INT32", "i8": "INT64", "f4": "FP32", "b1": "BOOL", "u8": "UINT64", "O": "BYTES"}
_DTYPES = {int: np.int32, float: np.float32, bool: np.bool_, str: np.object_}


def until(holds: Callable[[], bool], seconds: float = 30) -> None:
    """Wait for something to be true."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, "it didn't happen in time"
        time.sleep(0.05)


def infer_inputs(**values: Any) -> list[grpc.InferInput]:
    """Input tensors [1, 1] of single values, [1, n] of lists; arrays go as they are."""
    inputs = []
    for name, value in values.items():
        array = value if isinstance(value, np.ndarray) else _array(value)
        tensor = grpc.InferInput(name, list(array.shape), _TYPES[array.dtype.str[1:]])
        tensor.set_data_from_numpy(array)
        inputs.append(tensor)
    return inputs


def _array(value: Any) -> np.ndarray[Any, Any]:
    values = value if isinstance(value, list) else [value]
    dtype = _DTYPES[type(values[0])]
    encoded = [item.encode() if isinstance(item, str) else item for item in values]
    return np.array([encoded], dtype)


@dataclass
class Streamed:
    """What one request's responses said."""

    texts: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    log_probs: list[float] = field(default_factory=list)
    finish_reason: str | None = None
    error: str | None = None

    @property
    def text(self) -> str:
        return "".join(self.texts)

    def add(self, result: grpc.InferResult) -> None:
        text = result.as_numpy("text_output")
        if text is None:  # the empty response that only says that it is the last
            return
        self.texts.append(text[0, 0].decode())
        self.token_ids += result.as_numpy("output_ids")[0, 0].tolist()
        log_probs = result.as_numpy("output_log_probs")
        if log_probs is not None:
            self.log_probs += log_probs[0, 0].tolist()
        reason = result.as_numpy("finish_reason")
        if reason is not None and reason.size:
            self.finish_reason = reason[0, 0].decode()


class Connection:
    """One gRPC stream; its requests run side by side."""

    def __init__(self, client: grpc.InferenceServerClient) -> None:
        self._client = client
        self._arrivals: queue.Queue[tuple[Any, Any]] = queue.Queue()
        self._requests = 0
        client.start_stream(lambda result, error: self._arrivals.put((result, error)))

    def send(
        self, model: str, version: str = "", timeout: int | None = None, **values: Any
    ) -> None:
        """Begin a request, numbered from 0 on, with a ``timeout`` in microseconds."""
        self._client.async_stream_infer(
            model,
            infer_inputs(**values),
            model_version=version,
            request_id=str(self._requests),
            timeout=timeout,
            enable_empty_final_response=True,
        )
        self._requests += 1

    def collect(self) -> list[Streamed]:
        """Wait for the ends of all requests."""
        streams = [Streamed() for _ in range(self._requests)]
        ended = 0
        while ended < self._requests:
            ended += self._take(streams)
        return streams

    def next_text(self) -> str:
        """The text of the next response, of whatever request."""
        result, error = self._arrivals.get(timeout=SECONDS)
        assert error is None, error
        return str(result.as_numpy("text_output")[0, 0].decode())

    def _take(self, streams: list[Streamed]) -> bool:
        """Take one response; returns whether it was its request's last."""
        result, error = self._arrivals.get(timeout=SECONDS)
        if error is not None:
            number = re.search(r"\[request id: (\d+)\] ", error.message())
            assert number, error.message()
            streams[int(number[1])].error = error.message().replace(number[0], "", 1)
            return True
        response = result.get_response()
        streams[int(response.id)].add(result)
        return bool(response.parameters["triton_final_response"].bool_param)


@contextmanager
def connection(address: str, *, cancels: bool = False) -> Iterator[Connection]:
    """A stream to a server's gRPC endpoint; ``cancels``: leaving it cancels what still runs."""
    client = grpc.InferenceServerClient(address)
    try:
        yield Connection(client)
    finally:
        client.stop_stream(cancel_requests=cancels)
        client.close()
