"""The model that Triton's Python backend runs for an encoder: texts that it gathered, at once."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb_utils

from serving.errors import UserError
from serving.triton.model import (
    error_response,
    input_tensors,
    instance_labels,
    instance_threads,
    read_settings,
)

if TYPE_CHECKING:
    from serving.encoders.model import EncoderModel
    from serving.triton.encoders.batch import Answer
    from serving.triton.settings import EncoderSettings


class TritonPythonModel:
    """One instance: an engine in a process of its own."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle beside this version's model.py, and run it once before it is ready."""
        from serving.triton.encoders.metrics import EncoderMetrics
        from serving.triton.settings import EncoderSettings

        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        try:
            settings = read_settings(config, EncoderSettings)
            self._model = _open(version, settings, instance_threads(config, settings.threads))
        except UserError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._metrics = EncoderMetrics(pb_utils, instance_labels(args))

    def execute(self, requests: list[Any]) -> list[Any]:
        """Answer the requests that Triton gathered, each with its outputs or an error."""
        from serving.triton.encoders.batch import answer_all

        outcomes = answer_all(
            self._model,
            [(input_tensors(request), json.loads(request.parameters())) for request in requests],
        )
        self._metrics.record(outcomes)
        return [
            error_response(request.request_id(), str(outcome))
            if isinstance(outcome, UserError)
            else _response(request, outcome)
            for request, outcome in zip(requests, outcomes, strict=True)
        ]

    def finalize(self) -> None:
        """Free everything."""
        self._model.close()
        self._metrics.close()


def _open(version: Path, settings: "EncoderSettings", threads: int | None) -> "EncoderModel":
    from serving.encoders.opening import load_encoder
    from serving.triton.encoders.batch import warm_up

    model = load_encoder(version / "bundle", **settings.loading | {"threads": threads})
    warm_up(model)
    return model


def _response(request: Any, answer: "Answer") -> Any:
    """The outputs that the client asked for."""
    names = request.requested_output_names()
    tensors = [
        pb_utils.Tensor(name, array) for name, array in answer.outputs.items() if name in names
    ]
    return pb_utils.InferenceResponse(output_tensors=tensors)
