"""Who takes part in a run: our bundles, and every peer that is installed and can convert."""

import json
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scripts.peers.catalogue import OURS, PEERS, REFERENCE, Peer, missing_module
from scripts.peers.measuring import Contestant
from scripts.peers.remote import Worker, environment


@dataclass(frozen=True)
class Run:
    """What all models of a run have in common; ``workspace`` holds conversions and logs."""

    checkpoint: Path
    workspace: Path
    precision: str
    threads: int
    capacity: int

    @property
    def config(self) -> dict[str, Any]:
        """The checkpoint's config.json."""
        config: dict[str, Any] = json.loads((self.checkpoint / "config.json").read_text())
        return config

    def settings(self, model: Path) -> dict[str, Any]:
        """Return the arguments of a peer's Runner."""
        return {
            "model": str(model),
            "precision": self.precision,
            "threads": self.threads,
            "capacity": self.capacity,
        }

    def log(self, module: str) -> Path:
        """Return where a peer's messages go."""
        return self.workspace / f"{module}.log"


def our_bundles(run: Run, bundles: Sequence[str]) -> list[Contestant]:
    """Return one contestant for each of ``bundles``, a directory or NAME=DIRECTORY."""
    named = [bundle.rpartition("=")[::2] for bundle in bundles]
    return [
        Contestant(
            name or OURS.name,
            OURS.module,
            Path(sys.executable),
            run.settings(Path(path)),
            run.log(OURS.module),
        )
        for name, path in named
    ]


def installed_peers(
    run: Run, interpreters: Mapping[str, Path], only: Sequence[str]
) -> tuple[list[Contestant], dict[str, str]]:
    """Return the peers that can take part, their models converted, and why the others can't."""
    contestants, absent = [], {}
    for peer in PEERS:
        if only and peer.name not in only:
            continue
        python = interpreters[peer.name]
        obstacle = _obstacle(run, peer, python)
        if obstacle is not None:
            absent[peer.name] = obstacle
            continue
        model = _model(run, peer) if peer.converts else run.checkpoint
        contestants.append(
            Contestant(peer.name, peer.module, python, run.settings(model), run.log(peer.module))
        )
    return contestants, absent


def start_reference(run: Run, interpreters: Mapping[str, Path]) -> Worker | None:
    """Start transformers in float32, or return None where it isn't installed."""
    python = interpreters[REFERENCE.name]
    if missing_module(REFERENCE, python):
        return None
    settings = run.settings(run.checkpoint)
    return Worker(REFERENCE.module, python, settings, run.log("reference"))


def _obstacle(run: Run, peer: Peer, python: Path) -> str | None:
    if obstacle := peer.obstacle(run.config["model_type"], run.precision):
        return obstacle
    if module := missing_module(peer, python):
        return f"not installed ({python} has no {module})"
    if peer.converts and not _model(run, peer).exists():
        return _convert(run, peer, python)
    return None


def _model(run: Run, peer: Peer) -> Path:
    return run.workspace / (peer.shares_models_of or peer.module) / run.precision


def _convert(run: Run, peer: Peer, python: Path) -> str | None:
    """Convert the checkpoint for a peer in a process of its own; return why it failed, or None."""
    directory = _model(run, peer)
    unfinished = directory.with_name(directory.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    command = [str(python), "-m", "scripts.peers.convert", peer.module]
    command += [str(run.checkpoint), str(unfinished), run.precision]
    log = run.log(peer.module)
    with log.open("a") as output:
        done = subprocess.run(command, stdout=output, stderr=output, env=environment(), check=False)
    if done.returncode:
        return f"its conversion failed, see {log}"
    unfinished.rename(directory)
    return None
