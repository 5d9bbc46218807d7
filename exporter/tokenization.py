"""The tokenizer, chat template and special tokens that a bundle carries."""

import json
import shutil
import tempfile
from collections.abc import Iterable
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from exporter.checkpoint import Checkpoint
from serving.bundle import SpecialTokens

FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
_FORCED = ("forced_bos", "forced_eos")
_SOURCES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model")


def write_tokenizer(checkpoint: Path, directory: Path) -> None:
    """Write the tokenizer as ``tokenizer.json``, converted if need be, and generation_config.json.

    A checkpoint without a tokenizer gives a bundle that takes token ids.
    """
    generation = checkpoint / "generation_config.json"
    if generation.is_file():
        shutil.copyfile(generation, directory / generation.name)
    tokenizer = load_tokenizer(checkpoint)
    if tokenizer is None:
        return
    with tempfile.TemporaryDirectory() as temporary:
        tokenizer.save_pretrained(temporary)
        for name in FILES:
            if (Path(temporary) / name).is_file():
                shutil.copyfile(Path(temporary) / name, directory / name)


def load_tokenizer(checkpoint: Path) -> PreTrainedTokenizerBase | None:
    """The checkpoint's own tokenizer, or None if it has none."""
    if not any((checkpoint / source).is_file() for source in _SOURCES):
        return None
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
        checkpoint, local_files_only=True
    )
    return tokenizer


def special_tokens(checkpoint: Checkpoint, vocab_size: int) -> SpecialTokens:
    """Special tokens of the config and the generation config; their EOS ids are united.

    Of an encoder-decoder also those that its output begins and ends with, and those that it must
    not have.
    """
    file = checkpoint.directory / "generation_config.json"
    generation = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    config = checkpoint.config.get_text_config(decoder=True)
    ends = {
        *_ids(generation.get("eos_token_id")),
        *_ids(getattr(config, "eos_token_id", None)),
    }
    forced = {}
    if checkpoint.is_encoder_decoder:
        merged = {**checkpoint.config.to_dict(), **generation}
        forced = {name: _first(merged.get(f"{name}_token_id")) for name in _FORCED}
        start = _first(merged.get("decoder_start_token_id"))
        bos = _first(merged.get("bos_token_id"))
        forced["decoder_start"] = bos if start is None else start
    return SpecialTokens(
        bos=_first(getattr(config, "bos_token_id", None)),
        eos=tuple(sorted(token for token in ends if token < vocab_size)),
        pad=_first(getattr(config, "pad_token_id", None)),
        **forced,
        bad_words=tuple(map(tuple, generation.get("bad_words_ids") or ()))
        if checkpoint.is_encoder_decoder
        else (),
    )


def _first(value: int | Iterable[int] | None) -> int | None:
    return next(iter(_ids(value)), None)


def _ids(value: int | Iterable[int] | None) -> list[int]:
    if value is None:
        return []
    return [token for token in ([value] if isinstance(value, int) else value) if token >= 0]
