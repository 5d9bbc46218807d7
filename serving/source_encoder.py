"""The encoder of an encoder-decoder in ONNX Runtime: runs once for each source."""

from collections.abc import Sequence

import numpy as np
import onnxruntime as ort

from serving.closing import Closing
from serving.contract import ATTENTION_MASK, INPUT_IDS, cross_name
from serving.engine import IntArray
from serving.kv_cache import HostBuffer, SourceCache


class SourceEncoder(Closing):
    """A ``session`` of an encoder graph, and the ``source`` cache that its results are for."""

    def __init__(self, session: ort.InferenceSession, source: SourceCache) -> None:
        self._session = session
        self._source = source
        self._names = [cross_name(layer, part) for layer, part in source.cache.buffers]

    def run(self, sources: Sequence[IntArray], first_slot: int) -> None:
        """Encode sources, padded to the longest, into as many slots; see SourceEngine.encode."""
        lengths = np.array([len(source) for source in sources])
        longest = int(lengths.max())
        if longest > self._source.capacity:
            raise ValueError(f"{longest} tokens don't fit into sources of {self._source.capacity}")
        slots = slice(first_slot, first_slot + len(sources))
        mask = (np.arange(longest) < lengths[:, None]).astype(np.int64)
        ids = np.zeros_like(mask)
        for row, source in zip(ids, sources, strict=True):
            row[: len(source)] = source
        results = self._session.run(self._names, {INPUT_IDS: ids, ATTENTION_MASK: mask})
        for buffer, result in zip(self._source.cache.buffers.values(), results, strict=True):
            assert isinstance(buffer, HostBuffer)
            buffer.array[slots, :, :longest] = result
        self._source.lengths[slots] = lengths

    def close(self) -> None:
        """Free the session."""
        del self._session
