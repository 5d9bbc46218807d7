"""Texts made from each response alone, against those of the model that remembers its requests."""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pytest
from tokenizers import Tokenizer

from serving import decoding
from serving.beam_search import BeamParameters
from serving.decoding import Limits, Token
from serving.detokenizer import Vocabulary
from serving.errors import UserError
from serving.result import Generation
from serving.sampling import SamplingParameters
from serving.triton.answers import Answer
from serving.triton.ensemble.engine_answers import EngineAnswer
from serving.triton.ensemble.handover import Handover, tokenizer_digest
from serving.triton.requests import Array, TritonRequest
from tests.serving.test_detokenizer import TEXTS, TOKENIZERS, byte_level

PROMPT = np.array([1, 2, 3])


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    made: Tokenizer = TOKENIZERS[request.param]()
    return made


def tokens(
    vocabulary: Vocabulary, ids: Sequence[int], stops: Sequence[str] = ()
) -> Iterator[Token]:
    """What the scheduler says of a sequence that generates these ids."""
    limits = Limits(4 + len(ids), len(ids), 0, (), tuple(stops))
    sequence = decoding.Sequence(0, PROMPT, SamplingParameters(), limits, vocabulary)
    for token_id in ids:
        yield (token := sequence.append(token_id))
        if token.finish_reason:
            break


@dataclass
class Case:
    ids: list[int]
    stops: list[str]


def random_case(tokenizer: Tokenizer, seed: int) -> Case:
    source = random.Random(seed)
    size = tokenizer.get_vocab_size() + 3  # a model's vocabulary may be larger: silent ids
    ids = [source.randrange(size) for _ in range(source.randrange(1, 30))]
    ids += tokenizer.encode(source.choice(TEXTS)).ids
    text = tokenizer.decode(ids)
    begins = [source.randrange(len(text) + 1) for _ in range(source.randrange(4))]
    # Some come, and some only begin to.
    stops = [text[at : at + source.randrange(1, 6)] + source.choice(["", "~~"]) for at in begins]
    return Case(ids, [stop for stop in stops if stop])


def parts(answer: Answer, generated: Iterator[Token]) -> list[dict[str, Array]]:
    return [outputs for token in generated if (outputs := answer.add(token)) is not None]


def message(outputs: dict[str, Array]) -> Handover:
    return Handover.read(outputs["handover"].item().decode())


@pytest.mark.parametrize("streams", [True, False])
def test_each_part_has_the_text_of_the_single_model(tokenizer: Tokenizer, streams: bool) -> None:
    vocabulary, digest = Vocabulary(tokenizer), tokenizer_digest(tokenizer)
    request = TritonRequest([1, 2, 3], {}, streams=streams)
    for seed in range(60):
        case = random_case(tokenizer, seed)
        single = Answer(request, 3, "Echo: ", has_texts=True)
        expected = parts(single, tokens(vocabulary, case.ids, case.stops))
        prompt = Handover(tokenizer=digest, prefix="Echo: ")
        answer = EngineAnswer(request, PROMPT, prompt, vocabulary)
        given = parts(answer, tokens(vocabulary, case.ids, case.stops))
        texts = [message(one).texts(vocabulary, one["output_ids"][0].tolist()) for one in given]
        assert texts == [[text.decode() for text in one["text_output"][0]] for one in expected]
        assert [one["output_ids"].tolist() for one in given] == [
            one["output_ids"].tolist() for one in expected
        ]


def test_what_travels_does_not_grow() -> None:
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer)
    request = TritonRequest([1], {}, streams=True)
    for stops in ([], ["aaab"], ["zzz"]):
        answer = EngineAnswer(request, PROMPT, Handover(), vocabulary)
        ids = tokenizer.encode("a").ids * 2000
        contexts = [message(one).context for one in parts(answer, tokens(vocabulary, ids, stops))]
        assert 0 < max(map(len, contexts)) < 6


def test_beams_have_a_text_each() -> None:
    tokenizer = byte_level()
    vocabulary = Vocabulary(tokenizer)
    request = TritonRequest([1], {}, BeamParameters(2))
    answer = EngineAnswer(request, PROMPT, Handover(prefix="> "), vocabulary)
    beams = [
        Generation(token_ids=tokenizer.encode(text).ids, text=text, score=-1.0)
        for text in ("héllo 😀", " no")
    ]
    outputs = answer.beams(beams)
    texts = message(outputs).texts(vocabulary, outputs["output_ids"][0].tolist())
    assert texts == ["> héllo 😀", ">  no"]


def test_ids_of_another_tokenizer_are_refused() -> None:
    digests = {tokenizer_digest(make()) for make in (*TOKENIZERS.values(), byte_level)}
    assert len(digests) == len(TOKENIZERS)
    said = Handover(tokenizer="other").write()
    with pytest.raises(UserError, match="different tokenizers"):
        Handover.read(said).check_tokenizer(digests.pop())


@pytest.mark.parametrize("text", ["", "{", "[]", '{"context": ["a"]}', '{"more": 1}'])
def test_what_no_model_of_ours_said(text: str) -> None:
    with pytest.raises(UserError, match="handover can't be read"):
        Handover.read(text)
