"""OpenVINO GenAI's continuous batching, without a server: it is in another package."""

from collections import deque
from time import perf_counter
from typing import Any

import numpy as np
import openvino
import openvino_genai

from scripts.load.timing import Timeline


class Runner:
    """The pipeline with paged attention, nothing kept between prompts, all float32 that can be."""

    version = f"openvino-genai {openvino_genai.__version__}"

    def __init__(self, model: str, threads: int, slots: int, capacity: int) -> None:
        scheduler = openvino_genai.SchedulerConfig()
        scheduler.enable_prefix_caching = False
        scheduler.max_num_seqs = slots
        scheduler.max_num_batched_tokens = max(512, slots)
        scheduler.cache_size = 2 if capacity * slots <= 65536 else 8
        self._pipeline = openvino_genai.ContinuousBatchingPipeline(
            model,
            scheduler,
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "INFERENCE_PRECISION_HINT": "f32",
                "KV_CACHE_PRECISION": "f32",
            },
        )
        self._served = 0

    def run(self, streams: int, prompts: list[list[int]], new_tokens: int) -> list[Timeline]:
        """See worker.Runner."""
        waiting, running = deque(prompts), []
        timelines: list[Timeline] = []
        while waiting or running:
            while waiting and len(running) < streams:
                timelines.append(Timeline(perf_counter()))
                handle = self._send(waiting.popleft(), new_tokens)
                running.append((handle, timelines[-1]))
            self._pipeline.step()
            now = perf_counter()
            for handle, timeline in running:
                if handle.can_read():
                    new = sum(len(output.generated_ids) for output in handle.read().values())
                    timeline.times += [now] * new
                    timeline.tokens += new
            running = [each for each in running if each[1].tokens < new_tokens]
        return timelines

    def _send(self, prompt: list[int], new_tokens: int) -> Any:
        config = openvino_genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new_tokens
        config.ignore_eos = True
        config.do_sample = False
        self._served += 1
        ids = openvino.Tensor(np.array([prompt], np.int64))
        return self._pipeline.add_request(self._served, ids, config)
