"""Run every exact architecture of docs/coverage.md with the native runtime, and compare its tokens.

Each type gets its tiny checkpoint (see coverage.py) and is exported. Then the Python runtime, the
native engine under it and llm-run generate behind the same prompts: greedily, compared with
transformers too, and with a seed. Needs serving/native built (docs/native.md).

    python -m scripts.native_coverage                  all of them, some 20 minutes
    python -m scripts.native_coverage --only gpt2,bloom
"""

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path

import torch

import serving
from exporter.export import Request, export
from scripts.coverage import TABLE, TIMEOUT, _quiet, _Silent, greedy_by_forward, make_tiny
from scripts.processes import run_each
from serving.native.library import LIBRARY, onnxruntime_library
from tests.checkpoints import VOCABULARY

ROOT = Path(__file__).parents[1]
BUILD = ROOT / "build" / "native" / "release"
PROMPT_LENGTHS = (5, 12, 21)
NEW_TOKENS = 32
SAMPLED = {"temperature": 0.9, "top_k": 50, "top_p": 0.95, "seed": 11}


def exact_types() -> list[str]:
    """The types that docs/coverage.md calls exact."""
    rows = (line.split("|") for line in TABLE.read_text(encoding="utf-8").splitlines())
    return [row[1].strip(" `") for row in rows if len(row) > 2 and row[2].strip() == "exact"]


def try_type(model_type: str) -> str:
    """Say how the native runtime differs for a type; nothing if it doesn't."""
    with tempfile.TemporaryDirectory() as directory:
        checkpoint, bundle = Path(directory) / model_type, Path(directory) / "bundle"
        model = make_tiny(model_type, checkpoint)
        export(Request(str(checkpoint), bundle), _Silent())
        generator = torch.Generator().manual_seed(7)
        prompts = [
            torch.randint(3, VOCABULARY, (1, length), generator=generator)
            for length in PROMPT_LENGTHS
        ]
        ids = [prompt[0].tolist() for prompt in prompts]
        greedy, sampled = generated(bundle, ids, "python")
        if generated(bundle, ids, "native") != (greedy, sampled):
            return "the native engine gives other tokens"
        for prompt, tokens, drawn in zip(prompts, greedy, sampled, strict=True):
            if tokens != greedy_by_forward(model, prompt, tokens):
                return "transformers gives other tokens"
            if llm_run(bundle, prompt[0].tolist(), {}) != tokens:
                return "llm-run gives other tokens"
            if llm_run(bundle, prompt[0].tolist(), SAMPLED) != drawn:
                return "llm-run draws other tokens"
    return ""


def generated(
    bundle: Path, prompts: list[list[int]], runtime: str
) -> tuple[list[list[int]], list[list[int]]]:
    """What a runtime generates in one batch, greedily and with a seed."""
    with serving.load(bundle, runtime=runtime) as model:  # type: ignore[arg-type]
        results = [
            model.generate(prompts, max_new_tokens=NEW_TOKENS, ignore_eos=True, **options)
            for options in ({}, SAMPLED)
        ]
    return [r.token_ids for r in results[0]], [r.token_ids for r in results[1]]


def llm_run(bundle: Path, prompt: list[int], sampling: dict[str, float]) -> list[int]:
    """The tokens that llm-run generates."""
    options = [f"--{name.replace('_', '-')}={value}" for name, value in sampling.items()]
    command = [
        *(Path(os.environ[LIBRARY]).parent / "llm-run", bundle, "--ignore-eos", "--json"),
        *("--ids", ",".join(map(str, prompt)), "-n", str(NEW_TOKENS)),
        *(word for option in options for word in option.split("=")),
    ]
    environment = {"LLM_ONNXRUNTIME_LIBRARY": str(onnxruntime_library())} | os.environ
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    tokens: list[int] = json.loads(done.stdout)["token_ids"]
    return tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", help="these types, with commas between them")
    parser.add_argument("--build", type=Path, default=BUILD, help="where libllm_runtime.so is")
    arguments = parser.parse_args()
    os.environ[LIBRARY] = str(arguments.build / "libllm_runtime.so")
    _quiet()
    types = arguments.only.split(",") if arguments.only else exact_types()
    wrong = 0
    for ended in run_each(types, try_type, lambda _, reason: reason, limit=5 * TIMEOUT):
        wrong += bool(ended.result)
        print(f"{ended.name}: {ended.result or 'exact'} ({ended.seconds:.1f} s)", flush=True)
    print(f"{len(types) - wrong} of {len(types)} are exact")
    raise SystemExit(bool(wrong))


if __name__ == "__main__":
    main()
