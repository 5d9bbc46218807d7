"""The parent's side of a worker: start one, ask it, stop it."""

import json
import os
import subprocess
from pathlib import Path
from typing import Any

from serving.closing import Closing

ROOT = Path(__file__).parents[2]


class PeerError(Exception):
    """A peer could not be loaded, or died; the message ends with what it printed last."""


def environment() -> dict[str, str]:
    """Return the environment of a peer's process: ours, and this package on the path."""
    return os.environ | {"PYTHONPATH": str(ROOT), "TOKENIZERS_PARALLELISM": "false"}


class Worker(Closing):
    """A running worker of one peer, loaded; ``ready`` is what it said of itself.

    Raises PeerError if the peer can't load the model. What it prints goes to ``log``.
    """

    def __init__(self, module: str, python: Path, settings: dict[str, Any], log: Path) -> None:
        self._log = log
        command = [str(python), "-m", "scripts.peers.worker", module, json.dumps(settings)]
        with log.open("a") as errors:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                env=environment(),
            )
        self.ready = self._read()

    def generate(self, prompt: list[int], new_tokens: int) -> dict[str, Any]:
        """Return the new tokens, the times at which they were there, and the peak memory."""
        reply = self._ask({"do": "generate", "prompt": prompt, "new_tokens": new_tokens})
        if not len(reply["tokens"]) == len(reply["times"]) == new_tokens:
            raise PeerError(f"gave {len(reply['tokens'])} tokens instead of {new_tokens}")
        return reply

    def logits(self, prompt: list[int]) -> list[float] | None:
        """Return the logits after ``prompt``, or None if this peer doesn't show them."""
        logits: list[float] | None = self._ask({"do": "logits", "prompt": prompt})["logits"]
        return logits

    def _ask(self, request: dict[str, Any]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        return self._read()

    def _read(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            code = self._process.wait()
            last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
            raise PeerError(f"ended with code {code}: {' '.join(last)}")
        reply: dict[str, Any] = json.loads(line)
        return reply

    def close(self) -> None:
        """End the process; it has nothing to save."""
        self._process.kill()
        self._process.communicate()
