"""Tokens that the device chooses, on the GPU that isn't there: whose they are, and when."""

import ctypes
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scripts.gpu import contestants
from serving.beam_search import BeamParameters
from serving.bundle import SpecialTokens
from serving.decoding import Token
from serving.errors import EngineError, UserError
from serving.generation import Model
from serving.onnxruntime import OnnxRuntimeEngine
from serving.request_queue import Job
from serving.result import Generation
from serving.sampling import SamplingParameters, choice_seed
from serving.tensorrt.sampling.parameters import device_rows
from tests.serving.tensorrt.fake_gpu import FakeCuda, FakeTensorrt, Status
from tests.serving.tensorrt.sampling.host_build import HostBuild
from tests.serving.tensorrt.tiny_engine import CAPACITY, SLOTS, open_engine
from tests.serving.tiny_graph import VOCAB, graph_info, save_graph

PROMPTS = ([3, 1, 4, 1, 5, 9, 2], [2, 7], [1, 6, 1, 8, 0], [3], [14, 15, 9, 2, 6], [31, 30, 2])
SAMPLED = {"temperature": 1.5, "top_k": 20, "top_p": 0.95}

Gpu = tuple[FakeCuda, FakeTensorrt]


def model_of(engine: Any, eos: Sequence[int] = ()) -> Model:
    return Model(engine, SpecialTokens(bos=None, eos=tuple(eos), pad=None))


