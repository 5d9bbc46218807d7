"""Tiny random checkpoints of encoder-decoders, built from configs."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForSeq2SeqLM

from serving.bundle import file_info
from tests.checkpoints import VOCABULARY, enliven, tokenizer
from tests.exports import export_bundle, once

PAD, EOS = 1, 2
FORCED = ("forced_bos_token_id", "forced_eos_token_id")
# So many that a random model ends its outputs after a few tokens, and at different lengths.
ENDS = [EOS, *range(60, 160)]
T5: dict[str, Any] = {
    "d_kv": 16,
    "d_ff": 128,
    "num_layers": 2,
    "num_heads": 4,
    "pad_token_id": PAD,
    "eos_token_id": EOS,
    "decoder_start_token_id": PAD,
}
BART: dict[str, Any] = {
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 128,
    "decoder_ffn_dim": 128,
    "max_position_embeddings": 256,
    "pad_token_id": PAD,
    "bos_token_id": 0,
    "eos_token_id": EOS,
    "decoder_start_token_id": EOS,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
}
# Name -> (model type, config). A name differs from its model type where it is a variant.
ENCODER_DECODERS: dict[str, tuple[str, dict[str, Any]]] = {
    "t5": ("t5", T5),
    "flan_t5": ("t5", T5 | {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "bart": ("bart", BART | {"forced_bos_token_id": 0, "forced_eos_token_id": EOS}),
    "marian": (
        "marian",
        BART | {"decoder_start_token_id": PAD, "forced_eos_token_id": EOS, "scale_embedding": True},
    ),
    "m2m_100": ("m2m_100", BART),
}

# Fewer layers where transformers' generate can do with other numbers of them in encoders.
FEW_LAYERS: dict[str, dict[str, int]] = {
    "t5": {},
    "bart": {"encoder_layers": 1},
    "marian": {"encoder_layers": 1, "decoder_layers": 1},
}

# What the generation_config.json of a checkpoint that searches may say.
SEARCHING = {
    "num_beams": 4,
    "length_penalty": 0.6,
    "no_repeat_ngram_size": 2,
    "max_length": 12,
    "min_length": 4,
}
# The same as transformers' generate takes it.
SEARCHING_OPTIONS: dict[str, Any] = {
    "num_beams": 4,
    "length_penalty": 0.6,
    "no_repeat_ngram_size": 2,
    "max_new_tokens": 11,
    "min_new_tokens": 3,
}


def make_encoder_decoder(name: str, directory: Path, *, seed: int = 0, **overrides: Any) -> Path:
    """Write a tiny float32 checkpoint to ``directory`` and return it.

    ``overrides`` go to the config last.
    """
    model_type, config = ENCODER_DECODERS[name]
    shared = {"vocab_size": VOCABULARY, "d_model": 64}
    settings = AutoConfig.for_model(model_type, **(shared | config | overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForSeq2SeqLM.from_config(settings, dtype=torch.float32)
        enliven(model)
    for option in FORCED:  # which configs don't hand on to generation
        setattr(model.generation_config, option, (config | overrides).get(option))
    model.generation_config.eos_token_id = ENDS
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def shared_bundle(factory: pytest.TempPathFactory, name: str) -> Path:
    """A directory with a ``checkpoint`` and its ``bundle``, made once a session."""

    def make(path: Path) -> None:
        make_encoder_decoder(name, path / "checkpoint", **FEW_LAYERS[name])
        export_bundle(path / "checkpoint", path / "bundle")

    return once(factory, f"encoder-decoders/{name}", make)


def multilingual_bundle(factory: pytest.TempPathFactory) -> Path:
    """The bundle of BART that searches unless told otherwise, with tokens for de_DE and fr_XX."""

    def make(path: Path) -> None:
        shutil.copytree(shared_bundle(factory, "bart") / "bundle", path)
        tokenizer = (path / "tokenizer.json").read_text()
        for old, language in (("<|im_start|>", "de_DE"), ("<|im_end|>", "fr_XX")):
            tokenizer = tokenizer.replace(old, language)
        (path / "tokenizer.json").write_text(tokenizer)
        (path / "generation_config.json").write_text(json.dumps(SEARCHING))
        manifest = json.loads((path / "bundle.json").read_text())
        for name in ("tokenizer.json", "generation_config.json"):
            manifest["files"][name] = file_info(path / name).model_dump()
        (path / "bundle.json").write_text(json.dumps(manifest))

    return once(factory, "encoder-decoders/multilingual", make)
