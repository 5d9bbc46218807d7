"""A contestant's own process: it loads its model or starts its server, then runs loads.

    python -m scripts.load.worker MODULE SETTINGS     the arguments of the Runner, as JSON

Each line of standard input is a load, {"streams": n, "prompts": [...], "new_tokens": m}; each is
answered with a line that has the timeline of every request. Runs in the contestant's environment.
"""

import json
import sys
from importlib import import_module
from typing import Protocol

from scripts.load.timing import Timeline
from scripts.peers.worker import take_stdout


class Runner(Protocol):
    """What can be put under load."""

    version: str

    def run(self, streams: int, prompts: list[list[int]], new_tokens: int) -> list[Timeline]:
        """Serve all prompts (token ids), ``streams`` at a time, each with so many new tokens."""
        ...


def main() -> None:
    replies = take_stdout()
    module, settings = sys.argv[1], json.loads(sys.argv[2])
    runner: Runner = import_module(f"scripts.load.{module}").Runner(**settings)
    print(json.dumps({"version": runner.version}), file=replies, flush=True)
    for line in sys.stdin:
        timelines = [timeline.as_json() for timeline in runner.run(**json.loads(line))]
        print(json.dumps({"timelines": timelines}), file=replies, flush=True)


if __name__ == "__main__":
    main()
