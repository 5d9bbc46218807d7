"""Constrained output: what comes out is valid, and hostile schemas do no harm."""

import builtins
import json
import re
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from click.testing import CliRunner
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

import serving
from serving.bundle import SpecialTokens
from serving.cli import main
from serving.constraints import (
    COMPILED_KEPT,
    MOST_CHARACTERS,
    Constraint,
    ConstraintCompiler,
    ConstraintError,
)
from serving.decoding import Draft, Failure, Limits, Sequence, Token, extend, verify
from serving.draft_model import DraftModel
from serving.errors import UserError
from serving.generation import Model
from serving.sampling import SamplingParameters
from tests.exports import export_bundle, once
from tests.serving.counting_engine import CountingEngine
from tests.serving.test_detokenizer import (
    byte_level,
    sentencepiece_style,
    word_piece,
)
from tests.serving.test_detokenizer import (
    metaspace as bytes_as_words,
)

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "pattern": "^[A-Z][a-z]{1,8}$"},
        "kind": {"enum": ["a", "b", 3, None]},
        "note": {"type": "string", "maxLength": 8},
        "size": {
            "type": "object",
            "properties": {
                "width": {"type": "integer", "minimum": 0, "maximum": 500},
                "ratio": {"type": "number", "minimum": -1, "maximum": 1, "multipleOf": 0.25},
            },
            "required": ["width"],
            "additionalProperties": False,
        },
        "tags": {
            "type": "array",
            "items": {"type": "string", "maxLength": 4},
            "minItems": 1,
            "maxItems": 2,
        },
        "ok": {"type": "boolean"},
    },
    "required": ["name", "kind", "size", "tags"],
    "additionalProperties": False,
}
REGEX = r"[0-9]{3}-[a-f]{1,6}é?(\.|☃)"
GRAMMAR = """
start: "(" list ")"
list: item ("," item){0,3}
item: /[0-9]{1,2}/ | "[" /[a-z]/ "]"
"""
GRAMMAR_AS_REGEX = r"\(I(,I){0,3}\)".replace("I", r"([0-9]{1,2}|\[[a-z]\])")


