"""Servers that the tests share: over the tiny bundle, and over one that writes text."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.encoders import ENCODERS, encoder_fixture
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


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """From the name of a tiny encoder to its folder of ``checkpoint`` and ``bundle``."""
    return encoder_fixture(tmp_path_factory)


@pytest.fixture(scope="session")
def encoders(encoder: Callable[[str], Path], tiny_bundle: Path) -> Iterator[Running]:
    """An encoder of every task beside a decoder."""
    bundles = {name: encoder(name) / "bundle" for name in ENCODERS}
    with running({**bundles, "tiny": tiny_bundle}) as server:
        yield server


@pytest.fixture(scope="session")
def embedder(encoder: Callable[[str], Path]) -> Iterator[Running]:
    """An encoder for embeddings with a queue of eight, and one that labels tokens."""
    with running({name: encoder(name) / "bundle" for name in ("sentences", "entities")}) as server:
        yield server
