"""Our model in a Triton server, asked over gRPC with a stream for each request."""

import asyncio
import atexit
import sys
import tempfile
from collections import deque
from collections.abc import AsyncIterator
from contextlib import ExitStack
from importlib.metadata import version
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import tritonclient.grpc.aio as triton

from scripts.load.timing import Timeline
from scripts.triton_server.launch import Addresses
from scripts.triton_server.log import ServerLog
from scripts.triton_server.server import Server
from scripts.triton_server.wheel import wheel_launch
from serving.triton.repository import Deployment, write_version
from serving.triton.settings import Settings

_MODEL = "model"


class Runner:
    """The server of .venv-triton over a repository with one model."""

    version = f"export-llm {version('export-llm')}"

    def __init__(
        self, model: str, threads: int, slots: int, capacity: int, prefix_rows: int = 0
    ) -> None:
        settings = Settings(
            threads=threads, slots=slots, capacity=capacity, prefix_rows=prefix_rows
        )
        stack = ExitStack()
        atexit.register(stack.close)
        repository = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        write_version(Deployment(Path(model), _MODEL, settings), repository)
        addresses = Addresses.free()
        launch = wheel_launch(repository, addresses.options)
        log = ServerLog(sys.stderr, verbose=True)
        server = stack.enter_context(Server(launch, addresses, log))
        for _ in server.wait_until_ready():
            pass
        self._address = addresses.grpc

    def run(self, streams: int, prompts: list[list[int]], new_tokens: int) -> list[Timeline]:
        """See worker.Runner."""
        return asyncio.run(self._run(streams, prompts, new_tokens))

    async def _run(self, streams: int, prompts: list[list[int]], new_tokens: int) -> list[Timeline]:
        waiting = deque(prompts)
        timelines: list[Timeline] = []
        async with triton.InferenceServerClient(self._address) as client:
            await client.is_server_ready()  # connects

            async def ask() -> None:
                while waiting:
                    timeline = await _generate(client, waiting.popleft(), new_tokens)
                    if timeline.tokens != new_tokens:
                        raise RuntimeError(f"{timeline.tokens} tokens instead of {new_tokens}")
                    timelines.append(timeline)

            await asyncio.gather(*(ask() for _ in range(streams)))
        return timelines


async def _generate(
    client: triton.InferenceServerClient, prompt: list[int], new_tokens: int
) -> Timeline:
    inputs = [
        _tensor("input_ids", "INT32", [prompt]),
        _tensor("max_tokens", "INT32", [[new_tokens]]),
        _tensor("min_tokens", "INT32", [[new_tokens]]),
        _tensor("stream", "BOOL", [[True]]),
    ]
    outputs = [triton.InferRequestedOutput(name) for name in ("text_output", "output_ids")]

    async def request() -> AsyncIterator[dict[str, Any]]:
        yield {"model_name": _MODEL, "inputs": inputs, "outputs": outputs}

    timeline = Timeline(perf_counter())
    async for result, error in client.stream_infer(request()):
        if error:
            raise RuntimeError(str(error))
        timeline.times.append(perf_counter())
        timeline.tokens += result.as_numpy("output_ids").size
    return timeline


def _tensor(name: str, kind: str, values: list[list[Any]]) -> triton.InferInput:
    array = np.array(values, np.bool_ if kind == "BOOL" else np.int32)
    tensor = triton.InferInput(name, array.shape, kind)
    return tensor.set_data_from_numpy(array)
