"""Text to calibrate with and to measure quality on: the user's, or what Python brings with it."""

import json
import platform
import sysconfig
from importlib import import_module
from pathlib import Path

from serving.errors import UserError

SUFFIXES = (".jsonl", ".md", ".py", ".rst", ".txt")
_LARGEST = 1_000_000_000  # bytes of one file

# In packages of the library: scripts/train_checkpoint.py trains on the modules at its top level.
_MODULES = (
    "asyncio/tasks.py",
    "email/message.py",
    "json/decoder.py",
    "logging/handlers.py",
    "http/cookiejar.py",
    "unittest/case.py",
    "urllib/parse.py",
    "xml/dom/minidom.py",
)
_EXCERPT = 12_000  # characters of each


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, or of all files below a directory that are named like text.

    Of a .jsonl file it is the "text" of every line. Raises UserError where there is nothing, or
    nothing but text, to read.
    """
    if not path.exists():
        raise UserError(f"There is no {path} to read calibration text from: check the path.")
    if path.is_dir():
        files = [file for file in sorted(path.rglob("*")) if _is_text(file)]
        if not files:
            raise UserError(
                f"{path} has no text for the calibration: put {', '.join(SUFFIXES)} files there."
            )
    elif path.is_file():
        files = [path]
    else:
        raise UserError(f"{path} is no file: give a text file or a directory of them.")
    text = "\n\n".join(_read_file(file) for file in files)
    if not text.strip():
        raise UserError(f"{path} is empty: give text for the calibration.")
    return text


def default_text() -> tuple[str, str]:
    """Text on any machine that runs Python, prose and code in turn, and what it is.

    Raises UserError where Python came without its library's sources.
    """
    library = Path(sysconfig.get_path("stdlib"))
    try:
        topics: dict[str, str] = import_module("pydoc_data.topics").topics
        modules = [_read_file(library / name)[:_EXCERPT] for name in _MODULES]
    except (ImportError, UserError) as error:
        raise UserError(
            "This Python came without its documentation and sources, the default text for "
            "calibration: pass --calibration with a text of your own."
        ) from error
    # Which topics of help() there are depends on the version: the longest are prose in any.
    prose = [text[:_EXCERPT] for text in sorted(topics.values(), key=len)[-len(modules) :]]
    parts = [part for pair in zip(prose, modules, strict=True) for part in pair]
    return "\n\n".join(parts), f"Python {platform.python_version()}'s help and library"


def _is_text(file: Path) -> bool:
    return file.is_file() and file.suffix.lower() in SUFFIXES


def _read_file(file: Path) -> str:
    try:
        if file.stat().st_size > _LARGEST:
            raise UserError(f"{file} is larger than 1 GB: give an excerpt of it for calibration.")
        data = file.read_bytes()
    except OSError as error:
        raise UserError(
            f"{file} can't be read ({error.strerror}): check it, or give another calibration text."
        ) from error
    if (zero := data.find(b"\0")) >= 0:
        raise UserError(f"{file} is binary, it has a zero byte at offset {zero}: give UTF-8 text.")
    try:
        text = data.decode("utf-8").removeprefix("\ufeff")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{file} isn't UTF-8 text, it goes wrong at byte offset {error.start}: convert it."
        ) from error
    if file.suffix.lower() == ".jsonl":
        return "\n\n".join(_texts_of_lines(file, text))
    return text


def _texts_of_lines(file: Path, lines: str) -> list[str]:
    texts = []
    # Not splitlines(): JSON may have other line ends inside its strings.
    for number, line in enumerate(lines.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except (ValueError, KeyError, TypeError):
            text = None
        if not isinstance(text, str):
            raise UserError(
                f'Line {number} of {file} is no JSON object with a "text": mend or remove it.'
            )
        texts.append(text)
    return texts
