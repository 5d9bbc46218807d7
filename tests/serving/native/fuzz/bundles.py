"""Write what fuzzing of bundles begins with: manifests, and small bundles as one file each.

python -m tests.serving.native.fuzz.bundles DIRECTORY
"""

import json
import sys
import tempfile
from pathlib import Path

from tests.serving.native.fuzz.seeds import write
from tests.serving.tiny_bundle import make_bundle


def main(directory: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        bundle = make_bundle(Path(temporary) / "bundle")
        manifest = json.loads((bundle / "bundle.json").read_text())
        graph = (bundle / "model.onnx").read_bytes()
    manifest["files"] = {"model.onnx": manifest["files"]["model.onnx"]}
    limited = manifest["engines"][0] | {"max_batch": 4, "max_sequence": 64}
    quantized = manifest["graph"] | {"quantized_cache": "int8", "integer_weights": True}
    manifests = [
        json.dumps(manifest | changes).encode()
        for changes in ({}, {"engines": [limited]}, {"graph": quantized})
    ]
    write(directory / "manifest", manifests)
    bundles = [len(text).to_bytes(2, "little") + text + graph for text in manifests]
    write(directory / "bundle", bundles)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
