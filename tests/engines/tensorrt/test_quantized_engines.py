"""Every precision builds, and the engine holds its weights once, as integers."""

import functools
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from engines.linears import find_linears
from engines.pruning.sparsity import prunable_linears, two_largest_of_four, zero_weights
from engines.quantization.activations import quantize_source
from engines.quantization.float8 import Float8Weight
from engines.quantization.kv_cache import largest_entries, quantize_kv_cache
from engines.quantization.qdq import store_as_float8
from engines.quantization.smoothquant import quantize_w8a8
from engines.quantization.weight_only import quantizable_weights, quantize_weights
from engines.quantization.weights import WeightScheme
from engines.standard import optimize
from engines.tensorrt.builder import DEFAULTS, build
from engines.tensorrt.options import ADA_AND_NEWER, BuildOptions
from exporter.tracing import cache_layers
from exporter.unrolling import trace_unrolled
from serving.errors import UserError

pytest.importorskip("tensorrt_rtx")
WINDOWS = list(np.random.default_rng(0).integers(0, 512, (2, 24)))
FLOAT8 = ml_dtypes.float8_e4m3fn
LARGE = 10_000  # numbers; more than any table of positions or scales here


@functools.cache
def standard_graph(dtype: torch.dtype, *, tied: bool) -> ir.Model:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=1,
        num_attention_heads=4,
        num_key_value_heads=2,
        tie_word_embeddings=tied,
    )
    model = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    graph = trace_unrolled(model, cache_layers(model))
    optimize(graph)
    return graph


@pytest.fixture
def tied() -> ir.Model:
    return standard_graph(torch.float16, tied=True).clone()


def quantize(model: ir.Model, *schemes: WeightScheme) -> None:
    """Quantise all weights, with these schemes by turns."""
    names = enumerate(quantizable_weights(model))
    quantize_weights(model, {name: schemes[i % len(schemes)] for i, name in names})


