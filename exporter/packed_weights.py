"""Reading weights that a checkpoint stores in few bits: AWQ, GPTQ, compressed-tensors and fp8.

Each stores a linear layer's weight in several tensors. What they hold is read into a common form
(engines/quantization/weights.py and float8.py) as it is; nothing is rounded again.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch

from engines.initializers import add_initializer
from engines.linears import Linear, find_linears
from engines.passes.insertion import Inserter
from engines.quantization.activations import quantize_source
from engines.quantization.float8 import Float8Scheme, Float8Weight
from engines.quantization.qdq import quantize_initializer, store_as_float8
from engines.quantization.weights import QuantizedWeight, WeightScheme
from exporter.float8_weights import block_of, read_float8, stores_float8
from serving.errors import UserError

Array = npt.NDArray[Any]
Tensors = Mapping[str, torch.Tensor]

# Where AWQ's GEMM kernel wants each of the eight integers of a word.
_AWQ_ORDER = (0, 4, 1, 5, 2, 6, 3, 7)


@dataclass(frozen=True)
class PackedWeight:
    """A stored weight; column j of the numbers belongs to input channel ``order[j]``, if given."""

    quantized: QuantizedWeight | Float8Weight
    order: npt.NDArray[np.int64] | None = None

    def dequantized(self) -> npt.NDArray[np.float32]:
        """The weight float32 [out, in], its columns in the order of the inputs."""
        weight = self.quantized.dequantized()
        return weight if self.order is None else weight[:, np.argsort(self.order)]


@dataclass(frozen=True)
class Packing:
    """How a checkpoint stores weights: ``suffixes`` of the tensors that make up one of them.

    Tensors with a suffix of ``unused`` have no meaning here.
    """

    method: str
    suffixes: tuple[str, ...]
    unpack: Callable[[Tensors], PackedWeight]
    is_float8: bool = False
    unused: tuple[str, ...] = ()

    def split(self, names: Mapping[str, object]) -> tuple[dict[str, list[str]], list[str]]:
        """The stored tensors of each packed weight, by its module, and those stored plainly."""
        marker = f".{self.suffixes[0]}"
        modules: dict[str, list[str]] = {
            name.removesuffix(marker): [] for name in names if name.endswith(marker)
        }
        plain = []
        for name in names:
            module, _, suffix = name.rpartition(".")
            if module in modules and suffix in self.suffixes:
                modules[module].append(name)
            elif suffix not in self.unused:
                plain.append(name)
        return modules, plain


def packing_of(settings: Mapping[str, Any], name: str) -> Packing:
    """How the checkpoint ``name`` is packed, by config.json's ``quantization_config``.

    Raises UserError for what isn't read.
    """
    method = settings.get("quant_method")
    if method == "awq" and settings.get("bits") == 4 and settings.get("version", "gemm") == "gemm":
        return Packing("awq", ("qweight", "qzeros", "scales"), _unpack_awq)
    if method == "gptq" and settings.get("bits") in (4, 8):
        bits = int(settings["bits"])
        offset = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
        return Packing(
            "gptq",
            ("qweight", "qzeros", "scales", "g_idx"),
            lambda tensors: _unpack_gptq(tensors, bits, offset),
        )
    if method == "compressed-tensors":
        if settings.get("format") == "pack-quantized":
            suffixes = (
                "weight_packed",
                "weight_scale",
                "weight_zero_point",
                "weight_shape",
                "weight_g_idx",
            )
            return Packing("compressed-tensors", suffixes, _unpack_compressed)
        if stores_float8(settings):
            return _float8_packing(method, settings, "weight_scale", "input_scale")
        if settings.get("format") in ("int-quantized", "naive-quantized"):
            suffixes = (
                "weight_scale",
                "weight",
                "weight_zero_point",
                "input_scale",
                "input_zero_point",
            )
            return Packing("compressed-tensors", suffixes, _read_integers)
    if method == "fp8":
        return _float8_packing(method, settings, "weight_scale_inv", "activation_scale")
    kind = settings.get("format", settings.get("version"))
    raise UserError(
        f"{name} is quantised by {method!r} ({kind}, {settings.get('bits', 'unsaid')} bits), which "
        "isn't read here: AWQ of 4 bits, GPTQ of 4 or 8, compressed-tensors' int-quantized, "
        "pack-quantized and float-quantized, and fp8 are; or export the unquantised checkpoint "
        "with --int4 or --int8."
    )


def _float8_packing(
    method: str, settings: Mapping[str, Any], scales: str, activation_scale: str
) -> Packing:
    block = block_of(settings)
    return Packing(
        method,
        (scales, "weight", activation_scale),
        lambda tensors: PackedWeight(read_float8(tensors, scales, block)),
        is_float8=True,
        unused=("k_scale", "v_scale"),  # of a float8 KV cache
    )


def pack_graph(
    model: ir.Model, packed: Iterable[tuple[str, PackedWeight]]
) -> dict[str, WeightScheme | Float8Scheme]:
    """Give a simplified graph its weights as the checkpoint stores them, in place.

    Only those of linear layers: another weight stays float. Returns what was packed, by name.
    """
    linears: dict[str, list[Linear]] = {}
    for linear in find_linears(model):
        linears.setdefault(linear.name, []).append(linear)
    schemes: dict[str, WeightScheme | Float8Scheme] = {}
    activation_scales = {}
    for name, weight in packed:
        if name not in linears:
            continue
        first, quantized = linears[name][0], weight.quantized
        schemes[name] = quantized.scheme
        if isinstance(quantized, Float8Weight):
            store_as_float8(model, first.weight, quantized, transposed=first.transposed)
            if quantized.activation_scale is not None:
                activation_scales[name] = quantized.activation_scale
            continue
        if weight.order is not None:
            for linear in linears[name]:
                _reorder_inputs(model.graph, linear, weight.order)
        quantize_initializer(model, first.weight, quantized, transposed=first.transposed)
    _round_activations(model.graph, linears, activation_scales)
    return schemes


def _round_activations(
    graph: ir.Graph, linears: Mapping[str, Sequence[Linear]], scales: Mapping[str, float]
) -> None:
    """Let layers, by their weight's name, read activations in float8; once where that is equal."""
    groups: dict[tuple[ir.Value, float], list[Linear]] = {}
    for name, sharing in linears.items():
        if name in scales:
            for linear in sharing:
                groups.setdefault((linear.source, scales[name]), []).append(linear)
    for (_, scale), group in groups.items():
        quantize_source(graph, group, scale, ml_dtypes.float8_e4m3fn)


