"""Our own server, serve-llm http."""

import sys
from importlib.metadata import version
from pathlib import Path

from scripts.load.clients import Endpoint, run_clients
from scripts.load.server_process import free_port, start_server
from scripts.load.timing import Timeline


class Runner:
    """serve-llm http over a bundle."""

    version = f"export-llm {version('export-llm')}"

    def __init__(
        self, model: str, threads: int, slots: int, capacity: int, prefix_rows: int = 0
    ) -> None:
        port = free_port()
        options = {
            "port": port,
            "threads": threads,
            "slots": slots,
            "capacity": capacity,
            "prefix-rows": prefix_rows,
        }
        command = [str(Path(sys.executable).with_name("serve-llm")), "http", f"model={model}"]
        command += [f"--{name}={value}" for name, value in options.items()]
        base = f"http://127.0.0.1:{port}"
        start_server(command, f"{base}/ready")
        self._endpoint = Endpoint(
            f"{base}/v1/completions",
            lambda prompt, new_tokens: {
                "model": "model",
                "prompt": prompt,
                "max_tokens": new_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "stream": True,
                "stream_options": {"include_usage": True},
            },
            brings_tokens=lambda event: bool(event["choices"]),
            total=lambda event: event["usage"]["completion_tokens"] if event["usage"] else None,
        )

    def run(self, streams: int, prompts: list[list[int]], new_tokens: int) -> list[Timeline]:
        """See worker.Runner."""
        return run_clients(self._endpoint, streams, prompts, new_tokens)
