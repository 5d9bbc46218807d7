"""The tensorrt-rtx and tensorrt targets: from the standard graph to an engine file.

The engine has two optimisation profiles, see engines/tensorrt/profiles.py.
"""

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.tensorrt.callbacks import (
    Progress,
    make_monitor,
    make_writer,
    show_nothing,
)
from engines.tensorrt.collectives import add_collectives
from engines.tensorrt.configuration import Portability, configure
from engines.tensorrt.interruption import run_interruptibly
from engines.tensorrt.lowering import lower, lower_source_encoder
from engines.tensorrt.network import Network, mend, parse
from engines.tensorrt.options import BuildOptions
from engines.tensorrt.profiles import (
    Steps,
    engine_steps,
    source_steps,
    step_profile,
    verify_profile,
)
from engines.tensorrt.quantization import verify_size
from engines.tensorrt.summary import describe_build, write_summary
from engines.tensorrt.verifier import verify, verify_encoder
from serving.bundle import Target
from serving.errors import UserError
from serving.tensorrt.library import load_library
from serving.tensorrt.log import make_log

PREFILL_CHUNK = 512
DEFAULTS = BuildOptions()
# The host's allocator, and the GPU's.
_OUT_OF_MEMORY = ("bad_alloc", "out of memory", "OutOfMemory")


@dataclass(frozen=True)
class EngineFile:
    """A built engine: its file's name and what the manifest records of it."""

    name: str
    runtime_version: str
    portability: Portability
    prefill_chunk: int


def engine_file(target: Target, rank: int | None = None) -> str:
    """The name of a target's engine in a bundle, or of a rank's where there are several."""
    return f"model.{target}.engine" if rank is None else f"model.{target}.rank{rank}.engine"


def encoder_file(target: Target) -> str:
    """The name of a target's engine of an encoder-decoder's encoder in a bundle."""
    return f"encoder.{target}.engine"


def build(
    model: ir.Model,
    directory: Path,
    *,
    target: Target,
    max_length: int,
    batch: int,
    rank: int | None = None,
    prefill_chunk: int = PREFILL_CHUNK,
    max_source: int | None = None,
    options: BuildOptions = DEFAULTS,
    progress: Progress = show_nothing,
) -> EngineFile:
    """Lower ``model`` in place and write its engine into ``directory``, with a summary beside it.

    ``max_length`` is the KV buffers' fixed capacity, ``batch`` the most rows of a decode step and
    ``prefill_chunk`` the most tokens of a prompt in a step. ``rank`` says whose graph ``model``
    is, of a tensor-parallel one, and ``max_source`` how long the sources are that it reads. Graphs
    in float32, float16 and bfloat16 build, with symmetric Q/DQ of 4 and 8 bits. Raises UserError if
    the library is missing, a node is refused, the network isn't what the graph says or the build
    fails; no file is left then, nor after Ctrl-C, which raises KeyboardInterrupt at once.
    """
    library = load_library(target)
    lower(model, max_length, max_source)
    network, log = _parsed(model, target, library)
    add_collectives(network, model)
    mend(network, model)
    verify(network, model)
    prefill_chunk = min(prefill_chunk, max_length)
    file = directory / engine_file(target, rank)
    steps = engine_steps(prefill_chunk, batch)
    portability = _write(network, model, file, target, log, steps, options, progress)
    return EngineFile(file.name, library.__version__, portability, prefill_chunk)


def build_encoder(
    model: ir.Model,
    directory: Path,
    *,
    target: Target,
    max_source: int,
    options: BuildOptions = DEFAULTS,
    progress: Progress = show_nothing,
) -> EngineFile:
    """Lower an encoder-decoder's encoder in place and write its engine, see ``build``.

    It takes one source of up to ``max_source`` tokens.
    """
    library = load_library(target)
    lower_source_encoder(model)
    network, log = _parsed(model, target, library)
    mend(network, model)
    verify_encoder(network, model)
    file = directory / encoder_file(target)
    steps = (source_steps(max_source),)
    portability = _write(network, model, file, target, log, steps, options, progress)
    return EngineFile(file.name, library.__version__, portability, max_source)


def _parsed(model: ir.Model, target: Target, library: Any) -> tuple[Network, Any]:
    """The network of a lowered graph, and the log that it writes to."""
    log = make_log(library)
    log.clear()
    return parse(model, target, library, log), log


def _write(
    network: Network,
    model: ir.Model,
    file: Path,
    target: Target,
    log: Any,
    kinds: Sequence[Steps],
    options: BuildOptions,
    progress: Progress,
) -> Portability:
    """Build a verified network's engine for steps of these kinds, with a summary beside it."""
    config = network.builder.create_builder_config()
    portability = configure(config, network.library, target, options)
    profiles = []
    for steps in kinds:
        profile = step_profile(network, steps)
        verify_profile(network, profile, steps)
        config.add_optimization_profile(profile)
        profiles.append((steps, profile))
    try:
        serialize(network, config, file, target, log, progress)
        verify_size(file, model)
        summary = describe_build(
            network,
            model,
            profiles,
            target=target,
            options=options,
            portability=portability,
            activation_bytes=log.activation_bytes,
        )
        write_summary(summary, file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return portability


def serialize(
    network: Network, config: Any, file: Path, target: Target, log: Any, progress: Progress
) -> None:
    """Build the engine and stream it into ``file``: it is as large as the weights.

    Raises UserError if it can't be built or written.
    """
    cancelled = threading.Event()
    config.progress_monitor = make_monitor(network.library, progress, cancelled)
    with file.open("wb") as stream:
        writer = make_writer(network.library, stream)
        built = run_interruptibly(
            lambda: network.builder.build_serialized_network_to_stream(
                network.definition, config, writer
            ),
            cancelled,
        )
    if writer.error is not None:
        raise UserError(f"The engine can't be written to {str(file)!r} ({writer.error}).")
    if not built or not file.stat().st_size:
        raise UserError(_failure(target, log.errors))


def _failure(target: Target, errors: list[str]) -> str:
    """One sentence with the last error that says something."""
    # Without a GPU every failure is followed by a complaint about the driver, which isn't needed.
    said = [error for error in errors if "cudaError" not in error] or errors or ["no reason given"]
    for error in said:
        if any(sign in error for sign in _OUT_OF_MEMORY):
            return (
                f"{target} ran out of memory while it built the engine ({error}): free memory, or "
                "export on a machine that has more."
            )
    return f"{target} can't build the engine ({said[-1]})."
