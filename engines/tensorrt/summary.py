"""What is known of an engine when it is built, kept beside it: no GPU is needed to read it.

``export-llm inspect-engine`` shows it. How TensorRT fused the layers is known only once the engine
is loaded on a GPU, see engines/tensorrt/inspection.py.
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import onnx_ir as ir

from engines.tensorrt.configuration import Portability
from engines.tensorrt.network import Network
from engines.tensorrt.options import BuildOptions
from engines.tensorrt.profiles import Steps, profile_shapes
from serving.bundle import Target

Summary = dict[str, Any]


def summary_file(engine: str) -> str:
    """The name of an engine's summary, from that of its file."""
    return f"{engine.removesuffix('.engine')}.json"


def describe_build(
    network: Network,
    model: ir.Model,
    profiles: Sequence[tuple[Steps, Any]],
    *,
    target: Target,
    options: BuildOptions,
    portability: Portability,
    activation_bytes: Sequence[int],
) -> Summary:
    """Describe a built engine by its verified network.

    ``activation_bytes`` is what the builder said of each profile; empty if it said nothing.
    """
    weights = (value.const_value for value in model.graph.initializers.values())
    return {
        "target": target,
        "builder_version": network.library.__version__,
        **asdict(portability),
        "sparse_weights": options.sparse_weights,
        "weight_bytes": sum(weight.nbytes for weight in weights if weight is not None),
        "layers": _layers(network),
        "profiles": [
            {
                "name": steps.name,
                "rows": steps.rows,
                "tokens": steps.tokens,
                "kv_bytes": _kv_bytes(network, steps.rows),
                "activation_bytes": activation_bytes[i] if i < len(activation_bytes) else None,
                "shapes": profile_shapes(network, profile),
            }
            for i, (steps, profile) in enumerate(profiles)
        ],
    }


def write_summary(summary: Summary, engine: Path) -> None:
    """Write a summary beside its engine."""
    file = engine.with_name(summary_file(engine.name))
    file.write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")


def _layers(network: Network) -> list[dict[str, Any]]:
    """How many layers compute what, in which type: that of their first output."""
    every = (network.definition.get_layer(i) for i in range(network.definition.num_layers))
    counts = Counter((layer.type.name, layer.get_output(0).dtype.name) for layer in every)
    return [
        {"type": kind, "precision": precision, "count": count}
        for (kind, precision), count in sorted(counts.items())
    ]


def _kv_bytes(network: Network, rows: int) -> int:
    """Bytes of the KV buffers of so many rows; past and present are one memory."""
    inputs = map(network.definition.get_input, range(network.definition.num_inputs))
    pasts = (tensor for tensor in inputs if tensor.name.startswith("past_key_values."))
    return sum(rows * math.prod(past.shape[1:]) * int(past.dtype.itemsize) for past in pasts)
