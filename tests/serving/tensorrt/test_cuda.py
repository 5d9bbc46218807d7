"""CUDA's own errors, really called, where there is no GPU; and what is said without its package."""

import sys
from collections.abc import Iterator

import pytest

from serving.errors import UserError
from serving.tensorrt.cuda import CudaError, call, runtime_api
from serving.tensorrt.devices import find_driver
from serving.tensorrt.fit import refuse_driver
from tests.conftest import why_no_gpu

without_gpu = pytest.mark.skipif(why_no_gpu() is None, reason="there is a GPU")


@pytest.fixture
def fresh_import() -> Iterator[None]:
    runtime_api.cache_clear()
    yield
    runtime_api.cache_clear()


@without_gpu
def test_a_failed_call_says_which_and_why() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(CudaError) as raised:
        call("cudaGetDeviceCount")
    assert raised.value.name in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
    text = str(raised.value)
    assert text.startswith(f"cudaGetDeviceCount failed with {raised.value.name} (")
    assert "), and the device doesn't answer: close the model" in text


@without_gpu
def test_a_machine_without_a_gpu_is_found_out() -> None:
    pytest.importorskip("cuda.bindings.runtime")
    with pytest.raises(UserError, match=r"NVIDIA (GPU|driver) .*: (install|update|check)"):
        refuse_driver(find_driver())


@pytest.mark.gpu
def test_a_machine_with_a_gpu_is_found_out() -> None:
    refuse_driver(find_driver())


@pytest.mark.usefixtures("fresh_import")
def test_without_the_package_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", None)
    with pytest.raises(UserError, match=r"cuda-bindings .* pip install 'export-llm\[rtx\]'"):
        call("cudaGetDeviceCount")
