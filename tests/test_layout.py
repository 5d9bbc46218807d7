"""Imports point one way, and the commands start without what they don't need."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FRAMEWORKS = {"torch", "transformers"}
FORBIDDEN = {
    "exporter": set[str](),
    "engines": FRAMEWORKS | {"exporter"},
    "serving": FRAMEWORKS | {"exporter", "engines", "onnx", "onnx_ir", "onnxscript"},
}
SOURCES = [path for package in FORBIDDEN for path in sorted((ROOT / package).rglob("*.py"))]


def imported(path: Path) -> Iterator[tuple[int, str]]:
    """Yield the line and the top-level name of every import, wherever in the file it is."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.split(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            # A relative import can't leave its package.
            yield node.lineno, (node.module or "").split(".")[0] if node.level == 0 else ""


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_point_one_way(path: Path) -> None:
    package = path.relative_to(ROOT).parts[0]
    wrong = [f"{name} (line {line})" for line, name in imported(path) if name in FORBIDDEN[package]]
    assert not wrong, f"{package}/ must not import {', '.join(wrong)}"


@pytest.mark.parametrize("module", ["exporter.cli", "serving.cli", "serving"])
def test_starts_without_heavy_modules(module: str) -> None:
    heavy = FRAMEWORKS | {"onnx", "onnx_ir", "onnxscript", "onnxruntime", "numpy"}
    script = (
        f"import sys, {module}\n"
        "if len(sys.argv) > 1:\n"
        f"    sys.modules[{module!r}].main(['--help'], standalone_mode=False)\n"
        f"sys.exit(' '.join(sorted({heavy!r} & sys.modules.keys())))"
    )
    arguments = ["--help"] if module.endswith(".cli") else []
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments],
        cwd=ROOT,
        stderr=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    assert done.stderr.strip() == "", f"imports {done.stderr}"
