"""``serve-llm score``: how likely the model finds texts."""

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from serving.commands.options import (
    OpenOptions,
    bundle_argument,
    json_option,
    key_file_option,
    load_options,
    verify_option,
)
from serving.commands.progress import progress_bar
from serving.errors import UserError

if TYPE_CHECKING:
    from rich.progress import Progress

    from serving.generation import Model

_STANDARD_INPUT = "-"


@dataclass(frozen=True)
class TextScore:
    """Figures of one text, or of several together."""

    file: str
    tokens: int
    """How many were scored: all but the first."""
    perplexity: float
    negative_log_likelihood: float
    """Mean, in nats a token."""
    bits_per_byte: float | None
    scored_bytes: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Scored tokens a second; tokens that are only context aren't counted."""
        return self.tokens / self.seconds

    def as_dict(self) -> dict[str, object]:
        """Plain data for JSON, which has no infinity: None stands for it."""
        figures = asdict(self) | {"tokens_per_second": self.tokens_per_second}
        infinite = (float("inf"), float("-inf"))
        return {name: None if value in infinite else value for name, value in figures.items()}


@click.command()
@bundle_argument
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@click.option("--window", type=int, help="Most tokens run together (default: the capacity).")
@click.option(
    "--stride", type=int, help="Tokens between beginnings of windows (default: half a window)."
)
@load_options
@verify_option
@key_file_option
@json_option
def score(
    bundle: Path,
    files: tuple[str, ...],
    window: int | None,
    stride: int | None,
    as_json: bool,
    **opening: Unpack[OpenOptions],
) -> None:
    """Measure the perplexity of FILES (default: standard input) with the model in BUNDLE.

    A text longer than a window is scored in windows that overlap.
    """
    from serving.loading import load

    texts = {name: _read(name) for name in files or (_STANDARD_INPUT,)}
    with load(bundle, slots=1, **opening) as model, progress_bar() as bar:
        scores = [_score(model, name, text, window, stride, bar) for name, text in texts.items()]
    if len(scores) > 1:
        scores.append(_together(scores))
    if as_json:
        click.echo(json.dumps([each.as_dict() for each in scores], ensure_ascii=False))
    else:
        _print(scores)


def _read(name: str) -> str:
    try:
        content = sys.stdin.buffer.read() if name == _STANDARD_INPUT else Path(name).read_bytes()
        return content.decode()
    except OSError as error:
        raise UserError(f"{name!r} can't be read ({error.strerror}): check the file.") from error
    except UnicodeDecodeError as error:
        raise UserError(
            f"{name!r} isn't UTF-8 text (byte {error.start:,} is wrong): give UTF-8 text."
        ) from error


def _score(
    model: "Model", name: str, text: str, window: int | None, stride: int | None, bar: "Progress"
) -> TextScore:
    task = bar.add_task(name, total=None)
    begin = time.perf_counter()
    result = model.score(
        text,
        context_overflow="slide",
        window=window,
        stride=stride,
        progress=lambda done, total: bar.update(task, completed=done, total=total),
    )
    return TextScore(
        file=name,
        tokens=len(result.logprobs),
        perplexity=result.perplexity,
        negative_log_likelihood=result.negative_log_likelihood,
        bits_per_byte=result.bits_per_byte,
        scored_bytes=result.scored_bytes or 0,
        seconds=time.perf_counter() - begin,
    )


def _together(scores: list[TextScore]) -> TextScore:
    """Figures of all texts, in which every token counts the same."""
    from serving.scoring import perplexity

    tokens, scored_bytes = sum(s.tokens for s in scores), sum(s.scored_bytes for s in scores)
    nats = sum(s.negative_log_likelihood * s.tokens for s in scores)
    return TextScore(
        file="all",
        tokens=tokens,
        perplexity=perplexity(nats / tokens),
        negative_log_likelihood=nats / tokens,
        bits_per_byte=nats / math.log(2) / scored_bytes if scored_bytes else None,
        scored_bytes=scored_bytes,
        seconds=sum(s.seconds for s in scores),
    )


def _print(scores: list[TextScore]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("text", "tokens", "perplexity", "nats a token", "bits a byte", "tokens/s")
    for each in scores:
        table.add_row(
            each.file,
            f"{each.tokens:,}",
            f"{each.perplexity:,.4f}",
            f"{each.negative_log_likelihood:.4f}",
            "" if each.bits_per_byte is None else f"{each.bits_per_byte:.4f}",
            f"{each.tokens_per_second:,.1f}",
        )
    Console().print(table)
