"""What goes over the pipe between a server and its worker, pickled by multiprocessing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serving.beam_search import BeamParameters
from serving.context_overflow import ContextOverflow
from serving.decoding import Failure
from serving.embedding import Pooling
from serving.encoders.batching import Tokens
from serving.encoders.joining import Row
from serving.engine import IntArray
from serving.scheduler import Outcome
from serving.sequences import SequenceOptions


@dataclass(frozen=True, slots=True)
class WorkerOptions:
    """How a worker opens its bundle, and how it schedules.

    ``loading`` are parameters of serving.load. For ``target_latency`` (seconds) and ``queue_limit``
    see Model.scheduler. A worker that has work and says nothing for ``silent_seconds``, more than
    any step takes, hangs and is replaced.
    """

    bundle: Path
    loading: dict[str, Any] = field(default_factory=dict)
    target_latency: float | None = None
    queue_limit: int | None = 128
    silent_seconds: float = 120.0


@dataclass(frozen=True, slots=True)
class Request:
    """A prompt to go on with; ``seconds`` from now it is given up (None: never).

    For ``priority``, ``client`` and ``beams`` see request_queue.Job.
    """

    prompt_ids: IntArray
    options: SequenceOptions
    priority: int = 0
    client: str = ""
    seconds: float | None = None
    beams: BeamParameters | None = None


@dataclass(frozen=True, slots=True)
class EmbedRequest:
    """A prompt to embed; see Model.embed, and Request."""

    prompt_ids: IntArray
    pooling: Pooling = "last"
    normalize: bool = True
    context_overflow: ContextOverflow = "refuse"
    adapter: str | None = None
    priority: int = 0
    client: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class EncodeRequest:
    """Texts for an encoder to read, or segments of texts; see Request."""

    texts: Sequence[Tokens]
    priority: int = 0
    client: str = ""
    seconds: float | None = None


@dataclass(frozen=True, slots=True)
class Submit:
    """Server to worker: begin this request; what comes of it bears ``index``."""

    index: int
    request: Request | EmbedRequest


@dataclass(frozen=True, slots=True)
class SubmitTexts:
    """Server to an encoder's worker: as Submit."""

    index: int
    request: EncodeRequest


@dataclass(frozen=True, slots=True)
class Cancel:
    """Server to worker: nobody waits for this request any more."""

    index: int


@dataclass(frozen=True, slots=True)
class Load:
    """What a worker has to do: sequences that wait, run their prompt, and decode or search.

    Of ``prompt_tokens`` since it was opened, ``reused_tokens`` were copied from earlier prompts.
    Of an encoder, requests wait, and its ``batches`` since then had ``batch_tokens`` and
    ``padding_tokens``.
    """

    waiting: int = 0
    prefilling: int = 0
    decoding: int = 0
    prompt_tokens: int = 0
    reused_tokens: int = 0
    batches: int = 0
    batch_tokens: int = 0
    padding_tokens: int = 0


@dataclass(frozen=True, slots=True)
class Opened:
    """Worker to server: the bundle is open.

    An encoder has no slots, and its capacity is that of one text. Encoder-decoders have a
    ``source_capacity``.
    """

    slots: int
    capacity: int
    vocab_size: int
    gives_embeddings: bool
    source_capacity: int | None = None


@dataclass(frozen=True, slots=True)
class NotOpened:
    """Worker to server: the bundle can't be opened, in one sentence; the worker ends."""

    reason: str


@dataclass(frozen=True, slots=True)
class Encoded:
    """What an encoder's graph gave for each text of a request; see EncoderModel.run_batch."""

    index: int
    rows: list[Row]


@dataclass(frozen=True, slots=True)
class Progress:
    """Worker to server: what a step gave, and what is left to do."""

    events: list[Outcome]
    load: Load


@dataclass(frozen=True, slots=True)
class BatchProgress:
    """An encoder's worker to server: what ended with a batch, and what is left to do."""

    events: list[Encoded | Failure]
    load: Load


ToWorker = Submit | SubmitTexts | Cancel
ToServer = Opened | NotOpened | Progress | BatchProgress
WorkerEvent = Outcome | Encoded
