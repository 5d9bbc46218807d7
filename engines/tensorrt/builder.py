"""The tensorrt-rtx and tensorrt targets: from the standard graph to an engine file.

The engine has two optimisation profiles: ``PREFILL_PROFILE`` takes one row of 1 to
``prefill_chunk`` tokens, ``DECODE_PROFILE`` one token of each of 1 to ``batch`` rows.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.tensorrt.callbacks import Progress, make_log, make_monitor, make_writer
from engines.tensorrt.library import load_library
from engines.tensorrt.lowering import lower
from engines.tensorrt.network import Network, mend, parse
from engines.tensorrt.quantization import verify_size
from engines.tensorrt.verifier import verify
from serving.bundle import Target
from serving.contract import INPUT_IDS, LOGITS_POSITIONS, PAST_LENGTHS, is_hidden
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
    Graphs in float32, float16 and bfloat16 build, with symmetric Q/DQ of 4 and 8 bits. Raises
    UserError if the library is missing, a node is refused, the network isn't what the graph says
    or the build fails; no file is left then.
    """
    library = load_library(target)
    lower(model, max_length)
    log = make_log(library)
    network = parse(model, target, library, log)
    mend(network, model)
    verify(network, model)
    config = network.builder.create_builder_config()
    config.clear_flag(library.BuilderFlag.TF32)  # float32 that was asked for stays float32
    capabilities = make_portable(config, library)
    config.add_optimization_profile(step_profile(network, 1, min(prefill_chunk, max_length)))
    config.add_optimization_profile(step_profile(network, batch, 1))
    if progress is not None:
        config.progress_monitor = make_monitor(library, progress)
    file = directory / engine_file(target)
    try:
        _serialize(network, config, file, target, log)
        verify_size(file, model)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return EngineFile(file.name, library.__version__, capabilities)


def _serialize(network: Network, config: Any, file: Path, target: Target, log: Any) -> None:
    """Build the engine and stream it into ``file``: it is as large as the weights."""
    with file.open("wb") as stream:
        writer = make_writer(network.library, stream)
        built = network.builder.build_serialized_network_to_stream(
            network.definition, config, writer
        )
    if writer.error is not None:
        raise UserError(f"The engine can't be written to {str(file)!r} ({writer.error}).")
    if not built or not file.stat().st_size:
        raise UserError(_failure(target, log.errors))


def make_portable(config: Any, library: Any) -> tuple[str, ...]:
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
    # Without a GPU every failure is followed by a complaint about the driver, which isn't needed.
    said = [error for error in errors if "cudaError" not in error] or errors or ["no reason given"]
    return f"{target} can't build the engine ({said[-1]})."


def step_profile(network: Network, rows: int, tokens: int) -> Any:
    """The optimisation profile of steps with up to ``rows`` rows of up to ``tokens`` new tokens."""
    profile = network.builder.create_optimization_profile()
    for index in range(network.definition.num_inputs):
        tensor = network.definition.get_input(index)
        if tensor.name == INPUT_IDS or is_hidden(tensor.name):
            rest = tuple(tensor.shape)[2:]
            smallest, usual, largest = (1, 1, *rest), (rows, tokens, *rest), (rows, tokens, *rest)
        elif tensor.name == LOGITS_POSITIONS:
            # A prompt's last position alone; all of them only when a text is scored.
            smallest, usual, largest = (1, 1), (rows, 1), (rows, tokens)
        else:
            rest = () if tensor.name == PAST_LENGTHS else tuple(tensor.shape)[1:]
            smallest, usual, largest = (1, *rest), (rows, *rest), (rows, *rest)
        profile.set_shape(tensor.name, smallest, usual, largest)
    return profile
