"""OpenVINO GenAI; models come from optimum-intel's exporter."""

import subprocess
import sys
from pathlib import Path
from time import perf_counter

import numpy as np
import openvino
import openvino_genai

WEIGHT_FORMATS = {"float32": "fp32", "int8": "int8", "int4": "int4"}


def convert(checkpoint: Path, directory: Path, precision: str) -> None:
    """Export with the weight format's own defaults, as its documentation does."""
    exporter = [str(Path(sys.executable).with_name("optimum-cli")), "export", "openvino"]
    exporter += ["--model", str(checkpoint), "--task", "text-generation-with-past"]
    exporter += ["--weight-format", WEIGHT_FORMATS[precision], str(directory)]
    subprocess.run(exporter, check=True)


class Clock(openvino_genai.StreamerBase):
    """Takes the time of every token."""

    def __init__(self) -> None:
        super().__init__()
        self.times: list[float] = []
        self._start = perf_counter()

    def write(self, token: int | list[int]) -> openvino_genai.StreamingStatus:
        """Note when a token, or several, came."""
        self.times += [perf_counter() - self._start] * (1 if isinstance(token, int) else len(token))
        return openvino_genai.StreamingStatus.RUNNING

    def end(self) -> None:
        """Do nothing; the interface asks for it."""


class Runner:
    """The pipeline with paged attention, nothing kept between prompts, all float32 that can be."""

    version = openvino_genai.__version__
    kv_precision = "float32"

    def __init__(self, model: str, precision: str, threads: int, capacity: int) -> None:  # noqa: ARG002
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_batched_tokens = capacity
        self._pipeline = openvino_genai.LLMPipeline(
            model,
            "CPU",
            scheduler_config=scheduler,
            INFERENCE_NUM_THREADS=threads,
            INFERENCE_PRECISION_HINT="f32",
            KV_CACHE_PRECISION="f32",
            PERFORMANCE_HINT="LATENCY",
        )

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """See worker.Runner."""
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        ids = openvino.Tensor(np.array([prompt], np.int64))
        mask = openvino.Tensor(np.ones((1, len(prompt)), np.int64))
        clock = Clock()
        inputs = openvino_genai.TokenizedInputs(ids, mask)
        result = self._pipeline.generate(inputs, config, clock)
        return list(result.tokens[0]), clock.times

    def logits(self, prompt: list[int]) -> None:
        """Return nothing: the pipeline shows tokens only."""
