"""Pictures of a report: bars for a few contexts, lines for growth with the context."""

from pathlib import Path
from typing import Any

PHASES = ("decode", "prefill")


def draw(document: dict[str, Any], file: Path) -> None:
    """Draw a report; a run with --growth becomes lines over the context, another one bars."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
    figure.suptitle(
        f"{document['checkpoint']}, {document['precision']}, {document['threads']} threads, batch 1"
    )
    for axis, phase in zip(axes, PHASES, strict=True):
        (_draw_growth if document["growth"] else _draw_bars)(axis, document, phase)
    figure.savefig(file, dpi=120)
    pyplot.close(figure)


def _draw_bars(axis: Any, document: dict[str, Any], phase: str) -> None:
    models, contexts = document["models"], document["contexts"]
    height = 0.8 / len(contexts)
    for index, context in enumerate(contexts):
        rates = [model["contexts"][index][f"{phase}_tokens_per_second"] for model in models]
        middles = [rate["median"] for rate in rates]
        spread = (
            [rate["median"] - rate["min"] for rate in rates],
            [rate["max"] - rate["median"] for rate in rates],
        )
        places = [row + index * height for row in range(len(models))]
        bars = axis.barh(places, middles, height, xerr=spread, label=f"context {context}")
        axis.bar_label(bars, [f"{middle:,.0f}" for middle in middles], padding=3, fontsize=8)
    middle_of_rows = [row + 0.4 - height / 2 for row in range(len(models))]
    axis.set_yticks(middle_of_rows, [model["name"] for model in models])
    axis.invert_yaxis()
    axis.margins(x=0.12)
    axis.set_xlabel("tokens/s (median; lines from least to most)")
    axis.set_title(phase)
    axis.legend(fontsize=8)


def _draw_growth(axis: Any, document: dict[str, Any], phase: str) -> None:
    key = "all_decode_seconds_per_token" if phase == "decode" else "all_prefill_seconds"
    for model in document["models"]:
        contexts = [speed["context"] for speed in model["contexts"]]
        middles = [sorted(speed[key])[len(speed[key]) // 2] * 1e3 for speed in model["contexts"]]
        axis.plot(contexts, middles, marker="o", label=model["name"])
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xlabel("context in tokens")
    axis.set_ylabel("ms a token" if phase == "decode" else "ms for the prompt")
    axis.set_title(phase)
    axis.legend(fontsize=8)
