"""Which peers there are, what they can run, and which of them are installed."""

import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

PRECISIONS = ("float32", "int8", "int4")


@dataclass(frozen=True)
class Peer:
    """A peer: its file here, the modules that its environment must have, and what it runs.

    A peer without ``converts`` reads the checkpoint itself; ``shares_models_of`` is the file of the
    peer whose converted models are its own too.
    """

    name: str
    module: str
    needs: tuple[str, ...]
    precisions: tuple[str, ...] = PRECISIONS
    converts: bool = True
    lacks_architectures: tuple[str, ...] = ()
    shares_models_of: str | None = None

    def obstacle(self, architecture: str, precision: str) -> str | None:
        """Say why this peer can't take part, or return None if it can."""
        if architecture in self.lacks_architectures:
            return f"doesn't know {architecture}"
        if precision not in self.precisions:
            return f"has no {precision} on the CPU"
        return None


LLAMA_CPP = ("llama_cpp", "gguf", "safetensors")

PEERS = (
    Peer("transformers", "transformers", ("torch", "transformers"), ("float32",), False),
    Peer("torch.compile", "transformers_compiled", ("torch", "transformers"), ("float32",), False),
    Peer(
        "onnxruntime-genai",
        "onnxruntime_genai",
        ("onnxruntime_genai",),
        lacks_architectures=("gpt2",),
    ),
    Peer("llama.cpp", "llama_cpp", LLAMA_CPP),
    Peer("llama.cpp flash", "llama_cpp_flash", LLAMA_CPP, shares_models_of="llama_cpp"),
    Peer("openvino-genai", "openvino", ("openvino_genai", "optimum.intel")),
    # Its 4-bit kernels are for GPUs.
    Peer("ctranslate2", "ctranslate2", ("ctranslate2", "transformers"), ("float32", "int8")),
)
OURS = Peer("export-llm", "bundle", ("serving",), converts=False)
REFERENCE = PEERS[0]


def missing_module(peer: Peer, python: Path) -> str | None:
    """Return the first module that ``python`` lacks for this peer, or None if it has all."""
    script = (
        "import sys\n"
        "from importlib.util import find_spec\n"
        "for name in sys.argv[1:]:\n"
        "    if find_spec(name.split('.')[0]) is None or find_spec(name) is None:\n"
        "        sys.exit(name)"
    )
    try:
        done = subprocess.run(
            [str(python), "-c", script, *peer.needs], capture_output=True, text=True, check=False
        )
    except OSError:
        return str(python)
    return done.stderr.strip().rpartition("\n")[2] if done.returncode else None


def chosen_pythons(
    assignments: tuple[str, ...], named_in_file: Mapping[str, str], default: Path
) -> dict[str, Path]:
    """Return every peer's interpreter; ``assignments`` are PEER=PATH and win over the file.

    Raises ValueError for a name that no peer has.
    """
    chosen = dict(named_in_file)
    for assignment in assignments:
        name, _, path = assignment.partition("=")
        chosen[name] = path
    names = {peer.name for peer in PEERS}
    if unknown := chosen.keys() - names:
        raise ValueError(
            f"no peer is called {sorted(unknown)[0]!r}: they are {', '.join(sorted(names))}"
        )
    return {name: Path(chosen.get(name, default)) for name in names}
