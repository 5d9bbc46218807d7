"""The interface that every engine gives the generation loop."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from serving.bundle import DType
from serving.kv_cache import KVCache
from serving.sampling import SamplingParameters

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class ChoiceRow:
    """A sequence whose next tokens an engine chooses: its newest token goes to ``past_length``.

    ``seed`` (64 bits) and how many tokens were ``chosen`` so far say which noise comes next.
    """

    last_id: int
    past_length: int
    sampling: SamplingParameters
    seed: int
    chosen: int


class TokenChooser(Protocol):
    """Decode steps of an engine that chooses the tokens too: only their ids come to the host.

    Each step reads the tokens of the one before where they are, so a step can be enqueued before
    the tokens that it begins with were read here.
    """

    @property
    def is_interrupted(self) -> bool:
        """Whether a step of others took the place of what the next one reads: start anew then."""
        ...

    def takes(
        self, sampling: SamplingParameters, min_new_tokens: int, is_constrained: bool
    ) -> bool:
        """Whether it can choose by these parameters; if not, choose from the logits of a step."""
        ...

    def start(self, rows: Sequence[ChoiceRow]) -> None:
        """Begin anew with these sequences in the slots from 0 on; what wasn't read is dropped."""
        ...

    def enqueue(self) -> None:
        """Enqueue a decode step of all rows. At most two may be unread."""
        ...

    def read(self) -> IntArray:
        """Wait for the oldest unread step; returns token ids [n], -1 where its logits had NaN."""
        ...


class Engine(Protocol):
    """A loaded decoder with its own KV buffers, addressed by slot.

    ``weight_bytes`` is what one decode step reads of the weights.
    """

    cache: KVCache
    vocab_size: int
    weight_bytes: int

    @property
    def chooser(self) -> TokenChooser | None:
        """What chooses tokens beside the engine; None where the host does, from logits."""
        ...

    def step(
        self,
        input_ids: IntArray,
        past_lengths: IntArray,
        logits_positions: IntArray,
        first_slot: int = 0,
    ) -> FloatArray:
        """Run rows ``input_ids`` [n, sequence] against n slots from ``first_slot`` on.

        ``past_lengths`` [n] is where each row's new tokens are written; ``logits_positions`` [n, k]
        picks the new positions that get logits. More than one new token per row goes one row at a
        time (n = 1). Returns logits [n, k, vocab] as float32, valid until the next step.
        """
        ...

    def close(self) -> None:
        """Free the engine and its buffers."""
        ...


@runtime_checkable
class EmbeddingEngine(Engine, Protocol):
    """An engine that may give hidden states too, if its graph does.

    ``hidden_size`` is how wide they are, or None where the graph gives none.
    """

    hidden_size: int | None

    def embed(self, input_ids: IntArray, past_lengths: IntArray, first_slot: int = 0) -> FloatArray:
        """Run rows ``input_ids`` [n, sequence] as ``step`` does, for what the LM head would get.

        Returns the last hidden states of all new tokens, float32 [n, sequence, hidden].
        """
        ...


class EncodedSource(Protocol):
    """What an encoder made of a source of so many ``tokens``, outside of all slots."""

    tokens: int

    def put(self, slot: int) -> None:
        """Let a slot keep it."""
        ...


@runtime_checkable
class SourceEngine(Engine, Protocol):
    """An engine that may be an encoder-decoder: it is if its cache has sources."""

    def encode(self, sources: Sequence[IntArray], first_slot: int) -> None:
        """Run the encoder on sources [n], and keep in slots what their decoder steps read of them.

        Raises ValueError if one is longer than the cache's sources may be.
        """
        ...

    def encode_ahead(self, sources: Sequence[IntArray]) -> Sequence[EncodedSource]:
        """Run the encoder on sources [n] in one batch, for slots that they get later.

        Raises ValueError as ``encode`` does.
        """
        ...


def require_encoder(engine: Engine) -> SourceEngine:
    """The engine as one that encodes sources, which it must be able to."""
    assert isinstance(engine, SourceEngine)
    return engine


def as_float32(array: npt.NDArray[Any], dtype: DType) -> FloatArray:
    """Return stored values as float32, the same memory if that is what they are."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32)
    return array.astype(np.float32, copy=False)
