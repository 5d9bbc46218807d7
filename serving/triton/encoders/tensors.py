"""Names, types and shapes of the tensors of encoders' models, by task.

All shapes have the number of texts in front: [n, ...]. Where texts have different numbers of
spans, or of masks, rows end with empty strings and zeros.

Options aren't tensors but parameters of a request: Triton would batch only requests that have the
same optional tensors.
"""

from dataclasses import replace

from serving.bundle import EncoderInfo
from serving.encoders.contract import TOKEN_TYPE_IDS
from serving.triton.roles import Role
from serving.triton.tensors import TensorSpec

MODULE = "serving.triton.encoders.model"

_INSTANCES = "An instance is a process with an engine of its own."

TEXT = TensorSpec("text", "TYPE_STRING")
TEXT_PAIR = TensorSpec("text_pair", "TYPE_STRING")
QUESTION = TensorSpec("question", "TYPE_STRING", optional=False)
CONTEXT = TensorSpec("context", "TYPE_STRING", optional=False)

# As engines take them, but padded on the right only; in place of texts.
INPUT_IDS = TensorSpec("input_ids", "TYPE_INT64", (-1,), is_ragged=True)
ATTENTION_MASK = TensorSpec("attention_mask", "TYPE_INT64", (-1,), is_ragged=True)
TOKEN_TYPES = TensorSpec(TOKEN_TYPE_IDS, "TYPE_INT64", (-1,), is_ragged=True)

COUNTS = (
    TensorSpec("num_input_tokens", "TYPE_INT32"),
    TensorSpec("truncated", "TYPE_BOOL"),
    TensorSpec("segments", "TYPE_INT32"),
)

_LABELS = (
    TensorSpec("labels", "TYPE_STRING", (-1,)),
    TensorSpec("scores", "TYPE_FP32", (-1,)),
)
_SPANS = (
    *_LABELS,
    TensorSpec("texts", "TYPE_STRING", (-1,)),
    TensorSpec("starts", "TYPE_INT32", (-1,)),
    TensorSpec("ends", "TYPE_INT32", (-1,)),
)
_CANDIDATES = (
    TensorSpec("tokens", "TYPE_STRING", (-1, -1)),
    TensorSpec("token_ids", "TYPE_INT32", (-1, -1)),
    TensorSpec("scores", "TYPE_FP32", (-1, -1)),
    TensorSpec("texts", "TYPE_STRING", (-1, -1)),
)
_ANSWER = (
    TensorSpec("answer", "TYPE_STRING"),
    TensorSpec("score", "TYPE_FP32"),
    TensorSpec("start", "TYPE_INT32"),
    TensorSpec("end", "TYPE_INT32"),
)


def encoder_role(encoder: EncoderInfo) -> Role:
    """What a model for the task of ``encoder`` takes and gives."""
    return Role(
        "",
        MODULE,
        _inputs(encoder),
        (*_outputs(encoder), *COUNTS),
        _INSTANCES,
        has_engine=True,
        decoupled=False,
        batches=True,
    )


def _inputs(encoder: EncoderInfo) -> tuple[TensorSpec, ...]:
    ids = (INPUT_IDS, ATTENTION_MASK, *((TOKEN_TYPES,) if encoder.token_types else ()))
    match encoder.task:
        case "question-answering":
            return QUESTION, CONTEXT
        case "token-classification":  # where a label is in the text, ids don't tell
            return (replace(TEXT, optional=False),)
        case "text-classification":
            return TEXT, TEXT_PAIR, *ids
        case "embed" | "fill-mask":
            return TEXT, *ids


def _outputs(encoder: EncoderInfo) -> tuple[TensorSpec, ...]:
    match encoder.task:
        case "embed":
            assert encoder.hidden_size is not None
            return (TensorSpec("embeddings", "TYPE_FP32", (encoder.hidden_size,)),)
        case "text-classification":
            return _LABELS
        case "token-classification":
            return _SPANS
        case "fill-mask":
            return _CANDIDATES
        case "question-answering":
            return _ANSWER
