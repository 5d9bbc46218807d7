"""Tests that share something costly run in one worker, which pytest-xdist knows by its mark."""

import os

import pytest


@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="pytest-xdist doesn't run it")
@pytest.mark.xdist_group("shared")
def test_a_group_is_kept_together(request: pytest.FixtureRequest) -> None:
    assert request.node.nodeid.endswith("@shared")
