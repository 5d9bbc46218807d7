"""The model that Triton's Python backend runs: requests in, streams of responses out."""

import json
import threading
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import triton_python_backend_utils as pb_utils

from serving.errors import UserError

# What takes long to import is imported where a model is opened: Triton also starts a process that
# only asks what this file can do.
if TYPE_CHECKING:
    from serving.engine import IntArray
    from serving.generation import Model
    from serving.triton.answers import Answer
    from serving.triton.in_flight import Responder
    from serving.triton.requests import Array, TritonRequest
    from serving.triton.settings import Parameters, Settings

Kind = TypeVar("Kind", bound="Parameters")

# How often it is looked whether clients have gone away, and how often metrics are reported.
CANCELLATION_SECONDS = 0.1
REPORT_SECONDS = 1.0


class TritonPythonModel:
    """One instance: an engine in a process of its own, with continuous batching."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the bundle beside this version's model.py, and run it once before it is ready."""
        from serving.triton.in_flight import InFlight
        from serving.triton.metrics import Metrics
        from serving.triton.settings import Settings

        config = json.loads(args["model_config"])
        version = Path(args["model_repository"]) / args["model_version"]
        try:
            settings = read_settings(config, Settings)
            self._metrics = Metrics(pb_utils, instance_labels(args), settings.slots)
            threads = instance_threads(config, settings.threads)
            open_model = partial(_open, version, settings, threads)
            self._in_flight = InFlight(
                open_model, self._metrics.record, settings.scheduling, self._answer
            )
        except UserError as error:
            raise pb_utils.TritonModelException(str(error)) from error
        self._is_closed = threading.Event()
        self._watcher = threading.Thread(target=self._watch, name="watcher", daemon=True)
        self._watches = False

    def execute(self, requests: list[Any]) -> None:
        """Begin requests; the responses come from the thread that hands on what is generated."""
        if not self._watches:  # not before: a model that loads should say nothing else to Triton
            self._watches = True
            self._watcher.start()
        for request in requests:
            responder = self._responder(request)
            timeout = request.timeout()  # microseconds, 0 for none
            seconds = timeout / 1e6 if timeout else None
            self._in_flight.begin(input_tensors(request), responder, seconds)

    def finalize(self) -> None:
        """Free everything; requests that still run end with an error."""
        self._is_closed.set()
        if self._watches:
            self._watcher.join()
        self._in_flight.close()
        self._metrics.close()

    def _responder(self, request: Any) -> "Responder":
        """The way to a request's client."""
        return TritonResponder(request)

    def _answer(self, model: "Model", request: "TritonRequest", prompt_ids: "IntArray") -> "Answer":
        """The answer to a request, see MakeAnswer."""
        from serving.triton.in_flight import text_answer

        return text_answer(model, request, prompt_ids)

    def _watch(self) -> None:
        """Look after clients that went away, and report metrics."""
        looks = 0
        while not self._is_closed.wait(CANCELLATION_SECONDS):
            self._in_flight.forget_cancelled()
            looks += 1
            if looks * CANCELLATION_SECONDS >= REPORT_SECONDS:
                self._metrics.report(self._in_flight.load)
                looks = 0


class TritonResponder:
    """The way to a request's client, through Triton."""

    def __init__(self, request: Any) -> None:
        self._sender = request.get_response_sender()
        self._names = frozenset(request.requested_output_names())
        self._request_id = request.request_id()
        self._has_ended = False
        self._ending = threading.Lock()

    def send(self, outputs: Mapping[str, "Array"], *, last: bool) -> None:
        """Send the outputs that the client asked for."""
        tensors = [
            pb_utils.Tensor(name, array) for name, array in outputs.items() if name in self._names
        ]
        self._send(pb_utils.InferenceResponse(output_tensors=tensors), last=last)

    def fail(self, reason: str) -> None:
        """End with an error of this request alone."""
        self._send(error_response(self._request_id, reason), last=True)

    def confirm_cancelled(self) -> None:
        """End as cancelled."""
        reason = "The request was cancelled."
        self._send(error_response(self._request_id, reason, was_cancelled=True), last=True)

    def is_cancelled(self) -> bool:
        """Whether the client has gone away or cancelled; asks Triton's process."""
        with self._ending:
            return not self._has_ended and bool(self._sender.is_cancelled())

    def _send(self, response: Any, *, last: bool) -> None:
        # Another thread may have ended the request. Sending after the end is an error, and asking
        # then whether it is cancelled crashes Triton (seen with 24.10). So do two responses at the
        # same time, in an ensemble.
        with self._ending:
            if self._has_ended:
                return
            self._has_ended = last
            flags = pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL if last else 0
            self._sender.send(response, flags=flags)


def read_settings(config: Mapping[str, Any], kind: type[Kind]) -> Kind:
    """The parameters in a model's config; raises UserError for those that can't be used."""
    parameters = config.get("parameters", {})
    return kind.from_parameters({name: value["string_value"] for name, value in parameters.items()})


def instance_labels(args: Mapping[str, str]) -> dict[str, str]:
    """What tells an instance's metrics from others'."""
    return {
        "model": args["model_name"],
        "version": args["model_version"],
        "instance": args["model_instance_name"],
    }


def instance_threads(config: Mapping[str, Any], threads: int | None) -> int | None:
    """Threads of an engine: as many as are asked for, or else its share of the cores."""
    from serving.onnxruntime import physical_cores

    instances: int = sum(group.get("count", 1) for group in config.get("instance_group", ()))
    if threads is None and instances > 1:
        return max(1, physical_cores() // instances)
    return threads


def _open(version: Path, settings: "Settings", threads: int | None) -> "Model":
    """Open a version's bundle and run it."""
    from serving.loading import load

    adapters = version / "adapters"
    named = {path.name: path for path in adapters.iterdir()} if adapters.is_dir() else {}
    loading = settings.loading | {"threads": threads}
    model = load(version / "bundle", adapters=named, **loading)
    _warm_up(model)
    return model


def _warm_up(model: "Model") -> None:
    """Run both kinds of steps once: the first request shall take no longer than others."""
    model.generate([model.tokens.bos or 0], max_new_tokens=2, ignore_eos=True)


def error_response(request_id: str, reason: str, *, was_cancelled: bool = False) -> Any:
    """A response that is an error of its request alone."""
    # An error in a gRPC stream of several requests tells its own in no other way.
    prefix = f"[request id: {request_id}] " if request_id else ""
    codes = pb_utils.TritonError
    code = codes.CANCELLED if was_cancelled else codes.INVALID_ARG
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(prefix + reason, code))


def input_tensors(request: Any) -> dict[str, "Array"]:
    """A request's tensors by their names."""
    return {tensor.name(): tensor.as_numpy() for tensor in request.inputs()}
