"""Running what may hang or crash: each attempt in a process of its own, with a time limit."""

import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Generic, NamedTuple, TypeVar

Result = TypeVar("Result")


class Ended(NamedTuple, Generic[Result]):
    """What came of one attempt, and after how many seconds."""

    name: str
    result: Result
    seconds: float


def run_each(
    names: Iterable[str],
    attempt: Callable[[str], Result],
    failed: Callable[[str, str], Result],
    *,
    limit: float,
    jobs: int = 1,
) -> Iterator[Ended[Result]]:
    """Attempt each name in a process of its own, ``jobs`` at a time; yields results as they come.

    ``failed`` makes a result of a name and the reason why its process gave none, which may be that
    it took more than ``limit`` seconds.
    """

    def work(name: str, results: Connection) -> None:
        results.send(attempt(name))

    # Forked, so that a process starts with everything imported.
    context = multiprocessing.get_context("fork")
    waiting = list(names)[::-1]
    running: dict[str, tuple[BaseProcess, Connection, float]] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop()
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=work, args=(name, sender))
            process.start()
            sender.close()
            running[name] = (process, receiver, time.monotonic())
        for name, (process, receiver, began) in list(running.items()):
            seconds = time.monotonic() - began
            if receiver.poll(0.05):
                try:
                    result = receiver.recv()
                except EOFError:
                    process.join()
                    result = failed(name, f"its process died (exit code {process.exitcode})")
            elif seconds > limit:
                process.kill()
                result = failed(name, f"it takes more than {limit:.0f} s")
            else:
                continue
            process.join()
            del running[name]
            yield Ended(name, result, seconds)
