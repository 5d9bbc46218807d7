"""Rotary positions written with complex numbers, which ONNX has no type for.

While a model is traced, its complex tensors are pairs of real ones.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch.overrides import TorchFunctionMode


@dataclass(frozen=True)
class Pair:
    """A complex tensor as its real and its imaginary part: what rotations ask of one."""

    real: torch.Tensor
    imag: torch.Tensor

    @property
    def device(self) -> torch.device:
        """Where both parts are."""
        return self.real.device

    def __mul__(self, other: "Pair | torch.Tensor | float") -> "Pair":
        if not isinstance(other, Pair):
            return Pair(self.real * other, self.imag * other)
        return Pair(
            self.real * other.real - self.imag * other.imag,
            self.real * other.imag + self.imag * other.real,
        )

    def __getitem__(self, index: Any) -> "Pair":
        return Pair(self.real[index], self.imag[index])

    def unsqueeze(self, dim: int) -> "Pair":
        """Add an axis; ``dim`` counts from the front."""
        return Pair(self.real.unsqueeze(dim), self.imag.unsqueeze(dim))

    def to(self, *_: Any, **__: Any) -> "Pair":
        """The same: a trace has one device, and complex numbers one type."""
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        """Lets functions of torch be called with pairs; ``RealPairs`` answers before this."""
        return NotImplemented


class RealPairs(TorchFunctionMode):
    """Makes pairs where a model makes complex tensors, and tensors again where it wants them."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Called for every function of torch that the model calls."""
        if func is torch.polar:
            length, angle = args
            return Pair(length * torch.cos(angle), length * torch.sin(angle))
        if func is torch.view_as_complex:
            return Pair(args[0][..., 0], args[0][..., 1])
        if func is torch.view_as_real and isinstance(args[0], Pair):
            return torch.stack([args[0].real, args[0].imag], dim=-1)
        return func(*args, **(kwargs or {}))