def store_linears_as_float8(model: ir.Model, scales: str, activation_scale: float | None) -> None:
    """All but the tied head; ``scales`` is what has one of its own."""
    random = np.random.default_rng(3)
    for linear in list(find_linears(model)):
        if "layers" not in linear.name:
            continue
        rows, columns = linear.outputs, linear.inputs
        shape = {"tensor": (), "row": (rows,), "block": (rows, columns // 64)}[scales]
        numbers = random.standard_normal((rows, columns)).astype(FLOAT8)
        stored = Float8Weight(numbers, random.uniform(0.01, 0.02, shape).astype(np.float32))
        store_as_float8(model, linear.weight, stored, transposed=linear.transposed)
        if activation_scale is not None:
            quantize_source(model.graph, [linear], activation_scale, FLOAT8)


def built(model: ir.Model, directory: Path, options: BuildOptions = DEFAULTS) -> bytes:
    """The engine; ``model`` is lowered in place."""
    sizes: dict[str, Any] = {"max_length": 32, "batch": 3, "prefill_chunk": 16}
    made = build(model, directory, target="tensorrt-rtx", **sizes, options=options)
    return (directory / made.name).read_bytes()


def times_stored(engine: bytes, numbers: np.ndarray) -> int:
    """How often an engine holds a matrix, as it is or transposed; part of it stands for it."""
    layouts = (numbers, numbers.T)
    return sum(engine.count(packed(layout)[4096:4224]) for layout in layouts)


def packed(numbers: np.ndarray) -> bytes:
    if numbers.dtype != ml_dtypes.int4:
        return np.ascontiguousarray(numbers).tobytes()
    nibbles = numbers.astype(np.uint8).ravel() & 15
    return (nibbles[::2] | nibbles[1::2] << 4).tobytes()


def matrices(model: ir.Model) -> dict[str, np.ndarray]:
    values = model.graph.initializers.values()
    arrays = {value.name: value.const_value.numpy() for value in values}
    return {name: array for name, array in arrays.items() if array.size > LARGE}


def assert_integers_are_stored_once(model: ir.Model, engine: bytes) -> None:
    for name, array in matrices(model).items():
        assert array.dtype in (np.int8, ml_dtypes.int4), name
        assert times_stored(engine, array) == 1, name
        if array.dtype == ml_dtypes.int4:
            assert times_stored(engine, array.astype(np.int8)) == 0, name


ROWS, FOURS = WeightScheme(8), WeightScheme(4, 128)
SCHEMES = {
    "int8": (ROWS,),
    "int8 in groups": (WeightScheme(8, 32),),
    "int4 in groups of 16": (WeightScheme(4, 16),),
    "int4 in groups of 32": (WeightScheme(4, 32),),
    "int4 in groups of 64": (WeightScheme(4, 64),),
    "int4": (FOURS,),
    "mixed": (ROWS, FOURS),
}


@pytest.mark.parametrize("schemes", SCHEMES.values(), ids=SCHEMES)
def test_integer_weights(tied: ir.Model, tmp_path: Path, schemes: tuple[WeightScheme, ...]) -> None:
    quantize(tied, *schemes)
    assert_integers_are_stored_once(tied, built(tied, tmp_path))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("scheme", [ROWS, FOURS], ids=["int8", "int4"])
def test_other_types_and_an_embedding_of_its_own(
    tmp_path: Path, dtype: torch.dtype, scheme: WeightScheme
) -> None:
    model = standard_graph(dtype, tied=False).clone()
    quantize(model, scheme)
    assert_integers_are_stored_once(model, built(model, tmp_path))


def test_float_weights(tied: ir.Model, tmp_path: Path) -> None:
    engine = built(tied, tmp_path)
    for name, array in matrices(tied).items():
        assert times_stored(engine, array) == 1, name


@pytest.mark.parametrize(
    ("scales", "activation_scale"),
    [("tensor", None), ("row", None), ("block", None), ("tensor", 0.05), ("row", 0.05)],
)
def test_float8(
    tied: ir.Model, tmp_path: Path, scales: str, activation_scale: float | None
) -> None:
    store_linears_as_float8(tied, scales, activation_scale)
    engine = built(tied, tmp_path, BuildOptions(compute_capabilities=ADA_AND_NEWER))
    stored = [array for array in matrices(tied).values() if array.dtype == FLOAT8]
    assert len(stored) == 4, "queries with keys and values, output, gate with up, down"
    for array in stored:
        assert times_stored(engine, array) == 1
        assert times_stored(engine, array.astype(np.float16)) == 0


@pytest.mark.parametrize(
    ("scales", "activation_scale", "capability", "reason"),
    [
        ("row", None, "8.6", "HW-specific datatypes: fp8_e4m3"),
        ("block", 0.05, "8.9", r"CHECK\(is_constant\(\)\) failed"),
    ],
)
def test_float8_that_is_not_given_to_tensorrt(
    tied: ir.Model,
    tmp_path: Path,
    scales: str,
    activation_scale: float | None,
    capability: str,
    reason: str,
) -> None:
    """TensorRT-RTX's own reasons. Where this fails it has learnt more, and we can give it more."""
    store_linears_as_float8(tied, scales, activation_scale)
    with pytest.raises(UserError, match=reason):
        built(tied, tmp_path, BuildOptions(compute_capabilities=(capability,)))


def test_integer_activations(tied: ir.Model, tmp_path: Path) -> None:
    with TemporaryDirectory() as workspace:
        quantize_w8a8(tied, WINDOWS, Path(workspace))
    assert_integers_are_stored_once(tied, built(tied, tmp_path))


@pytest.mark.parametrize("weights", [None, ROWS], ids=["float weights", "int8 weights"])
def test_integer_cache(tied: ir.Model, tmp_path: Path, weights: WeightScheme | None) -> None:
    with TemporaryDirectory() as workspace:
        largest = largest_entries(tied, WINDOWS, Path(workspace))
    if weights is not None:
        quantize(tied, weights)
    quantize_kv_cache(tied, largest)
    engine = built(tied, tmp_path)
    assert len(engine) > 100_000
    if weights is not None:
        assert_integers_are_stored_once(tied, engine)


def test_two_zeros_of_four(tied: ir.Model, tmp_path: Path) -> None:
    for linear in prunable_linears(tied):
        zero_weights(linear, two_largest_of_four)
    sparse = BuildOptions(sparse_weights=True)
    assert len(built(tied.clone(), tmp_path, sparse)) > 100_000
    quantize(tied, ROWS)
    assert_integers_are_stored_once(tied, built(tied, tmp_path, sparse))
