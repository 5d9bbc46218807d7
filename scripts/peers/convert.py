"""Converting a checkpoint for one peer, in the virtual environment that holds its converter.

python -m scripts.peers.convert PEER CHECKPOINT DIRECTORY PRECISION
"""

import sys
from importlib import import_module
from pathlib import Path


def main() -> None:
    name, checkpoint, directory, precision = sys.argv[1:]
    Path(directory).mkdir(parents=True)
    import_module(f"scripts.peers.{name}").convert(Path(checkpoint), Path(directory), precision)


if __name__ == "__main__":
    main()
