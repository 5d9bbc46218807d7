"""Try every causal-LM type that transformers registers, and write docs/coverage.md.

Each type gets a tiny config by general rules (see tiny_configs.py), random weights, and the
product's own path: export through the parity gate, then serve. What is exact is then built as
TensorRT-RTX engines. Results are kept as one JSON line a type, so that only what is asked for runs
again.

    python -m scripts.coverage                 run what has no result yet, write the table
    python -m scripts.coverage --failed        run again what failed
    python -m scripts.coverage --refused       build again the engines that were refused
    python -m scripts.coverage --only llama,t5 run these again
"""

import argparse
import json
import logging
import tempfile
import traceback
import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.logging import disable_progress_bar

import serving
from exporter.export import Request, export
from exporter.tracing import language_part
from exporter.traits.positions import position_offset, takes_positions
from scripts.coverage_engines import RECIPES, build_each
from scripts.coverage_table import Outcome, write_table
from scripts.processes import Ended, run_each
from scripts.tiny_configs import tiny_config
from serving.errors import UserError
from tests.checkpoints import VOCABULARY, enliven

ROOT = Path(__file__).parents[1]
TABLE = ROOT / "docs" / "coverage.md"
RESULTS = ROOT / "build" / "coverage.jsonl"
PROMPT_LENGTHS = (5, 12, 21)
NEW_TOKENS = 32
TIMEOUT = 120.0  # seconds a type


def registered_types() -> list[str]:
    """Every model type that transformers has a causal language model for."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def try_type(model_type: str) -> Outcome:
    """Make a tiny checkpoint of a type, export and serve it, and say how that ended."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint, bundle = Path(directory) / model_type, Path(directory) / "bundle"
        try:
            model = make_tiny(model_type, checkpoint)
        except Exception as error:  # whatever a config or a model's constructor raises
            if _can_be_built(model_type):
                return Outcome(model_type, "failing", f"no tiny checkpoint: {first_line(error)}")
            model = None
            checkpoint.mkdir()
            config = {"model_type": model_type}
            (checkpoint / "config.json").write_text(json.dumps(config), encoding="utf-8")
            save_file({}, checkpoint / "model.safetensors")
        try:
            export(Request(str(checkpoint), bundle), Silent())
        except UserError as error:
            return reason_of(model_type, error, directory)
        except Exception as error:  # a defect of ours
            where = traceback.extract_tb(error.__traceback__)[-1]
            return Outcome(
                model_type,
                "failing",
                f"{type(error).__name__} in {Path(where.filename).name}: {first_line(error)}",
            )
        assert model is not None
        return _served(model_type, model, bundle)


def reason_of(model_type: str, error: UserError, directory: str) -> Outcome:
    """The outcome of a type whose export in ``directory`` ended with an error."""
    reason = (
        str(error)
        .rstrip(".")
        .replace(f"{directory}/", "")
        .replace(f"{model_type} has the architecture", "it is")
    )
    _, marker, cause = reason.partition("can't be exported: ")
    breach = (
        "was not exported: " in reason
        or "can't open the graph" in reason
        or cause.startswith(("tracing it fails", "running it fails"))
    )
    return Outcome(model_type, "failing" if breach else "refused", cause if marker else reason)


def _can_be_built(model_type: str) -> bool:
    """Whether transformers builds the type from its own default config."""
    try:
        with torch.device("meta"):
            AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type))
    except Exception:  # whatever a config or a model's constructor raises
        return False
    return True


def make_tiny(model_type: str, directory: Path) -> PreTrainedModel:
    """Write a tiny checkpoint of ``model_type`` and return its model."""
    torch.manual_seed(0)
    config = tiny_config(model_type)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    enliven(model)
    model.generation_config = GenerationConfig()
    model.save_pretrained(directory)
    if model.config.model_type != model_type:  # the language part of a larger model
        config.save_pretrained(directory)
    return AutoModelForCausalLM.from_pretrained(directory).eval()


def _served(model_type: str, model: PreTrainedModel, bundle: Path) -> Outcome:
    """Compare what the bundle generates with what transformers generates."""
    report = json.loads((bundle / "report.json").read_text(encoding="utf-8"))
    parity = report["parity"]
    error = max(each["max_error"] for each in parity["comparisons"]) / parity["largest_logit"]
    generator = torch.Generator().manual_seed(7)
    prompts = [
        torch.randint(3, VOCABULARY, (1, length), generator=generator) for length in PROMPT_LENGTHS
    ]
    with serving.load(bundle) as served:
        ours = served.generate(
            [prompt[0].tolist() for prompt in prompts], max_new_tokens=NEW_TOKENS, ignore_eos=True
        )
    note = ""
    for prompt, result in zip(prompts, ours, strict=True):
        if result.token_ids != greedy_by_forward(model, prompt, result.token_ids):
            return Outcome(model_type, "failing", "the served bundle generates other tokens", error)
        if result.token_ids != greedy_by_generate(model, prompt):
            note = "transformers' generate differs from its own forward, which is what is served"
    return Outcome(model_type, "exact", note, error, _traits(model, bundle))


