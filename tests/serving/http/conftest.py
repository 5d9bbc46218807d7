"""Servers that the tests share: over the tiny bundle, and over one that writes text."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.serving.http.running import Running, running
from tests.serving.tiny_bundle import make_bundle


@pytest.fixture(scope="session")
def tiny_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bundle(tmp_path_factory.mktemp("http") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_bundle: Path) -> Iterator[Running]:
    """Two slots, a queue of eight, a context of 1,024 tokens; its tokens are letters."""
    with running({"tiny": tiny_bundle}) as server:
        yield server


@pytest.fixture(scope="session")
def trained(trained_bundle: Path) -> Iterator[Running]:
    with running({"trained": trained_bundle}, capacity=256) as server:
        yield server
