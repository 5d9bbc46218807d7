"""An encoder's graph in ONNX Runtime."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from serving.bundle import EncoderInfo
from serving.closing import Closing
from serving.engine import FloatArray, IntArray
from serving.errors import EngineError
from serving.onnxruntime import open_session

Arrays = Mapping[str, IntArray]


class EncoderEngine(Closing):
    """Runs batches of whole texts; nothing is kept from one to the next.

    Raises UserError if the graph can't be opened.
    """

    def __init__(self, file: Path, encoder: EncoderInfo, *, threads: int | None = None) -> None:
        self._session = open_session(
            file, "cpu", threads, prepack=True, float32=encoder.dtype == "float32"
        )
        self.input_names = [value.name for value in self._session.get_inputs()]
        self.output_names = [value.name for value in self._session.get_outputs()]

    def run(self, inputs: Arrays, outputs: Sequence[str]) -> list[FloatArray]:
        """The outputs of these names, as float32; see serving/encoders/contract.py.

        Raises EngineError if ONNX Runtime fails.
        """
        try:
            arrays: list[npt.NDArray[Any]] = self._session.run(list(outputs), dict(inputs))
        except Exception as error:  # ONNX Runtime's errors share no base class but this one
            reason = " ".join(str(error).split())[:200]
            raise EngineError(
                f"The engine failed ({reason}): check the inputs, or export the model again."
            ) from error
        return [array.astype(np.float32, copy=False) for array in arrays]

    def close(self) -> None:
        """Free the session."""
        del self._session
