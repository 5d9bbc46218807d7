"""The encoder of an encoder-decoder in ONNX Runtime: runs once for each source."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime as ort

from serving.closing import Closing
from serving.contract import ATTENTION_MASK, INPUT_IDS, cross_name
from serving.engine import IntArray
from serving.kv_cache import HostBuffer, SourceCache


class Encoded:
    """What the encoder made of one source of so many ``tokens``; see engine.EncodedSource.

    ``results`` are keys and values [heads, at least tokens, dim], in the order of the buffers.
    """

    def __init__(self, source: SourceCache, results: Sequence[Any], tokens: int) -> None:
        self._source = source
        self.results = results
        self.tokens = tokens

    def put(self, slot: int) -> None:
        """Copy it into a slot's buffers."""
        for buffer, result in zip(self._source.cache.buffers.values(), self.results, strict=True):
            assert isinstance(buffer, HostBuffer)
            buffer.array[slot, :, : self.tokens] = result[:, : self.tokens]
        self._source.lengths[slot] = self.tokens


class SourceEncoder(Closing):
    """A ``session`` of an encoder graph, and the ``source`` cache that its results are for."""

    def __init__(self, session: ort.InferenceSession, source: SourceCache) -> None:
        self._session = session
        self._source = source
        self._names = [cross_name(layer, part) for layer, part in source.cache.buffers]

    def run(self, sources: Sequence[IntArray], first_slot: int) -> None:
        """Encode sources into as many slots; see SourceEngine.encode."""
        for slot, encoded in enumerate(self.ahead(sources), first_slot):
            encoded.put(slot)

    def ahead(self, sources: Sequence[IntArray]) -> list[Encoded]:
        """Encode sources, padded to the longest; see SourceEngine.encode_ahead."""
        lengths = np.array([len(source) for source in sources])
        longest = int(lengths.max())
        if longest > self._source.capacity:
            raise ValueError(f"{longest} tokens don't fit into sources of {self._source.capacity}")
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        ids = np.zeros_like(mask)
        for row, source in zip(ids, sources, strict=True):
            row[: len(source)] = source
        results = self._session.run(self._names, {INPUT_IDS: ids, ATTENTION_MASK: mask})
        return [
            Encoded(self._source, [result[row] for result in results], len(source))
            for row, source in enumerate(sources)
        ]

    def close(self) -> None:
        """Free the session."""
        del self._session
