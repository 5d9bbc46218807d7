"""Recognise RMS and layer normalisation in the primitives that they are traced as.

PyTorch code computes them in float32 whatever the model's type. Where it rounds to that type before
it scales, the operator does the same (``stash_type``); where it scales in float32, the fused node
stays between the two casts. A scale of 1 + weight is folded elsewhere, see constant_folding.py.

RMS normalisation: Zhang and Sennrich, Root Mean Square Layer Normalization, 2019. Layer
normalisation: Ba, Kiros and Hinton, Layer Normalization, 2016.
"""

from typing import Any

import onnx_ir as ir
from onnxscript.rewriter.pattern import RewriteRuleClassBase

from engines.passes.fusion import fuse


def fuse_normalization(model: ir.Model) -> None:
    """Replace the primitives by RMSNormalization and LayerNormalization, in place."""
    # Layer normalisation is the root mean square one of centred values, so it comes first.
    kinds = (_LayerNormalization, _RootMeanSquare, _RoundedRootMeanSquare)
    fuse(model, [kind.rule(scale_first) for kind in kinds for scale_first in (True, False)])


class _Normalization(RewriteRuleClassBase):  # type: ignore[misc]
    """Normalised values times a scale, in either order."""

    operator = "RMSNormalization"

    def __init__(self, scale_first: bool) -> None:
        super().__init__(type(self).__name__)
        self.scale_first = scale_first

    def scaled(self, op: Any, normalized: Any, scale: Any) -> Any:
        """The product in the order in which the model has it."""
        return op.Mul(scale, normalized) if self.scale_first else op.Mul(normalized, scale)

    def check(
        self,
        _: Any,
        x: ir.Value,
        scale: ir.Value,
        epsilon: ir.Value,
        dtype: ir.Attr | None = None,
        **__: Any,
    ) -> bool:
        """Whether the last axis of ``x`` is normalised and scaled by a vector of its size.

        Without a cast (to ``dtype``) all must be float32: in half precision the operator would be
        more exact than the model.
        """
        kind = ir.DataType.FLOAT if dtype is None else dtype.as_int()
        return (
            x.dtype == scale.dtype == kind
            and epsilon.const_value is not None
            and epsilon.const_value.size == 1
            and x.shape is not None
            and scale.shape is not None
            and len(scale.shape) == 1
            and isinstance(scale.shape[0], int)
            and scale.shape[0] == x.shape[-1]
        )

    def rewrite(self, op: Any, x: ir.Value, scale: ir.Value, epsilon: ir.Value, **_: Any) -> Any:
        make = getattr(op, self.operator)
        return make(x, scale, axis=-1, epsilon=_number(epsilon), stash_type=1)


class _RootMeanSquare(_Normalization):
    """All in float32."""

    def pattern(self, op: Any, x: Any, scale: Any, epsilon: Any) -> Any:
        return self.scaled(op, _divided_by_root_mean_square(op, x, epsilon), scale)


class _RoundedRootMeanSquare(_Normalization):
    """Normalised in float32, rounded to the model's type and scaled in that."""

    def pattern(self, op: Any, x: Any, scale: Any, epsilon: Any, dtype: Any) -> Any:
        wide = op.Cast(x, to=ir.DataType.FLOAT)
        rounded = op.Cast(_divided_by_root_mean_square(op, wide, epsilon), to=dtype)
        return self.scaled(op, rounded, scale)


class _LayerNormalization(_RootMeanSquare):
    """Of centred values. With a bias it is traced as the operator already."""

    operator = "LayerNormalization"

    def pattern(self, op: Any, x: Any, scale: Any, epsilon: Any) -> Any:
        centred = op.Sub(x, op.ReduceMean(x, [-1], keepdims=1))
        return self.scaled(op, _divided_by_root_mean_square(op, centred, epsilon), scale)


def _divided_by_root_mean_square(op: Any, x: Any, epsilon: Any) -> Any:
    mean_square = op.ReduceMean(op.Pow(x, 2.0), [-1], keepdims=1)
    return op.Mul(x, op.Reciprocal(op.Sqrt(op.Add(mean_square, epsilon))))


def _number(value: ir.Value) -> float:
    assert value.const_value is not None
    return float(value.const_value.numpy().item())
