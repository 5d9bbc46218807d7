"""What whole networks compute, layer by layer in numpy, against transformers and ONNX Runtime.

This shows that masks and write indices of a mended network mean what we think:
prompts whole and in chunks, then rows of different lengths decoded together.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest
import torch
from transformers import AutoModelForCausalLM

from engines.linears import find_linears
from engines.quantization.activations import quantize_source
from engines.quantization.float8 import Float8Weight
from engines.quantization.kv_cache import quantize_kv_cache
from engines.quantization.qdq import store_as_float8
from engines.quantization.smoothquant import quantize_w8a8
from engines.quantization.weight_only import quantizable_weights, quantize_weights
from engines.quantization.weights import WeightScheme
from engines.tensorrt.lowering import lower
from engines.tensorrt.network import Network, mend
from engines.tensorrt.verifier import verify
from exporter.parity import reference_logits
from serving.contract import INPUT_IDS, LOGITS, LOGITS_POSITIONS, PAST_LENGTHS
from tests.engines.passes.graphs import feeds, run
from tests.engines.tensorrt import decoder_graph
from tests.engines.tensorrt.decoder_graph import CAPPED_WINDOW, CAUSAL, WINDOW
from tests.engines.tensorrt.interpreter import interpret
from tests.engines.tensorrt.interpreter.quantization import FLOAT8
from tests.engines.tensorrt.interpreter.values import Array
from tests.engines.tensorrt.test_network import mended, parsed, without_masks

pytest.importorskip("tensorrt_rtx")
CAPACITY = 24
ROWS = 3
TOKENS = np.random.default_rng(1).integers(3, 500, (ROWS, CAPACITY))
PADDING = 2
PROMPT = 11  # of the first row, and longer than the checkpoints' windows
# Each step's first row and how many tokens its rows get: three prompts, the second one in chunks;
# all rows a token at a time, several at once behind which there is padding, and one after it.
STEPS = [
    (0, (PROMPT,)),
    (1, (7,)),
    (1, (4,)),
    (2, (3,)),
    *3 * [(0, (1, 1, 1))],
    (0, (3, 1, 2)),
    (0, (1, 1, 1)),
]
TOLERANCE = 2e-5  # of the largest logit

Run = Callable[[dict[str, Array]], Mapping[str, Array]]
Graphs = Callable[[str], ir.Model]


def network_of(model: ir.Model) -> Network:
    lower(model, CAPACITY)
    network = parsed(model)
    mend(network, model)
    verify(network, model)
    return network


def interpreted(network: Network) -> Run:
    return lambda arrays: interpret(network, arrays)


def by_onnxruntime(model: ir.Model) -> Run:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    # Optimised, products with dequantised weights would round the activations too.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    names = [output.name for output in session.get_outputs()]
    return lambda arrays: dict(zip(names, session.run(None, arrays), strict=True))


def played(execute: Run, model: ir.Model) -> list[Array]:
    """Each row's logits [tokens, vocab] over all steps; presents are fed back as pasts."""
    buffers = {
        value.name: np.zeros((ROWS, value.shape[1], CAPACITY, value.shape[3]), value.dtype.numpy())
        for value in model.graph.inputs
        if value.name.startswith("past_key_values.")
    }
    lengths = np.zeros(ROWS, np.int64)
    logits: list[list[Array]] = [[] for _ in range(ROWS)]
    for first, counts in STEPS:
        rows = range(first, first + len(counts))
        ids = np.full((len(rows), max(counts)), PADDING, np.int64)
        for padded, row, count in zip(ids, rows, counts, strict=True):
            padded[:count] = TOKENS[row, lengths[row] : lengths[row] + count]
        slots = slice(first, first + len(counts))
        arrays = {name: buffer[slots] for name, buffer in buffers.items()} | {
            INPUT_IDS: ids,
            PAST_LENGTHS: lengths[slots].copy(),
            LOGITS_POSITIONS: np.tile(np.arange(ids.shape[1]), (len(rows), 1)),
        }
        outputs = execute(arrays)
        for name, buffer in buffers.items():
            buffer[slots] = outputs[name.replace("past_key_values", "present")]
        for got, row, count in zip(outputs[LOGITS], rows, counts, strict=True):
            logits[row].append(got[:count])
            lengths[row] += count
    return [np.concatenate(parts) for parts in logits]


def by_transformers(checkpoint: Path) -> list[Array]:
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    counts = np.zeros(ROWS, int)
    for first, step in STEPS:
        counts[first : first + len(step)] += step
    return [reference_logits(model, row[:count]) for row, count in zip(TOKENS, counts, strict=True)]


def error(got: Array, expected: Array) -> float:
    """The largest difference, as a share of the largest logit."""
    return float(np.abs(got - expected).max() / np.abs(expected).max())


def assert_equal(got: list[Array], expected: list[Array]) -> None:
    for row, (ours, theirs) in enumerate(zip(got, expected, strict=True)):
        assert ours.shape == theirs.shape
        assert error(ours, theirs) < TOLERANCE, row
        np.testing.assert_array_equal(ours.argmax(-1), theirs.argmax(-1))


