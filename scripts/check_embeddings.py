"""Compare embeddings of bundles with transformers and sentence-transformers on Python's own text.

    python -m scripts.check_embeddings CHECKPOINT BUNDLE...

1,000 lines of documentation are embedded by each, in batches with padding. Then docstrings are
searched: the first sentence of each asks for the rest of it.
"""

import argparse
import importlib
import inspect
import pydoc_data.topics
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from transformers import AutoModel, AutoTokenizer

import serving

Floats = npt.NDArray[np.float32]

LINES = 1000
MODULES = (
    "argparse", "ast", "asyncio", "collections", "concurrent.futures", "csv", "datetime", "decimal",
    "difflib", "email.message", "fractions", "functools", "gzip", "heapq", "http.client", "inspect",
    "io", "ipaddress", "itertools", "json", "logging", "mailbox", "os", "pathlib", "pickle",
    "random", "shutil", "sqlite3", "ssl", "statistics", "string", "subprocess", "tarfile",
    "tempfile", "textwrap", "threading", "typing", "unittest", "urllib.request", "zipfile",
)  # fmt: skip


def lines() -> list[str]:
    """Lines of prose of Python's help, spread over all topics."""
    text = "\n".join(pydoc_data.topics.topics.values())
    found = [line.strip() for line in text.splitlines() if len(line.strip()) > 30]
    return [found[i] for i in np.linspace(0, len(found) - 1, LINES).astype(int)]


def docstrings() -> Iterator[tuple[str, str]]:
    """The first sentence of docstrings and the rest of each."""
    seen = set()
    for name in MODULES:
        module = importlib.import_module(name)
        for _, thing in inspect.getmembers(module):
            document = inspect.getdoc(thing) if callable(thing) else None
            first, _, rest = (document or "").partition("\n\n")
            if first not in seen and 20 < len(first) < 200 and len(rest) > 100:
                seen.add(first)
                yield " ".join(first.split()), " ".join(rest.split())


@torch.inference_mode()
def by_transformers(checkpoint: Path, texts: list[str], length: int) -> Floats:
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModel.from_pretrained(checkpoint).eval()
    vectors = []
    for start in range(0, len(texts), 32):
        batch = tokenizer(
            texts[start : start + 32],
            padding=True,
            truncation=True,
            max_length=length,
            return_tensors="pt",
        )
        states = model(**batch).last_hidden_state
        mask = batch["attention_mask"][:, :, None]
        pooled = (states * mask).sum(dim=1) / mask.sum(dim=1)
        vectors.append(torch.nn.functional.normalize(pooled).numpy())
    return np.concatenate(vectors)


def by_sentence_transformers(checkpoint: Path, texts: list[str]) -> Floats | None:
    try:
        from sentence_transformers import SentenceTransformer
    except ImportError:
        return None
    model = SentenceTransformer(str(checkpoint), device="cpu")
    vectors: Floats = model.encode(texts, show_progress_bar=False)
    return vectors


def difference(ours: Floats, theirs: Floats) -> str:
    cosines = (ours * theirs).sum(axis=1)
    return (
        f"largest difference {np.abs(ours - theirs).max():.2e}, cosine {cosines.mean():.6f} on "
        f"average and {cosines.min():.6f} at least"
    )


def ranking(queries: Floats, documents: Floats) -> npt.NDArray[np.int64]:
    """Documents of each query, best first."""
    return np.argsort(-(queries @ documents.T), axis=1, kind="stable")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("bundles", type=Path, nargs="+")
    arguments = parser.parse_args()
    texts, pairs = lines(), list(docstrings())
    with serving.load_encoder(arguments.bundles[0]) as model:
        length = model.encoder.max_length
    theirs = by_transformers(arguments.checkpoint, texts, length)
    own = by_sentence_transformers(arguments.checkpoint, texts)
    if own is not None:
        print(f"sentence-transformers against transformers: {difference(own, theirs)}")
    queries, documents = (
        by_transformers(arguments.checkpoint, list(part), length)
        for part in zip(*pairs, strict=True)
    )
    right = np.arange(len(pairs))
    wanted = ranking(queries, documents)
    print(f"transformers finds {(wanted[:, 0] == right).sum()} of {len(pairs)} docstrings first")
    for path in arguments.bundles:
        with serving.load_encoder(path) as model:
            ours = model.embed(texts, context_overflow="truncate").vectors
            asked, searched = (
                model.embed(list(part), context_overflow="truncate").vectors
                for part in zip(*pairs, strict=True)
            )
        print(f"{path.name} against transformers: {difference(ours, theirs)}")
        if own is not None:
            print(f"{path.name} against sentence-transformers: {difference(ours, own)}")
        got = ranking(asked, searched)
        same = (got[:, 0] == wanted[:, 0]).mean()
        shared = np.mean(
            [len({*a[:10]} & {*b[:10]}) / 10 for a, b in zip(got, wanted, strict=True)]
        )
        print(
            f"{path.name} finds {(got[:, 0] == right).sum()} first; the first is transformers' for "
            f"{same:.2%}, and of the first ten {shared:.2%}"
        )


if __name__ == "__main__":
    main()