@torch.no_grad()
def greedy_by_forward(model: PreTrainedModel, prompt: torch.Tensor, tokens: list[int]) -> list[int]:
    """What one pass of transformers without a cache chooses after each of the tokens."""
    sequence = torch.cat([prompt, torch.tensor([tokens[:-1]])], dim=1)
    logits = model(input_ids=sequence, use_cache=False, return_dict=True).logits[0]
    chosen: list[int] = logits[prompt.shape[1] - 1 :].argmax(dim=-1).tolist()
    return chosen


def greedy_by_generate(model: PreTrainedModel, prompt: torch.Tensor) -> list[int]:
    """What ``generate`` of transformers says, or nothing where it fails."""
    try:
        output = model.generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            max_new_tokens=NEW_TOKENS,
            do_sample=False,
        )
    except Exception:  # its own code doesn't run this type
        return []
    tokens: list[int] = output[0, prompt.shape[1] :].tolist()
    return tokens


def _traits(model: PreTrainedModel, bundle: Path) -> tuple[str, ...]:
    """What in this type goes beyond plain causal attention over a cache."""
    manifest = json.loads((bundle / "bundle.json").read_text(encoding="utf-8"))
    layers = manifest["graph"]["layers"]
    found = {
        "windows": any(layer["window"] for layer in layers),
        "experts": any(type(module).__name__.endswith("Experts") for module in model.modules()),
        "attention code of its own": not language_part(model)._can_set_attn_implementation(),
        "position offset": position_offset(model) > 0,
        "counts positions itself": not takes_positions(model),
        "keys and values of different size": any(
            layer["key_dim"] != layer["value_dim"] for layer in layers
        ),
    }
    return tuple(name for name, has in found.items() if has)


class Silent:
    """Shows no stages."""

    def start(self, name: str) -> None:
        """Show nothing."""

    def progress(self, phase: str, done: float) -> None:
        """Show nothing."""


def first_line(error: BaseException) -> str:
    """The line of an error that says the most, cut to a cell of the table."""
    lines = [line.strip() for line in str(error).strip().splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__).rstrip(".")[:200]


def _failing(model_type: str, reason: str) -> Outcome:
    return Outcome(model_type, "failing", reason)


def try_engines(exact: Outcome) -> Outcome:
    """Add to the outcome of an exact type what building its engines comes to."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint = Path(directory) / exact.model_type
        make_tiny(exact.model_type, checkpoint)
        try:
            engines = build_each(checkpoint, Path(directory))
        except Exception as error:  # a defect of ours
            return without_engines(exact, f"{type(error).__name__}: {first_line(error)}")
    return replace(exact, engines=engines)


def without_engines(exact: Outcome, reason: str) -> Outcome:
    """The outcome of an exact type none of whose engines was built."""
    return replace(exact, engines=dict.fromkeys(RECIPES, reason))


def quiet() -> None:
    """Keep the libraries' warnings out of the output."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    disable_progress_bar()
    torch.set_num_threads(1)


def read_results() -> dict[str, Outcome]:
    """The newest result of each type."""
    if not RESULTS.is_file():
        return {}
    outcomes = [Outcome.from_json(line) for line in RESULTS.read_text().splitlines()]
    return {outcome.model_type: outcome for outcome in outcomes}


def _keep(attempts: Iterable[Ended[Outcome]]) -> None:
    """Write each outcome down, and say how it ended."""
    for _, outcome, seconds in attempts:
        with RESULTS.open("a", encoding="utf-8") as file:
            file.write(outcome.as_json() + "\n")
        print(
            f"{outcome.model_type:24} {outcome.status:8} {seconds:5.1f} s  {outcome.notes}",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="these types, with commas between them")
    parser.add_argument("--failed", action="store_true", help="what failed before")
    parser.add_argument("--all", action="store_true", help="everything, whatever is known")
    parser.add_argument("--refused", action="store_true", help="engines that were refused")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    arguments = parser.parse_args()
    quiet()
    known = read_results()
    types = [t for t in registered_types() if arguments.all or t not in known]
    if arguments.failed:
        types = [t for t, outcome in known.items() if outcome.status == "failing"]
    if arguments.only:
        types = arguments.only.split(",")
    RESULTS.parent.mkdir(exist_ok=True)
    _keep(run_each(types, try_type, _failing, limit=TIMEOUT, jobs=arguments.jobs))
    exact = {
        model_type: outcome
        for model_type, outcome in read_results().items()
        if outcome.status == "exact"
        and (not outcome.engines or (arguments.refused and any(outcome.engines.values())))
    }
    _keep(
        run_each(
            exact,
            lambda model_type: try_engines(exact[model_type]),
            lambda model_type, reason: without_engines(exact[model_type], reason),
            limit=TIMEOUT,
            jobs=arguments.jobs,
        )
    )
    results = read_results()
    write_table(TABLE, [results[t] for t in registered_types() if t in results])


if __name__ == "__main__":
    main()
