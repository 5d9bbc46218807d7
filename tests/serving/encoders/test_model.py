"""An opened encoder against transformers' own pipelines."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModel, AutoModelForTokenClassification, AutoTokenizer, pipeline

import serving
from serving.errors import UserError
from tests.encoders import likeliest_spans

Encoders = Callable[[str], Path]

TEXTS = [
    "def cached_property(func):",
    "Return a partial function application of the given arguments.",
    "x",
    "The value of a wrapper is that of the wrapped one.",
]
LONG = " ".join(TEXTS * 4)


def hugging_face(folder: Path, task: str, **options: object) -> object:
    return pipeline(task, model=str(folder / "checkpoint"), device="cpu", **options)


def test_embeddings_are_those_of_transformers(encoder: Encoders) -> None:
    folder = encoder("sentences")
    model = AutoModel.from_pretrained(folder / "checkpoint").eval()
    tokens = AutoTokenizer.from_pretrained(folder / "checkpoint")(
        TEXTS, padding=True, return_tensors="pt"
    )
    with torch.no_grad():
        first = model(**tokens).last_hidden_state[:, 0]
    wanted = torch.nn.functional.normalize(first).numpy()
    with serving.load_encoder(folder / "bundle", threads=1, batch_tokens=40) as opened:
        result = opened.embed(TEXTS)
        alone = opened.embed(TEXTS[1])
    np.testing.assert_allclose(result.vectors, wanted, atol=1e-5)
    np.testing.assert_allclose(alone.vectors[0], wanted[1], atol=1e-5)
    assert result.prompt_tokens == tokens["attention_mask"].sum(1).tolist()


def test_long_texts(encoder: Encoders) -> None:
    folder = encoder("sentences")
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint")
    ids = tokenizer(LONG, add_special_tokens=False, verbose=False)["input_ids"]
    count = f"has {len(ids) + 2:,} tokens, and this model takes 32"
    with serving.load_encoder(folder / "bundle", threads=1) as model:
        with pytest.raises(UserError, match=count):
            model.embed([LONG])
        cut = model.embed([LONG], context_overflow="truncate")
        whole = model.embed([LONG, TEXTS[0]], context_overflow="segments", overlap=6)
    reference = AutoModel.from_pretrained(folder / "checkpoint").eval()
    starts = [start for start in range(0, len(ids), 24) if start == 0 or start + 6 < len(ids)]
    parts = [ids[start : start + 30] for start in starts]
    vectors = []
    for part in parts:
        tokens = torch.tensor([[tokenizer.cls_token_id, *part, tokenizer.sep_token_id]])
        with torch.no_grad():
            first = reference(tokens).last_hidden_state[:, 0]
        vectors.append(torch.nn.functional.normalize(first)[0].numpy())
    assert cut.truncated == [True]
    assert cut.prompt_tokens == [32]
    np.testing.assert_allclose(cut.vectors[0], vectors[0], atol=1e-5)
    assert whole.segments == [len(parts), 1]
    weights = [len(part) - (6 if start else 0) for start, part in zip(starts, parts, strict=True)]
    mean = np.average(vectors, axis=0, weights=weights)
    np.testing.assert_allclose(whole.vectors[0], mean / np.linalg.norm(mean), atol=1e-5)


def test_classify(encoder: Encoders) -> None:
    folder = encoder("own_attention")
    theirs = hugging_face(folder, "text-classification", top_k=None)(TEXTS)
    with serving.load_encoder(folder / "bundle", threads=1) as model:
        ours = model.classify(TEXTS)
    for own, right in zip(ours, theirs, strict=True):
        assert own.labels == tuple(each["label"] for each in right)
        np.testing.assert_allclose(own.scores, [each["score"] for each in right], atol=1e-5)


def test_fill_mask(encoder: Encoders) -> None:
    folder, text = encoder("windows"), "return the [MASK] of func"
    theirs = hugging_face(folder, "fill-mask")(text, top_k=3)
    with serving.load_encoder(folder / "bundle", threads=1) as model:
        (ours,) = model.fill_mask(text, top_k=3)
        with pytest.raises(UserError, match=r"has no \[MASK\]: put one in it"):
            model.fill_mask("no mask")
    assert [c.token_id for c in ours] == [each["token"] for each in theirs]
    assert [c.text for c in ours] == [each["sequence"] for each in theirs]
    np.testing.assert_allclose([c.score for c in ours], [e["score"] for e in theirs], atol=1e-5)


def test_label_tokens(encoder: Encoders) -> None:
    folder = encoder("entities")
    text = " ".join(TEXTS)
    options = {"ignore_labels": [], "aggregation_strategy": "none"}
    theirs = hugging_face(folder, "token-classification", **options)(text)
    grouped = hugging_face(folder, "token-classification", aggregation_strategy="simple")(text)
    with serving.load_encoder(folder / "bundle", threads=1) as model:
        tokens = model.label_tokens(text, grouped=False)
        spans = model.label_tokens(text)
    assert [(t.label, t.start, t.end) for t in tokens] == [
        (each["entity"], each["start"], each["end"]) for each in theirs
    ]
    np.testing.assert_allclose([t.score for t in tokens], [e["score"] for e in theirs], atol=1e-5)
    assert [(s.label, s.start, s.end) for s in spans] == [
        (each["entity_group"], each["start"], each["end"]) for each in grouped
    ]
    assert spans


def test_label_tokens_of_several_segments(encoder: Encoders) -> None:
    folder, overlap = encoder("entities"), 6
    with serving.load_encoder(folder / "bundle", threads=1) as model:
        length = model.encoder.max_length
        text = " ".join([LONG] * -(-length // 60))
        options = {"context_overflow": "segments", "overlap": overlap}
        ours = model.label_tokens(text, grouped=False, **options)
        spans = model.label_tokens(text, **options)
    tokenizer = AutoTokenizer.from_pretrained(folder / "checkpoint", model_max_length=length)
    cut = {"truncation": True, "stride": overlap, "return_overflowing_tokens": True}
    encodings = tokenizer(text, return_offsets_mapping=True, **cut)
    reference = AutoModelForTokenClassification.from_pretrained(folder / "checkpoint").eval()
    best: dict[tuple[int, int], tuple[int, str, float]] = {}
    times: Counter[tuple[int, int]] = Counter()
    for ids, offsets in zip(encodings["input_ids"], encodings["offset_mapping"], strict=True):
        with torch.no_grad():
            shares = reference(torch.tensor([ids])).logits[0].softmax(-1)
        for place in range(1, len(ids) - 1):
            edge = min(place, len(ids) - 1 - place)
            times[offsets[place]] += 1
            if edge > best.get(offsets[place], (0,))[0]:
                score, label = shares[place].max(-1)
                name = reference.config.id2label[int(label)]
                best[offsets[place]] = edge, name, float(score)
    assert len(encodings["input_ids"]) > 2
    assert [(t.start, t.end) for t in ours] == sorted(best)
    assert [t.label for t in ours] == [best[t.start, t.end][1] for t in ours]
    scores = [best[t.start, t.end][2] for t in ours]
    np.testing.assert_allclose([t.score for t in ours], scores, atol=1e-5)
    # The pipeline has its own rule for what is in two segments: the rest has to be the same.
    options = {"aggregation_strategy": "simple", "stride": overlap, "tokenizer": tokenizer}
    shared = {place for offset, n in times.items() if n > 1 for place in range(*offset)}
    alone = [
        (each["entity_group"], each["start"], each["end"])
        for each in hugging_face(folder, "token-classification", **options)(text)
        if not shared & set(range(each["start"] - 1, each["end"] + 2))
    ]
    assert len(alone) > 20
    assert {*alone} <= {(span.label, span.start, span.end) for span in spans}


def test_answer(encoder: Encoders) -> None:
    folder = encoder("relative")
    question, context = "what is returned?", TEXTS[1]
    ((first, last), score), *_ = likeliest_spans(folder / "checkpoint", question, context)
    with serving.load_encoder(folder / "bundle", threads=1) as model:
        answer = model.answer(question, context)
        parts = model.answer(question, LONG, context_overflow="segments", overlap=8)
    assert (answer.start, answer.end) == (first, last)
    assert answer.text == context[answer.start : answer.end]
    assert answer.score == pytest.approx(score, rel=1e-4)
    assert parts.segments > 1
    assert parts.text == LONG[parts.start : parts.end]


def test_bad_input(encoder: Encoders) -> None:
    with serving.load_encoder(encoder("sentences") / "bundle", threads=1) as model:
        for empty in ("", " \n"):
            with pytest.raises(UserError, match="Text 2 is empty"):
                model.embed(["a", empty])
        with pytest.raises(UserError, match="is for embed, not for text-classification"):
            model.classify("a")
        with pytest.raises(UserError, match="no character: send valid Unicode"):
            model.embed("a \ud800")
        with pytest.raises(UserError, match="must be from 0 to 15"):
            model.embed("a", context_overflow="segments", overlap=16)
        assert model.embed([]).vectors.shape == (0, 32)


def test_load_opens_either_kind(encoder: Encoders) -> None:
    with serving.load(encoder("sentences") / "bundle", threads=1) as model:
        assert isinstance(model, serving.EncoderModel)
    with pytest.raises(UserError, match="capacity is for models that generate text"):
        serving.load(encoder("sentences") / "bundle", capacity=8)
    from serving.loading import load

    with pytest.raises(UserError, match="holds an encoder, which doesn't generate"):
        load(encoder("sentences") / "bundle")
