"""The tensorrt-rtx and tensorrt targets: from the standard graph to an engine file.

The engine has two optimisation profiles: ``PREFILL_PROFILE`` takes one row of 1 to
``prefill_chunk`` tokens, ``DECODE_PROFILE`` one token of each of 1 to ``batch`` rows.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.tensorrt.library import load_library, make_log
from engines.tensorrt.lowering import lower
from engines.tensorrt.network import Network, mend, parse
from engines.tensorrt.verifier import verify
from serving.bundle import Target
from serving.contract import INPUT_IDS, LOGITS_POSITIONS, PAST_LENGTHS
from serving.errors import UserError

PREFILL_PROFILE, DECODE_PROFILE = 0, 1

# What the engine runs on, where the library compiles for named GPUs: Ampere and newer, for Turing
# has no bfloat16.
COMPUTE_CAPABILITIES = {
    "SM80": "8.0",
    "SM86": "8.6",
    "SM89": "8.9",
    "SM120": "12.0",
    "SM121": "12.1",
}

Progress = Callable[[str, float], None]
"""Called with a phase's name and how much of it is done, from 0 to 1, on any thread."""


@dataclass(frozen=True)
class EngineFile:
    """A built engine: its file's name and what the manifest records of it."""

    name: str
    runtime_version: str
    compute_capabilities: tuple[str, ...]


def engine_file(target: Target) -> str:
    """The name of a target's engine in a bundle."""
    return f"model.{target}.engine"


def build(
    model: ir.Model,
    directory: Path,
    *,
    target: Target,
    max_length: int,
    batch: int,
    prefill_chunk: int = 512,
    progress: Progress | None = None,
) -> EngineFile:
    """Lower ``model`` in place and write its engine into ``directory``.

    ``max_length`` is the KV buffers' fixed capacity, ``batch`` the most rows of a decode step.
    Graphs in float32, float16 and bfloat16 build. Raises UserError if the library is missing, a
    node is refused, the network isn't what the graph says or the build fails; no file is left then.
    """
    library = load_library(target)
    lower(model, max_length)
    log = make_log(library)
    network = parse(model, target, library, log)
    mend(network, model)
    verify(network, model)
    config = network.builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)  # float32 that was asked for stays float32
    capabilities = _make_portable(config, library)
    _add_profile(network, config, rows=1, tokens=min(prefill_chunk, max_length))
    _add_profile(network, config, rows=batch, tokens=1)
    if progress is not None:
        config.progress_monitor = _monitor(library, progress)
    plan = network.builder.build_serialized_network(network.definition, config)
    if plan is None:
        raise UserError(_failure(target, log.errors))
    file = directory / engine_file(target)
    try:
        file.write_bytes(plan)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return EngineFile(file.name, library.__version__, capabilities)


def _make_portable(config: Any, library: Any) -> tuple[str, ...]:
    """Let the engine run on Ampere and newer, built without a GPU where the library can do that.

    Returns the compute capabilities it is for; none if the library doesn't name them one by one.
    """
    known = getattr(library, "ComputeCapability", None)
    chosen = {name: text for name, text in COMPUTE_CAPABILITIES.items() if hasattr(known, name)}
    if not chosen:
        config.hardware_compatibility_level = library.HardwareCompatibilityLevel.AMPERE_PLUS
        return ()
    config.num_compute_capabilities = len(chosen)
    for index, name in enumerate(chosen):
        config.set_compute_capability(getattr(known, name), index)
    return tuple(chosen.values())


def _failure(target: Target, errors: list[str]) -> str:
    """One sentence with the last error that says something."""
    said = [error for error in errors if "Error Code" in error] or errors or ["no reason given"]
    return f"{target} can't build the engine ({' '.join(said[-1].split())})."


def _add_profile(network: Network, config: Any, rows: int, tokens: int) -> None:
    """Add the profile of steps with up to ``rows`` rows of up to ``tokens`` new tokens."""
    profile = network.builder.create_optimization_profile()
    for index in range(network.definition.num_inputs):
        tensor = network.definition.get_input(index)
        if tensor.name == INPUT_IDS:
            smallest, usual, largest = (1, 1), (rows, tokens), (rows, tokens)
        elif tensor.name == LOGITS_POSITIONS:
            # A prompt's last position alone; all of them only when a text is scored.
            smallest, usual, largest = (1, 1), (rows, 1), (rows, tokens)
        else:
            rest = () if tensor.name == PAST_LENGTHS else tuple(tensor.shape)[1:]
            smallest, usual, largest = (1, *rest), (rows, *rest), (rows, *rest)
        profile.set_shape(tensor.name, smallest, usual, largest)
    config.add_optimization_profile(profile)


def _monitor(library: Any, progress: Progress) -> Any:
    class Monitor(library.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.steps: dict[str, int] = {}

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:  # noqa: ARG002
            self.steps[phase] = steps
            progress(phase, 0.0)

        def step_complete(self, phase: str, step: int) -> bool:
            progress(phase, (step + 1) / self.steps[phase])
            return True

        def phase_finish(self, phase: str) -> None:
            progress(phase, 1.0)

    return Monitor()
