"""Encoders, exported once for all tests."""

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.encoders import encoder_fixture


@pytest.fixture(scope="session")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    return encoder_fixture(tmp_path_factory)
