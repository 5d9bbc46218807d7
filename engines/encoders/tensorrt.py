"""The tensorrt-rtx and tensorrt targets for encoders: one optimisation profile, no cache."""

from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.tensorrt.builder import DEFAULTS, EngineFile, engine_file, serialize
from engines.tensorrt.callbacks import Progress, show_nothing
from engines.tensorrt.configuration import configure
from engines.tensorrt.lowering import lower_encoder
from engines.tensorrt.network import Network, mend, parse
from engines.tensorrt.options import BuildOptions
from engines.tensorrt.profiles import Steps, verify_profile
from engines.tensorrt.quantization import verify_size
from engines.tensorrt.summary import describe_build, write_summary
from engines.tensorrt.verifier import verify_encoder
from serving.bundle import Target
from serving.tensorrt.library import load_library
from serving.tensorrt.log import make_log

# Tokens of a usual text, which kernels are chosen for.
_USUAL = 128


def build_encoder(
    model: ir.Model,
    directory: Path,
    *,
    target: Target,
    max_length: int,
    batch: int,
    options: BuildOptions = DEFAULTS,
    progress: Progress = show_nothing,
) -> EngineFile:
    """Lower ``model`` in place and write its engine into ``directory``, with a summary beside it.

    It takes batches of 1 to ``batch`` texts of 1 to ``max_length`` tokens. Raises UserError if the
    library is missing, a node is refused, the network isn't what the graph says or the build fails;
    no file is left then.
    """
    library = load_library(target)
    lower_encoder(model)
    log = make_log(library)
    log.clear()
    network = parse(model, target, library, log)
    mend(network, model)
    verify_encoder(network, model)
    config = network.builder.create_builder_config()
    portability = configure(config, library, target, options)
    steps = Steps("batches", batch, max_length, batch)
    profile = _profile(network, steps)
    verify_profile(network, profile, steps)
    config.add_optimization_profile(profile)
    file = directory / engine_file(target)
    try:
        serialize(network, config, file, target, log, progress)
        verify_size(file, model)
        summary = describe_build(
            network,
            model,
            [(steps, profile)],
            target=target,
            options=options,
            portability=portability,
            activation_bytes=log.activation_bytes,
        )
        write_summary(summary, file)
    except BaseException:
        file.unlink(missing_ok=True)
        raise
    return EngineFile(file.name, library.__version__, portability, max_length)


def _profile(network: Network, steps: Steps) -> Any:
    """The optimisation profile: every input is [batch, sequence], or some positions of it."""
    profile = network.builder.create_optimization_profile()
    usual = (steps.rows, min(_USUAL, steps.tokens))
    for index in range(network.definition.num_inputs):
        name = network.definition.get_input(index).name
        profile.set_shape(name, (1, 1), usual, (steps.rows, steps.tokens))
    return profile
