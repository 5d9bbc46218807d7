"""Measure a bundle in the native runtime beside the Python runtime and onnxruntime-genai, in turns.

    python -m scripts.native_speed BUNDLE [--genai MODEL --genai-python PYTHON]

MODEL is what onnxruntime-genai's builder makes of the same checkpoint. Prints medians and ranges.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from scripts.peers.measuring import Contestant, Prompts, measure_speed
from serving.bundle import open_bundle


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--genai", type=Path)
    parser.add_argument("--genai-python", type=Path, default=Path(sys.executable))
    parser.add_argument("--contexts", default="32,128")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    contexts = [int(length) for length in arguments.contexts.split(",")]
    log = Path(tempfile.mkdtemp()) / "log"
    capacity = max(contexts) + arguments.new_tokens

    def contestant(module: str, model: Path, python: Path) -> Contestant:
        settings = {"precision": "float32", "threads": arguments.threads, "capacity": capacity}
        return Contestant(module, module, python, settings | {"model": str(model)}, log)

    here = Path(sys.executable)
    contestants = [contestant(name, arguments.bundle, here) for name in ("bundle", "native")]
    if arguments.genai:
        genai = contestant("onnxruntime_genai", arguments.genai, arguments.genai_python)
        contestants.append(genai)
    measure_speed(
        contestants,
        Prompts(1, open_bundle(arguments.bundle).manifest.graph.vocab_size),
        contexts=contexts,
        new_tokens=arguments.new_tokens,
        repeats=arguments.repeats,
        each_round=lambda: None,
    )
    for each in contestants:
        print(f"{each.name}: {each.failure or f'peak {each.peak_memory / 1e6:.1f} MB'}")
        for context in contexts if not each.failure else ():
            prefill, decode = (sorted(each.seconds(p, context)) for p in ("prefill", "decode"))
            middle = len(decode) // 2
            print(
                f"  {context}: first token {prefill[middle] * 1e3:.2f} ms, decode "
                f"{1 / decode[middle]:.1f} tokens/s ({1 / decode[-1]:.1f} to {1 / decode[0]:.1f})"
            )


if __name__ == "__main__":
    main()