@pytest.fixture(scope="module")
def bundle(trained_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return once(
        tmp_path_factory, "trained/float32", lambda path: export_bundle(trained_checkpoint, path)
    )


def metaspace() -> Tokenizer:
    """As XGLM's: ▁ for spaces, and what the vocabulary lacks is unknown."""
    letters = "▁abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789é☃\n\\\x01"
    tokens = ["<unk>", "</s>", *letters, *'{}[]()",:.-+', "▁a", "ab", "▁ab"]
    vocab = {token: index for index, token in enumerate(tokens)}
    merges = [("▁", "a"), ("a", "b"), ("▁", "ab")]
    tokenizer = Tokenizer(models.BPE(vocab, merges, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens(["<unk>", "</s>"])
    return tokenizer


def random_model(tokenizer: Tokenizer, padding: int = 0, **parts: Any) -> Model:
    """A model of this tokenizer's tokens, some padding, and no idea of JSON."""
    vocab = tokenizer.get_vocab_size() + padding
    engine = CountingEngine(slots=4, capacity=2000, vocab=vocab)
    eos = tokenizer.token_to_id("</s>") or tokenizer.token_to_id("<|end|>")
    return Model(engine, SpecialTokens(eos=(eos,) if eos else ()), tokenizer, **parts)


def compiler(tokenizer: Tokenizer, *eos: int) -> ConstraintCompiler:
    return ConstraintCompiler(tokenizer, eos)


def allowed(tokenizer: Tokenizer, matcher: Any, extra: int = 0) -> set[int]:
    logits = np.zeros(tokenizer.get_vocab_size() + extra, np.float32)
    return set(np.flatnonzero(matcher.mask(logits) == 0).tolist())


def follow(matcher: Any, tokenizer: Tokenizer, text: str) -> None:
    for token_id in raw_ids(tokenizer, text):
        matcher.accept(token_id)


def raw_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of ``text`` without the space that some tokenizers put before it."""
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    return ids[1:] if tokenizer.id_to_token(ids[0]) == "▁" else ids


def is_valid(text: str) -> bool:
    return jsonschema.Draft202012Validator(SCHEMA).is_valid(json.loads(text))


def test_a_trained_model_writes_valid_json_every_time(bundle: Path) -> None:
    with serving.load(bundle, threads=1, slots=8) as model:
        results = model.generate(
            ["config = "] * 200, constraint=Constraint.json_schema(SCHEMA), temperature=1.0
        )
    assert {result.finish_reason for result in results} == {"stop"}
    assert sum(is_valid(result.text) for result in results) == 200
    assert len({result.text for result in results}) > 190


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style, metaspace])
@pytest.mark.parametrize("padding", [0, 70])
def test_an_untrained_model_of_any_tokenizer_does_too(
    make: Callable[[], Tokenizer], padding: int
) -> None:
    model = random_model(make(), padding)
    options: Any = {"temperature": 1.0, "max_new_tokens": 400}
    prompts = [[i + 3] for i in range(25)]
    results = model.generate(prompts, constraint=Constraint.json_schema(SCHEMA), **options)
    assert all(is_valid(result.text) for result in results)
    results = model.generate(prompts, constraint=Constraint.regex(REGEX), **options)
    assert all(re.fullmatch(REGEX, result.text) for result in results)
    results = model.generate(prompts, constraint=Constraint.grammar(GRAMMAR), **options)
    assert all(re.fullmatch(GRAMMAR_AS_REGEX, result.text) for result in results)
    assert len({result.text for result in results}) > 5
    assert {result.finish_reason for result in results} == {"stop"}


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style, metaspace])
def test_a_choice_is_one_of_its_texts(make: Callable[[], Tokenizer]) -> None:
    texts = ["yes", "no", 'a "quoted"\n\\ \x01☃ line', "été"]
    model = random_model(make())
    constraint = Constraint.choice(texts)
    # So hot that every token is about as likely as any other.
    results = model.generate([[i] for i in range(60)], constraint=constraint, temperature=100.0)
    assert {result.text for result in results} == set(texts)


@pytest.mark.parametrize("make", [byte_level, sentencepiece_style])
def test_tokens_are_allowed_exactly_where_their_bytes_are(make: Callable[[], Tokenizer]) -> None:
    """Every token is judged by the text that the tokenizer itself decodes."""
    tokenizer = make()
    eos = tokenizer.token_to_id("<s>") or 1
    matcher = compiler(tokenizer, eos).matcher(Constraint.regex(r"#[a-m ]*"))
    anchor = raw_ids(tokenizer, "#")
    assert set(anchor) <= allowed(tokenizer, matcher, extra=9)
    follow(matcher, tokenizer, "#")
    silent = tokenizer.get_added_tokens_decoder()
    expected = {eos}
    for i in range(tokenizer.get_vocab_size()):
        text = tokenizer.decode([*anchor, i])[1:]
        if i not in silent and text and re.fullmatch("[a-m ]*", text):
            expected.add(i)
    assert allowed(tokenizer, matcher, extra=9) == expected


def test_eos_comes_exactly_where_the_text_may_end() -> None:
    tokenizer = byte_level()
    eos = [tokenizer.token_to_id("!"), tokenizer.token_to_id("?")]
    matcher = compiler(tokenizer, *eos, 10**6).matcher(Constraint.regex("a{2,3}"))
    for text, may_end, is_complete in (("", 0, 0), ("a", 0, 0), ("a", 1, 0), ("a", 1, 1)):
        if text:
            follow(matcher, tokenizer, text)
        assert bool(set(eos) & allowed(tokenizer, matcher)) == may_end
        assert matcher.is_complete == is_complete
    assert allowed(tokenizer, matcher) == set(eos)
    with pytest.raises(ConstraintError):
        follow(matcher, tokenizer, "a")


def test_without_an_eos_a_text_ends_when_it_is_whole() -> None:
    tokenizer = byte_level()
    matcher = compiler(tokenizer).matcher(Constraint.regex("ab?"))
    follow(matcher, tokenizer, "a")
    assert tokenizer.get_vocab_size() not in allowed(tokenizer, matcher, extra=5)
    follow(matcher, tokenizer, "b")
    assert matcher.is_complete
    with pytest.raises(ConstraintError, match="No token"):
        allowed(tokenizer, matcher)


def test_a_vocabulary_that_is_too_small_is_an_error_and_not_another_token() -> None:
    tokenizer = byte_level()
    matcher = compiler(tokenizer).matcher(Constraint.regex("~"))
    small = tokenizer.token_to_id("~")
    with pytest.raises(ConstraintError, match="No token"):
        matcher.mask(np.zeros(small, np.float32))
    assert np.flatnonzero(matcher.mask(np.zeros(small + 1, np.float32)) == 0).tolist() == [small]


def test_min_new_tokens_holds_eos_back_and_the_end_of_a_constraint_ends_the_text() -> None:
    model = random_model(byte_level())
    options: Any = {"temperature": 1.0, "constraint": Constraint.regex("a{1,9}")}
    for result in model.generate([[i] for i in range(20)], min_new_tokens=5, **options):
        assert len(result.token_ids) >= 5 or result.text == "a" * 9
    result = model.generate([1], ignore_eos=True, **options)
    assert result.finish_reason == "stop"
    assert re.fullmatch("a{1,9}", result.text)


def test_forbidden_tokens_stay_so_under_bias_and_penalties() -> None:
    tokenizer = byte_level()
    model = random_model(tokenizer)
    forbidden, favoured = tokenizer.token_to_id("x"), tokenizer.token_to_id("b")
    result = model.generate(
        [forbidden] * 5,
        constraint=Constraint.regex("[ab]{12}"),
        logit_bias={forbidden: 100, favoured: 100},
        repetition_penalty=0.01,
        presence_penalty=-2,
        frequency_penalty=-2,
    )
    assert result.text == "b" * 12


def test_every_prompt_has_its_own_place_in_the_constraint() -> None:
    model = random_model(byte_level())
    options: Any = {"constraint": Constraint.json_schema(SCHEMA), "max_new_tokens": 400}
    prompts = [[3], [9, 9], [5, 1]]
    assert model.generate(prompts, **options) == [model.generate(p, **options) for p in prompts]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafts_change_nothing(temperature: float) -> None:
    tokenizer = byte_level()
    draft = CountingEngine(slots=4, capacity=2000, vocab=tokenizer.get_vocab_size() - 20)
    model = random_model(tokenizer, draft=draft)
    options: Any = {
        "constraint": Constraint.json_schema(SCHEMA),
        "max_new_tokens": 400,
        "temperature": temperature,
        "seed": 7,
    }
    alone = model.generate([[5], [9, 4]], **options)
    for speculation in ("prompt-lookup", "draft"):
        assert model.generate([[5], [9, 4]], speculation=speculation, **options) == alone


def test_drafts_of_a_draft_model_follow_the_constraint() -> None:
    tokenizer = byte_level()
    vocab = tokenizer.get_vocab_size()
    matcher = compiler(tokenizer).matcher(Constraint.regex("[0-9]{2}[a-z]{2}!"))
    limits = Limits(100, None, 0, (), ())
    sampling = SamplingParameters(temperature=1.0)
    sequence = Sequence(0, np.array([5, 6]), sampling, limits, None, matcher=matcher)
    engine = CountingEngine(vocab=vocab)
    draft = DraftModel(CountingEngine(vocab=vocab), vocab, 8).open(sequence).propose(4)
    assert re.fullmatch("[0-9]{2}[a-z]{2}", tokenizer.decode(draft.ids.tolist()))
    engine.step(sequence.ids[None, :-1], np.zeros(1, np.int64), np.zeros((1, 1), np.int64))
    tokens = verify(engine, sequence, 0, draft)
    assert len(tokens) == 5  # two equal models: every draft holds
    assert isinstance(tokens[-1], Token)
    assert sequence.finished == (tokens[-1].finish_reason == "stop")


def test_a_failure_ends_its_own_sequence_only() -> None:
    tokenizer = byte_level()
    vocab = tokenizer.get_vocab_size()
    compile_ = compiler(tokenizer)
    limits = Limits(100, 6, 0, (), ())
    engine = CountingEngine(slots=2, vocab=vocab)
    # The second text can't go on without "~", which these logits lack.
    sequences = [
        Sequence(i, np.array([5]), SamplingParameters(), limits, None, matcher=matcher)
        for i, matcher in enumerate(map(compile_.matcher, map(Constraint.regex, ("a+", "a~"))))
    ]
    logits = np.zeros(tokenizer.token_to_id("~"), np.float32)
    first, second = ([extend(s, logits), extend(s, logits)] for s in sequences)
    assert not any(isinstance(event, Failure) for event in first)
    assert not sequences[0].finished
    assert sequences[1].finished
    assert isinstance(second[1], Failure)
    assert isinstance(second[1].error, ConstraintError)
    assert second[1].index == 1
    assert tokenizer.decode(sequences[1].generated_ids.tolist()) == "a"
    draft = Draft(np.array([tokenizer.token_to_id("a")] * 2))
    events = [*first, *verify(engine, sequences[0], 0, draft)]
    tokens = [event.token_id for event in events if isinstance(event, Token)]
    assert sequences[0].generated_ids.tolist() == tokens


def test_what_takes_too_long_in_a_step_is_an_error_of_generate() -> None:
    model = random_model(byte_level())
    nested = Constraint.grammar('start: a{1000}\na: b{1000}\nb: c{1000}\nc: "x"')
    with pytest.raises(ConstraintError, match="Too many items"):
        model.generate([1], constraint=nested)
    assert model.generate([1], max_new_tokens=1).token_ids  # the model is free again


def long_chain(rules: int) -> str:
    names = [f"{i:x}".translate(str.maketrans("0123456789", "ghijklmnop")) for i in range(rules)]
    lines = [f"{name}:{following}" for name, following in pairwise(names)]
    return f"start:{names[0]}\n" + "\n".join(lines) + f'\n{names[-1]}:"a"'


def test_a_chain_of_rules_as_long_as_they_get_is_compiled() -> None:
    """On a thread's usual stack this ends the whole process with a segmentation fault."""
    tokenizer = byte_level()
    grammar = long_chain(7400)
    assert MOST_CHARACTERS * 0.9 < len(grammar) <= MOST_CHARACTERS
    matcher = compiler(tokenizer).matcher(Constraint.grammar(grammar))
    follow(matcher, tokenizer, "a")
    assert matcher.is_complete


def definitions(count: int, definition: Callable[[str, str], object]) -> dict[str, Any]:
    names = [f"d{i}" for i in range(count)]
    pairs = pairwise(names)
    defs = {name: definition(name, f"#/$defs/{following}") for name, following in pairs}
    return {"$defs": defs | {names[-1]: {"type": "object"}}, "$ref": "#/$defs/d0"}


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.json_schema({"uniqueItems": True}), "uniqueItems"),
        (lambda: Constraint.json_schema({"not": {}, "x-guidance": {"lenient": True}}), '"not"'),
        (lambda: Constraint.json_schema({"type": "text"}), "Invalid type: text"),
        (lambda: Constraint.json_schema({"$ref": "#"}), "JSON schema can't be used"),
        (lambda: Constraint.json_schema({"$ref": "file:///etc/passwd"}), "does not fetch"),
        (lambda: Constraint.json_schema("{"), "is no JSON"),
        (lambda: Constraint.json_schema("[]"), "is no JSON object"),
        (lambda: Constraint.json_schema({"const": {1, 2}}), "is no JSON"),
        (lambda: Constraint.json_schema('{"items":' * 6000), "is no JSON"),
        (lambda: Constraint.json_schema('{"items":' * 150 + "{}" + "}" * 150), "recursion limit"),
        (lambda: Constraint.json_schema({"const": "\ud800"}), "JSON schema can't be used"),
        (lambda: Constraint.json_schema({"enum": ["a" * 70_000]}), "at most 65536"),
        (
            lambda: Constraint.json_schema(
                {
                    "allOf": [
                        {"anyOf": [{"properties": {f"{i}.{j}": {}}} for j in range(6)]}
                        for i in range(9)
                    ]
                }
            ),
            "schema too large",
        ),
        (lambda: Constraint.regex("(?=a)b"), "look-around"),
        (lambda: Constraint.regex("a" * 70_000), "at most 65536"),
        (lambda: Constraint.regex("a\ud800"), "regular expression can't be used"),
        (lambda: Constraint.regex(""), "only an empty text"),
        (lambda: Constraint.grammar("start: nothing"), "unknown name"),
        (
            lambda: Constraint.grammar('{"grammars": [{"lark_grammar": "start: /a/"}]}'),
            "can't be used",
        ),
        (lambda: Constraint.grammar("start: " + "(" * 9000 + '"a"' + ")" * 9000), "too deeply"),
        (
            lambda: Constraint.grammar(
                "start: A\nA: /.*a.{8}/ & /.*b.{9}/ & ~/.*c.{12}/ & /.*d.{9}/"
            ),
            "fuel",
        ),
        (lambda: Constraint.choice([]), "needs a list"),
        (lambda: Constraint.choice(["yes", ""]), "needs a list"),
    ],
)
def test_what_cant_be_used_is_one_sentence_before_anything_runs(
    make: Callable[[], Constraint], message: str
) -> None:
    model = random_model(byte_level())
    begin = time.perf_counter()
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        model.generate([1], constraint=make(), max_new_tokens=3)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400
    assert model.engine.steps == []  # type: ignore[attr-defined]
    assert time.perf_counter() - begin < 2  # by far: such constraints could take forever


