"""The server's end of a worker's pipe, which never holds up the event loop."""

import asyncio
import queue
import threading
from multiprocessing.connection import Connection

from serving.worker.messages import ToServer, ToWorker


class Pipe:
    """Sends and receives on threads of its own; a worker that reads nothing delays only itself.

    ``received`` gets what the worker sends, and None when it is gone.
    """

    def __init__(self, connection: Connection, loop: asyncio.AbstractEventLoop) -> None:
        self._connection = connection
        self._loop = loop
        self._outgoing: queue.SimpleQueue[ToWorker | None] = queue.SimpleQueue()
        self.received: asyncio.Queue[ToServer | None] = asyncio.Queue()
        self._threads = [
            threading.Thread(target=run, daemon=True) for run in (self._read, self._write)
        ]
        for thread in self._threads:
            thread.start()

    def send(self, message: ToWorker) -> None:
        """Send as soon as the worker reads; to one that is gone nothing is sent."""
        self._outgoing.put(message)

    def close(self) -> None:
        """Wait for the threads, then close; the worker must have ended."""
        self._outgoing.put(None)
        for thread in self._threads:
            thread.join()
        self._connection.close()

    def _write(self) -> None:
        while (message := self._outgoing.get()) is not None:
            try:
                self._connection.send(message)
            except OSError:
                return

    def _read(self) -> None:
        message: ToServer | None
        while True:
            try:
                message = self._connection.recv()
            except (EOFError, OSError):
                message = None
            try:
                self._loop.call_soon_threadsafe(self.received.put_nowait, message)
            except RuntimeError:  # the loop is closed
                return
            if message is None:
                return
