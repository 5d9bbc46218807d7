"""The results as Markdown, in their place on the page."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from scripts.gpu.outcome import Figure, Outcome

BEGIN, END = "<!-- results of scripts/gpu_check -->", "<!-- end of the results -->"


def results_page(machine: Mapping[str, str], outcomes: Sequence[Outcome]) -> str:
    """A table of the machine, then one section for each step."""
    parts = [_table(("machine", ""), machine.items())]
    for outcome in outcomes:
        parts.append(f"### {outcome.title}")
        state = f"Failed: {_cell(outcome.reason)}" if outcome.reason else "Done"
        parts.append(f"{state} ({outcome.seconds:.0f} s).")
        if outcome.figures:
            rows = [_row(figure) for figure in outcome.figures]
            parts.append(_table(("what", "seen", "wanted"), rows))
    return "\n\n".join(parts) + "\n"


def replace_results(page: Path, results: str) -> None:
    """Put ``results`` between the page's two marks; a page without them gets them at its end."""
    text = page.read_text(encoding="utf-8") if page.exists() else ""
    before, mark, rest = text.partition(BEGIN)
    after = rest.partition(END)[2] if mark else ""
    if not mark and before:
        before = before.rstrip() + "\n\n"
    written = f"{before}{BEGIN}\n\n{results}\n{END}{after or chr(10)}"
    partial = page.with_name(f".{page.name}.partial")
    partial.write_text(written, encoding="utf-8")
    partial.replace(page)


def _row(figure: Figure) -> tuple[str, str, str]:
    return figure.name, figure.value, figure.wanted


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(map(_cell, row))} |" for row in rows]
    return "\n".join(lines)


def _cell(text: str) -> str:
    """Text that stays in its cell and isn't read as HTML."""
    return text.replace("\n", " ").replace("|", "\\|").replace("<", "&lt;")
