"""Stripping an engine of the weights that its checkpoint has, shown to lose nothing."""

from pathlib import Path

import numpy as np

from engines.weight_blocks import find_blocks
from serving.bundle import DType, FileInfo, file_info
from serving.checkpoint_weights import open_matrices
from serving.errors import UserError
from serving.stripped_engine import SUFFIX, Recipe, restore, write_stripped

# What an engine may hold besides the matrices of its checkpoint: its code, and a part of all.
_CODE = 64_000_000
_LARGEST_REST = 0.1


def strip(engine: Path, checkpoint: Path, dtype: DType) -> tuple[Path, FileInfo]:
    """Put a stripped engine in the place of an ``engine`` file with weights of type ``dtype``.

    ``checkpoint`` is the directory that it was exported from. Returns the stripped engine, and what
    the whole one was. Raises UserError if the checkpoint's weights aren't in it as they are, or if
    what is restored from them isn't the engine.
    """
    size = engine.stat().st_size
    blocks = find_blocks(np.memmap(engine, np.uint8, "r"), open_matrices(checkpoint), dtype)
    recipe = Recipe(dtype=dtype, size=size, blocks=blocks)
    rest = sum(end - begin for begin, end in recipe.other_spans())
    if rest > _CODE + _LARGEST_REST * size:
        raise UserError(
            f"{rest / 1e6:,.0f} MB of {engine.name!r} ({size / 1e6:,.0f} MB) are not in the "
            "checkpoint as they are, so it can't be stripped of them: leave out --strip-weights."
        )
    stripped = engine.with_name(engine.name + SUFFIX)
    write_stripped(engine, recipe, stripped)
    whole = file_info(engine)
    engine.unlink()
    restore(stripped, checkpoint, engine)
    if file_info(engine) != whole:
        raise UserError(
            f"{engine.name!r} can't be put together again from the checkpoint and what is left of "
            "it: leave out --strip-weights, and please report it."
        )
    engine.unlink()
    return stripped, whole
