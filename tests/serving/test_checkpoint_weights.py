"""Weights are rounded as torch rounds them, and read from the files that a checkpoint is."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from serving.bundle import DType
from serving.checkpoint_weights import Part, open_matrices
from serving.errors import UserError

TYPES: dict[DType, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}
SPECIAL = [0.0, -0.0, 1e-8, 6e-8, 65504.0, 65519.9, 65520.0, 1e30, 3.4e38, float("inf"), -1e38]


def numbers() -> torch.Tensor:
    """All numbers of bfloat16 and float16 but NaN, ties between them and random ones, [n, 64]."""
    bits = torch.arange(1 << 16, dtype=torch.int32).to(torch.int16)
    halves = torch.cat([bits.view(torch.bfloat16).float(), bits.view(torch.float16).float()])
    halves = halves[~halves.isnan()]
    ties = (halves.view(torch.int32) + (1 << 15)).view(torch.float32)  # between two of bfloat16
    noise = torch.randn(1 << 14, generator=torch.Generator().manual_seed(0))
    every = torch.cat([halves, ties[~ties.isnan()], noise, torch.tensor(SPECIAL)])
    return every[: len(every) // 64 * 64].reshape(-1, 64)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("stored", TYPES)
def test_every_number_is_rounded_as_by_torch(tmp_path: Path, stored: DType, dtype: DType) -> None:
    tensor = numbers().to(TYPES[stored])
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    bits = open_matrices(tmp_path)["w"].bits(Part(False, 0, 0, *tensor.shape), dtype)
    expected = tensor.to(TYPES[dtype]).view(torch.int32 if dtype == "float32" else torch.int16)
    assert np.array_equal(bits, expected.numpy().view(bits.dtype))


def test_a_part_of_the_transposed_matrix(tmp_path: Path) -> None:
    tensor = torch.arange(60, dtype=torch.float16).reshape(6, 10)
    save_file({"w": tensor}, tmp_path / "model.safetensors")
    part = Part(transposed=True, row=2, column=1, rows=5, columns=3)
    bits = open_matrices(tmp_path)["w"].bits(part, "float16")
    assert np.array_equal(bits.view(np.float16), tensor.numpy().T[2:7, 1:4])


def shards(directory: Path) -> None:
    for i in range(2):
        save_file({f"w{i}": torch.ones(4, 4)}, directory / f"part-{i}.safetensors")
    save_file({"copy": torch.ones(4, 4)}, directory / "consolidated.safetensors")
    index = {"weight_map": {f"w{i}": f"part-{i}.safetensors" for i in range(2)}}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index))


def test_only_the_files_of_the_index_are_read(tmp_path: Path) -> None:
    shards(tmp_path)
    assert set(open_matrices(tmp_path)) == {"w0", "w1"}


@pytest.mark.parametrize(
    ("name", "length", "message"),
    [
        ("part-0.safetensors", -1, "part-0.safetensors' is missing, truncated or damaged"),
        ("part-0.safetensors", 4, "part-0.safetensors' is missing, truncated or damaged"),
        ("part-1.safetensors", None, "part-1.safetensors' is missing, truncated or damaged"),
        ("model.safetensors.index.json", 9, "index.json' is damaged"),
        ("model.safetensors.index.json", None, "has no safetensors files"),
    ],
)
def test_a_damaged_checkpoint_is_one_sentence(
    tmp_path: Path, name: str, length: int | None, message: str
) -> None:
    shards(tmp_path)
    file = tmp_path / name
    if length is None:
        file.unlink()
    else:
        os.truncate(file, length if length >= 0 else file.stat().st_size + length)
    with pytest.raises(UserError, match=message):
        open_matrices(tmp_path)
