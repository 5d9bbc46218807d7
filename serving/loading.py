"""Opening a bundle: its checks, its engine, its tokenizer and its chat template."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.bundle import Bundle, EngineInfo, Target, open_bundle
from serving.contract import CONTRACT_VERSION
from serving.errors import UserError
from serving.generation import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from serving.chat import ChatTemplate
    from serving.onnxruntime import Provider

DEFAULT_CAPACITY = 4096
DEFAULT_SLOTS = 4


def load(
    bundle: str | Path,
    *,
    target: Target | None = None,
    provider: "Provider | None" = None,
    capacity: int | None = None,
    slots: int | None = None,
    threads: int | None = None,
    prefill_chunk: int = 512,
    verify: bool = True,
) -> Model:
    """Open a bundle for generation.

    ``capacity`` is the most tokens a sequence may have, prompt included (default: the model's
    maximum, at most 4096), ``slots`` how many sequences run at a time (default: 4). ``provider`` is
    "cpu" (default) or "cuda", ``threads`` defaults to the physical cores, ``prefill_chunk`` is how
    many tokens of a prompt run at once. ``verify`` compares the files' checksums first.

    Raises UserError if the bundle is damaged, has no engine that runs here, or the limits don't
    fit.
    """
    opened = open_bundle(bundle, verify)
    engine = _choose_engine(opened, target)
    slots = _choose_slots(engine, slots)
    capacity = _choose_capacity(opened, engine, capacity)
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}, but must be at least 1: raise it.")
    tokenizer = _load_tokenizer(opened)

    provider = provider or "cpu"
    if provider == "cpu":
        _check_memory(opened, engine, slots, capacity)

    from serving.onnxruntime import PROVIDERS, OnnxRuntimeEngine

    if provider not in PROVIDERS:
        raise UserError(f"provider is {provider!r}, but must be one of {', '.join(PROVIDERS)}.")
    return Model(
        OnnxRuntimeEngine(
            opened.path / engine.file,
            opened.manifest.graph,
            slots=slots,
            capacity=capacity,
            weight_bytes=engine.weight_bytes,
            provider=provider,
            threads=threads,
        ),
        opened.manifest.tokens,
        tokenizer,
        _load_chat_template(opened, tokenizer),
        prefill_chunk,
    )


def _choose_engine(bundle: Bundle, target: Target | None) -> EngineInfo:
    manifest = bundle.manifest
    if manifest.graph.contract_version != CONTRACT_VERSION:
        raise UserError(
            f"The bundle's graph follows contract version {manifest.graph.contract_version}, this "
            f"export-llm runs version {CONTRACT_VERSION}: export the model again."
        )
    present = [engine.target for engine in manifest.engines]
    if target is not None and target not in present:
        raise UserError(
            f"The bundle has no engine for {target}, only for {', '.join(present) or 'nothing'}: "
            f"export it with --target {target}."
        )
    engine = bundle.engine("onnxruntime")
    if engine is None or target not in (None, "onnxruntime"):
        raise UserError(
            "TensorRT engines need an NVIDIA GPU and a runtime that comes with a later release: "
            "export the model with --target onnxruntime to run it here."
        )
    return engine


def _choose_slots(engine: EngineInfo, slots: int | None) -> int:
    most = engine.max_batch
    if slots is None:
        return most or DEFAULT_SLOTS
    if slots < 1 or (most is not None and slots > most):
        limit = f"from 1 to {most}" if most else "at least 1"
        raise UserError(f"slots is {slots}, but must be {limit}: change slots=.")
    return slots


def _choose_capacity(bundle: Bundle, engine: EngineInfo, capacity: int | None) -> int:
    longest, static = bundle.manifest.graph.max_length, engine.max_sequence
    if capacity is None:
        return static or min(longest, DEFAULT_CAPACITY)
    if static is not None and capacity != static:
        raise UserError(
            f"capacity is {capacity}, but this engine was built for {static} tokens: "
            "leave capacity= out or export again with --max-length."
        )
    if not 1 <= capacity <= longest:
        raise UserError(
            f"capacity is {capacity}, but this model takes from 1 to {longest} tokens: "
            "change capacity=."
        )
    return capacity


def _check_memory(bundle: Bundle, engine: EngineInfo, slots: int, capacity: int) -> None:
    needed = engine.weight_bytes + slots * capacity * bundle.manifest.graph.kv_bytes_per_token
    free = free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"The weights and the KV buffers need {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB "
            f"are free: open the bundle with fewer slots than {slots} or less capacity than "
            f"{capacity}."
        )


def free_memory() -> int | None:
    """Bytes of memory that can be had without swapping, or None where Linux doesn't tell."""
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return None
    fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].removesuffix("kB")) * 1024


def _load_tokenizer(bundle: Bundle) -> "Tokenizer | None":
    file = bundle.file("tokenizer.json")
    if file is None:
        return None
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_file(str(file))
    except Exception as error:  # tokenizers raises nothing more specific
        raise UserError(
            f"{str(file)!r} can't be read ({error}): install the version of tokenizers that "
            "bundle.json names, or export the model again."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _load_chat_template(bundle: Bundle, tokenizer: "Tokenizer | None") -> "ChatTemplate | None":
    config_file = bundle.file("tokenizer_config.json")
    config: dict[str, Any] = json.loads(config_file.read_text("utf-8")) if config_file else {}
    file = bundle.file("chat_template.jinja")
    source = file.read_text("utf-8") if file else _default_template(config.get("chat_template"))
    if source is None:
        return None
    from serving.chat import ChatTemplate

    special = {}
    tokens = bundle.manifest.tokens
    ids = {"bos_token": tokens.bos, "eos_token": next(iter(tokens.eos), None)}
    for name, token_id in ids.items():
        if tokenizer is not None and token_id is not None:
            special[name] = tokenizer.id_to_token(token_id) or ""
    for name, value in config.items():
        if name.endswith("_token"):
            text = value.get("content") if isinstance(value, dict) else value
            special |= {name: text} if isinstance(text, str) else {}
    return ChatTemplate(source, special)


def _default_template(templates: str | list[dict[str, str]] | None) -> str | None:
    """Return the template of a tokenizer_config.json, which may hold several by name."""
    if isinstance(templates, list):
        named = {entry["name"]: entry["template"] for entry in templates}
        return named.get("default")
    return templates
