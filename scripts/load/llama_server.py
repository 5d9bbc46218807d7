"""llama.cpp's own server, llama-server."""

import subprocess

from scripts.load.clients import Endpoint, run_clients
from scripts.load.server_process import free_port, start_server
from scripts.load.timing import Timeline


class Runner:
    """A GGUF file with continuous batching, a float32 KV cache and nothing kept of prompts."""

    def __init__(self, model: str, program: str, threads: int, slots: int, capacity: int) -> None:
        output = subprocess.run([program, "--version"], capture_output=True, text=True, check=False)
        self.version = (output.stderr + output.stdout).strip().splitlines()[0]
        port = free_port()
        options = {
            "model": model,
            "port": port,
            "threads": threads,
            "threads-batch": threads,
            "parallel": slots,
            "ctx-size": slots * capacity,
            "cache-type-k": "f32",
            "cache-type-v": "f32",
            "flash-attn": "off",
            "cache-ram": 0,
        }
        command = [program, "--cont-batching", "--no-webui"]
        command += [word for name, value in options.items() for word in (f"--{name}", str(value))]
        base = f"http://127.0.0.1:{port}"
        start_server(command, f"{base}/health")
        self._endpoint = Endpoint(
            f"{base}/completion",
            lambda prompt, new_tokens: {
                "prompt": prompt,
                "n_predict": new_tokens,
                "temperature": 0,
                "ignore_eos": True,
                "cache_prompt": False,
                "return_tokens": True,
                "stream": True,
            },
            brings_tokens=lambda event: bool(event["tokens"]),
            total=lambda event: event.get("tokens_predicted"),
        )

    def run(self, streams: int, prompts: list[list[int]], new_tokens: int) -> list[Timeline]:
        """See worker.Runner."""
        return run_clients(self._endpoint, streams, prompts, new_tokens)
