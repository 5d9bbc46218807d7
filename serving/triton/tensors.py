"""Names, types and shapes of a Triton model's tensors.

The names are those that clients of TensorRT-LLM's and vLLM's backends send. All shapes have a batch
of one request in front: [1, ...].
"""

from dataclasses import dataclass
from typing import Literal

DataType = Literal[
    "TYPE_STRING", "TYPE_INT32", "TYPE_INT64", "TYPE_UINT64", "TYPE_FP32", "TYPE_BOOL"
]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor as config.pbtxt declares it; ``dims`` are those behind the batch, -1 any number.

    Requests may be batched in which an ``is_ragged`` one has different shapes.
    """

    name: str
    data_type: DataType
    dims: tuple[int, ...] = (1,)
    optional: bool = True
    is_ragged: bool = False


TEXT_INPUT = TensorSpec("text_input", "TYPE_STRING")
INPUT_IDS = TensorSpec("input_ids", "TYPE_INT32", (-1,))

# What a model of an ensemble tells the next one.
HANDOVER = TensorSpec("handover", "TYPE_STRING")

EXCLUDE_INPUT = TensorSpec("exclude_input_in_output", "TYPE_BOOL")

PARAMETERS = (
    TensorSpec("max_tokens", "TYPE_INT32"),
    TensorSpec("min_tokens", "TYPE_INT32"),
    TensorSpec("stop_words", "TYPE_STRING", (-1,)),
    TensorSpec("bad_words", "TYPE_STRING", (-1,)),
    TensorSpec("temperature", "TYPE_FP32"),
    TensorSpec("top_k", "TYPE_INT32"),
    TensorSpec("top_p", "TYPE_FP32"),
    TensorSpec("min_p", "TYPE_FP32"),
    TensorSpec("repetition_penalty", "TYPE_FP32"),
    TensorSpec("presence_penalty", "TYPE_FP32"),
    TensorSpec("frequency_penalty", "TYPE_FP32"),
    TensorSpec("no_repeat_ngram_size", "TYPE_INT32"),
    TensorSpec("seed", "TYPE_UINT64"),
    TensorSpec("beam_width", "TYPE_INT32"),
    TensorSpec("length_penalty", "TYPE_FP32"),
    TensorSpec("early_stopping", "TYPE_BOOL"),
    TensorSpec("source_language", "TYPE_STRING"),
    TensorSpec("target_language", "TYPE_STRING"),
    TensorSpec("guided_decoding_guide_type", "TYPE_STRING"),
    TensorSpec("guided_decoding_guide", "TYPE_STRING"),
    TensorSpec("adapter", "TYPE_STRING"),
    TensorSpec("stream", "TYPE_BOOL"),
    TensorSpec("return_log_probs", "TYPE_BOOL"),
    TensorSpec("return_num_input_tokens", "TYPE_BOOL"),
    TensorSpec("return_num_output_tokens", "TYPE_BOOL"),
)

INPUTS = (TEXT_INPUT, INPUT_IDS, EXCLUDE_INPUT, *PARAMETERS)

# One entry for each beam; of sequences, one row for each, as long as the longest of them.
TEXT_OUTPUT = TensorSpec("text_output", "TYPE_STRING", (-1,))
TOKEN_OUTPUTS = (
    TensorSpec("output_ids", "TYPE_INT32", (-1, -1)),
    TensorSpec("cum_log_probs", "TYPE_FP32", (-1,)),
    TensorSpec("output_log_probs", "TYPE_FP32", (-1, -1)),
    TensorSpec("num_input_tokens", "TYPE_INT32"),
    TensorSpec("num_output_tokens", "TYPE_INT32", (-1,)),
    TensorSpec("finish_reason", "TYPE_STRING", (-1,)),
)

OUTPUTS = (TEXT_OUTPUT, *TOKEN_OUTPUTS)
