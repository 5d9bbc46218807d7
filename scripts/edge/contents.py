"""What is in a package: of the bundle what a device needs, and what runs it."""

import json
import re
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

from scripts.edge.architectures import ARCHITECTURES
from scripts.edge.libraries import ROOT, onnxruntime_files, runtime_files
from serving.bundle import MANIFEST, Bundle, EngineInfo
from serving.errors import UserError

Files = dict[str, bytes | Path]
"""Contents, or where they are, by name in the package."""

FORMAT_VERSION = 1
DESCRIPTION = "package.json"
HEADROOM = 128 << 20
"""Bytes for programs, libraries and the activations of one part of a prompt."""
CONTEXT = 2048
TEXT_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "generation_config.json",
)
DEVICE = Path(__file__).with_name("device")


class Settings(NamedTuple):
    """``listen`` is what systemd listens on: a path or an address with a port."""

    architecture: str
    version: str
    context: int
    listen: str


def settings_of(
    bundle: Bundle, architecture: str, version: str | None, context: int | None, listen: str
) -> Settings:
    """Settings with their defaults; raises UserError for those that the bundle doesn't allow.

    The default version is when the bundle was made.
    """
    most = bundle.manifest.graph.max_length
    if context is not None and context > most:
        raise UserError(f"--context is {context}, but the model has {most} positions: lower it.")
    version = version or f"{made(bundle):%Y%m%d.%H%M%S}"
    if not re.fullmatch(r"[0-9][A-Za-z0-9.+~]*", version):
        raise UserError(
            f"--version is {version!r}, but must be a digit, then letters, digits, '.', '+' or '~'."
        )
    return Settings(architecture, version, context or min(CONTEXT, most), listen)


def made(bundle: Bundle) -> datetime:
    """When a bundle was made: the time of all files in its packages."""
    return datetime.fromisoformat(bundle.manifest.created)


def package_files(bundle: Bundle, runtime: Path, settings: Settings) -> Files:
    """All files of a package but its checksums. Raises UserError if the bundle lacks some."""
    engine = _engine(bundle)
    files = _bundle_files(bundle, engine)
    memory = memory_bytes(bundle, settings.context)
    words = {
        "@CONTEXT@": str(settings.context),
        "@LISTEN@": settings.listen,
        "@MEMORY@": str(memory),
        "@MODEL@": bundle.manifest.model.name,
    }
    files["bin/llm"] = _filled("llm", words)
    files["systemd/llm.service"] = _filled("llm.service", words)
    files["systemd/llm.socket"] = _filled("llm.socket", words)
    files["licenses/export-llm/LICENSE"] = ROOT / "LICENSE"
    files |= runtime_files(runtime)
    files |= onnxruntime_files(ARCHITECTURES[settings.architecture])
    files[DESCRIPTION] = _description(bundle, settings, memory)
    return files


def memory_bytes(bundle: Bundle, context: int) -> int:
    """The most memory that serving one text of ``context`` tokens takes."""
    names = _engine_files(bundle, _engine(bundle))
    weights = sum(bundle.manifest.files[name].size for name in names)
    return weights + context * bundle.manifest.graph.kv_bytes_per_token + HEADROOM


def _engine(bundle: Bundle) -> EngineInfo:
    engine = bundle.engine("onnxruntime")
    if engine is None or engine.stages or engine.ranks > 1:
        raise UserError(
            f"The bundle {str(bundle.path)!r} has no engine of ONNX Runtime in one piece: export "
            "it with --target onnxruntime."
        )
    return engine


def _engine_files(bundle: Bundle, engine: EngineInfo) -> list[str]:
    """The engine, and its weights beside it."""
    names = bundle.manifest.files
    return [n for n in names if n == engine.file or n.startswith(f"{engine.file}.")]


def _bundle_files(bundle: Bundle, engine: EngineInfo) -> Files:
    """Neither reports nor other engines; the manifest lists what is left."""
    if bundle.file("tokenizer.json") is None:
        raise UserError(
            f"The bundle {str(bundle.path)!r} has no tokenizer.json: export a checkpoint with one."
        )
    listed = bundle.manifest.files
    names = _engine_files(bundle, engine) + [name for name in TEXT_FILES if name in listed]
    manifest = bundle.manifest.model_copy(
        update={"engines": (engine,), "files": {name: listed[name] for name in names}}
    )
    files: Files = {f"bundle/{name}": bundle.location(name) for name in names}
    files[f"bundle/{MANIFEST}"] = (manifest.model_dump_json(indent=2) + "\n").encode()
    return files


def _filled(template: str, words: dict[str, str]) -> bytes:
    text = (DEVICE / template).read_text()
    for word, value in words.items():
        text = text.replace(word, value)
    return text.encode()


def _description(bundle: Bundle, settings: Settings, memory: int) -> bytes:
    manifest = bundle.manifest
    description: dict[str, Any] = {
        "format_version": FORMAT_VERSION,
        "version": settings.version,
        "architecture": settings.architecture,
        "model": manifest.model.name,
        "precision": manifest.model.precision,
        "context": settings.context,
        "memory_bytes": memory,
    }
    # One line for each: the device has no JSON parser.
    return (json.dumps(description, indent=2) + "\n").encode()
