"""What is shown of stages and of the builds within them: on a terminal, and nowhere else."""

import pytest

from exporter.progress import StageDisplay


def show_two_stages() -> None:
    with StageDisplay() as stages:
        stages.start("Writing")
        stages.progress("Building engine", 0.0)
        stages.progress("Timing tactics", 0.5)
        stages.start("Packing")


def test_a_build_has_a_bar_under_its_stage(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # which rich takes for a terminal
    monkeypatch.setenv("TERM", "xterm")
    with StageDisplay() as stages:
        stages.start("Writing")
        stages.progress("Building engine", 0.0)
        stages.progress("Timing tactics", 0.5)
        stages._progress.refresh()
        during = capsys.readouterr().err
        stages.start("Packing")
        stages._progress.refresh()
        after = capsys.readouterr().err
    assert "Timing tactics" in during
    assert "━" in during
    assert "Packing" in after
    assert "Timing tactics" not in after.rpartition("Writing")[2]


def test_nothing_is_shown_without_a_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    show_two_stages()
    assert capsys.readouterr() == ("", "")
