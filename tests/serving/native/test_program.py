"""The C program in README.md: compiled as it says there, and run."""

import re
import subprocess
from pathlib import Path

import serving
from tests.conftest import ROOT
from tests.serving.native.building import run

PAGE = ROOT / "README.md"


def test_the_program_of_the_readme_generates_text(prefix: Path, tiny: Path, tmp_path: Path) -> None:
    (program,) = re.findall(r"```c\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(program.splitlines()) <= 30
    (tmp_path / "program.c").write_text(program)
    subprocess.run(
        [
            *("cc", "-Wall", "-Wextra", "-Werror", tmp_path / "program.c"),
            *("-I", prefix / "include", "-L", prefix / "lib", "-lllm_runtime"),
            *("-o", tmp_path / "program"),
        ],
        check=True,
    )
    done = run(tmp_path / "program", tiny, "a text", LD_LIBRARY_PATH=str(prefix / "lib"))
    with serving.load(tiny) as model:
        options = {"max_new_tokens": 50, "temperature": 0.7, "top_p": 0.9, "seed": 1}
        assert done.stdout == model.generate("a text", **options).text  # type: ignore[arg-type]
    assert done.stderr == ""
    refused = run(tmp_path / "program", tmp_path, "a", LD_LIBRARY_PATH=str(prefix / "lib"))
    assert "is not a bundle" in refused.stderr
