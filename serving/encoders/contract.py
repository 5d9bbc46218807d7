"""Names and shapes of the encoder graph: what the exporter writes and every engine runs.

Inputs
    input_ids            int64 [batch, sequence]     what is padding holds the padding token
    attention_mask       int64 [batch, sequence]     1 for a token, 0 for padding, wherever it is
    token_type_ids       int64 [batch, sequence]     which text of a pair; not in every graph
    logits_positions     int64 [batch, n]            fill-mask alone: which positions get logits

Outputs, by task
    embed                   embeddings         float32 [batch, hidden]
                            last_hidden_state  T [batch, sequence, hidden]
    fill-mask               logits             T [batch, n, vocab]
    text-classification     logits             T [batch, labels]
    token-classification    logits             T [batch, sequence, labels]
    question-answering      start_logits, end_logits   T [batch, sequence]

``embeddings`` are pooled over what isn't padding, and of length 1 if the checkpoint says so.
At padding, outputs have no meaning. Each row has one token at least. T is float32 or float16.
"""

from typing import Literal

from serving.contract import ATTENTION_MASK, EMBEDDINGS, INPUT_IDS, LOGITS, LOGITS_POSITIONS

ENCODER_CONTRACT_VERSION = 1

Task = Literal[
    "embed", "fill-mask", "text-classification", "token-classification", "question-answering"
]
Pooling = Literal["mean", "cls", "last", "max"]

TOKEN_TYPE_IDS = "token_type_ids"
LAST_HIDDEN_STATE = "last_hidden_state"
START_LOGITS = "start_logits"
END_LOGITS = "end_logits"


def output_names(task: Task) -> tuple[str, ...]:
    """The outputs of a task's graph, in order."""
    if task == "embed":
        return EMBEDDINGS, LAST_HIDDEN_STATE
    return (START_LOGITS, END_LOGITS) if task == "question-answering" else (LOGITS,)


def input_names(task: Task, *, token_types: bool) -> tuple[str, ...]:
    """The inputs of a task's graph, in order."""
    types = (TOKEN_TYPE_IDS,) if token_types else ()
    positions = (LOGITS_POSITIONS,) if task == "fill-mask" else ()
    return INPUT_IDS, ATTENTION_MASK, *types, *positions


def is_per_token(task: Task, output: str) -> bool:
    """Whether an output has a row for each token, and not one for each text."""
    return output != EMBEDDINGS and task not in ("text-classification", "fill-mask")
