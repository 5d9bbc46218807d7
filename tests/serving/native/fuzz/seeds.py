"""Write what fuzzing begins with: JSON documents, small tokenizers and lines of text.

python -m tests.serving.native.fuzz.seeds DIRECTORY
"""

import random
import sys
from pathlib import Path

from tests.serving.native.text_lines import lines
from tests.serving.native.tokenizer_kinds import Kinds, Vocabulary

# Of a tokenizer.json that is mutated, all but the vocabulary matters.
BYTES = ["a", "b", "'", "s", "1", "Ġ", "ä", "Ń", "Ċ", "Ġa", "ab"]
CHARACTERS = ["<unk>", "<s>", "</s>", "<0xC3>", "<0xA9>", "a", "b", "▁", "中", "▁a", "ab"]
CODE = ("def f(self, x):", "    return x + 1  # it's", "\tif x == 12345:", "{'a': [1, 2.5e-3]}")


def main(directory: Path) -> None:
    texts = list(lines(400, 0, CODE))
    # A vocabulary of bytes has 256 characters, and one of characters the bytes and as many more.
    kinds = Kinds.learnt([text.decode(errors="replace") for text in texts], 600)
    write(directory / "tokenizers", documents(kinds), ".json")
    tiny = documents(Kinds(vocabulary(BYTES), vocabulary(CHARACTERS)))
    write(directory / "tokenizer", tiny)
    value = b'{"id": [null, true, false, -1.5e3, "\\u00e9\\ud83d\\ude00\\n"], "a": {}}'
    write(directory / "json", [*tiny, value, b"[]"])
    rng = random.Random(0)
    write(directory / "text", [bytes([rng.randrange(len(tiny))]) + text for text in texts])


def vocabulary(tokens: list[str]) -> Vocabulary:
    """These tokens, of which the last two are merged from others."""
    merges = [(token[0], token[1]) for token in tokens[-2:]]
    return {token: number for number, token in enumerate(tokens)}, merges


def documents(kinds: Kinds) -> list[bytes]:
    return [make().to_str().encode() for make in kinds.makers.values()]


def write(directory: Path, contents: list[bytes], suffix: str = "") -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for number, content in enumerate(contents):
        (directory / f"{number}{suffix}").write_bytes(content)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
