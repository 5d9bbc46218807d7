"""A bundle around the hand-written graph: all that serving reads, and no exporter."""

import json
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from serving.bundle import file_info
from tests.serving.tiny_graph import VOCAB, graph_info, save_graph

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message.role[0] }}{{ message.content }}{{ eos_token }}"
    "{% endfor %}{% if add_generation_prompt %}a{% endif %}"
)
END = 31


def make_bundle(
    path: Path, letters: str = "abcdefghijklmnopqrstuvwxyz .,!?", **changes: Any
) -> Path:
    """Write a bundle with a vocabulary of ASCII letters; ``changes`` are parts of its manifest."""
    path.mkdir()
    save_graph(path / "model.onnx")
    assert len(letters) == VOCAB - 1
    # Byte-level, as llguidance wants it; a space has a letter of its own there.
    vocabulary = {letter: index for index, letter in enumerate(letters.replace(" ", "Ġ"))}
    tokenizer = Tokenizer(models.BPE(vocabulary, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<end>"])
    tokenizer.save(str(path / "tokenizer.json"))
    (path / "chat_template.jinja").write_text(CHAT_TEMPLATE)
    manifest = {
        "format_version": 1,
        "created": "2026-01-01T00:00:00+00:00",
        "built_with": {"export-llm": "0.1.0"},
        "model": {"name": "tiny", "architecture": "llama", "parameters": 700, "weight_bytes": 2800},
        "graph": graph_info().model_dump(),
        "engines": [
            {
                "target": "onnxruntime",
                "file": "model.onnx",
                "weight_bytes": 2800,
                "runtime_version": "1.32.0",
            }
        ],
        "tokens": {"eos": [END]},
        "parity": {"status": "passed"},
        "files": {
            name: file_info(path / name).model_dump()
            for name in ("model.onnx", "tokenizer.json", "chat_template.jinja")
        },
    }
    (path / "bundle.json").write_text(json.dumps(manifest | changes))
    return path
