"""What to quantise and how, checked when it is said."""

from dataclasses import dataclass
from typing import Literal

from engines.quantization.weights import GROUP_SIZES, Method, WeightScheme
from serving.errors import UserError

_GROUP_OF_4_BITS = 128


@dataclass(frozen=True)
class Recipe:
    """What the user wants quantised. Raises UserError for what can't be meant.

    ``bits`` of the weights are 4, 8 or, between, an average that layers of both make up; None
    leaves the weights alone. ``activations`` makes the inputs of linear layers 8 bits too.
    """

    bits: float | None = None
    activations: bool = False
    kv_cache: bool = False
    method: Method | None = None
    group_size: int | None = None
    symmetric: bool = True

    def __post_init__(self) -> None:
        if self.bits is None:
            if self.method or self.group_size or not self.symmetric:
                raise UserError(
                    "--method, --group-size and --asymmetric are about integer weights: add "
                    "--int4, --int8 or --bits, or leave them out."
                )
        elif not 4 <= self.bits <= 8:  # a NaN too
            raise UserError(f"--bits {self.bits:g} isn't possible: give a number from 4 to 8.")
        if self.group_size is not None and self.group_size not in GROUP_SIZES:
            sizes = ", ".join(map(str, GROUP_SIZES))
            raise UserError(f"--group-size {self.group_size} isn't possible: choose of {sizes}.")
        if self.activations and (self.method or self.group_size or not self.symmetric):
            raise UserError(
                "--w8a8 quantises each row of a weight symmetrically, after SmoothQuant: leave "
                "--method, --group-size and --asymmetric out."
            )

    @property
    def is_empty(self) -> bool:
        """Whether nothing is to be quantised."""
        return self.bits is None and not self.kv_cache

    @property
    def is_mixed(self) -> bool:
        """Whether layers get different numbers of bits."""
        return self.bits is not None and self.bits not in (4, 8)

    @property
    def weight_method(self) -> Method:
        """The method, or the default one: 4 bits are few enough to need a better one."""
        return self.method or ("round-to-nearest" if self.bits == 8 else "gptq")

    def scheme(self, bits: Literal[4, 8]) -> WeightScheme:
        """The scheme of a weight with so many bits; 8 bits need no groups unless asked to."""
        group = self.group_size or (_GROUP_OF_4_BITS if bits == 4 else None)
        return WeightScheme(bits, group, self.symmetric)

    def describe(self) -> str:
        """Say in a few words what is quantised."""
        parts = []
        if self.activations:
            parts.append("int8 weights and activations (SmoothQuant)")
        elif self.bits is not None:
            name = (
                f"{self.bits:g} bits a weight on average"
                if self.is_mixed
                else f"int{self.bits:g} weights"
            )
            scheme = self.scheme(4 if self.bits < 8 else 8)
            groups = f"groups of {scheme.group_size}" if scheme.group_size else "by row"
            zero = "" if self.symmetric else ", asymmetric"
            parts.append(f"{name} ({self.weight_method}, {groups}{zero})")
        if self.kv_cache:
            parts.append("int8 KV cache")
        return ", ".join(parts)
