"""Encoder-decoders in a real Triton server: the outputs of transformers."""

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer
from transformers import AutoModelForSeq2SeqLM, PreTrainedModel

from serving.errors import UserError
from serving.triton.check import check_repository
from serving.triton.repository import CONFIG, Deployment, write_version
from serving.triton.settings import Settings
from tests.encoder_decoders import SEARCHING_OPTIONS, multilingual_bundle, shared_bundle
from tests.serving.test_encoder_decoder import generated, sources
from tests.serving.triton.clients import connection
from tests.serving.triton.conftest import Triton

pytestmark = pytest.mark.xdist_group("triton")

TEXT = "def f(x):"


def reference(factory: pytest.TempPathFactory, name: str) -> PreTrainedModel:
    checkpoint = shared_bundle(factory, name) / "checkpoint"
    return AutoModelForSeq2SeqLM.from_pretrained(checkpoint).eval()


def ids_of(answer: dict[str, Any]) -> list[int]:
    """What was generated; the generate endpoint writes a single value without its list."""
    ids = answer["output_ids"]
    return [ids] if isinstance(ids, int) else ids


@pytest.mark.parametrize("name", ["t5", "bart", "marian"])
def test_outputs_are_those_of_transformers(
    name: str, triton: Triton, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = shared_bundle(tmp_path_factory, name) / "bundle"
    model = triton.serve(bundle, f"source-{name}", threads=1, slots=4)
    searching = {"beam_width": 4, "length_penalty": 0.6}
    options = {"num_beams": 4, "length_penalty": 0.6}
    transformers_model = reference(tmp_path_factory, name)
    for given, chosen in (({}, {}), (searching, options)):
        for source in sources(4):
            expected = generated(transformers_model, source, **chosen)
            answer = triton.generate(
                model, input_ids=source, max_tokens=16, return_num_input_tokens=True, **given
            )
            # The beams are one list, the best first.
            assert ids_of(answer)[: len(expected)] == expected, given
            assert answer["num_input_tokens"] == len(source)
    triton.unload(model)


@pytest.fixture(scope="module")
def translator(shared_triton: Triton, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A model that searches unless told otherwise, and has languages."""
    return shared_triton.serve(multilingual_bundle(tmp_path_factory), "translator", threads=1)


def test_the_checkpoint_s_search_and_languages(
    triton: Triton, translator: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle, bart = multilingual_bundle(tmp_path_factory), reference(tmp_path_factory, "bart")
    tokenizer = Tokenizer.from_file(str(bundle / "tokenizer.json"))
    source = tokenizer.encode(TEXT).ids
    searched = generated(bart, source, **SEARCHING_OPTIONS)
    greedy = SEARCHING_OPTIONS | {"num_beams": 1, "length_penalty": None}
    answer = triton.generate(translator, text_input=TEXT)
    assert ids_of(answer) == searched
    assert answer["text_output"] == tokenizer.decode(searched)
    with connection(triton.grpc) as stream:
        stream.send(translator, text_input=TEXT, stream=True)
        (streamed,) = stream.collect()
    assert streamed.token_ids == generated(bart, source, **greedy)
    assert streamed.token_ids != searched

    german, french = map(tokenizer.token_to_id, ("de_DE", "fr_XX"))
    expected = generated(bart, [french, *source], **SEARCHING_OPTIONS, forced_bos_token_id=german)
    answer = triton.generate(
        translator,
        text_input=f"de_DE{TEXT}",
        source_language="fr_XX",
        target_language="de_DE",
    )
    assert ids_of(answer) == expected
    refused = triton.generate(translator, text_input=TEXT, target_language="xx_YY")
    assert "no token for the language 'xx_YY'" in str(refused["error"])
    long = triton.generate(translator, text_input="x " * 300)
    assert "don't fit into the source capacity of 256" in str(long["error"])


def test_what_is_written_and_checked(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    bundle = multilingual_bundle(tmp_path_factory)
    write_version(Deployment(bundle, "translator", copies=True), tmp_path)
    assert dict(check_repository(tmp_path)) == {"translator": []}
    config = tmp_path / "translator" / CONFIG
    assert 'key: "prefix_rows" value { string_value: "0" }' in config.read_text()
    config.write_text(config.read_text().replace('"0"', '"8"', 1))
    ((_, (problem,)),) = check_repository(tmp_path)
    assert "leave prefix_rows out" in problem
    with pytest.raises(UserError, match="leave --ensemble out"):
        write_version(Deployment(bundle, "parts", is_ensemble=True), tmp_path)
    with pytest.raises(UserError, match="reads from 1 to 256 tokens"):
        write_version(Deployment(bundle, "long", Settings(source_capacity=257)), tmp_path)
