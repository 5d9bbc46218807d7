"""How an engine is compiled: the builder's configuration of a target with a user's options."""

from typing import Any

from engines.tensorrt.network import Network
from engines.tensorrt.options import AMPERE_AND_NEWER, COMPUTE_CAPABILITIES, BuildOptions
from serving.bundle import Target
from serving.errors import UserError

_LEVELS = {
    "ampere-plus": "AMPERE_PLUS",
    "same-compute-capability": "SAME_COMPUTE_CAPABILITY",
    "none": "NONE",
}


def configure(
    network: Network, target: Target, options: BuildOptions
) -> tuple[Any, tuple[str, ...]]:
    """Make the configuration to build a network with, and say which GPUs the engine will run on.

    These are compute capabilities; none if the library doesn't name them one by one. Raises
    UserError if the installed library lacks one that was asked for.
    """
    library = network.library
    config = network.builder.create_builder_config()
    flags = library.BuilderFlag
    config.clear_flag(flags.TF32)  # float32 that was asked for stays float32
    # Costs nothing, and the engine can tell its layers afterwards.
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    if options.sparse_weights:
        config.set_flag(flags.SPARSE_WEIGHTS)
    if target == "tensorrt-rtx":
        return config, set_compute_capabilities(config, library, options)
    set_compatibility(config, library, options)
    return config, ()


def set_compute_capabilities(config: Any, library: Any, options: BuildOptions) -> tuple[str, ...]:
    """Name the GPUs that TensorRT-RTX compiles for, which needs none of them then."""
    chosen = options.compute_capabilities or AMPERE_AND_NEWER
    config.num_compute_capabilities = len(chosen)
    for index, capability in enumerate(chosen):
        known = getattr(library.ComputeCapability, COMPUTE_CAPABILITIES[capability], None)
        if known is None:
            raise UserError(
                f"tensorrt-rtx {library.__version__} doesn't compile for {capability}: leave it "
                "out of --compute-capability, or install a newer one."
            )
        config.set_compute_capability(known, index)
    return chosen


def set_compatibility(config: Any, library: Any, options: BuildOptions) -> None:
    """Choose how far from the machine and version of its build TensorRT's engine may run."""
    level = _LEVELS[options.hardware_compatibility or "ampere-plus"]
    config.hardware_compatibility_level = getattr(library.HardwareCompatibilityLevel, level)
    if options.version_compatible:
        config.set_flag(library.BuilderFlag.VERSION_COMPATIBLE)
