"""Layers that clamp float16 values once one of them is infinite.

A graph can't ask that and go two ways. It clamps always, to the same bounds: what differs are
finite values beyond them, which are within 2% of the largest number of float16.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


class _Answer:
    """What a look at all values of a tensor says: the same of any of them and of all."""

    def __init__(self, *, holds: bool) -> None:
        self._holds = holds

    def any(self) -> torch.Tensor:
        """Whether it holds of a value: a constant, which code may select by or branch on."""
        return torch.tensor(self._holds)

    def all(self) -> torch.Tensor:
        """Whether it holds of every value."""
        return torch.tensor(self._holds)


class ClampedHalves(TorchFunctionMode):
    """Says of every float16 tensor of a trace that it has infinite values."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch that the model calls."""
        if func in (torch.isfinite, torch.isinf) and args[0].dtype == torch.float16:
            return _Answer(holds=func is torch.isinf)
        return func(*args, **(kwargs or {}))
