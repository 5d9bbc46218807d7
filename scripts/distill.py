#!/usr/bin/env python3
"""Prune CHECKPOINT and train what is left to predict as CHECKPOINT does; write it to OUTPUT.

What --prune and the other options choose is set to zero and stays zero, so OUTPUT is an ordinary
checkpoint of the same shape. Export it with the same options: the export then removes exactly those
zeros, and nothing more is lost.

Training minimises the Kullback-Leibler divergence from the original checkpoint's distribution of
the next token (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).
"""

import itertools
import math
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click
import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

sys.path.insert(0, str(Path(__file__).parents[1]))

from engines.calibration import collect
from engines.pruning.layers import measure_layers
from engines.pruning.plan import Pruning
from engines.pruning.pruning import masks
from engines.standard import simplify
from exporter.tracing import cache_layers
from exporter.unrolling import trace_unrolled
from scripts.train_checkpoint import documents
from serving.errors import UserError

CONTEXT = 256
WARM_UP = 10
CALIBRATION_ROWS = 16
HELD_OUT_ROWS = 64
Masks = dict[str, torch.Tensor]


@click.command(help=__doc__)
@click.argument("checkpoint")
@click.argument("output", type=click.Path(path_type=Path))
@click.option("--prune", "weights", type=float, help="Fraction of each linear layer's weights.")
@click.option("--prune-2-4", "two_of_four", is_flag=True, help="Two of every four weights.")
@click.option("--prune-heads", "heads", type=float, help="Fraction of each layer's heads.")
@click.option("--prune-channels", "channels", type=float, help="Fraction of each MLP's channels.")
@click.option("--prune-layers", "layers", type=int, default=0, help="How many whole layers.")
@click.option(
    "--text",
    type=click.Path(exists=True, path_type=Path),
    help="File or directory to train on.  [default: the source of Python's standard library]",
)
@click.option("--steps", default=200, show_default=True, help="Optimiser steps.")
@click.option("--batch", default=8, show_default=True, help="Rows of 256 tokens of a step.")
@click.option("--rate", default=1e-3, show_default=True, help="Highest learning rate.")
@click.option(
    "--cross-entropy",
    default=0.0,
    show_default=True,
    help="Weight of the text's own next tokens beside the original's distribution.",
)
@click.option("--seed", default=0, show_default=True)
def main(
    checkpoint: str,
    output: Path,
    weights: float | None,
    two_of_four: bool,
    heads: float | None,
    channels: float | None,
    layers: int,
    text: Path | None,
    steps: int,
    batch: int,
    rate: float,
    cross_entropy: float,
    seed: int,
) -> None:
    with errors_for_users():
        pruning = Pruning(weights, two_of_four, heads, channels, layers)
        if pruning.is_empty:
            raise UserError("Say what to prune, for example --prune 0.5.")
        if output.exists():
            raise UserError(f"{output} exists: choose another directory.")
        tokenizer = AutoTokenizer.from_pretrained(checkpoint)
        teacher, student = load(checkpoint), load(checkpoint)
        training, held_out = rows_of_text(tokenizer, text)
        kept = choose(teacher, pruning, training[:CALIBRATION_ROWS])

        dense = evaluate(teacher, held_out)
        apply(student, kept)
        pruned = evaluate(student, held_out)
        click.echo(f"perplexity {dense:.2f}, pruned {pruned:.2f}", err=True)
        distil(
            student,
            teacher,
            kept,
            training,
            steps=steps,
            batch=batch,
            rate=rate,
            text_weight=cross_entropy,
            seed=seed,
        )
        distilled = evaluate(student, held_out)
        student.save_pretrained(output)
        tokenizer.save_pretrained(output)
    click.echo(
        f"{output}: held-out perplexity {dense:.2f}, pruned {pruned:.2f}, distilled {distilled:.2f}"
    )


@contextmanager
def errors_for_users() -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise click.ClickException(str(error)) from error


def load(checkpoint: str) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()


