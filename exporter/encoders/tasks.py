"""What an encoder's checkpoint is for: its task, and how its embeddings are pooled."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)
from transformers.models.auto import modeling_auto

from exporter.checkpoint import read_json
from serving.encoders.contract import Pooling, Task
from serving.errors import UserError

AUTO_CLASSES: Mapping[Task, Any] = {
    "embed": AutoModel,
    "fill-mask": AutoModelForMaskedLM,
    "text-classification": AutoModelForSequenceClassification,
    "token-classification": AutoModelForTokenClassification,
    "question-answering": AutoModelForQuestionAnswering,
}
_HEADS: Mapping[Task, Mapping[str, str]] = {
    "fill-mask": modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    "text-classification": modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES,
    "token-classification": modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES,
    "question-answering": modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES,
}
# sentence-transformers' files.
_MODULES, _SENTENCES = "modules.json", "sentence_bert_config.json"
_POOLINGS: Mapping[str, Pooling] = {
    "cls": "cls",
    "cls_token": "cls",
    "max": "max",
    "max_tokens": "max",
    "mean": "mean",
    "mean_tokens": "mean",
    "lasttoken": "last",
}


@dataclass(frozen=True)
class SentenceSettings:
    """How a checkpoint's last hidden states become one vector.

    ``max_length`` is the most tokens that it was trained for, if it says so, and ``source`` names
    the files that say all this.
    """

    pooling: Pooling = "mean"
    normalize: bool = False
    max_length: int | None = None
    source: str = "nothing in the checkpoint"


def find_task(directory: Path) -> Task | None:
    """The task of the head that a checkpoint has; None where it isn't an encoder's."""
    if not (directory / "config.json").is_file():
        return None
    config = read_json(directory / "config.json")
    kind, heads = str(config.get("model_type")), config.get("architectures") or [""]
    if kind in modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES:
        return None
    for task, mapping in _HEADS.items():
        if mapping.get(kind) == heads[0]:
            return task
    if kind not in modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        return None
    if modeling_auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.get(kind) == heads[0]:
        return "fill-mask"  # beside a head that only its training had a use for
    is_bare = heads[0] in _bare_names(kind)
    return "embed" if is_bare or (directory / _MODULES).is_file() else None


def _bare_names(kind: str) -> tuple[str, ...]:
    names = modeling_auto.MODEL_MAPPING_NAMES.get(kind, ())
    return (names,) if isinstance(names, str) else tuple(names)


def sentence_settings(directory: Path) -> SentenceSettings:
    """How embeddings are pooled; raises UserError for modules that aren't known here.

    A checkpoint without sentence-transformers' files gets the mean of all tokens.
    """
    if not (directory / _MODULES).is_file():
        return SentenceSettings()
    modules = _read_modules(directory / _MODULES)
    kinds = [kind for kind, _ in modules]
    if kinds not in (["Transformer", "Pooling"], ["Transformer", "Pooling", "Normalize"]):
        raise UserError(
            f"{directory / _MODULES} has {', '.join(kinds)}, and only Transformer, Pooling and "
            "Normalize, in this order, can be exported: export it without the others if they "
            "aren't needed."
        )
    longest = None
    if (directory / _SENTENCES).is_file():
        sentences = read_json(directory / _SENTENCES)
        longest = sentences.get("max_seq_length")
        if sentences.get("do_lower_case"):
            raise UserError(
                f"{directory / _SENTENCES} asks for texts in lower case before the tokenizer: set "
                "do_lower_case to false, and lower-case texts yourself."
            )
    pooling = _pooling(directory / modules[1][1] / "config.json")
    return SentenceSettings(pooling, "Normalize" in kinds, longest, "sentence-transformers' files")


def _read_modules(file: Path) -> list[tuple[str, str]]:
    """Kind and folder of each module."""
    try:
        listed = json.loads(file.read_text(encoding="utf-8"))
        return [(str(m["type"]).rpartition(".")[2], str(m["path"])) for m in listed]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{file} isn't a list of modules ({error}): get it again.") from error


def _pooling(file: Path) -> Pooling:
    """The one pooling that a module asks for, as older and newer versions write it."""
    config = read_json(file)
    named = config.get("pooling_mode")
    modes = [named] if isinstance(named, str) else list(named or ())
    prefix = "pooling_mode_"
    modes += [n.removeprefix(prefix) for n, v in config.items() if n.startswith(prefix) and v]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise UserError(
            f"{file} asks for the pooling {', '.join(modes) or 'of nothing'}: only one of mean, "
            "max, the CLS token or the last one can be exported."
        )
    return _POOLINGS[modes[0]]
