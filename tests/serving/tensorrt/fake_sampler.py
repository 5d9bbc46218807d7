"""DeviceSampler on the GPU that isn't there: its own kernels, built for the host."""

import numpy as np

from serving.tensorrt.sampling.parameters import ROW, Rows
from tests.serving.tensorrt.fake_gpu import FakeCuda
from tests.serving.tensorrt.sampling.host_build import KINDS, HostBuild


class FakeSampler:
    """Its work runs when the stream is waited for, with the parameters that are there by then."""

    def __init__(self, host: HostBuild, cuda: FakeCuda, rows: int, vocab: int, dtype: str) -> None:
        self._host, self._cuda = host, cuda
        self.rows, self._vocab, self._kind = rows, vocab, KINDS[dtype]
        self._parameters = np.zeros(rows, ROW)
        cuda.handles.append(self)

    def write(self, first_row: int, parameters: Rows, stream: int) -> None:
        assert stream == int(self._cuda.stream)
        written = parameters.copy()

        def write() -> None:
            self._parameters[first_row : first_row + len(written)] = written

        self._cuda.stream.add(write)

    def launch(self, logits: int, tokens: int, lengths: int, rows: int, stream: int) -> None:
        assert stream == int(self._cuda.stream)
        assert 1 <= rows <= self.rows
        parameters = self._parameters.ctypes.data
        self._cuda.stream.add(
            lambda: self._host.sample_at(
                self._kind, logits, rows, self._vocab, parameters, tokens, lengths
            )
        )

    def close(self) -> None:
        self._cuda.handles.remove(self)
