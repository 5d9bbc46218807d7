"""A GPU that isn't there, and the device's source built for the host, compiled once."""

import sys
from collections.abc import Iterator
from functools import partial

import pytest

from serving.tensorrt.cuda import runtime_api
from serving.tensorrt.log import make_log
from serving.tensorrt.sampling import sampler
from tests.serving.tensorrt.fake_gpu import FakeCuda, FakeTensorrt
from tests.serving.tensorrt.fake_sampler import FakeSampler
from tests.serving.tensorrt.sampling.host_build import HostBuild
from tests.serving.tensorrt.tiny_engine import CAPACITY, CHUNK, SLOTS


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    return HostBuild(tmp_path_factory.mktemp("host_build"))


@pytest.fixture
def gpu(
    monkeypatch: pytest.MonkeyPatch, host: HostBuild
) -> Iterator[tuple[FakeCuda, FakeTensorrt]]:
    cuda = FakeCuda()
    library = FakeTensorrt(cuda, CHUNK, SLOTS, CAPACITY)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", cuda)  # type: ignore[arg-type]
    monkeypatch.setitem(sys.modules, "tensorrt_rtx", library)  # type: ignore[arg-type]
    monkeypatch.setattr(sampler, "DeviceSampler", partial(FakeSampler, host, cuda))
    runtime_api.cache_clear()
    yield cuda, library
    runtime_api.cache_clear()
    make_log.cache_clear()