def rows_of_text(
    tokenizer: PreTrainedTokenizerBase, text: Path | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of tokens to train on and held-out ones, int64 [rows, 257] each."""
    if text is None:
        modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        held_out = set(modules[::16])  # what scripts/train_checkpoint.py holds out too
        training = [t for module in modules if module not in held_out for t in documents(module)]
        others = [t for module in sorted(held_out) for t in documents(module)]
    else:
        files = sorted(p for p in text.rglob("*") if p.is_file()) if text.is_dir() else [text]
        try:
            content = "\n".join(file.read_text(encoding="utf-8") for file in files)
        except UnicodeDecodeError as error:
            raise UserError(f"{text} isn't UTF-8 text: give text files.") from error
        split = len(content) * 15 // 16
        training, others = [content[:split]], [content[split:]]
    return pack(tokenizer, training), pack(tokenizer, others)[:HELD_OUT_ROWS]


def pack(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> torch.Tensor:
    encoded = [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    stream = torch.tensor(list(itertools.chain.from_iterable(encoded)), dtype=torch.int64)
    count = len(stream) // (CONTEXT + 1)
    if not count:
        raise UserError(f"The text is too short: it takes at least {16 * (CONTEXT + 1)} tokens.")
    return stream[: count * (CONTEXT + 1)].view(count, CONTEXT + 1)


def choose(model: PreTrainedModel, pruning: Pruning, rows: torch.Tensor) -> Masks:
    """What stays of each parameter (True), chosen on the graph as an export does."""
    graph = trace_unrolled(model, cache_layers(model))
    simplify(graph)
    windows = [row[:CONTEXT].numpy() for row in rows]
    with tempfile.TemporaryDirectory() as name:
        workspace = Path(name)
        structures = pruning.heads is not None or pruning.channels is not None
        statistics = collect(graph, windows, workspace) if structures else None
        changes = measure_layers(graph, windows, workspace) if pruning.layers else None
    chosen = masks(graph, pruning, statistics, changes)
    return {name: torch.from_numpy(mask) for name, mask in chosen.items()}


@torch.no_grad()
def apply(model: PreTrainedModel, kept: Masks) -> None:
    """Zero what doesn't stay."""
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in kept:
            parameter.mul_(kept[name])


def distil(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    kept: Masks,
    rows: torch.Tensor,
    *,
    steps: int,
    batch: int,
    rate: float,
    text_weight: float,
    seed: int,
) -> None:
    """Train ``student`` with AdamW, a warm-up and a cosine to zero; its zeros stay."""
    optimiser = torch.optim.AdamW(
        student.parameters(), lr=rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser,
        lambda step: min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2),
    )
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        chosen = rows[torch.randint(len(rows), (batch,), generator=generator)]
        with torch.no_grad():
            wanted = predict(teacher, chosen)
        predicted = predict(student, chosen)
        loss = kl_div(predicted, wanted, reduction="batchmean", log_target=True)
        if text_weight:
            loss = loss + text_weight * cross_entropy(predicted, chosen[:, 1:].flatten())
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        apply(student, kept)
        if step % 20 == 0 or step == steps:
            elapsed = time.perf_counter() - start
            click.echo(f"step {step}/{steps}: loss {loss.item():.4f}, {elapsed:.0f} s", err=True)


def predict(model: PreTrainedModel, rows: torch.Tensor) -> torch.Tensor:
    """Log probabilities of the next token, [rows * 256, vocabulary]."""
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return log_softmax(logits.float(), dim=-1).flatten(0, 1)


@torch.no_grad()
def evaluate(model: PreTrainedModel, rows: torch.Tensor) -> float:
    """Perplexity over rows of text."""
    losses = [
        cross_entropy(predict(model, part), part[:, 1:].flatten(), reduction="sum").item()
        for part in rows.split(16)
    ]
    return math.exp(sum(losses) / (rows.numel() - len(rows)))


if __name__ == "__main__":
    main()
