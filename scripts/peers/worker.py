"""A peer's own process: it loads one model, then answers requests, one JSON line each.

    python -m scripts.peers.worker PEER SETTINGS     the arguments of the Runner, as JSON

Runs in the peer's virtual environment: it imports the standard library and the peer, no more.
"""

import json
import os
import sys
from importlib import import_module
from time import perf_counter
from typing import IO, Any, Protocol


class Runner(Protocol):
    """A loaded model; ``kv_precision`` is the type that its KV cache is kept in."""

    version: str
    kv_precision: str

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """Continue ``prompt`` greedily: the new tokens, and after how many seconds each came."""
        ...

    def logits(self, prompt: list[int]) -> list[float] | None:
        """Logits of the token that follows ``prompt``, or None where they are hidden."""
        ...


def peak_memory() -> int:
    """Return the most bytes that this process had in memory, mapped files included (VmHWM)."""
    with open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def answer(runner: Runner, request: dict[str, Any]) -> dict[str, Any]:
    """Do what one request asks for."""
    if request["do"] == "logits":
        return {"logits": runner.logits(request["prompt"])}
    tokens, times = runner.generate(request["prompt"], request["new_tokens"])
    return {"tokens": tokens, "times": times, "peak_memory": peak_memory()}


def main() -> None:
    replies = take_stdout()
    name, settings = sys.argv[1], json.loads(sys.argv[2])
    peer = import_module(f"scripts.peers.{name}")
    before = perf_counter()
    runner: Runner = peer.Runner(**settings)
    ready = {
        "load_seconds": perf_counter() - before,
        "version": runner.version,
        "kv_precision": runner.kv_precision,
        "peak_memory": peak_memory(),
    }
    print(json.dumps(ready), file=replies, flush=True)
    for line in sys.stdin:
        print(json.dumps(answer(runner, json.loads(line))), file=replies, flush=True)


def take_stdout() -> IO[str]:
    """Keep standard output for replies: what libraries print goes to standard error."""
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    return replies


if __name__ == "__main__":
    main()
