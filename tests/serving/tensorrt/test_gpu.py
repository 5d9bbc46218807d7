"""TensorRT-RTX on a GPU: tokens are transformers', and nothing grows."""

from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import serving
from engines.tensorrt.options import COMPUTE_CAPABILITIES
from serving.bundle import open_bundle
from serving.tensorrt.cuda import call
from serving.tensorrt.devices import find_device
from serving.tensorrt.engine import TensorrtEngine
from serving.tensorrt.opening import kept_kernels
from tests.checkpoints import make_checkpoint
from tests.exports import export_bundle, once

pytest.importorskip("tensorrt_rtx")
pytest.importorskip("cuda.bindings.runtime")
pytestmark = pytest.mark.gpu

CAPACITY, SLOTS, CHUNK = 2304, 3, 16
LENGTHS = (1, 7, 40, 16)
NEW_TOKENS = 48


@pytest.fixture(scope="session")
def model_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("checkpoint") / "llama"
    return make_checkpoint("llama", directory, max_position_embeddings=CAPACITY)


@pytest.fixture(scope="session")
def bundle(tmp_path_factory: pytest.TempPathFactory, model_directory: Path) -> Path:
    """In float32, whose tokens leave nothing to rounding."""
    capability = find_device().compute_capability
    if capability not in COMPUTE_CAPABILITIES:
        pytest.skip(f"TensorRT-RTX doesn't compile for compute capability {capability}")

    def make(path: Path) -> None:
        export_bundle(
            model_directory,
            path,
            targets=("tensorrt-rtx",),
            max_length=CAPACITY,
            batch=SLOTS,
            prefill_chunk=CHUNK,
        )

    return once(tmp_path_factory, "tensorrt-runtime", make)


def prompts() -> list[list[int]]:
    random = np.random.default_rng(7)
    return [random.integers(3, 90, length).tolist() for length in LENGTHS]


def open_engine(bundle: Path, *, cuda_graphs: bool) -> TensorrtEngine:
    opened = open_bundle(bundle)
    (info,) = opened.manifest.engines
    return TensorrtEngine(
        bundle / info.file,
        opened.manifest.graph,
        info,
        slots=SLOTS,
        capacity=CAPACITY,
        runtime_cache=kept_kernels(opened, info),
        cuda_graphs=cuda_graphs,
    )


def test_greedy_tokens_are_those_of_transformers(bundle: Path, model_directory: Path) -> None:
    reference = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    with serving.load(bundle) as model:
        results = model.generate(prompts(), max_new_tokens=NEW_TOKENS)
    for prompt, result in zip(prompts(), results, strict=True):
        ids = torch.tensor([prompt])
        with torch.no_grad():
            output = reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
            )
        assert result.token_ids == output[0, len(prompt) :].tolist()


def test_logits_of_every_position_are_those_of_transformers(
    bundle: Path, model_directory: Path
) -> None:
    ids = np.random.default_rng(8).integers(3, 90, 100).tolist()
    reference = AutoModelForCausalLM.from_pretrained(model_directory, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = reference(torch.tensor([ids])).logits[0].numpy()
    with serving.load(bundle, prefill_chunk=90) as model:
        np.testing.assert_allclose(model.logits(ids), expected, atol=1e-3)


def test_it_opens_again(bundle: Path) -> None:
    texts = []
    for _ in range(2):
        with serving.load(bundle) as model:
            texts.append(model.generate(prompts(), max_new_tokens=NEW_TOKENS, ignore_eos=True))
    assert texts[0] == texts[1]


def test_captured_steps_equal_enqueued_ones(bundle: Path) -> None:
    logits = []
    for cuda_graphs in (False, True):
        with open_engine(bundle, cuda_graphs=cuda_graphs) as engine:
            steps = []
            for length in range(8):
                for rows in (3, 2, 1):
                    ids = np.arange(rows)[:, None] + length
                    lengths, positions = np.full(rows, length), np.zeros((rows, 1), np.int64)
                    steps.append(engine.step(ids, lengths, positions))
            assert all(context.is_captured == cuda_graphs for context in engine._decoders.values())
            logits.append(np.concatenate([step.ravel() for step in steps]))
    np.testing.assert_allclose(logits[0], logits[1], atol=1e-5)


def test_memory_is_flat_over_two_thousand_tokens(bundle: Path) -> None:
    with serving.load(bundle, slots=1) as model:
        prompt = prompts()[1]
        model.generate(prompt, max_new_tokens=16, ignore_eos=True)
        before, _ = call("cudaMemGetInfo")
        result = model.generate(prompt, max_new_tokens=2000, ignore_eos=True)
        after, _ = call("cudaMemGetInfo")
    assert len(result.token_ids) == 2000
    assert after == before


def test_closing_gives_all_memory_back(bundle: Path) -> None:
    free = []
    for _ in range(3):
        with open_engine(bundle, cuda_graphs=True) as engine:
            engine.step(np.array([[1]]), np.array([0]), np.zeros((1, 1), np.int64))
        free.append(call("cudaMemGetInfo")[0])
    assert free[2] == free[1]
