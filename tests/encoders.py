"""Tiny random encoders of every task, exported once a session, and their tokenizer."""

import functools
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForQuestionAnswering,
    AutoTokenizer,
    BertTokenizer,
    PreTrainedModel,
)

from exporter.encoders.export import EncoderRequest, export_encoder
from exporter.encoders.tasks import AUTO_CLASSES
from serving.encoders.contract import Task
from tests.checkpoints import enliven
from tests.exports import NoDisplay, once

VOCABULARY = 512
MAX_LENGTH = 64

_SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "max_position_embeddings": MAX_LENGTH,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
LABELS = {0: "O", 1: "B-NAME", 2: "I-NAME"}
# Name -> model type, task, what its config has beside the shape. Each has a trait of its own.
ENCODERS: dict[str, tuple[str, Task, dict[str, Any]]] = {
    "sentences": ("bert", "embed", {}),
    "windows": (
        "modernbert",
        "fill-mask",
        {"local_attention": 8, "layer_types": ["full_attention", "sliding_attention"]},
    ),
    "own_attention": ("mpnet", "text-classification", {"num_labels": 3}),
    "entities": ("distilbert", "token-classification", {"id2label": LABELS}),
    "relative": ("deberta-v2", "question-answering", {"relative_attention": True}),
}


def make_encoder(
    model_type: str, task: Task, directory: Path, *, seed: int = 0, **config: Any
) -> PreTrainedModel:
    """Write a tiny float32 checkpoint with the head of ``task``; returns its model."""
    names = {"distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 64}}
    shape = _SHAPE | names.get(model_type, {})
    if model_type == "distilbert":
        for taken in ("hidden_size", "num_hidden_layers", "num_attention_heads"):
            del shape[taken]
    settings = AutoConfig.for_model(model_type, **(shape | config))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model: PreTrainedModel = AUTO_CLASSES[task].from_config(settings, dtype=torch.float32)
        enliven(model)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return model.eval()


def write_sentence_files(directory: Path, *, pooling: str, normalize: bool, length: int) -> None:
    """Make a checkpoint one of sentence-transformers'."""
    kinds = ["Transformer", "Pooling", *(["Normalize"] if normalize else [])]
    modules = [
        {"idx": i, "name": str(i), "path": f"{i}_{kind}" if i else "", "type": f"models.{kind}"}
        for i, kind in enumerate(kinds)
    ]
    (directory / "modules.json").write_text(json.dumps(modules))
    (directory / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": length}))
    folder = directory / "1_Pooling"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({f"pooling_mode_{pooling}": True}))


@functools.cache
def tokenizer() -> BertTokenizer:
    """The tokenizer of all tiny encoders, with BERT's special tokens."""
    texts = [inspect.getsource(functools), inspect.getsource(inspect)]
    return BertTokenizer().train_new_from_iterator(texts, VOCABULARY, show_progress=False)


def likeliest_spans(
    checkpoint: Path, question: str, context: str, max_tokens: int = 15
) -> list[tuple[tuple[int, int], float]]:
    """Where transformers' model has answers, in characters, and their scores; likeliest first."""
    tokens = AutoTokenizer.from_pretrained(checkpoint)(question, context, return_tensors="pt")
    reference = AutoModelForQuestionAnswering.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        output = reference(**tokens)
    inside = torch.tensor([each == 1 for each in tokens.encodings[0].sequence_ids])
    start, end = (
        logits[0].masked_fill(~inside, -torch.inf).softmax(0)
        for logits in (output.start_logits, output.end_logits)
    )
    offsets = tokens.encodings[0].offsets
    spans = {
        (offsets[i][0], offsets[j][1]): float(start[i] * end[j])
        for i in range(len(start))
        for j in range(i, min(i + max_tokens, len(end)))
        if inside[i] and inside[j]
    }
    return sorted(spans.items(), key=lambda span: -span[1])


def encoder_fixture(factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A function from a name of ``ENCODERS`` to its folder of ``checkpoint`` and ``bundle``."""

    def make(folder: Path, name: str) -> None:
        folder.mkdir()
        model_type, task, config = ENCODERS[name]
        make_encoder(model_type, task, folder / "checkpoint", **config)
        if task == "embed":
            write_sentence_files(
                folder / "checkpoint", pooling="cls_token", normalize=True, length=MAX_LENGTH // 2
            )
        export_encoder(EncoderRequest(str(folder / "checkpoint"), folder / "bundle"), NoDisplay())

    return lambda name: once(factory, f"encoders/{name}", lambda folder: make(folder, name))