@pytest.mark.parametrize("architecture", ["gpt2", "llama", "qwen2_window", "gemma2", "phi"])
def test_a_checkpoint(
    architecture: str, checkpoint: Callable[[str], Path], decoder: Graphs
) -> None:
    model = decoder(architecture)
    got = played(interpreted(network_of(model)), model)
    assert_equal(got, by_transformers(checkpoint(architecture)))


def with_weights(scheme: WeightScheme) -> Callable[[ir.Model], None]:
    return lambda model: quantize_weights(model, dict.fromkeys(quantizable_weights(model), scheme))


def with_cache(model: ir.Model) -> None:
    """Ranges that differ by head and channel, and that a few entries exceed."""
    random = np.random.default_rng(4)
    pasts = [value for value in model.graph.inputs if "past_key_values" in (value.name or "")]
    shapes = {past.name or "": (past.shape[1], past.shape[3]) for past in pasts}
    quantize_kv_cache(model, {name: random.uniform(2, 8, shape) for name, shape in shapes.items()})


def with_activations(model: ir.Model) -> None:
    with TemporaryDirectory() as workspace:
        quantize_w8a8(model, [row[:16] for row in TOKENS], Path(workspace))


def with_float8(group: int | None, activation_scale: float | None) -> Callable[[ir.Model], None]:
    """Weights in float8, a row or ``group`` of its inputs at a scale; the head's activations too.

    Not all activations: where two ways of adding differ in the last bit, one that is rounded the
    other way changes the logits by percents.
    """

    def quantize(model: ir.Model) -> None:
        linears = list(find_linears(model))
        for linear in linears:
            weight = linear.array()
            groups = weight.reshape(len(weight), -1, group or linear.inputs)
            scales = np.abs(groups).max(2) / 448
            numbers = (groups / scales[:, :, None]).reshape(weight.shape).astype(FLOAT8)
            stored = Float8Weight(numbers, scales if group else scales[:, 0])
            store_as_float8(model, linear.weight, stored, transposed=linear.transposed)
        if activation_scale is not None:
            quantize_source(model.graph, linears[-1:], activation_scale, FLOAT8)

    return quantize


@pytest.mark.parametrize(
    "quantize",
    [
        with_weights(WeightScheme(8)),
        with_weights(WeightScheme(4, 32)),
        with_activations,
        with_cache,
        with_float8(None, 0.02),
        with_float8(16, None),
    ],
    ids=[
        *("int8 weights", "int4 weights in groups", "int8 activations", "int8 cache"),
        *("float8 with activations", "float8 weights in blocks"),
    ],
)
def test_quantised(quantize: Callable[[ir.Model], None], decoder: Graphs) -> None:
    model = decoder("llama")
    quantize(model)
    expected = played(by_onnxruntime(model), model)
    assert_equal(played(interpreted(network_of(model)), model), expected)


def test_half_precision() -> None:
    network, _ = mended(CAUSAL, WINDOW, CAPPED_WINDOW, dtype="float16")
    model = decoder_graph.decoder(CAUSAL, WINDOW, CAPPED_WINDOW, dtype="float16")
    arrays = feeds(model, past=[7, 2], sequence=5)
    expected = run(model, arrays)
    for name, got in interpret(network, arrays).items():
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, expected[name], atol=2e-2)


def upper_left(model: ir.Model) -> Network:
    return without_masks(model, CAPACITY)


def no_mask(model: ir.Model) -> Network:
    network = without_masks(model, CAPACITY)
    for layer in network.attentions().values():
        layer.causal_kind = network.library.CausalMaskKind.NONE
    return network


def written_at_zero(model: ir.Model) -> Network:
    network = network_of(model)
    past = network.tensors[PAST_LENGTHS]
    subtract = network.library.ElementWiseOperation.SUB
    zeros = network.definition.add_elementwise(past, past, subtract).get_output(0)
    indices = network.definition.add_cast(zeros, network.library.DataType.INT32).get_output(0)
    for update in network.layers("KV_CACHE_UPDATE"):
        update.set_input(2, indices)
    return network


@pytest.mark.parametrize(
    ("wrong_network", "a_prompt_is_right"),
    [(upper_left, True), (no_mask, False), (written_at_zero, True)],
)
def test_a_wrong_network_gives_other_logits(
    wrong_network: Callable[[ir.Model], Network],
    a_prompt_is_right: bool,
    checkpoint: Callable[[str], Path],
    decoder: Graphs,
) -> None:
    model = decoder("llama")
    network = wrong_network(model)
    prompt, decoded = errors(played(interpreted(network), model), checkpoint("llama"))
    assert (prompt < TOLERANCE) == a_prompt_is_right
    assert decoded > 0.1


def errors(got: list[Array], checkpoint: Path) -> tuple[float, float]:
    """Those of the first row's prompt, and of what follows it."""
    ours, theirs = got[0], by_transformers(checkpoint)[0]
    return error(ours[:PROMPT], theirs[:PROMPT]), error(ours[PROMPT:], theirs[PROMPT:])
