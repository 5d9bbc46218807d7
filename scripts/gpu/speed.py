"""Decode and prefill of a model of Llama 3.2 1B's shape, beside the chip's rates and a peer."""

import statistics
import tempfile
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np
import torch
from transformers import PreTrainedModel

from scripts.gpu.contestants import (
    ChunkedContestant,
    CompiledContestant,
    Contestant,
    EngineContestant,
)
from scripts.gpu.outcome import Recorder
from scripts.gpu.random_bundle import LLAMA_1B, SMALL, make_model, write_bundle
from scripts.gpu.rates import Rates, rates_of_device
from scripts.gpu.worker import reason
from serving.bundle import Target, open_bundle

CONTEXTS = (512, 2048)
CAPACITY = 4096
NEW_TOKENS, ROUNDS = 64, 5
LONG_RUN = 10_000
OURS: dict[Target, str] = {"onnxruntime": "ONNX Runtime CUDA", "tensorrt-rtx": "TensorRT-RTX"}
COMPILED = "torch.compile, static cache"


@dataclass(frozen=True)
class Work:
    """What one step of a model must read and compute."""

    weight_bytes: int
    kv_bytes_per_token: int
    layer_parameters: int
    attention_width: int
    """Query heads times their size, over all layers."""

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Work":
        """Read it from a float16 model with tied embeddings."""
        config = model.config
        layers, dim = config.num_hidden_layers, config.head_dim
        return cls(
            weight_bytes=sum(weight.nbytes for weight in model.parameters()),
            kv_bytes_per_token=2 * 2 * layers * config.num_key_value_heads * dim,
            layer_parameters=sum(weight.numel() for weight in model.model.layers.parameters()),
            attention_width=layers * config.num_attention_heads * dim,
        )

    def decode_bound(self, context: float, bandwidth: float) -> float:
        """Tokens a second if a step took as long as reading the weights and the cache once."""
        return bandwidth / (self.weight_bytes + context * self.kv_bytes_per_token)

    def prefill_flops(self, tokens: int) -> float:
        """Of all products of a prompt; causal attention is half of a square, twice."""
        return 2 * self.layer_parameters * tokens + 2 * self.attention_width * tokens**2


@dataclass(frozen=True)
class Round:
    """Seconds of a prompt, and of each token behind it."""

    prefill: float
    decode: float


def measure_speed(recorder: Recorder) -> None:
    """Record everything; what can't be opened is recorded with its reason."""
    rates = rates_of_device()
    with tempfile.TemporaryDirectory() as scratch:
        _measure_overhead(recorder, Path(scratch))
        model = make_model(LLAMA_1B)
        work = Work.of(model)
        contestants = _open_all(recorder, model, Path(scratch))
        for context in CONTEXTS:
            rounds = in_turns(contestants, context, _reporter(recorder, f"at {context} tokens"))
            report_rounds(recorder, rounds, context, work, rates)
        for name, contestant in contestants.items():
            if name != COMPILED:
                _measure_growth(recorder, name, contestant)


def report_rounds(
    recorder: Recorder,
    rounds: Mapping[str, list[Round]],
    context: int,
    work: Work,
    rates: Rates,
) -> None:
    """Medians, shares of what the chip gives, and how far ahead of the peer."""
    bound = work.decode_bound(context + NEW_TOKENS / 2, rates.bandwidth)
    flops = work.prefill_flops(context)
    for name, done in rounds.items():
        decode = 1 / statistics.median(each.decode for each in done)
        prefill = statistics.median(each.prefill for each in done)
        ours = name != COMPILED
        recorder.record(
            f"{name}: decode at {context} tokens",
            f"{decode:,.0f} tokens/s, {decode / bound:.0%} of the memory bandwidth",
            "70%" if ours else "",
        )
        recorder.record(
            f"{name}: prefill of {context} tokens",
            f"{context / prefill:,.0f} tokens/s, {flops / prefill / rates.matrix:.0%} of the "
            "matrix rate",
            "50%" if ours else "",
        )
        if ours and COMPILED in rounds:
            pairs = zip(rounds[COMPILED], done, strict=True)
            ratio = statistics.median(peer.decode / own.decode for peer, own in pairs)
            recorder.record(
                f"{name}: decode at {context} tokens beside {COMPILED}", f"{ratio:.2f} x", "> 1 x"
            )


