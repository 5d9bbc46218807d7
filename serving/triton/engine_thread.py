"""An engine's loop on a thread, whose outcomes are handed on by a second one."""

import logging
from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread

from serving.closing import Closing
from serving.generation import Model
from serving.scheduler import Outcome
from serving.worker.loop import EngineLoop
from serving.worker.messages import Cancel, Load, Progress, Submit

_log = logging.getLogger(__name__)


class EngineThread(Closing):
    """Runs a model's scheduler; closing it ends the threads and frees the model.

    ``deliver`` gets every outcome, on a thread of its own, so that a slow receiver doesn't hold up
    the engine. ``failed`` is called on that thread, at last, if the engine can't go on.
    """

    def __init__(
        self,
        model: Model,
        deliver: Callable[[Outcome], None],
        failed: Callable[["EngineThread"], None],
        *,
        target_latency: float | None = None,
        queue_limit: int | None = None,
    ) -> None:
        self.model = model
        self._deliver = deliver
        self._failed = failed
        self._channel = _QueueChannel()
        scheduler = model.scheduler(target_latency=target_latency, queue_limit=queue_limit)
        self._loop = EngineLoop(model, scheduler, self._channel)
        self._threads = [
            Thread(target=self._step, name="engine", daemon=True),
            Thread(target=self._hand_on, name="outcomes", daemon=True),
        ]
        self.load = Load()
        self._has_failed = False
        for thread in self._threads:
            thread.start()

    def send(self, message: Submit | Cancel) -> None:
        """Tell the engine to begin or to forget something; any thread may."""
        self._channel.incoming.put(message)

    def close(self) -> None:
        """End after the step that runs; what hasn't ended is dropped."""
        self._channel.incoming.put(None)
        for thread in self._threads:
            thread.join()
        self.model.close()

    def _step(self) -> None:
        try:
            self._loop.run()
        except EOFError:
            pass
        except Exception:  # a fault of ours ends all requests as one of the engine's does
            _log.exception("the engine failed")
            self._has_failed = True
        finally:
            self._channel.outgoing.put(None)

    def _hand_on(self) -> None:
        while (progress := self._channel.outgoing.get()) is not None:
            self.load = progress.load
            for outcome in progress.events:
                self._deliver_one(outcome)
        if self._has_failed:
            self._failed(self)

    def _deliver_one(self, outcome: Outcome) -> None:
        try:
            self._deliver(outcome)
        except Exception:  # of one request: the others' outcomes come through this thread too
            _log.exception("an outcome couldn't be handed on")


class _QueueChannel:
    """A channel between threads; None in a queue closes it."""

    def __init__(self) -> None:
        self.incoming: SimpleQueue[Submit | Cancel | None] = SimpleQueue()
        self.outgoing: SimpleQueue[Progress | None] = SimpleQueue()
        self._polled: list[Submit | Cancel | None] = []

    def poll(self, timeout: float | None = 0.0, /) -> bool:
        """Whether something came in, see Channel."""
        if not self._polled:
            try:
                message = self.incoming.get(block=timeout != 0, timeout=timeout)
            except Empty:
                return False
            self._polled.append(message)
        return True

    def recv(self) -> Submit | Cancel:
        """Take what ``poll`` found."""
        message = self._polled.pop()
        if message is None:
            raise EOFError
        return message

    def send(self, progress: Progress, /) -> None:
        """Say what a step gave."""
        self.outgoing.put(progress)
