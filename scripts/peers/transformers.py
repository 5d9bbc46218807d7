"""Transformers as it comes: PyTorch, eager, with its growing cache."""

from time import perf_counter

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


class Runner:
    """The checkpoint itself, with PyTorch's fused attention."""

    version = f"{transformers.__version__}, torch {torch.__version__}"
    kv_precision = "float32"

    def __init__(self, model: str, precision: str, threads: int, capacity: int) -> None:  # noqa: ARG002
        torch.set_num_threads(threads)
        self._model = AutoModelForCausalLM.from_pretrained(
            model, dtype=torch.float32, attn_implementation="sdpa"
        ).eval()

    @torch.inference_mode()
    def generate(self, prompt: list[int], new_tokens: int) -> tuple[list[int], list[float]]:
        """See worker.Runner."""
        cache = DynamicCache(config=self._model.config)
        ids, tokens, times = torch.tensor([prompt]), [], []
        before = perf_counter()
        while len(tokens) < new_tokens:
            logits = self._model(ids, past_key_values=cache, logits_to_keep=1).logits
            ids = logits[:, -1:].argmax(-1)
            tokens.append(int(ids))
            times.append(perf_counter() - before)
        return tokens, times

    @torch.inference_mode()
    def logits(self, prompt: list[int]) -> list[float]:
        """See worker.Runner."""
        return self._model(torch.tensor([prompt]), logits_to_keep=1).logits[0, -1].tolist()
