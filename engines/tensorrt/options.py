"""What a user may choose about how a TensorRT engine is compiled, and what each target takes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from serving.bundle import DType, HardwareCompatibility, Target
from serving.errors import UserError

# The names that TensorRT-RTX gives the compute capabilities it compiles for.
COMPUTE_CAPABILITIES = {
    "7.5": "SM75",
    "8.0": "SM80",
    "8.6": "SM86",
    "8.9": "SM89",
    "12.0": "SM120",
    "12.1": "SM121",
}
# Turing has no bfloat16.
AMPERE_AND_NEWER = tuple(capability for capability in COMPUTE_CAPABILITIES if capability != "7.5")

ADA_AND_NEWER = ("8.9", "12.0", "12.1")
"""Those with float8: TensorRT-RTX 1.7 calls it a "HW-specific datatype" of these."""


@dataclass(frozen=True)
class BuildOptions:
    """How an engine is compiled; the defaults make one that runs on Ampere and newer.

    ``compute_capabilities`` are TensorRT-RTX's alone, where none stands for Ampere and newer; the
    next two are TensorRT's alone. ``sparse_weights`` lets kernels skip two zeros of four.
    """

    compute_capabilities: tuple[str, ...] = ()
    hardware_compatibility: HardwareCompatibility | None = None
    version_compatible: bool = False
    sparse_weights: bool = False


def parse_compute_capabilities(text: str) -> tuple[str, ...]:
    """Read "8.6,8.9"; raises UserError for what TensorRT-RTX doesn't compile for."""
    given = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for capability in given:
        if capability not in COMPUTE_CAPABILITIES:
            raise UserError(
                f"--compute-capability {capability or repr(text)} isn't known to tensorrt-rtx: "
                f"choose from {', '.join(COMPUTE_CAPABILITIES)}."
            )
    return given


def options_for_float8(options: BuildOptions, targets: Sequence[Target]) -> BuildOptions:
    """The options for a model with float8 weights, which fewer GPUs have.

    Raises UserError for a target or a GPU without them.
    """
    if "tensorrt" in targets:
        raise UserError(
            "Engines of tensorrt run on Ampere and newer GPUs, and float8 needs Ada: use --target "
            "tensorrt-rtx for this checkpoint, or export the one that it was made from."
        )
    for capability in options.compute_capabilities:
        if capability not in ADA_AND_NEWER:
            raise UserError(
                f"GPUs of compute capability {capability} have no float8, in which this "
                f"checkpoint's weights are: choose from {', '.join(ADA_AND_NEWER)}."
            )
    return replace(options, compute_capabilities=options.compute_capabilities or ADA_AND_NEWER)


def refuse_options(
    options: BuildOptions,
    prefill_chunk: int | None,
    *,
    targets: Sequence[Target],
    dtype: DType,
    max_length: int,
) -> None:
    """Raise UserError for options that none of the targets has, and for impossible ones.

    ``prefill_chunk`` of None and the defaults of ``options`` were not asked for.
    """
    if options.compute_capabilities and "tensorrt-rtx" not in targets:
        raise UserError(
            "--compute-capability is what TensorRT-RTX compiles for: leave it out, or add "
            "--target tensorrt-rtx."
        )
    if dtype == "bfloat16" and "7.5" in options.compute_capabilities:
        raise UserError(
            "GPUs of compute capability 7.5 have no bfloat16: leave 7.5 out, or use --fp16."
        )
    for name, given in (
        ("--version-compatible", options.version_compatible),
        ("--hardware-compatibility", options.hardware_compatibility is not None),
    ):
        if given and "tensorrt" not in targets:
            raise UserError(
                f"{name} is a mode of TensorRT's engines alone: leave it out, or add "
                "--target tensorrt."
            )
    if prefill_chunk is not None:
        _refuse_chunk(prefill_chunk, targets, max_length)


def _refuse_chunk(prefill_chunk: int, targets: Sequence[Target], max_length: int) -> None:
    if set(targets) == {"onnxruntime"}:
        raise UserError(
            "--prefill-chunk sizes a TensorRT engine, and ONNX Runtime's takes any number of "
            "tokens: leave it out, or give it to serve-llm."
        )
    if not 1 <= prefill_chunk <= max_length:
        raise UserError(
            f"--prefill-chunk {prefill_chunk} isn't possible: this engine takes from 1 to "
            f"{max_length} tokens."
        )
