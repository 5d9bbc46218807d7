"""The small trained checkpoint of the tests; ``python -m tests.training`` makes it beforehand."""

import hashlib
import subprocess
import sys
from pathlib import Path

from filelock import FileLock

ROOT = Path(__file__).parents[1]


def train_once() -> Path:
    """Return its directory, kept until the script that trains it changes."""
    script = ROOT / "scripts" / "train_checkpoint.py"
    version = hashlib.sha256(script.read_bytes()).hexdigest()[:12]
    cache = ROOT / "build" / "checkpoints"
    cache.mkdir(parents=True, exist_ok=True)
    directory = cache / f"trained-{version}"
    with FileLock(cache / f"{version}.lock"):
        if not (directory / "tokenizer.json").is_file():  # written last
            subprocess.run([sys.executable, script, directory], check=True)
    return directory


if __name__ == "__main__":
    train_once()