def _reorder_inputs(graph: ir.Graph, linear: Linear, order: npt.NDArray[np.int64]) -> None:
    """Let a layer read its input channels in the order of its columns."""
    insert = Inserter(graph, linear.matmul, f"{linear.matmul.name}/reordered")
    indices = add_initializer(graph, f"{linear.name}.order", order)
    reordered = insert.value("Gather", [linear.source, indices], axis=-1)
    reordered.shape, reordered.type = linear.source.shape, linear.source.type
    linear.matmul.replace_input_with(0, reordered)


def _unpack_awq(tensors: Tensors) -> PackedWeight:
    """``qweight`` int32 [in, out / 8], ``qzeros`` [groups, out / 8], ``scales`` [groups, out]."""
    integers = _nibbles(tensors["qweight"], 4)[..., _AWQ_ORDER]
    zeros = _nibbles(tensors["qzeros"], 4)[..., _AWQ_ORDER]
    inputs, groups = len(integers), len(zeros)
    return PackedWeight(
        _quantized(
            integers.reshape(inputs, -1).T,
            zeros.reshape(groups, -1).T,
            tensors["scales"].float().numpy().T,
            bits=4,
        )
    )


def _unpack_gptq(tensors: Tensors, bits: int, offset: int) -> PackedWeight:
    """``qweight`` int32 [in * bits / 32, out], ``qzeros`` [groups, out * bits / 32].

    Zero points are stored less ``offset``. ``g_idx`` [in] is the group of each input, where groups
    needn't be neighbours.
    """
    packed = _nibbles(tensors["qweight"], bits)  # [words, out, integers of a word]
    integers = packed.transpose(1, 0, 2).reshape(packed.shape[1], -1)
    zeros = _nibbles(tensors["qzeros"], bits)
    zeros = (zeros.reshape(len(zeros), -1) + offset) & ((1 << bits) - 1)
    group_of = tensors["g_idx"].numpy() if "g_idx" in tensors else None
    order = None
    if group_of is not None and (np.diff(group_of) < 0).any():
        order = np.argsort(group_of, kind="stable")
        integers = integers[:, order]
    scales = tensors["scales"].float().numpy().T
    return PackedWeight(_quantized(integers, zeros.T, scales, bits=bits), order)


