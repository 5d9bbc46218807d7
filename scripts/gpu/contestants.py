"""What the speed step runs: an engine of this project, and transformers with torch.compile."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from transformers import PreTrainedModel, StaticCache

from serving.engine import ChoiceRow, TokenChooser
from serving.loading import load
from serving.sampling import SamplingParameters


class Contestant(Protocol):
    """A model that is prompted, then decodes greedily; tokens are on the host when it returns."""

    def prefill(self, prompt: list[int]) -> int:
        """Start again with a prompt and return the token behind it."""
        ...

    def decode(self, token: int) -> int:
        """Take one token and return the next."""
        ...


class EngineContestant:
    """A bundle of this project; raises UserError where its engine can't be opened."""

    def __init__(self, bundle: Path, capacity: int, **options: Any) -> None:
        self.model = load(bundle, slots=1, capacity=capacity, verify=False, **options)
        self.engine = self.model.engine
        self._capacity = capacity
        self._length = 0
        self._is_ahead = False
        self._first = np.zeros((1, 1), np.int64)

    def prefill(self, prompt: list[int], chunk: int | None = None) -> int:
        """See Contestant; ``chunk`` is the most tokens of a step."""
        chunk = chunk or len(prompt)
        for start in range(0, len(prompt), chunk):
            ids = np.array([prompt[start : start + chunk]], np.int64)
            last = np.array([[ids.shape[1] - 1]], np.int64)
            logits = self.engine.step(ids, np.array([start], np.int64), last)
        self._length = len(prompt)
        self._is_ahead = False
        return int(logits[0, 0].argmax())

    def decode(self, token: int) -> int:
        """See Contestant; behind the last place of the cache it goes on at the first."""
        if self._length == self._capacity:
            self._length = 0
        if self.engine.chooser is not None:
            return self._decode_ahead(token, self.engine.chooser)
        past = np.array([self._length], np.int64)
        logits = self.engine.step(np.array([[token]], np.int64), past, self._first)
        self._length += 1
        return int(logits[0, 0].argmax())

    def _decode_ahead(self, token: int, chooser: TokenChooser) -> int:
        """Decode as serving.run_ahead does: a step is enqueued before the last one is read."""
        if not self._is_ahead:
            chooser.start([ChoiceRow(token, self._length, SamplingParameters(), 0, 0)])
            chooser.enqueue()
        self._length += 1
        self._is_ahead = self._length < self._capacity
        if self._is_ahead:
            chooser.enqueue()
        return int(chooser.read()[0])


class ChunkedContestant(EngineContestant):
    """An engine that takes prompts in chunks of a fixed size."""

    def __init__(self, bundle: Path, capacity: int, chunk: int, **options: Any) -> None:
        super().__init__(bundle, capacity, **options)
        self._chunk = chunk

    def prefill(self, prompt: list[int], chunk: int | None = None) -> int:
        """See Contestant."""
        return super().prefill(prompt, chunk or self._chunk)


class CompiledContestant:
    """transformers with a static cache, its decode step compiled into a CUDA graph."""

    def __init__(self, model: PreTrainedModel, capacity: int) -> None:
        self._model = model.cuda()
        self._cache = StaticCache(config=model.config, max_cache_len=capacity)
        self._compiled = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
        self._positions = torch.zeros((1, 1), dtype=torch.int64, device="cuda")

    @torch.no_grad()
    def prefill(self, prompt: list[int]) -> int:
        """See Contestant."""
        self._cache.reset()
        ids = torch.tensor([prompt], device="cuda")
        positions = torch.arange(len(prompt), device="cuda")[None]
        token = self._next(self._model.forward, ids, positions)
        self._positions.fill_(len(prompt))
        return token

    @torch.no_grad()
    def decode(self, token: int) -> int:
        """See Contestant."""
        ids = torch.tensor([[token]], device="cuda")
        token = self._next(self._compiled, ids, self._positions)
        self._positions += 1
        return token

    def _next(self, forward: Any, ids: torch.Tensor, positions: torch.Tensor) -> int:
        outputs = forward(
            ids, position_ids=positions, past_key_values=self._cache, logits_to_keep=1
        )
        return int(outputs.logits[0, -1].argmax())
