"""The host's build of the device's source, compiled once."""

import pytest

from tests.serving.tensorrt.sampling.host_build import HostBuild


@pytest.fixture(scope="session")
def host(tmp_path_factory: pytest.TempPathFactory) -> HostBuild:
    return HostBuild(tmp_path_factory.mktemp("host_build"))
