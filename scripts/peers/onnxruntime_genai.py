"""ONNX Runtime's generate() extensions; models come from its own model builder."""

import json
import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import onnxruntime_genai as genai

# What the builder's help recommends for the CPU: int8 activations, blocks of 32, and no LM head for
# the prompt's other tokens.
OPTIONS = ("accuracy_level=4", "block_size=32", "prune_lm_head=true")


def convert(checkpoint: Path, directory: Path, precision: str) -> None:
    """Build the model; the builder knows no GPT-2."""
    builder = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-e", "cpu"]
    builder += ["-i", str(checkpoint), "-o", str(directory), "-c", str(directory / "cache")]
    builder += ["-p", {"float32": "fp32"}.get(precision, precision), "--extra_options", *OPTIONS]
    subprocess.run(builder, check=True)


class Runner:
    """A built model; its buffers hold as many tokens as each generation needs."""

    version = genai.__version__
    kv_precision = "float32"

    def __init__(self, model: str, precision: str, threads: int, capacity: int) -> None:  # noqa: ARG002
        config = genai.Config(model)
        options = {"intra_op_num_threads": threads, "inter_op_num_threads": 1}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._model = genai.Model(config)

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """See worker.Runner."""
        before = perf_counter()
        generator = self._started(prompt, new_tokens)
        tokens, times = [], []
        while len(tokens) < new_tokens:
            generator.generate_next_token()
            tokens.append(int(generator.get_next_tokens()[0]))
            times.append(perf_counter() - before)
        return tokens, times

    def logits(self, prompt: list[int]) -> list[float]:
        """See worker.Runner."""
        return self._started(prompt, 1).get_logits().reshape(-1).tolist()

    def _started(self, prompt: list[int], new_tokens: int) -> genai.Generator:
        parameters = genai.GeneratorParams(self._model)
        length = len(prompt) + new_tokens
        parameters.set_search_options(max_length=length, min_length=length, do_sample=False)
        generator = genai.Generator(self._model, parameters)
        generator.append_tokens(np.array([prompt], np.int32))
        return generator
