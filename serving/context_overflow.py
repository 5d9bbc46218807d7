"""What happens to an input that is longer than its room: refused, or cut and told so."""

from collections.abc import Sequence
from typing import Literal

from serving.engine import IntArray
from serving.errors import UserError

ContextOverflow = Literal["refuse", "truncate", "slide"]


def keep_beginning(
    ids: IntArray, room: int, overflow: ContextOverflow, choices: Sequence[ContextOverflow]
) -> IntArray:
    """Return the first ``room`` of the tokens ``ids`` [n], or all where they fit or may slide.

    Raises UserError where they don't fit and ``overflow`` is "refuse", or isn't among ``choices``.
    """
    check_overflow(overflow, choices)
    if len(ids) > room and overflow == "refuse":
        others = " or ".join(f"{choice!r}" for choice in choices if choice != "refuse")
        raise UserError(
            f"{len(ids)} tokens don't fit into a context of {room}: shorten the text, open the "
            f"bundle with a larger capacity=, or ask for context_overflow={others}."
        )
    return ids[:room] if overflow == "truncate" else ids


def check_overflow(overflow: ContextOverflow, choices: Sequence[ContextOverflow]) -> None:
    """Raise UserError if ``overflow`` isn't among ``choices``."""
    if overflow not in choices:
        allowed = " or ".join(repr(choice) for choice in choices)
        raise UserError(f"context_overflow is {overflow!r}, but must be {allowed}: change it.")
