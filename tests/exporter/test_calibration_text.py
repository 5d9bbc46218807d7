"""Which text is read, and what is said about text that can't be."""

import json
import os
import sys
import sysconfig
from pathlib import Path

import pytest

from exporter.calibration_text import default_text, read_text
from serving.errors import UserError


def complaint(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_text(path)
    said = str(caught.value)
    assert said.endswith(".")
    assert "\n" not in said
    return said


def test_a_file_is_read_as_it_is(tmp_path: Path) -> None:
    file = tmp_path / "any.name"
    file.write_bytes("\ufeffGrüße, 世界\r\n".encode())
    assert read_text(file) == "Grüße, 世界\r\n"


def test_lines_of_json_give_their_text(tmp_path: Path) -> None:
    file = tmp_path / "text.jsonl"
    # U+2028 ends a line for str.splitlines, and not for JSON.
    texts = ["one\ntwo", "three\u2028four"]
    lines = [json.dumps({"text": text, "id": 1}, ensure_ascii=False) for text in texts]
    file.write_text("\n".join([*lines, "", ""]), encoding="utf-8")
    assert read_text(file) == "one\ntwo\n\nthree\u2028four"


def test_a_directory_gives_its_text_files_in_order(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    (tmp_path / "b.md").write_text("second")
    (tmp_path / "a.txt").write_text("first")
    (tmp_path / "deep" / "code.py").write_text("third = 3")
    (tmp_path / "deep" / "__init__.py").touch()
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    assert read_text(tmp_path).split() == ["first", "second", "third", "=", "3"]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty: give text for the calibration."),
        (b" \n\t\n", "is empty: give text for the calibration."),
        (b"text\0more", "is binary, it has a zero byte at offset 4: give UTF-8 text."),
        ("text".encode("utf-16"), "is binary, it has a zero byte at offset 3: give UTF-8 text."),
        (b"12345\xe9t\xe9", "isn't UTF-8 text, it goes wrong at byte offset 5: convert it."),
        (b"\xef\xbb\xbfabc\xff", "isn't UTF-8 text, it goes wrong at byte offset 6: convert it."),
    ],
)
def test_files_that_are_no_text(tmp_path: Path, content: bytes, says: str) -> None:
    file = tmp_path / "file.txt"
    file.write_bytes(content)
    assert complaint(file) == f"{file} {says}"
    assert complaint(tmp_path).endswith(says)


@pytest.mark.parametrize("line", ["{", "[]", "3", '{"content": "x"}', '{"text": 3}', "null"])
def test_lines_that_have_no_text(tmp_path: Path, line: str) -> None:
    file = tmp_path / "text.jsonl"
    file.write_text('{"text": "good"}\n' + line)
    assert complaint(file).startswith(f'Line 2 of {file} is no JSON object with a "text": ')


def test_paths_that_lead_nowhere(tmp_path: Path) -> None:
    assert complaint(tmp_path / "nothing").startswith(f"There is no {tmp_path / 'nothing'} ")
    assert complaint(tmp_path).startswith(f"{tmp_path} has no text for the calibration: put .jsonl")
    os.mkfifo(tmp_path / "pipe")
    assert complaint(tmp_path / "pipe").startswith(f"{tmp_path / 'pipe'} is no file")
    huge = tmp_path / "huge"
    with huge.open("wb") as file:
        file.truncate(1_000_000_001)  # a hole: takes no space
    assert complaint(huge).startswith(f"{huge} is larger than 1 GB")


def test_the_default_is_prose_and_code() -> None:
    text, source = default_text()
    assert "Format String Syntax" in text  # of help("FORMATTING")
    assert "class Task(futures._PyFuture)" in text  # of asyncio
    assert source.startswith("Python 3.")


def test_the_default_is_nothing_that_the_small_model_is_trained_on() -> None:
    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    training = [module for module in modules if module not in modules[::16]]
    text, _ = default_text()
    assert len(training) > 100
    for module in training:
        assert module.read_text(encoding="utf-8", errors="replace")[:200] not in text


def test_a_python_without_its_documentation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(UserError, match="pass --calibration with a text of your own"):
        default_text()