def in_turns(
    contestants: Mapping[str, Contestant],
    context: int,
    failed: Callable[[str, Exception], None],
    new_tokens: int = NEW_TOKENS,
) -> dict[str, list[Round]]:
    """Interleaved rounds after one to warm up; who fails is told and left out."""
    random = np.random.default_rng(0)
    rounds: dict[str, list[Round]] = {name: [] for name in contestants}
    for number in range(ROUNDS + 1):
        for name in list(rounds):
            prompt = random.integers(0, LLAMA_1B["vocab_size"], context).tolist()
            try:
                done = _round(contestants[name], prompt, new_tokens)
            except Exception as error:  # of whatever kind, the others go on
                traceback.print_exc()
                failed(name, error)
                del rounds[name]
                continue
            if number:
                rounds[name].append(done)
    return rounds


def _round(contestant: Contestant, prompt: list[int], new_tokens: int) -> Round:
    begin = perf_counter()
    token = contestant.prefill(prompt)
    behind = perf_counter()
    for _ in range(new_tokens):
        token = contestant.decode(token)
    return Round(behind - begin, (perf_counter() - behind) / new_tokens)


def _reporter(recorder: Recorder, where: str) -> Callable[[str, Exception], None]:
    def report(name: str, error: Exception) -> None:
        recorder.record(f"{name} {where}", f"failed: {reason(error)}")

    return report


def _open_all(recorder: Recorder, model: PreTrainedModel, scratch: Path) -> dict[str, Contestant]:
    contestants: dict[str, Contestant] = {}
    for target, name in OURS.items():
        try:
            begin = perf_counter()
            bundle = write_bundle(model, scratch / target, target, CAPACITY)
            written = perf_counter()
            contestants[name] = _open(bundle, target)
            recorder.record(
                f"{name}: export without gates, then opening",
                f"{written - begin:.0f} s, {perf_counter() - written:.1f} s",
            )
            for remark in getattr(contestants[name].engine, "remarks", []):  # type: ignore[attr-defined]
                recorder.record(f"{name}: remark", remark, "none")
        except Exception as error:  # of whatever kind, the others go on
            traceback.print_exc()
            recorder.record(name, f"not measured: {reason(error)}")
    try:
        contestants[COMPILED] = CompiledContestant(model, CAPACITY)
    except Exception as error:
        traceback.print_exc()
        recorder.record(COMPILED, f"not measured: {reason(error)}")
    return contestants


def _open(bundle: Path, target: Target) -> EngineContestant:
    if target == "onnxruntime":
        return EngineContestant(bundle, CAPACITY, provider="cuda")
    engine = open_bundle(bundle, verify=False).engine(target)
    assert engine is not None
    assert engine.prefill_chunk is not None
    return ChunkedContestant(bundle, CAPACITY, engine.prefill_chunk, target=target)


def _measure_overhead(recorder: Recorder, scratch: Path) -> None:
    """A step of a model that gives the chip next to nothing to do: what is left is overhead."""
    model = make_model(SMALL)
    for target, name in OURS.items():
        what = f"{name}: a step of two small layers"
        try:
            bundle = write_bundle(model, scratch / f"small-{target}", target, CAPACITY)
            contestant = _open(bundle, target)
            contestant.prefill([1, 2, 3])
            times = []
            for _ in range(2000):
                begin = perf_counter()
                contestant.decode(1)
                times.append(perf_counter() - begin)
        except Exception as error:  # of whatever kind, the others go on
            traceback.print_exc()
            recorder.record(what, f"not measured: {reason(error)}")
            continue
        recorder.record(what, f"{statistics.median(times) * 1e6:.0f} microseconds", "50")


def _measure_growth(recorder: Recorder, name: str, contestant: Contestant) -> None:
    token = contestant.decode(1)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info()[0]
    for _ in range(LONG_RUN):
        token = contestant.decode(token)
    grown = before - torch.cuda.mem_get_info()[0]
    recorder.record(
        f"{name}: GPU memory after {LONG_RUN:,} tokens", f"{grown / 2**20:+.1f} MiB", "0"
    )
