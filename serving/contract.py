"""Names and shapes of the decoder graph: what every exporter writes and every engine runs.

Inputs
    input_ids            int64 [batch, sequence]     new tokens; rows are right-padded
    past_lengths         int64 [batch]               tokens already in each row's cache
    logits_positions     int64 [batch, n]            which new positions get logits
    past_key_values.{i}.key, .value                  C [batch, kv_heads, max_sequence, head_dim]

Outputs
    logits               T [batch, n, vocab]
    embeddings           T or float32 [batch, sequence, hidden]     not in every graph
    present.{i}.key, .value                          as the past, and at the same address

``embeddings`` are the last hidden states of all new tokens: what the language model head gets of
``logits_positions``, so that the head needn't run on the others.
T is float32, float16 or bfloat16; C is T, or int8 where the cache is quantised.

A graph that takes LoRA adapters has these inputs too
    adapter_ids          int64 [batch]               which adapter each row has
    lora.{table}.a       T [adapters, in, rank]
    lora.{table}.b       T [adapters, rank, out]
Beside the linear layer of a table, whose input is x, it adds (x a[id]) b[id] to the output. ``out``
has those of all projections that the layer was merged from, and ``rank`` is free in each table:
where no row has an adapter, tables of rank 0 are bound, which cost next to nothing.

An encoder-decoder has two graphs. The encoder's
    input_ids            int64 [batch, source]       the source; padding is anywhere
    attention_mask       int64 [batch, source]       1, or 0 for padding
gives the keys and values of every decoder layer's cross-attention
    cross_key_values.{i}.key, .value                 T [batch, kv_heads, source, head_dim]
Its decoder graph has the inputs and outputs of a decoder's, and the inputs
    source_lengths       int64 [batch]               tokens of each row's source
    cross_key_values.{i}.key, .value                 T [batch, kv_heads, max_source, head_dim]
of which it sees what is before the source's end.

A stage of a pipeline has the inputs and outputs of its own layers, under the same numbers.
Only the last has ``logits_positions`` and ``logits``. Over the boundary behind stage b go
    hidden_states.{b}.{n}     T or float32 [batch, sequence, ...]
as outputs of stage b and inputs of stage b + 1.
"""

from collections.abc import Iterable
from typing import Literal

CONTRACT_VERSION = 1

INPUT_IDS = "input_ids"
PAST_LENGTHS = "past_lengths"
LOGITS_POSITIONS = "logits_positions"
LOGITS = "logits"
ADAPTER_IDS = "adapter_ids"
EMBEDDINGS = "embeddings"
ATTENTION_MASK = "attention_mask"
SOURCE_LENGTHS = "source_lengths"
_CROSS = "cross_key_values."
_HIDDEN = "hidden_states."
_LORA = "lora."

# The graph for ONNX Runtime on CUDA, beside model.onnx, whose weights it reads.
CUDA_MODEL_FILE = "model.cuda.onnx"

# ONNX's numbers of the element types that the graph's inputs and outputs have.
INT64 = 7
ELEMENT_TYPE = {"float32": 1, "int8": 3, "float16": 10, "bfloat16": 16}

# Metadata of an Attention node whose mask is exactly "causal, and fewer than N tokens back".
WINDOW_METADATA = "window"

Part = Literal["key", "value"]
PARTS: tuple[Part, Part] = ("key", "value")


def past_name(layer: int, part: Part) -> str:
    """Graph input that holds a layer's cached keys or values."""
    return f"past_key_values.{layer}.{part}"


def present_name(layer: int, part: Part) -> str:
    """Graph output that holds a layer's keys or values with the new tokens written in."""
    return f"present.{layer}.{part}"


def cross_name(layer: int, part: Part) -> str:
    """Graph input, of an encoder output, with a layer's keys or values of the source."""
    return f"{_CROSS}{layer}.{part}"


def is_cross(name: str | None) -> bool:
    """Whether a graph input or output holds keys or values of a source."""
    return (name or "").startswith(_CROSS)


def cached_layers(names: Iterable[str | None]) -> list[int]:
    """The numbers of the layers whose buffers are among these graph inputs, in order."""
    parts = [(name or "").split(".") for name in names]
    return sorted(int(p[1]) for p in parts if p[0] == "past_key_values" and p[2] == "key")


def lora_name(table: str, factor: Literal["a", "b"]) -> str:
    """Graph input that holds one factor of every adapter, for one linear layer."""
    return f"{_LORA}{table}.{factor}"


def is_lora(name: str | None) -> bool:
    """Whether a graph input holds a factor of adapters."""
    return (name or "").startswith(_LORA)


def hidden_name(boundary: int, index: int) -> str:
    """Graph output and input that carries hidden states from one stage to the next."""
    return f"{_HIDDEN}{boundary}.{index}"


def is_hidden(name: str | None) -> bool:
    """Whether a graph input or output carries hidden states between stages."""
    return (name or "").startswith(_HIDDEN)