def generate(model: Model, prompts: Sequence[list[int]], **options: Any) -> list[Generation]:
    results = model.generate(list(prompts), **options)
    assert isinstance(results, list)
    return results


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("options", [{}, {"max_new_tokens": 1}, {"max_new_tokens": 4}])
def test_greedy_tokens_are_those_of_onnxruntime(
    tmp_path: Path, gpu: Gpu, cuda_graphs: bool, options: dict[str, int]
) -> None:
    """Twice as many prompts as slots, which end by EOS, by their limit and by the capacity."""
    del gpu
    file = save_graph(tmp_path / "model.onnx")
    with model_of(
        OnnxRuntimeEngine(file, graph_info(), slots=SLOTS, capacity=CAPACITY)
    ) as reference:
        free = generate(reference, PROMPTS, **options)
        eos = free[0].token_ids[len(free[0].token_ids) // 2]
    with model_of(
        OnnxRuntimeEngine(file, graph_info(), slots=SLOTS, capacity=CAPACITY), [eos]
    ) as reference:
        expected = generate(reference, PROMPTS, **options)
    with model_of(open_engine(tmp_path, cuda_graphs=cuda_graphs), [eos]) as model:
        for _ in range(2):
            assert generate(model, PROMPTS, **options) == expected
    if not options:
        assert {result.finish_reason for result in expected} == {"stop", "length"}


def test_a_seed_gives_the_same_tokens_in_any_company(tmp_path: Path, gpu: Gpu) -> None:
    del gpu
    with model_of(open_engine(tmp_path)) as model:
        together = generate(model, PROMPTS, seed=3, **SAMPLED)
        alone = [generate(model, [prompt], seed=3, **SAMPLED)[0] for prompt in PROMPTS]
        other = generate(model, PROMPTS, seed=4, **SAMPLED)
        fresh = [generate(model, PROMPTS, **SAMPLED) for _ in range(2)]
    assert together == alone
    assert together != other
    assert fresh[0] != fresh[1]


def test_tokens_are_what_the_kernel_chooses_from_the_logits(
    tmp_path: Path, gpu: Gpu, host: HostBuild
) -> None:
    del gpu
    sampling = SamplingParameters(seed=3, **SAMPLED)  # type: ignore[arg-type]
    prompt = PROMPTS[0]
    with open_engine(tmp_path) as engine:
        tokens = generate(model_of(engine), [prompt], seed=3, **SAMPLED)[0].token_ids
        for place in range(1, len(tokens)):
            ids = np.array([prompt + tokens[:place]])
            logits = engine.step(ids, np.array([0]), np.array([[ids.shape[1] - 1]]))[0]
            rows = device_rows([sampling], [choice_seed(3)], [place])
            assert host.sample(logits, rows).tolist() == [tokens[place]]


def test_a_step_is_enqueued_before_the_last_one_is_read(tmp_path: Path, gpu: Gpu) -> None:
    cuda, _ = gpu
    with model_of(open_engine(tmp_path)) as model:
        stream = model.generate([1, 2], stream=True, max_new_tokens=6)
        ahead = [bool(cuda.stream.work) for _ in stream]
        # After the prompt nothing is; nothing comes after the last token but one.
        assert ahead == [False, True, True, True, True, False]


def test_only_ids_come_to_the_host(
    tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuda, _ = gpu
    copied = []

    def copy(to: int, origin: int, size: int, kind: int, stream: Any) -> tuple[Status]:
        if kind == cuda.cudaMemcpyKind.cudaMemcpyDeviceToHost:
            copied.append(size)
        return FakeCuda.cudaMemcpyAsync(cuda, to, origin, size, kind, stream)

    monkeypatch.setattr(cuda, "cudaMemcpyAsync", copy)
    with model_of(open_engine(tmp_path)) as model:
        generate(model, PROMPTS[:2], max_new_tokens=5)
    assert copied == [VOCAB * 4] * 2 + [2 * 8] * 4


def test_the_benchmark_decodes_alike(
    tmp_path: Path, gpu: Gpu, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice, and beyond the capacity, where it goes on at the first place."""
    del gpu
    file = save_graph(tmp_path / "model.onnx")
    engines = {
        "onnxruntime": OnnxRuntimeEngine(file, graph_info(), slots=SLOTS, capacity=CAPACITY),
        "tensorrt-rtx": open_engine(tmp_path),
    }
    monkeypatch.setattr(contestants, "load", lambda bundle, **_: model_of(engines[bundle.name]))
    decoded = []
    for name, engine in engines.items():
        contestant = contestants.EngineContestant(Path(name), CAPACITY)
        tokens = []
        for _ in range(2):
            tokens.append(contestant.prefill(PROMPTS[1]))
            for _ in range(CAPACITY + 3):
                tokens.append(contestant.decode(tokens[-1]))
        decoded.append(tokens)
        engine.close()
    assert decoded[0] == decoded[1]


def test_what_the_device_cannot_choose_is_chosen_on_the_host(tmp_path: Path, gpu: Gpu) -> None:
    del gpu
    file = save_graph(tmp_path / "model.onnx")
    options: dict[str, Any] = {"repetition_penalty": 1.3, "logprobs": 2, "min_new_tokens": 3}
    with model_of(
        OnnxRuntimeEngine(file, graph_info(), slots=SLOTS, capacity=CAPACITY)
    ) as reference:
        expected = generate(reference, PROMPTS, **options)
    with model_of(open_engine(tmp_path)) as model:
        results = generate(model, PROMPTS, **options)
    assert [r.token_ids for r in results] == [r.token_ids for r in expected]


def test_a_stream_that_is_left_disturbs_nothing(tmp_path: Path, gpu: Gpu) -> None:
    del gpu
    with model_of(open_engine(tmp_path)) as model:
        expected = generate(model, PROMPTS)
        stream = model.generate(list(PROMPTS), stream=True)
        for _ in range(7):
            next(stream)
        stream.close()  # type: ignore[attr-defined]
        assert generate(model, PROMPTS) == expected


@pytest.mark.parametrize("beams", [None, 2])
def test_others_steps_between_those_of_a_stream_disturb_nothing(
    tmp_path: Path, gpu: Gpu, beams: int | None
) -> None:
    """A prompt of one token and the steps of a search take the place of a stream's inputs."""
    del gpu
    with model_of(open_engine(tmp_path)) as model:
        expected = generate(model, [PROMPTS[1]], max_new_tokens=12)[0].token_ids
        scheduler = model.scheduler()
        scheduler.submit(Job(model.sequence(PROMPTS[1], 0, max_new_tokens=12)))
        events = [event for _ in range(4) for event in scheduler.step()]
        job = Job(model.sequence([3], 1, max_new_tokens=6 if beams else 1))
        job.beams = BeamParameters(beams) if beams else None
        scheduler.submit(job)
        events += scheduler.run()
        tokens = [e.token_id for e in events if isinstance(e, Token) and e.index == 0]
        assert tokens == expected


def test_nan_is_the_error_that_the_host_gives(tmp_path: Path, gpu: Gpu) -> None:
    del gpu
    with open_engine(tmp_path) as engine:
        stream = model_of(engine).generate([1, 2], stream=True)
        next(stream)
        for buffer in engine.cache.buffers.values():
            first = (ctypes.c_float * 4).from_address(buffer.address)
            first[:] = [math.nan] * 4
        with pytest.raises(UserError, match="returned NaN"):
            next(stream)


def test_a_lost_device_is_one_sentence(tmp_path: Path, gpu: Gpu) -> None:
    cuda, _ = gpu
    with open_engine(tmp_path) as engine:
        model = model_of(engine)
        generate(model, PROMPTS)
        cuda.fail["cudaEventSynchronize"] = (2, Status.cudaErrorIllegalAddress)
        with pytest.raises(EngineError, match=r"cudaEventSynchronize .*IllegalAddress.* load it"):
            generate(model, PROMPTS)
        cuda.fail.clear()
    assert (cuda.blocks, cuda.handles) == ({}, [])


def test_opening_that_fails_at_an_event_frees_the_others(tmp_path: Path, gpu: Gpu) -> None:
    cuda, _ = gpu
    for after in range(3):
        cuda.fail["cudaEventCreateWithFlags"] = (after, Status.cudaErrorMemoryAllocation)
        with pytest.raises(EngineError, match="cudaEventCreateWithFlags"):
            open_engine(tmp_path)
        assert (cuda.blocks, cuda.handles) == ({}, [])
        cuda.fail.clear()