def _unpack_compressed(tensors: Tensors) -> PackedWeight:
    """``weight_packed`` int32 [out, in * bits / 32], ``weight_scale`` [out, groups]."""
    outputs, inputs = (int(size) for size in tensors["weight_shape"])
    packed = tensors["weight_packed"]
    bits = 32 * packed.shape[1] // inputs
    integers = _nibbles(packed, bits).reshape(outputs, -1)[:, :inputs]
    scales = tensors["weight_scale"].float().numpy().reshape(outputs, -1)
    zeros = np.full(scales.shape, 1 << bits - 1)
    if "weight_zero_point" in tensors:
        words = _nibbles(tensors["weight_zero_point"].T, bits)  # [groups, words, integers]
        zeros = words.reshape(scales.shape[1], -1)[:, :outputs].T
    order = None
    if "weight_g_idx" in tensors and (np.diff(tensors["weight_g_idx"].numpy()) < 0).any():
        order = np.argsort(tensors["weight_g_idx"].numpy(), kind="stable")
        integers = integers[:, order]
    return PackedWeight(_quantized(integers, zeros, scales, bits=bits), order)


def _read_integers(tensors: Tensors) -> PackedWeight:
    """``weight`` int8 [out, in] and ``weight_scale`` [out, 1], or one for all."""
    integers = tensors["weight"].numpy().astype(np.int16) + 128
    outputs = len(integers)
    scales = tensors["weight_scale"].float().numpy().reshape(-1, 1)
    scales = np.broadcast_to(scales, (outputs, 1))
    zeros = np.full(scales.shape, 128)
    if "weight_zero_point" in tensors:
        stored = tensors["weight_zero_point"].numpy().astype(np.int16).reshape(-1, 1)
        zeros = np.broadcast_to(stored + 128, (outputs, 1))
    return PackedWeight(_quantized(integers, zeros, scales, bits=8))


def _nibbles(words: torch.Tensor, bits: int) -> Array:
    """The unsigned integers in int32 words, lowest bits first, along a new last axis."""
    shifts = np.arange(0, 32, bits, dtype=np.uint32)
    unsigned = words.contiguous().numpy().view(np.uint32)
    return ((unsigned[..., None] >> shifts) & ((1 << bits) - 1)).astype(np.int16)


def _quantized(integers: Array, zeros: Array, scales: Array, *, bits: int) -> QuantizedWeight:
    """The common form of unsigned integers [out, in] with zero points and scales [out, groups]."""
    middle = 1 << bits - 1
    size = integers.shape[1] // scales.shape[1]
    symmetric = bool((zeros == middle).all())
    return QuantizedWeight(
        WeightScheme(8 if bits == 8 else 4, size if scales.shape[1] > 1 else None, symmetric),
        np.ascontiguousarray(integers - middle, dtype=np.int8),
        np.ascontiguousarray(scales, dtype=np.float32),
        None if symmetric else np.ascontiguousarray(zeros - middle, dtype=np.int8),
    )
