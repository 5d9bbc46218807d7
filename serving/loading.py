"""Opening a bundle: its checks, its engine, its tokenizer and its chat template."""

import json
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.bundle import Bundle, EngineInfo, Target, open_bundle
from serving.contract import CONTRACT_VERSION
from serving.errors import UserError
from serving.generation import Model

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from serving.chat import ChatTemplate
    from serving.engine import Engine
    from serving.onnxruntime import Provider

DEFAULT_CAPACITY = 4096
DEFAULT_SLOTS = 4


@dataclass(frozen=True, slots=True)
class EnginePlan:
    """An engine that is about to be opened."""

    bundle: Bundle
    engine: EngineInfo
    slots: int
    capacity: int
    prepack: bool

    @property
    def nbytes(self) -> int:
        """Bytes of its weights and KV buffers."""
        kv_bytes = self.bundle.manifest.graph.kv_bytes_per_token
        return self.engine.weight_bytes + self.slots * self.capacity * kv_bytes

    def open(self, provider: "Provider", threads: int | None) -> "Engine":
        """Open the engine and allocate its KV buffers."""
        file, graph = self.bundle.path / self.engine.file, self.bundle.manifest.graph
        sizes = {
            "slots": self.slots,
            "capacity": self.capacity,
            "weight_bytes": self.engine.weight_bytes,
        }
        if provider == "cuda":
            from serving.onnxruntime_cuda import OnnxRuntimeCudaEngine

            engine = OnnxRuntimeCudaEngine(file, graph, **sizes)
            for remark in engine.remarks:
                warnings.warn(remark, stacklevel=3)
            return engine
        from serving.onnxruntime import OnnxRuntimeEngine

        return OnnxRuntimeEngine(file, graph, **sizes, threads=threads, prepack=self.prepack)


def load(
    bundle: str | Path,
    *,
    draft: str | Path | None = None,
    target: Target | None = None,
    provider: "Provider | None" = None,
    capacity: int | None = None,
    slots: int | None = None,
    threads: int | None = None,
    prefill_chunk: int = 512,
    prepack: bool = False,
    verify: bool = True,
) -> Model:
    """Open a bundle for generation.

    ``draft`` is the bundle of a smaller model with the same tokens, for speculative decoding.
    ``capacity`` is the most tokens a sequence may have, prompt included (default: the model's
    maximum, at most 4096), ``slots`` how many sequences run at a time (default: 4). ``provider`` is
    "cpu" (default) or "cuda", ``threads`` defaults to the physical cores, ``prefill_chunk`` is how
    many tokens of a prompt run at once. ``prepack`` makes steps of several rows of a float engine
    faster, for time and memory when it is opened. ``verify`` compares the files' checksums first.

    Raises UserError if a bundle is damaged or has no engine that runs here, the limits don't fit,
    or the draft has other tokens.
    """
    opened = open_bundle(bundle, verify)
    engine = _choose_engine(opened, target)
    slots = _choose_slots(engine, slots)
    capacity = _choose_capacity(opened, engine, capacity)
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}, but must be at least 1: raise it.")
    tokenizer = _load_tokenizer(opened)
    plans = [EnginePlan(opened, engine, slots, capacity, prepack)]
    if draft is not None:
        plans.append(_plan_draft(open_bundle(draft, verify), plans[0], tokenizer))

    provider = provider or "cpu"
    if provider == "cpu":
        _check_memory(plans)

    from serving.onnxruntime import PROVIDERS

    if provider not in PROVIDERS:
        raise UserError(f"provider is {provider!r}, but must be one of {', '.join(PROVIDERS)}.")
    engines = [plan.open(provider, threads) for plan in plans]
    return Model(
        engines[0],
        opened.manifest.tokens,
        tokenizer,
        _load_chat_template(opened, tokenizer),
        prefill_chunk,
        draft=engines[1] if draft is not None else None,
    )


def _plan_draft(bundle: Bundle, plan: EnginePlan, tokenizer: "Tokenizer | None") -> EnginePlan:
    """Plan the engine of a draft model beside that of the model it drafts for."""
    own = _load_tokenizer(bundle)
    if tokenizer is None or own is None:
        sizes = {each.manifest.graph.vocab_size for each in (bundle, plan.bundle)}
        are_equal = tokenizer is own is None and len(sizes) == 1
    else:
        are_equal = tokenizer.get_vocab() == own.get_vocab()
    if not are_equal:
        raise UserError(
            f"The draft bundle {str(bundle.path)!r} has other tokens than "
            f"{str(plan.bundle.path)!r}: give a smaller model with the same tokenizer."
        )
    engine = _choose_engine(bundle, None)
    longest = min(plan.capacity, bundle.manifest.graph.max_length)
    capacity = engine.max_sequence or longest
    return EnginePlan(bundle, engine, _choose_slots(engine, plan.slots), capacity, plan.prepack)


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


def _check_memory(plans: list[EnginePlan]) -> None:
    needed, free = sum(plan.nbytes for plan in plans), free_memory()
    if free is not None and needed > free:
        raise UserError(
            f"The weights and the KV buffers need {needed / 1e9:,.1f} GB, but {free / 1e9:,.1f} GB "
            f"are free: open the bundle with fewer slots than {plans[0].slots} or less capacity "
            f"than {plans[0].capacity}."
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
