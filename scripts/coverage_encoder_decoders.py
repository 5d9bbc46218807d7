"""Try every sequence-to-sequence type that transformers registers: docs/encoder-decoders.md.

Each type gets a tiny config by the rules of tiny_configs.py, random weights, and the product's own
path: export through the parity gate, then serve, greedily and with a beam search.

    python -m scripts.coverage_encoder_decoders                 every type, as a table
    python -m scripts.coverage_encoder_decoders --only t5,bart  these
"""

import argparse
import json
import tempfile
import traceback
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoConfig, AutoModelForSeq2SeqLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
)

import serving
from exporter.export import Request, export
from scripts.coverage import NEW_TOKENS, TIMEOUT, Silent, first_line, quiet, reason_of
from scripts.coverage_table import Outcome
from scripts.processes import run_each
from scripts.tiny_configs import tiny_config
from serving.errors import UserError
from tests.checkpoints import VOCABULARY, enliven

SOURCE_LENGTHS = (5, 12, 21)
ENCODER_LAYERS = ("encoder_layers", "num_encoder_layers")
PAD = 0


def registered_types() -> list[str]:
    """Every model type that transformers has a sequence-to-sequence language model for."""
    return sorted(MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES)


def try_type(model_type: str) -> Outcome:
    """Make a tiny checkpoint of a type, export and serve it, and say how that ended."""
    if model_type in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and not _has_encoder(model_type):
        return Outcome(model_type, "refused", "a decoder alone, which coverage.md has")
    with tempfile.TemporaryDirectory() as directory:
        checkpoint, bundle = Path(directory) / model_type, Path(directory) / "bundle"
        model = None
        try:
            model = make_tiny(model_type, checkpoint)
        except Exception as error:  # whatever a config or a model's constructor raises
            if _has_encoder(model_type):
                return Outcome(model_type, "failing", f"no tiny checkpoint: {first_line(error)}")
            checkpoint.mkdir(exist_ok=True)
            config = json.dumps({"model_type": model_type})
            (checkpoint / "config.json").write_text(config, encoding="utf-8")
            save_file({}, checkpoint / "model.safetensors")
        try:
            export(Request(str(checkpoint), bundle), Silent())
        except UserError as error:
            return reason_of(model_type, error, directory)
        except Exception as error:  # a defect of ours
            where = traceback.extract_tb(error.__traceback__)[-1]
            place = f"{type(error).__name__} in {Path(where.filename).name}"
            return Outcome(model_type, "failing", f"{place}: {first_line(error)}")
        assert model is not None
        return _served(model_type, model, bundle)


def make_tiny(model_type: str, directory: Path) -> PreTrainedModel:
    """Write a tiny checkpoint of ``model_type`` and return its model."""
    torch.manual_seed(0)
    model = AutoModelForSeq2SeqLM.from_config(_config(model_type), dtype=torch.float32)
    enliven(model)
    model.save_pretrained(directory)
    return AutoModelForSeq2SeqLM.from_pretrained(directory).eval()


def _has_encoder(model_type: str) -> bool:
    return bool(AutoConfig.for_model(model_type).is_encoder_decoder)


def _config(model_type: str) -> PreTrainedConfig:
    if model_type == "encoder-decoder":
        parts = {"encoder": tiny_config("bert"), "decoder": tiny_config("bert")}
        parts["encoder"].is_decoder = False
        parts["decoder"].add_cross_attention = True
        config = AutoConfig.for_model(
            model_type, **{name: part.to_dict() for name, part in parts.items()}
        )
    else:
        config = tiny_config(model_type)
        if hasattr(config, "is_decoder"):
            config.is_decoder = False
    for name in ENCODER_LAYERS:
        if isinstance(getattr(config, name, None), int):
            setattr(config, name, 2)
    for name, token in (("pad_token_id", PAD), ("decoder_start_token_id", 2)):
        setattr(config, name, token)
    return config


def _served(model_type: str, model: PreTrainedModel, bundle: Path) -> Outcome:
    """Compare what the bundle generates with what transformers generates."""
    parity = json.loads((bundle / "report.json").read_text(encoding="utf-8"))["parity"]
    error = max(each["max_error"] for each in parity["comparisons"]) / parity["largest_logit"]
    generator = torch.Generator().manual_seed(7)
    sources = [
        torch.randint(3, VOCABULARY, (1, length), generator=generator) for length in SOURCE_LENGTHS
    ]
    ids = [source[0].tolist() for source in sources]
    notes = []
    with serving.load(bundle) as served:
        for beams in (1, 4):
            ours = served.generate(ids, max_new_tokens=NEW_TOKENS, num_beams=beams, ignore_eos=True)
            for source, result in zip(sources, ours, strict=True):
                if result.token_ids != _generate(model, source, beams):
                    notes.append(f"other tokens than transformers' generate, {beams} beams")
                    break
    status = "failing" if notes else "exact"
    return Outcome(model_type, status, ", ".join(notes), error)


def _generate(model: PreTrainedModel, source: torch.Tensor, beams: int) -> list[int]:
    """What ``generate`` of transformers says behind the token that outputs go on from."""
    output = model.generate(
        source,
        attention_mask=torch.ones_like(source),
        max_new_tokens=NEW_TOKENS,
        min_new_tokens=NEW_TOKENS,
        num_beams=beams,
        do_sample=False,
    )
    tokens: list[int] = output[0, 1:].tolist()
    return tokens


def _failing(model_type: str, reason: str) -> Outcome:
    return Outcome(model_type, "failing", reason)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="these types, with commas between them")
    arguments = parser.parse_args()
    quiet()
    types = arguments.only.split(",") if arguments.only else registered_types()
    for _, outcome, _ in run_each(types, try_type, _failing, limit=2 * TIMEOUT, jobs=1):
        error = "" if outcome.max_error is None else f"{outcome.max_error:.1e}"
        print(
            f"| {outcome.model_type} | {outcome.status} | {error} | {outcome.notes} |", flush=True
        )


if __name__ == "__main__":
    main()
