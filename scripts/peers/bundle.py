"""Our own engines: a bundle, run by serving."""

from time import perf_counter

import onnxruntime

from serving.bundle import open_bundle
from serving.loading import load


class Runner:
    """A bundle opened without comparing checksums, as no peer compares any."""

    version = f"onnxruntime {onnxruntime.__version__}"

    def __init__(self, model: str, precision: str, threads: int, capacity: int) -> None:  # noqa: ARG002
        self._model = load(model, slots=1, threads=threads, capacity=capacity, verify=False)
        self.kv_precision = open_bundle(model, verify=False).manifest.graph.dtype

    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """See worker.Runner."""
        before = perf_counter()
        tokens, times = [], []
        for token in self._model.generate(
            prompt, max_new_tokens=new_tokens, min_new_tokens=new_tokens, stream=True
        ):
            times.append(perf_counter() - before)
            tokens.append(token.token_id)
        return tokens, times

    def logits(self, prompt: list[int]) -> list[float]:
        """See worker.Runner."""
        return self._model.logits(prompt)[-1].tolist()
