"""What each target can run, said before any work is done."""

from collections.abc import Sequence

from engines.quantization.recipe import Recipe
from serving.bundle import Target
from serving.errors import UserError

# Of 4 bits, in TensorRT. TensorRT-RTX 1.7 builds engines with every group size, of 4 and of 8 bits.
TENSORRT_GROUP_SIZES = (64, 128)


def refuse_for_targets(recipe: Recipe, targets: Sequence[Target]) -> None:
    """Raise UserError where a target has no kernels for what a recipe asks for."""
    for target in targets:
        if target == "onnxruntime" or recipe.is_empty:
            continue
        if not recipe.symmetric:
            raise UserError(
                f"{target} has no zero points: leave --asymmetric out, or use --target onnxruntime."
            )
        if target == "tensorrt":
            _refuse_group_sizes(recipe)


def refuse_ranks(ranks: int, targets: Sequence[Target], kv_heads: Sequence[int]) -> None:
    """Raise UserError where engines can't be split over so many ranks.

    ``kv_heads`` are those of each layer. A model whose KV heads divide has query heads that do.
    """
    if ranks == 1:
        return
    if "onnxruntime" in targets:
        raise UserError(
            f"--tensor-parallel {ranks} isn't possible for onnxruntime, whose engine is one "
            "process on all cores of the CPU: use --target tensorrt-rtx or tensorrt, or leave it "
            "out."
        )
    for count in kv_heads:
        if count % ranks:
            raise UserError(
                f"--tensor-parallel {ranks} isn't possible, as each rank gets whole KV heads and "
                f"this model has {count} in a layer: give a number that divides {count}."
            )


def _refuse_group_sizes(recipe: Recipe) -> None:
    if recipe.bits is not None and recipe.bits < 8:
        size = recipe.scheme(4).group_size
        if size not in TENSORRT_GROUP_SIZES:
            raise UserError(
                f"tensorrt takes 4 bits in groups of 64 or 128 only: leave --group-size {size} "
                "out, or use --target tensorrt-rtx or onnxruntime."
            )
    elif recipe.group_size is not None:
        raise UserError(
            "tensorrt takes 8 bits with one scale a row only: leave --group-size out, or use "
            "--target tensorrt-rtx or onnxruntime."
        )
