"""Decode steps that feed themselves: the device chooses each token and begins the next step."""

from collections import deque
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from serving.closing import Closing
from serving.engine import ChoiceRow, IntArray
from serving.sampling import SamplingParameters
from serving.tensorrt.bindings import INT64_BYTES
from serving.tensorrt.cuda import Memory, call, release, runtime_api
from serving.tensorrt.sampling.parameters import device_rows, runs_on_device
from serving.tensorrt.sampling.sampler import DeviceSampler
from serving.tensorrt.staging import Staging

UNREAD = 2  # steps whose tokens may wait to be read


class DecodeLoop(Closing):
    """A TokenChooser over ``staging``, whose inputs the sampler's kernel writes for the next step.

    ``enqueue_step`` enqueues a decode step of so many rows, from slot 0 on.
    """

    def __init__(
        self,
        enqueue_step: Callable[[int], None],
        staging: Staging,
        sampler: DeviceSampler,
        memory: Memory,
        stream: Any,
    ) -> None:
        self._enqueue_step = enqueue_step
        self._staging = staging
        self._sampler = sampler
        self._stream = stream
        self._rows = 0
        self._began = 0  # when the staging had been written so often
        self._tokens = [
            memory.pinned(sampler.rows * INT64_BYTES).view(np.int64) for _ in range(UNREAD)
        ]
        disable_timing = runtime_api().cudaEventDisableTiming
        self._arrived = []
        with ExitStack() as opened:
            for _ in range(UNREAD):
                self._arrived.append(call("cudaEventCreateWithFlags", disable_timing))
                opened.callback(release, "cudaEventDestroy", self._arrived[-1])
            self._events = opened.pop_all()
        self._free = deque(range(UNREAD))
        self._unread: deque[int] = deque()

    @property
    def is_interrupted(self) -> bool:
        """See TokenChooser."""
        return self._staging.puts != self._began

    def takes(
        self, sampling: SamplingParameters, min_new_tokens: int, is_constrained: bool
    ) -> bool:
        """See TokenChooser."""
        return runs_on_device(sampling, min_new_tokens, is_constrained)

    def start(self, rows: Sequence[ChoiceRow]) -> None:
        """See TokenChooser."""
        if self._unread:
            # What is enqueued still reads the staging's inputs.
            call("cudaStreamSynchronize", self._stream)
            self._free.extend(self._unread)
            self._unread.clear()
        self._rows = len(rows)
        last_ids = np.array([[row.last_id] for row in rows])
        past_lengths = np.array([row.past_length for row in rows])
        self._staging.put(last_ids, past_lengths, np.zeros_like(last_ids), self._stream)
        self._began = self._staging.puts
        parameters = device_rows(
            [row.sampling for row in rows],
            [row.seed for row in rows],
            [row.chosen for row in rows],
        )
        self._sampler.write(0, parameters, int(self._stream))

    def enqueue(self) -> None:
        """See TokenChooser."""
        at = self._free.popleft()
        self._unread.append(at)
        self._enqueue_step(self._rows)
        inputs, layout = self._staging.inputs, self._staging.layout
        input_ids, past_lengths = inputs + layout.input_ids, inputs + layout.past_lengths
        self._sampler.launch(
            self._staging.logits, input_ids, past_lengths, self._rows, int(self._stream)
        )
        kind = runtime_api().cudaMemcpyKind.cudaMemcpyDeviceToHost
        to, nbytes = self._tokens[at].ctypes.data, self._rows * INT64_BYTES
        call("cudaMemcpyAsync", to, input_ids, nbytes, kind, self._stream)
        call("cudaEventRecord", self._arrived[at], self._stream)

    def read(self) -> IntArray:
        """See TokenChooser."""
        at = self._unread.popleft()
        self._free.append(at)
        call("cudaEventSynchronize", self._arrived[at])
        return self._tokens[at][: self._rows].copy()

    def close(self) -> None:
        """Free the events; the sampler and the memory stay whose they are."""
        self._events.close()
