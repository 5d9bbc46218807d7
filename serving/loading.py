"""Opening a bundle: its checks, its engine, its tokenizer and its chat template."""

import json
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from serving.bundle import Bundle, EngineInfo, Target, open_bundle
from serving.contract import CONTRACT_VERSION
from serving.engine import Engine
from serving.engine_plan import EnginePlan, Runtime
from serving.errors import UserError
from serving.generation import Model
from serving.generation_config import generation_defaults
from serving.prompts import PromptEncoder
from serving.source_limits import choose_source_capacity, refuse_for_sources

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from serving.chat import ChatTemplate
    from serving.lora import AdapterTables
    from serving.onnxruntime import Provider

DEFAULT_CAPACITY = 4096
DEFAULT_SLOTS = 4


def load(
    bundle: str | Path | Bundle,
    *,
    adapters: Mapping[str, str | Path] | None = None,
    draft: str | Path | None = None,
    target: Target | None = None,
    provider: "Provider | None" = None,
    runtime: Runtime = "python",
    capacity: int | None = None,
    source_capacity: int | None = None,
    slots: int | None = None,
    threads: int | None = None,
    prefill_chunk: int = 512,
    prefix_rows: int = 0,
    prepack: bool = False,
    verify: bool = True,
    key_file: str | Path | None = None,
) -> Model:
    """Open a bundle for generation; one that open_bundle gave is taken as it is.

    ``adapters`` are directories of LoRA adapters by the names that Model.generate takes; the bundle
    must be exported with ``--lora``. ``draft`` is the bundle of a smaller model with the same
    tokens, for speculative decoding. ``capacity`` is the most tokens a sequence may have, prompt
    included (default: the model's maximum, at most 4096), ``source_capacity`` that of an
    encoder-decoder's sources (default: likewise), ``slots`` how many sequences run at a time
    (default: 4, or as many as an encoder-decoder's checkpoint wants beams, if those are more).
    ``target`` picks one of the bundle's engines (default: ONNX Runtime's, if there is one).
    ``provider`` is "cpu" or "cuda" and says where ONNX Runtime runs (default:
    "cpu"); TensorRT runs on the GPU. ``runtime`` "native" runs ONNX Runtime's engines on the CPU by
    libllm_runtime, with the same tokens. ``threads`` defaults to the physical cores,
    ``prefill_chunk`` is how many tokens of a prompt run at once. ``prefix_rows`` more rows of KV
    cache keep what ended sequences computed, for prompts that begin alike. ``prepack`` makes steps
    of several rows of a float engine in ONNX Runtime faster, for time and memory when it is opened.
    ``verify`` compares the files' checksums first. ``key_file`` has the key of encrypted bundles
    (default: EXPORT_LLM_BUNDLE_KEY in the environment).

    Raises UserError if a bundle is damaged or has no engine that runs here, the limits don't fit,
    an adapter can't be used, or the draft has other tokens.
    """
    opened = bundle if isinstance(bundle, Bundle) else open_bundle(bundle, verify, key_file)
    engine = choose_engine(opened, target)
    has_sources = opened.manifest.graph.source is not None
    defaults = generation_defaults(opened) if has_sources else {}
    slots = _choose_slots(engine, slots, max(DEFAULT_SLOTS, defaults.get("num_beams", 1)))
    capacity = _choose_capacity(opened, engine, capacity)
    source_capacity = choose_source_capacity(
        opened.manifest.graph.source, source_capacity, DEFAULT_CAPACITY
    )
    if threads is not None and threads < 1:
        raise UserError(f"threads is {threads}, but must be at least 1: raise it.")
    tokenizer = load_tokenizer(opened)
    if prefix_rows < 0:
        raise UserError(f"prefix_rows is {prefix_rows}, but must be at least 0: raise it.")
    tables = _load_adapters(opened, adapters or {})
    plans = [
        EnginePlan(
            opened,
            engine,
            slots,
            capacity,
            prepack,
            prefix_rows,
            tables,
            runtime,
            source_capacity,
        )
    ]
    if source_capacity is not None:
        refuse_for_sources(
            in_python=provider != "cuda" and not plans[0].is_tensorrt and runtime == "python",
            has_draft=draft is not None,
            keeps_prefixes=bool(prefix_rows),
        )
    if draft is not None:
        draft_bundle = open_bundle(draft, verify, key_file)
        plans.append(_plan_draft(draft_bundle, plans[0], tokenizer))

    _check_provider(provider, plans)
    _check_runtime(runtime, provider, plans)
    engines = _open(plans, provider or "cpu", threads)
    return Model(
        engines[0],
        opened.manifest.tokens,
        tokenizer,
        _load_chat_template(opened, tokenizer),
        prefill_chunk,
        draft=engines[1] if draft is not None else None,
        slots=slots,
        adapters=tables.indices,
        defaults=defaults,
    )


def load_prompts(bundle: Bundle) -> PromptEncoder:
    """The bundle's tokenizer and chat template, without its engine."""
    tokenizer = load_tokenizer(bundle)
    vocab_size = bundle.manifest.graph.vocab_size
    return PromptEncoder(vocab_size, tokenizer, _load_chat_template(bundle, tokenizer))


