"""The worker's process: opens the bundle, then runs its engine's loop for the server."""

import signal
from contextlib import suppress
from multiprocessing.connection import Connection

from serving.encoders.model import EncoderModel
from serving.errors import UserError
from serving.generation import Model
from serving.opening import load
from serving.worker.encoder_loop import EncoderLoop
from serving.worker.loop import EngineLoop
from serving.worker.messages import NotOpened, Opened, WorkerOptions


def work(options: WorkerOptions, server: Connection) -> None:
    """Serve until the server closes its end of the pipe, or is gone."""
    # Ctrl-C reaches the whole process group; the server says when to end.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        model = _open(options)
    except UserError as error:
        server.send(NotOpened(str(error)))
        return
    if isinstance(model, EncoderModel):
        _serve_encoder(model, server)
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
        _run(EngineLoop(model, scheduler, server))


def _open(options: WorkerOptions) -> Model | EncoderModel:
    return load(options.bundle, **options.loading)


def _serve_encoder(model: EncoderModel, server: Connection) -> None:
    with model:
        encoder = model.encoder
        gives_embeddings = encoder.task == "embed"
        server.send(Opened(0, encoder.max_length, encoder.vocab_size, gives_embeddings))
        _run(EncoderLoop(model, server))


def _run(loop: EngineLoop | EncoderLoop) -> None:
    """Run a loop until the server closes its end of the pipe, or is gone."""
    with suppress(EOFError, BrokenPipeError, ConnectionResetError):
        loop.run()
