"""The worker's process: opens the bundle, then runs its engine's loop for the server."""

import signal
from multiprocessing.connection import Connection

from serving.errors import UserError
from serving.loading import load
from serving.worker.loop import EngineLoop
from serving.worker.messages import NotOpened, Opened, WorkerOptions


def work(options: WorkerOptions, server: Connection) -> None:
    """Serve until the server closes its end of the pipe, or is gone."""
    # Ctrl-C reaches the whole process group; the server says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model = load(options.bundle, **options.loading)
    except UserError as error:
        server.send(NotOpened(str(error)))
        return
    with model:
        scheduler = model.scheduler(
            target_latency=options.target_latency, queue_limit=options.queue_limit
        )
        cache = model.engine.cache
        server.send(
            Opened(
                model.slots,
                cache.capacity,
                model.engine.vocab_size,
                model.gives_embeddings,
                cache.source.capacity if cache.source else None,
            )
        )
        try:
            EngineLoop(model, scheduler, server).run()
        except (EOFError, BrokenPipeError, ConnectionResetError):
            return
