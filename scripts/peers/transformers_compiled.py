"""Transformers with torch.compile: a fixed cache, its decode step compiled once."""

from time import perf_counter

import torch
from transformers import StaticCache

from scripts.peers import transformers as eager


class Runner(eager.Runner):
    """The checkpoint with a cache of ``capacity`` tokens; loading includes the compilation."""

    version = f"{eager.Runner.version}, compiled"

    def __init__(self, model: str, precision: str, threads: int, capacity: int) -> None:
        super().__init__(model, precision, threads, capacity)
        self._decode = torch.compile(self._model.forward, dynamic=False)
        self._cache = StaticCache(self._model.config, max_cache_len=capacity)
        self.generate([1, 2, 3], 4)

    @torch.inference_mode()
    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """See worker.Runner."""
        self._cache.reset()
        ids, tokens, times, step = torch.tensor([prompt]), [], [], self._model.forward
        positions = torch.arange(len(prompt))[None]
        before = perf_counter()
        while len(tokens) < new_tokens:
            outputs = step(
                ids, position_ids=positions, past_key_values=self._cache, logits_to_keep=1
            )
            ids = outputs.logits[:, -1:].argmax(-1)
            positions = positions[:, -1:] + 1
            step = self._decode
            tokens.append(int(ids))
            times.append(perf_counter() - before)
        return tokens, times
