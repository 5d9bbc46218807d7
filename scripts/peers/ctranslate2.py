"""CTranslate2; models come from its own converter."""

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import ctranslate2


def convert(checkpoint: Path, directory: Path, precision: str) -> None:
    """Convert, with a vocabulary as large as the embedding and the settings that loading needs."""
    from ctranslate2.converters import TransformersConverter

    config = json.loads((checkpoint / "config.json").read_text())

    class Converter(TransformersConverter):
        def load_tokenizer(self, *arguments: Any, **options: Any) -> Any:
            tokenizer = super().load_tokenizer(*arguments, **options)
            missing = config["vocab_size"] - len(tokenizer)
            tokenizer.add_tokens([f"<extra_id_{index}>" for index in range(missing)])
            return tokenizer

    Converter(str(checkpoint)).convert(str(directory), quantization=precision, force=True)
    file = directory / "config.json"
    settings = json.loads(file.read_text())
    if settings["unk_token"] is None:
        settings["unk_token"] = settings["eos_token"]
    if settings["layer_norm_epsilon"] is None:
        settings["layer_norm_epsilon"] = config["layer_norm_epsilon"]
    file.write_text(json.dumps(settings))


class Runner:
    """A converted model; int8 means int8 arithmetic, and float32 for all else."""

    version = ctranslate2.__version__
    kv_precision = "float32"

    def __init__(self, model: str, precision: str, threads: int, capacity: int) -> None:  # noqa: ARG002
        kind = {"int8": "int8_float32"}.get(precision, precision)
        self._generator = ctranslate2.Generator(
            model, device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads
        )
        self._vocabulary = json.loads(Path(model, "vocabulary.json").read_text())

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """See worker.Runner."""
        times: list[float] = []
        words = [self._vocabulary[token] for token in prompt]
        before = perf_counter()
        (result,) = self._generator.generate_batch(
            [words],
            max_length=new_tokens,
            min_length=new_tokens,
            sampling_topk=1,
            include_prompt_in_result=False,
            callback=lambda _: times.append(perf_counter() - before) or False,
        )
        return result.sequences_ids[0], times

    def logits(self, prompt: list[int]) -> list[float]:
        """See worker.Runner."""
        import numpy as np

        return np.array(self._generator.forward_batch([prompt]))[0, -1].tolist()