def _load_adapters(bundle: Bundle, adapters: Mapping[str, str | Path]) -> "AdapterTables":
    """Read adapters into the tables that the bundle's graph takes."""
    from serving.lora import AdapterTables
    from serving.peft_adapter import read_adapter

    graph = bundle.manifest.graph
    if adapters and not graph.lora:
        raise UserError(
            f"The bundle {str(bundle.path)!r} takes no adapters: export the model with --lora."
        )
    read = {name: read_adapter(Path(path), graph.lora) for name, path in adapters.items()}
    return AdapterTables(graph.lora, graph.dtype, read)


def _check_provider(provider: "Provider | None", plans: list[EnginePlan]) -> None:
    """Whether everything can run where it shall run."""
    if provider not in (None, "cpu", "cuda"):
        raise UserError(f"provider is {provider!r}, but must be one of cpu, cuda.")
    on_gpu = [plan for plan in plans if plan.is_tensorrt]
    if on_gpu and provider == "cpu":
        raise UserError(
            f"provider is 'cpu', but engines of {on_gpu[0].engine.target} run on a GPU: leave "
            "provider= out, or take target='onnxruntime'."
        )
    if provider == "cuda" and any(plan.bundle.manifest.graph.lora for plan in plans):
        raise UserError(
            "Bundles that take LoRA adapters run on the CPU only: leave provider out, or export "
            "the model without --lora."
        )
    if provider in (None, "cpu"):
        _check_memory([plan for plan in plans if not plan.is_tensorrt])
    if on_gpu:
        from serving.tensorrt.opening import Candidate, refuse_unfit

        refuse_unfit(
            [Candidate(plan.bundle, plan.engine, plan.rows, plan.capacity) for plan in on_gpu]
        )


def _check_runtime(runtime: Runtime, provider: "Provider | None", plans: list[EnginePlan]) -> None:
    """Whether that runtime runs everything."""
    if runtime not in ("python", "native"):
        raise UserError(f"runtime is {runtime!r}, but must be one of python, native.")
    if runtime == "native" and (provider == "cuda" or any(plan.is_tensorrt for plan in plans)):
        raise UserError(
            "runtime is 'native', which runs engines of ONNX Runtime on the CPU: leave runtime= "
            "out, or take target='onnxruntime' and provider='cpu'."
        )


def _open(plans: list[EnginePlan], provider: "Provider", threads: int | None) -> list[Engine]:
    """Open all engines, or none."""
    engines = []
    with ExitStack() as opened:
        for plan in plans:
            engine = plan.open(provider, threads)
            opened.callback(engine.close)
            engines.append(engine)
        opened.pop_all()
    return engines


def _plan_draft(bundle: Bundle, plan: EnginePlan, tokenizer: "Tokenizer | None") -> EnginePlan:
    """Plan the engine of a draft model beside that of the model it drafts for."""
    own = load_tokenizer(bundle)
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
    has_same = bundle.engine(plan.engine.target) is not None
    engine = choose_engine(bundle, plan.engine.target if has_same else None)
    longest = min(plan.capacity, bundle.manifest.graph.max_length)
    capacity = engine.max_sequence or longest
    slots = _choose_slots(engine, plan.slots)
    return EnginePlan(bundle, engine, slots, capacity, plan.prepack, runtime=plan.runtime)


def choose_engine(bundle: Bundle, target: Target | None) -> EngineInfo:
    """The engine for ``target``; without one ONNX Runtime's, or else the first.

    Raises UserError if the bundle has none, or a graph of another contract.
    """
    manifest = bundle.manifest
    if manifest.graph.contract_version != CONTRACT_VERSION:
        raise UserError(
            f"The bundle's graph follows contract version {manifest.graph.contract_version}, this "
            f"export-llm runs version {CONTRACT_VERSION}: export the model again."
        )
    return find_engine(bundle, target)


def find_engine(bundle: Bundle, target: Target | None) -> EngineInfo:
    """The same, whatever the graph is."""
    manifest = bundle.manifest
    if any(engine.stripped_from for engine in manifest.engines):
        raise UserError(
            f"The bundle {str(bundle.path)!r} comes without its weights: put them in with "
            "serve-llm restore and the checkpoint that it was exported from."
        )
    present = [engine.target for engine in manifest.engines]
    wanted = target or ("onnxruntime" if "onnxruntime" in present or not present else present[0])
    engine = bundle.engine(wanted)
    if engine is None:
        raise UserError(
            f"The bundle has no engine for {wanted}, only for {', '.join(present) or 'nothing'}: "
            f"export it with --target {wanted}."
        )
    if engine.ranks > 1:
        raise UserError(
            f"The bundle's engine for {wanted} is split over {engine.ranks} GPUs, with a process "
            "for each that comes with a later release: export the model without --tensor-parallel."
        )
    if engine.stages and wanted != "onnxruntime":
        raise UserError(
            f"The bundle's engine for {wanted} is in stages, which only those of onnxruntime run "
            "yet: export the model without --stages, or with --target onnxruntime."
        )
    return engine


def _choose_slots(engine: EngineInfo, slots: int | None, default: int = DEFAULT_SLOTS) -> int:
    most = engine.max_batch
    if slots is None:
        return most or default
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
    if not plans:
        return
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


def load_tokenizer(bundle: Bundle) -> "Tokenizer | None":
    """The bundle's tokenizer, which neither cuts nor pads; None if it has none."""
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
