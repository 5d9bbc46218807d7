"""The two optimisation profiles of an engine, and the check that they take every step.

The first, for prefill, takes one row of 1 to ``prefill_chunk`` tokens, the second, for decoding,
one token of each of 1 to ``batch`` rows. serving.tensorrt.bindings numbers them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from engines.tensorrt.network import Network
from engines.tensorrt.tensors import VerificationError
from serving.contract import (
    ATTENTION_MASK,
    INPUT_IDS,
    LOGITS_POSITIONS,
    PAST_LENGTHS,
    SOURCE_LENGTHS,
    is_hidden,
)

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Steps:
    """Steps of 1 to ``rows`` rows with 1 to ``tokens`` new tokens each; ``room`` is for more rows.

    A decode profile has room for two rows at least. For a single row TensorRT-RTX 1.7 joins
    projections of the same activations into one weight and keeps those of the prefill profile
    besides: 1,467 instead of 999 MB for the shape of Qwen2.5-0.5B in float16.
    """

    name: str
    rows: int
    tokens: int
    room: int


def engine_steps(prefill_chunk: int, batch: int) -> tuple[Steps, Steps]:
    """What each profile is for, in the order of the profiles."""
    return Steps("prefill", 1, prefill_chunk, 1), Steps("decode", batch, 1, max(batch, 2))


def source_steps(max_source: int) -> Steps:
    """What an encoder's profile is for: one source at a time."""
    return Steps("encoder", 1, max_source, 1)


def step_profile(network: Network, steps: Steps) -> Any:
    """The optimisation profile of these steps."""
    rows, tokens, room = steps.rows, steps.tokens, steps.room
    profile = network.builder.create_optimization_profile()
    for index in range(network.definition.num_inputs):
        tensor = network.definition.get_input(index)
        if tensor.name in (INPUT_IDS, ATTENTION_MASK) or is_hidden(tensor.name):
            rest = tuple(tensor.shape)[2:]
            smallest, usual, largest = (1, 1, *rest), (rows, tokens, *rest), (room, tokens, *rest)
        elif tensor.name == LOGITS_POSITIONS:
            # A prompt's last position alone; all of them only when a text is scored.
            smallest, usual, largest = (1, 1), (rows, 1), (room, tokens)
        else:
            lengths = (PAST_LENGTHS, SOURCE_LENGTHS)
            rest = () if tensor.name in lengths else tuple(tensor.shape)[1:]
            smallest, usual, largest = (1, *rest), (rows, *rest), (room, *rest)
        profile.set_shape(tensor.name, smallest, usual, largest)
    return profile


def profile_shapes(network: Network, profile: Any) -> dict[str, list[Shape]]:
    """Smallest, usual and largest shape of each input of a network; none of one that isn't set."""
    names = [network.definition.get_input(i).name for i in range(network.definition.num_inputs)]
    return {name: [tuple(shape) for shape in profile.get_shape(name)] for name in names}


def verify_profile(network: Network, profile: Any, steps: Steps) -> None:
    """Every input of a network may have every shape of these steps. Raises VerificationError."""
    for name, shapes in profile_shapes(network, profile).items():
        where = f"the {steps.name} profile"
        if len(shapes) != 3:
            raise VerificationError(f"{where} has no shapes for {name!r}")
        dynamic = network.tensors[name].shape
        smallest = _filled(dynamic, 1, 1)
        largest = _filled(dynamic, steps.rows, steps.tokens)
        least, usual, most = shapes
        if not (_is_within(least, smallest) and _is_within(largest, most)):
            raise VerificationError(
                f"{where} takes {name!r} from {least} to {most}, not from {smallest} to {largest}"
            )
        if not (_is_within(least, usual) and _is_within(usual, most)):
            raise VerificationError(f"{where} expects {name!r} as {usual}, which it doesn't take")


def _filled(shape: Sequence[int], rows: int, tokens: int) -> Shape:
    """A shape with numbers for its free axes: rows come first, tokens second."""
    return tuple(
        size if size >= 0 else number
        for size, number in zip(shape, (rows, tokens, 0, 0), strict=False)
    )


def _is_within(shape: Shape, larger: Shape) -> bool:
    return len(shape) == len(larger) and all(a <= b for a, b in zip(shape, larger, strict=True))
