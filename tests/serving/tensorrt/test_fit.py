"""Every reason that an engine doesn't fit is one sentence, and what fits is let through."""

from dataclasses import replace
from typing import Any

import pytest

from serving.bundle import EngineInfo, GraphInfo, LayerInfo
from serving.errors import UserError
from serving.tensorrt.fit import (
    Device,
    Driver,
    Needs,
    refuse_alignment,
    refuse_device,
    refuse_driver,
    refuse_memory,
    refuse_version,
    version_text,
)

GB = 10**9
RTX_4090 = Device("NVIDIA GeForce RTX 4090", "8.9", 20 * GB, 24 * GB)
WORKING = Driver(version=13010, runtime_version=13050, devices=1)


def engine(**changes: Any) -> EngineInfo:
    known = {
        "target": "tensorrt-rtx",
        "file": "model.engine",
        "weight_bytes": GB,
        "runtime_version": "1.7.1.116",
    }
    return EngineInfo.model_validate(known | changes)


def graph(kv_heads: int, dim: int, dtype: str = "float16") -> GraphInfo:
    layer = LayerInfo(kv_heads=kv_heads, key_dim=dim, value_dim=dim)
    known = {"contract_version": 1, "vocab_size": 8, "dtype": dtype, "max_length": 4096}
    return GraphInfo.model_validate(known | {"layers": (layer,)})


def compatible(built: str) -> EngineInfo:
    return engine(target="tensorrt", runtime_version=built, version_compatible=True)


def test_one_sentence_each(subtests: pytest.Subtests) -> None:
    refusals = {
        "for tensorrt-rtx 1.7.1.116, and 1.8.0.1 is installed: install that": lambda: (
            refuse_version(engine(), "1.8.0.1")
        ),
        r"built for tensorrt 11.x from 11.2.0 on, and 11.1.9 is": lambda: refuse_version(
            compatible("11.2.0"), "11.1.9"
        ),
        r"built for tensorrt 11.x from 11.2.0 on, and 12.0.0 is": lambda: refuse_version(
            compatible("11.2.0"), "12.0.0"
        ),
        "no NVIDIA driver was found here: install NVIDIA's driver": lambda: refuse_driver(
            replace(WORKING, version=0, devices=0, failure="cudaErrorInsufficientDriver")
        ),
        "driver is for CUDA 12.9, and CUDA 13.0 or newer is needed: update": lambda: refuse_driver(
            replace(WORKING, version=12090, devices=0, failure="cudaErrorInsufficientDriver")
        ),
        r"offers no GPU here \(cudaErrorNoDevice\): check nvidia-smi": lambda: refuse_driver(
            replace(WORKING, devices=0, failure="cudaErrorNoDevice")
        ),
        "offers no GPU here: check": lambda: refuse_driver(replace(WORKING, devices=0)),
        "for compute capability 8.6, 12.0, and .* 4090 has 8.9: .*capability 8.9": lambda: (
            refuse_device(engine(compute_capabilities=("8.6", "12.0")), RTX_4090)
        ),
        "for compute capability 8.0 and newer, and .* has 7.5: .*compatibility none": lambda: (
            refuse_device(
                engine(hardware_compatibility="ampere-plus"),
                replace(RTX_4090, compute_capability="7.5"),
            )
        ),
        # 1 head of 16 float16 numbers at 100 positions.
        "rows of 3,200 bytes .* no multiple of 256: .*slots=1": lambda: refuse_alignment(
            engine(), graph(1, 16), slots=2, capacity=100
        ),
        r"needs 21.0 GB on the GPU \(16.0 GB of weights, 4.0 GB of KV buffers, 1.0 GB of "
        "activations.* 20.0 of .* 4090's 24.0 GB are free: .*fewer slots than 8": lambda: (
            refuse_memory([Needs(16 * GB, 4 * GB, GB)], 8, RTX_4090)
        ),
        r"needs 20.0 GB on the GPU \(18.0 GB of weights": lambda: refuse_memory(
            [Needs(15 * GB, GB, 0), Needs(3 * GB, GB, 1)], 1, RTX_4090
        ),
    }
    for message, refuse in refusals.items():
        with subtests.test(message), pytest.raises(UserError, match=message) as raised:
            refuse()
        sentence = str(raised.value)
        assert sentence.endswith(".")
        assert ": " in sentence


@pytest.mark.parametrize(
    ("built", "installed"), [("11.2.0", "11.2.0"), ("11.2.0", "11.2.1"), ("11.2.0", "11.10.0")]
)
def test_newer_versions_run_what_was_built_for_them(built: str, installed: str) -> None:
    refuse_version(compatible(built), installed)


@pytest.mark.parametrize("version", [13000, 13050, 13090, 14000])
def test_every_driver_from_the_runtimes_major_version_on(version: int) -> None:
    refuse_driver(replace(WORKING, version=version))


@pytest.mark.parametrize(
    ("changes", "capability"),
    [
        ({"compute_capabilities": ("8.6", "8.9")}, "8.9"),
        ({"hardware_compatibility": "ampere-plus"}, "8.0"),
        ({"hardware_compatibility": "ampere-plus"}, "12.0"),
        # Relative to a GPU that the manifest doesn't name.
        ({"hardware_compatibility": "none"}, "7.5"),
        ({"hardware_compatibility": "same-compute-capability"}, "7.5"),
    ],
)
def test_gpus_that_an_engine_is_for(changes: dict[str, Any], capability: str) -> None:
    refuse_device(engine(**changes), replace(RTX_4090, compute_capability=capability))


def test_rows_that_begin_at_aligned_addresses() -> None:
    refuse_alignment(engine(), graph(1, 16), slots=1, capacity=100)
    refuse_alignment(engine(), graph(1, 16), slots=2, capacity=104)
    refuse_alignment(engine(), graph(1, 16, "float32"), slots=2, capacity=100)


def test_memory_that_is_just_enough() -> None:
    refuse_memory([Needs(15 * GB, 4 * GB, GB)], 8, RTX_4090)


def test_versions_as_people_write_them() -> None:
    assert [version_text(version) for version in (13050, 12080, 13000)] == ["13.5", "12.8", "13.0"]
