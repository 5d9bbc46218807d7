"""How an engine is compiled: the builder's configuration of a target with a user's options."""

from dataclasses import dataclass
from typing import Any

from engines.tensorrt.options import AMPERE_AND_NEWER, COMPUTE_CAPABILITIES, BuildOptions
from serving.bundle import HardwareCompatibility, Target
from serving.errors import UserError

_LEVELS: dict[HardwareCompatibility, str] = {
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
    "none": "NONE",
}


@dataclass(frozen=True)
class Portability:
    """Where an engine runs: GPUs by name, or relative to its build's; and with which versions."""

    compute_capabilities: tuple[str, ...]
    hardware_compatibility: HardwareCompatibility | None
    version_compatible: bool


def configure(config: Any, library: Any, target: Target, options: BuildOptions) -> Portability:
    """Set up a builder's configuration and say where the engine will run.

    Raises UserError if the installed library lacks a compute capability that was asked for.
    """
    flags = library.BuilderFlag
    config.clear_flag(flags.TF32)  # float32 that was asked for stays float32
    # Costs nothing, and the engine can tell its layers afterwards.
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if options.sparse_weights:
        config.set_flag(flags.SPARSE_WEIGHTS)
    if target == "tensorrt-rtx":
        chosen = options.compute_capabilities or AMPERE_AND_NEWER
        _compile_for(config, library, chosen)
        return Portability(chosen, None, False)
    level = options.hardware_compatibility or "ampere-plus"
    config.hardware_compatibility_level = getattr(
        library.HardwareCompatibilityLevel, _LEVELS[level]
    )
    if options.version_compatible:
        config.set_flag(flags.VERSION_COMPATIBLE)
    return Portability((), level, options.version_compatible)


def _compile_for(config: Any, library: Any, chosen: tuple[str, ...]) -> None:
    """Name the GPUs that TensorRT-RTX compiles for, which needs none of them then."""
    config.num_compute_capabilities = len(chosen)
    for index, capability in enumerate(chosen):
        known = getattr(library.ComputeCapability, COMPUTE_CAPABILITIES[capability], None)
        if known is None:
            raise UserError(
                f"tensorrt-rtx {library.__version__} doesn't compile for {capability}: leave it "
                "out of --compute-capability, or install a newer one."
            )
        config.set_compute_capability(known, index)
