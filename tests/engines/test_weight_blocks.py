"""Weights found in the bytes of an engine, however TensorRT lays them out."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from engines.weight_blocks import find_blocks
from serving.checkpoint_weights import open_matrices
from serving.stripped_engine import Recipe

Halves = npt.NDArray[np.float16]
NOISE = np.random.default_rng(0)


def weight(*shape: int) -> torch.Tensor:
    return torch.from_numpy(NOISE.standard_normal(shape).astype(np.float32))


def half(tensor: torch.Tensor) -> Halves:
    return tensor.to(torch.float16).numpy()


def code(size: int) -> bytes:
    return NOISE.bytes(size)


def found(
    directory: Path, tensors: dict[str, torch.Tensor], pieces: Sequence[bytes | Halves]
) -> list[bool]:
    """Whether each piece of an engine is found in the checkpoint, all of it; else none of it is."""
    save_file(
        {name: t.contiguous() for name, t in tensors.items()}, directory / "model.safetensors"
    )
    data = [piece if isinstance(piece, bytes) else piece.tobytes() for piece in pieces]
    engine = np.frombuffer(b"".join(data), np.uint8)
    blocks = find_blocks(engine, open_matrices(directory), "float16")
    spans = Recipe(dtype="float16", size=len(engine), blocks=blocks).other_spans()
    is_other = np.zeros(len(engine), bool)
    for begin, end in spans:
        is_other[begin:end] = True
    ends = list(itertools.accumulate(map(len, data)))
    parts = [is_other[end - len(piece) : end] for piece, end in zip(data, ends, strict=True)]
    assert all(part.all() or not part.any() for part in parts)
    return [not part.any() for part in parts]


def test_as_stored_and_transposed_at_any_even_offset(tmp_path: Path) -> None:
    a, b = weight(64, 48), weight(40, 33)
    pieces = [code(102), half(a), code(10), half(b.T), code(6), half(b), code(2), half(a.T)]
    expected = [False, True] * 4
    assert found(tmp_path, {"a": a, "b": b}, pieces) == expected


def test_side_by_side_transposed(tmp_path: Path) -> None:
    q, k, v = weight(64, 96), weight(32, 96), weight(32, 96)
    merged = np.concatenate([half(v.T), half(k.T), half(q.T)], axis=1)
    pieces = [code(96), merged, code(40)]
    assert found(tmp_path, {"q": q, "k": k, "v": v}, pieces) == [False, True, False]


def test_rows_of_one_tensor_apart_and_in_another_order(tmp_path: Path) -> None:
    whole = weight(96, 96)
    q, k, v = (half(part) for part in whole.split([48, 32, 16]))
    pieces = [code(80), v, code(24), q, code(8), k]
    assert found(tmp_path, {"qkv": whole}, pieces) == [False, True] * 3


def test_columns_of_one_tensor_in_another_order(tmp_path: Path) -> None:
    whole = weight(96, 192)
    q, k, v = (half(part) for part in whole.split([96, 48, 48], 1))
    pieces = [code(80), np.concatenate([v, k, q], axis=1), code(24)]
    assert found(tmp_path, {"qkv": whole}, pieces) == [False, True, False]


def test_every_expert_of_a_stack(tmp_path: Path) -> None:
    experts = weight(3, 40, 64)
    pieces = [
        code(64),
        half(experts[2].T),
        code(8),
        half(experts[0]),
        code(8),
        half(experts[1]),
    ]
    assert found(tmp_path, {"experts": experts}, pieces) == [False, True] * 3


def test_a_tensor_with_blank_rows_at_its_head(tmp_path: Path) -> None:
    embedding = weight(100, 64)
    embedding[:3] = 0
    assert found(tmp_path, {"e": embedding}, [code(64), half(embedding[3:])]) == [False, True]


def test_what_differs_by_one_bit_is_not_taken(tmp_path: Path) -> None:
    a = weight(64, 64)
    other = half(a).copy()
    other[40, 10] *= np.float16(2)
    assert found(tmp_path, {"a": a}, [code(64), other[:40], other[40:]]) == [False, True, False]


def test_vectors_and_integers_stay_in_the_engine(tmp_path: Path) -> None:
    norm, table = weight(4096), torch.arange(4096).reshape(64, 64)
    pieces = [code(64), half(norm), table.numpy().tobytes()]
    assert found(tmp_path, {"norm": norm, "table": table}, pieces) == [False] * 3


def test_weights_of_few_values_are_found(tmp_path: Path) -> None:
    signs = weight(256, 256).sign()
    signs[:2, :2] = torch.tensor([1.0, -1.0])  # a row that begins with one value is not looked for
    assert found(tmp_path, {"signs": signs}, [code(64), half(signs)]) == [False, True]
