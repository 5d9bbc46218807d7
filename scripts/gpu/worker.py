"""The process of one step: worker STEP RESULT. Its last line says why it failed."""

import sys
import traceback
from pathlib import Path

from scripts.gpu.outcome import Recorder
from scripts.gpu.steps import find_step
from serving.errors import UserError


def main(name: str, result: str) -> int:
    """Run a step; returns the exit code."""
    try:
        find_step(name)(Recorder(Path(result)))
    except UserError as error:
        print(error)
        return 1
    except Exception as error:  # whatever it is, it is the step's reason
        traceback.print_exc()
        print(reason(error))
        return 1
    return 0


def reason(error: BaseException) -> str:
    """An error in one line, with its type."""
    if isinstance(error, UserError):
        return str(error)
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
