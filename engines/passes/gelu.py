"""Recognise the tanh approximation of GELU where a model spells it out.

Hendrycks and Gimpel, Gaussian Error Linear Units, 2016: GELU(x) is about
0.5 x (1 + tanh(sqrt(2 / pi) (x + 0.044715 x³))). The exact form is traced as the operator already,
and SiLU stays x · sigmoid(x): ONNX Runtime has a kernel for that pair, but none for ``Swish``.
"""

import math
from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import RewriteRuleClassBase

from engines.passes.fusion import fuse

_CUBIC, _SLOPE = 0.044715, math.sqrt(2.0 / math.pi)
_ROUNDING = 4e-3  # constants of bfloat16 graphs have 8 bits


def fuse_gelu(model: ir.Model) -> None:
    """Replace the primitives by ``Gelu(approximate="tanh")``, in place."""
    fuse(model, [_SumOfPowers.rule(), _ProductOfFactors.rule()])


class _Gelu(RewriteRuleClassBase):  # type: ignore[misc]
    """Half of x times one more than a hyperbolic tangent."""

    def gated(self, op: Any, x: Any, angle: Any, half: Any, one: Any) -> Any:
        return op.Mul(op.Mul(x, half), op.Add(op.Tanh(angle), one))

    def check(self, _: Any, **values: Any) -> bool:
        """Whether the constants are those of the formula."""
        wanted = {"half": 0.5, "slope": _SLOPE, "cubic": _CUBIC, "one": 1.0, "three": 3.0}
        wanted["unit"] = 1.0
        return all(
            _is_about(values[name], number) for name, number in wanted.items() if name in values
        )

    def rewrite(self, op: Any, x: ir.Value, **_: Any) -> Any:
        return op.Gelu(x, approximate="tanh")


class _SumOfPowers(_Gelu):
    """As GPT-2 writes it: x + 0.044715 x³."""

    def pattern(
        self, op: Any, x: Any, half: Any, slope: Any, cubic: Any, one: Any, three: Any
    ) -> Any:
        polynomial = op.Add(x, op.Mul(op.Pow(x, three), cubic))
        return self.gated(op, x, op.Mul(polynomial, slope), half, one)


class _ProductOfFactors(_Gelu):
    """As BLOOM writes it: x (1 + 0.044715 x²)."""

    def pattern(
        self, op: Any, x: Any, half: Any, slope: Any, cubic: Any, one: Any, unit: Any
    ) -> Any:
        factor = op.Add(op.Mul(op.Mul(x, cubic), x), unit)
        return self.gated(op, x, op.Mul(op.Mul(x, slope), factor), half, one)


def _is_about(value: ir.Value, number: float) -> bool:
    tensor = value.const_value
    if tensor is None or tensor.size != 1:
        return False
    return math.isclose(float(tensor.numpy().item()), number, rel_tol=_ROUNDING)
