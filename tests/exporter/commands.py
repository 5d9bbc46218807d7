"""Running ``export-llm`` in this process, and what a refusal must be like."""

import logging
import os
import warnings
from pathlib import Path

from click.testing import CliRunner, Result
from transformers.utils import logging as transformers_logging

from exporter.cli import main


def run(*arguments: object) -> Result:
    """Run the command and undo what it does to its process, which here has other tests to run."""
    environment = dict(os.environ)
    # The command does so before it imports transformers, which is imported already here.
    transformers_logging.disable_progress_bar()
    with warnings.catch_warnings():
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    logging.disable(logging.NOTSET)
    os.environ.clear()
    os.environ.update(environment)
    return result


def refusal(directory: Path, *arguments: object) -> str:
    """Run the command; returns its sentence, once it is known to have done nothing but complain.

    ``directory`` holds all that the command may touch.
    """
    before = contents(directory)
    result = run(*arguments)
    assert isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == 1
    assert result.stdout == ""
    assert contents(directory) == before
    first, *others = result.stderr.splitlines()
    assert not others
    assert first.startswith("Error: ")
    assert first.endswith(".")
    assert len(first) < 300
    return first.removeprefix("Error: ")


def contents(directory: Path) -> dict[str, float | None]:
    """Every path in a directory with the time of its last change, None for directories."""
    return {
        str(path.relative_to(directory)): path.stat().st_mtime if path.is_file() else None
        for path in directory.rglob("*")
    }