@pytest.mark.parametrize(
    "schema",
    [
        definitions(500, lambda name, other: {"items": {"$ref": other}, "title": name}),
        definitions(
            30,
            lambda name, other: {
                "allOf": [{"$ref": other}, {"properties": {name: {"$ref": other}}}]
            },
        ),
        {"type": "array", "minItems": 10**8, "items": {"type": "integer"}},
        {"type": "string", "minLength": 10**9},
        {"enum": [f"value {i}" for i in range(3500)]},
    ],
)
def test_large_schemas_compile_quickly(schema: dict[str, Any]) -> None:
    compile_ = compiler(byte_level())
    compile_.matcher(Constraint.regex("a"))
    begin = time.perf_counter()
    compile_.matcher(Constraint.json_schema(schema))
    assert time.perf_counter() - begin < 2


def test_constraints_are_compiled_once_and_kept_within_bounds(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import llguidance

    compiled = []

    class Counting:
        def __new__(cls, tokenizer: Any, grammar: str, **options: Any) -> Any:
            compiled.append(grammar)
            return original(tokenizer, grammar, **options)

        grammar_from_regex = llguidance.LLMatcher.grammar_from_regex

    original = llguidance.LLMatcher
    monkeypatch.setattr(llguidance, "LLMatcher", Counting)
    compile_ = compiler(byte_level())
    for i in (*range(COMPILED_KEPT), 0, COMPILED_KEPT, 0, 1):
        compile_.matcher(Constraint.regex(f"a{{{i + 1}}}"))
    # Number 1 alone had to make room, and was compiled again.
    assert len(compiled) == COMPILED_KEPT + 2


def test_without_llguidance_the_sentence_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real_import = builtins.__import__

    def importing(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "llguidance":
            raise ImportError(name)
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", importing)
    model = random_model(byte_level())
    assert model.generate([1], max_new_tokens=2).token_ids
    with pytest.raises(UserError, match=r"pip install '\.\[http\]'"):
        model.generate([1], constraint=Constraint.json_object())


@pytest.mark.parametrize("make", [word_piece, bytes_as_words])
def test_a_tokenizer_that_would_be_read_wrongly_is_refused(make: Callable[[], Tokenizer]) -> None:
    with pytest.raises(UserError, match="isn't possible with this model's tokenizer"):
        compiler(make()).matcher(Constraint.regex("a"))


def test_without_a_tokenizer_a_constraint_is_refused() -> None:
    model = Model(CountingEngine(), SpecialTokens(eos=()))
    with pytest.raises(UserError, match=r"no tokenizer\.json"):
        model.generate([1], constraint=Constraint.regex("a"))


def test_commands(bundle: Path, tmp_path: Path) -> None:
    def run(*flags: str) -> Any:
        command = ("generate", str(bundle), "x = ", "--temperature", "1", "--seed", "3", *flags)
        return CliRunner().invoke(main, command)

    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.lark"
    schema.write_text(json.dumps(SCHEMA))
    grammar.write_text(GRAMMAR)
    assert is_valid(run("--json-schema", str(schema)).stdout)
    assert run("--json-schema", '{"enum": ["a"]}').stdout == '"a"\n'
    assert re.fullmatch(REGEX + "\n", run("--regex", REGEX).stdout)
    assert re.fullmatch(GRAMMAR_AS_REGEX + "\n", run("--grammar", str(grammar)).stdout)
    both = run("--regex", "a", "--json-schema", "{}")
    assert both.exit_code == 2
    assert "exclude each other" in both.output
    missing = run("--grammar", str(tmp_path / "nowhere"))
    assert missing.exit_code == 1
    assert "can't be read" in missing.output
