"""The device's source, built by g++ for the host: its numbers without a GPU."""

import ctypes
import shutil
import subprocess
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from serving.sampling import SamplingParameters
from serving.tensorrt.sampling.parameters import Rows, device_rows

HERE = Path(__file__).parent
SOURCES = HERE.parents[3] / "serving" / "tensorrt" / "sampling"

KINDS = {"float32": 0, "float16": 1, "bfloat16": 2}


def rows_of(parameters: SamplingParameters, seed: int = 0, chosen: int = 0, n: int = 1) -> Rows:
    """The same parameters and seed for n rows, which choose number ``chosen`` and the next."""
    return device_rows([parameters] * n, [seed] * n, range(chosen, chosen + n))


class HostBuild:
    def __init__(self, directory: Path) -> None:
        if (compiler := shutil.which("g++")) is None:
            pytest.skip("no g++ to build the device's source for the host")
        options = "-O2 -std=c++17 -ffp-contract=off -Wall -Wextra -Werror -shared -fPIC -pthread"
        library = directory / "host_build.so"
        command = [compiler, *options.split(), f"-I{SOURCES}", HERE / "host_build.cpp", "-o"]
        subprocess.run([*command, library], check=True)
        self.library = ctypes.CDLL(str(library))

    def sample(
        self,
        logits: npt.NDArray[np.generic],
        rows: Rows,
        dtype: str = "float32",
        blocks: int = 1,
        threads: int = 1,
        lengths: npt.NDArray[np.int64] | None = None,
    ) -> npt.NDArray[np.int64]:
        """Token ids [n] of logits [n, vocab]; bfloat16 as its bits. Counts in ``rows`` go up."""
        assert logits.flags.c_contiguous
        assert len(rows) == len(logits)
        tokens = np.full(len(rows), -2, np.int64)
        n, vocab = logits.shape
        grow = None if lengths is None else _pointer(lengths)
        pointers = _pointer(logits), n, vocab, _pointer(rows), _pointer(tokens), grow
        self.library.host_sample(KINDS[dtype], *pointers, blocks, threads)
        return tokens

    def sample_at(
        self,
        kind: int,
        logits: int,
        rows: int,
        vocab: int,
        parameters: int,
        tokens: int,
        lengths: int,
    ) -> None:
        """Sample where things lie: addresses of logits [rows, vocab] and the rest [rows]."""
        at = ctypes.c_void_p
        self.library.host_sample(
            kind, at(logits), rows, vocab, at(parameters), at(tokens), at(lengths), 1, 1
        )

    def kept(
        self,
        logits: npt.NDArray[np.float32],
        parameters: SamplingParameters,
        blocks: int = 1,
        threads: int = 1,
    ) -> npt.NDArray[np.bool_]:
        """Which tokens [vocab] may be drawn."""
        kept = np.zeros(len(logits), np.bool_)
        rows = rows_of(parameters)
        pointers = _pointer(logits), len(logits), _pointer(rows), _pointer(kept)
        self.library.host_kept(*pointers, blocks, threads)
        return kept


def _pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
