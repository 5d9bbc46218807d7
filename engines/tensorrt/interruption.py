"""Long calls into TensorRT that Ctrl-C can end."""

import atexit
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

T = TypeVar("T")


def run_interruptibly(work: Callable[[], T], cancelled: threading.Event) -> T:
    """Run ``work`` on a thread of its own and return its result, or raise what it raises.

    Python sees Ctrl-C between two instructions of the main thread, and TensorRT asks whether it
    should go on between two steps, of which compiling is one that takes seconds. So the main thread
    waits here: when it is interrupted, ``cancelled`` is set and KeyboardInterrupt is raised at
    once. ``work`` ends at its next step, unobserved; it must not need what the caller clears up.
    Should the process end before, it ends without waiting, with exit code 1.
    """
    future: Future[T] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    thread = threading.Thread(target=run, name="tensorrt-build", daemon=True)
    try:
        thread.start()
        return future.result()
    except KeyboardInterrupt:
        cancelled.set()
        atexit.register(_leave, thread)
        raise


def _leave(thread: threading.Thread) -> None:
    """End at once if the thread is in TensorRT still, which would call a Python that ends."""
    if thread.is_alive():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
