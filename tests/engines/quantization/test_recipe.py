"""What can't be quantised is refused in a sentence, before any work."""

from typing import Any

import pytest

from engines.quantization.recipe import Recipe
from engines.targets import refuse_for_targets
from serving.bundle import Target
from serving.errors import UserError

IMPOSSIBLE: list[tuple[dict[str, Any], str]] = [
    ({"bits": 3}, "--bits 3 isn't possible"),
    ({"bits": 8.5}, "--bits 8.5 isn't possible"),
    ({"bits": float("nan")}, "--bits nan isn't possible"),
    ({"bits": 4, "group_size": 24}, "--group-size 24 isn't possible"),
    ({"group_size": 32}, "are about integer weights"),
    ({"method": "awq"}, "are about integer weights"),
    ({"symmetric": False}, "are about integer weights"),
    ({"bits": 8, "activations": True, "method": "gptq"}, "after SmoothQuant"),
    ({"bits": 8, "activations": True, "symmetric": False}, "after SmoothQuant"),
]
GROUPS_NOT_ON_TENSORRT: list[tuple[Recipe, str]] = [
    (Recipe(bits=4, group_size=32), "groups of 64 or 128"),
    (Recipe(bits=4.5, group_size=16), "groups of 64 or 128"),
    (Recipe(bits=8, group_size=128), "one scale a row"),
]


@pytest.mark.parametrize(("options", "said"), IMPOSSIBLE)
def test_impossible_recipes_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError, match=said):
        Recipe(**options)


@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize("bits", [4, 5, 8])
def test_zero_points_are_refused_for_tensorrt(bits: int, target: Target) -> None:
    recipe = Recipe(bits=bits, symmetric=False)
    refuse_for_targets(recipe, ["onnxruntime"])
    with pytest.raises(UserError, match=f"{target} has no zero points: leave --asymmetric out"):
        refuse_for_targets(recipe, ["onnxruntime", target])


@pytest.mark.parametrize(("recipe", "said"), GROUPS_NOT_ON_TENSORRT)
def test_groups_that_tensorrt_lacks_are_refused(recipe: Recipe, said: str) -> None:
    refuse_for_targets(recipe, ["onnxruntime", "tensorrt-rtx"])
    with pytest.raises(UserError, match=f"{said}.*leave --group-size.*or use --target"):
        refuse_for_targets(recipe, ["onnxruntime", "tensorrt"])


@pytest.mark.parametrize("target", ["tensorrt-rtx", "tensorrt"])
@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(),
        Recipe(bits=4),
        Recipe(bits=4, group_size=64),
        Recipe(bits=5),
        Recipe(bits=8, kv_cache=True),
        Recipe(bits=8, activations=True),
    ],
)
def test_what_builds_is_not_refused(recipe: Recipe, target: Target) -> None:
    refuse_for_targets(recipe, [target])


@pytest.mark.parametrize(
    ("recipe", "said"),
    [
        (Recipe(), ""),
        (Recipe(bits=4), "int4 weights (gptq, groups of 128)"),
        (Recipe(bits=8), "int8 weights (round-to-nearest, by row)"),
        (
            Recipe(bits=4, method="awq", group_size=32, symmetric=False),
            "int4 weights (awq, groups of 32, asymmetric)",
        ),
        (Recipe(bits=8, activations=True), "int8 weights and activations (SmoothQuant)"),
        (Recipe(kv_cache=True), "int8 KV cache"),
    ],
)
def test_recipe_says_what_it_does(recipe: Recipe, said: str) -> None:
    assert recipe.describe() == said
