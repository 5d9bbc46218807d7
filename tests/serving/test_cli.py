"""serve-llm, as a user runs it."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import serving
from serving.chat import Message
from serving.cli import main
from serving.commands.chat import Conversation
from tests.serving.tiny_bundle import make_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> str:
    return str(make_bundle(tmp_path / "bundle"))


def run(*arguments: str, stdin: str = "") -> Result:
    return CliRunner().invoke(main, arguments, input=stdin)


def expected_text(bundle: str, prompt: str, new: int) -> str:
    with serving.load(bundle) as model:
        return model.generate(prompt, max_new_tokens=new).text


def test_generate_prints_the_text_and_the_speed(bundle: str) -> None:
    result = run("generate", bundle, "hello", "--max-new-tokens", "12")
    assert result.exit_code == 0, result.output
    assert result.stdout == expected_text(bundle, "hello", 12) + "\n"
    assert "prefill 5 tokens at" in result.stderr
    assert "GB/s" in result.stderr


def test_a_text_that_does_not_fit_is_refused_or_slides(bundle: str) -> None:
    flags = ("--max-new-tokens", "90", "--capacity", "32", "--ignore-eos", "--json")
    refused = run("generate", bundle, "hello", *flags)
    assert refused.exit_code == 1
    assert "don't fit into the capacity of 32" in refused.stderr
    slid = run("generate", bundle, "hello", *flags, "--context-overflow", "slide")
    assert len(json.loads(slid.stdout)["token_ids"]) == 90


def test_generate_reads_standard_input(bundle: str) -> None:
    result = run("generate", bundle, "--max-new-tokens", "12", stdin="hello\n")
    assert result.stdout == expected_text(bundle, "hello", 12) + "\n"


def test_generate_prints_one_json_document(bundle: str) -> None:
    flags = ("--max-new-tokens", "6", "--logprobs", "2", "--ignore-eos", "--json")
    result = run("generate", bundle, "hello", *flags)
    document = json.loads(result.stdout)
    assert len(document["token_ids"]) == len(document["logprobs"]) == 6
    assert len(document["logprobs"][0]["top"]) == 2
    assert document["prompt_tokens"] == 5
    assert document["finish_reason"] == "length"
    assert document["speed"]["decode_gigabytes_per_second"] > 0


def test_sampling_flags_reach_the_sampler(bundle: str) -> None:
    flags = ("--max-new-tokens", "20", "--temperature", "3", "--ignore-eos", "--json")
    texts = {
        json.loads(run("generate", bundle, "hello", *flags, "--seed", seed).stdout)["text"]
        for seed in ("1", "1", "2")
    }
    assert len(texts) == 2
    cold = run("generate", bundle, "hello", *flags, "--top-k", "1").stdout
    plain = run("generate", bundle, "hello", *flags[:2], "--ignore-eos", "--json").stdout
    assert json.loads(cold)["text"] == json.loads(plain)["text"]


def test_bad_words_are_not_written(bundle: str) -> None:
    flags = ("--max-new-tokens", "20", "--ignore-eos")
    plain = run("generate", bundle, "hello", *flags).stdout
    words = (plain[4:6], plain[1])
    other = run("generate", bundle, "hello", *flags, "--bad-word", words[0], "--bad-word", words[1])
    assert other.stdout[0] == plain[0]
    assert not any(word in other.stdout for word in words)


def test_speculation_gives_the_same_text_and_reports_what_it_did(bundle: str) -> None:
    flags = ("--max-new-tokens", "300", "--ignore-eos")
    plain = json.loads(run("generate", bundle, "hello", *flags, "--json").stdout)
    assert plain["speed"]["tokens_per_step"] == 1
    assert plain["speed"]["acceptance_rate"] == 0
    for method in (("--speculate",), ("--draft", bundle)):
        document = json.loads(run("generate", bundle, "hello", *flags, *method, "--json").stdout)
        assert document["token_ids"] == plain["token_ids"]
        # A draft model that is the model itself is always right.
        assert document["speed"]["tokens_per_step"] > 1
        assert 0 < document["speed"]["acceptance_rate"] <= 1
    assert document["speed"]["acceptance_rate"] == 1
    assert "drafted tokens accepted" in run("generate", bundle, "a", *flags, *method).stderr
    chat = (run("chat", bundle, *flags[:2], "--json", *m, stdin="hi\n") for m in ((), method))
    assert len({result.stdout for result in chat}) == 1


def test_one_method_of_speculation_at_a_time(bundle: str) -> None:
    result = run("generate", bundle, "hello", "--speculate", "--draft", bundle)
    assert result.exit_code == 2
    assert "leave one of them out" in result.stderr


def test_beam_search_prints_the_best_sequences_with_their_scores(bundle: str) -> None:
    flags = ("--max-new-tokens", "8", "--num-beams", "3", "--early-stopping", "never")
    options: dict[str, Any] = {"max_new_tokens": 8, "num_beams": 3, "early_stopping": "never"}
    with serving.load(bundle) as model:
        best = model.generate("hello", num_return_sequences=2, length_penalty=0.5, **options)
    one = run("generate", bundle, "hello", *flags, "--length-penalty", "0.5")
    assert one.stdout == best[0].text + "\n"
    two = (*flags, "--length-penalty", "0.5", "--num-return-sequences", "2")
    text = run("generate", bundle, "hello", *two).stdout
    lines = [f"--- {i}, score {r.score:.4f}\n{r.text}\n" for i, r in enumerate(best, 1)]
    assert text == "".join(lines)
    document = json.loads(run("generate", bundle, "hello", *two, "--json").stdout)
    assert [sequence["score"] for sequence in document["sequences"]] == [r.score for r in best]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("generate", "absent", "x"), "no bundle directory 'absent'"),
        (("inspect", "absent"), "no bundle directory 'absent'"),
        (("chat", "absent"), "no bundle directory 'absent'"),
        (("generate", "BUNDLE", ""), "prompt is empty"),
        (("generate", "BUNDLE", "x", "--top-p", "2"), "top_p is 2.0"),
        (("generate", "BUNDLE", "x", "--temperature", "-1"), "temperature is -1.0"),
        (("generate", "BUNDLE", "x", "--num-beams", "0"), "num_beams is 0"),
        (("generate", "BUNDLE", "x", "--num-return-sequences", "1"), "set num_beams above 1"),
        (("generate", "BUNDLE", "x", "--temperature", "nan"), "temperature is nan"),
        (("generate", "BUNDLE", "x" * 20, "--capacity", "10"), "capacity of 10"),
    ],
)
def test_mistakes_are_one_line_and_exit_code_1(
    bundle: str, arguments: tuple[str, ...], message: str
) -> None:
    result = run(*(bundle if argument == "BUNDLE" else argument for argument in arguments))
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    assert message in result.stderr


def test_chat_answers_line_by_line(bundle: str) -> None:
    flags = ("--max-new-tokens", "5", "--capacity", "64", "--json")
    result = run("chat", bundle, *flags, stdin="hi\nbye\n/reset\nhi\n")
    replies = [json.loads(line) for line in result.stdout.splitlines()]
    assert [reply["role"] for reply in replies] == ["assistant"] * 3
    assert replies[0] == replies[2], "/reset must forget what was said"
    with serving.load(bundle) as model:
        history: list[Message] = [
            {"role": "user", "content": "hi"},
            {"role": "assistant", "content": replies[0]["content"]},
            {"role": "user", "content": "bye"},
        ]
        second = model.generate(model.encode_chat(history), max_new_tokens=5)
    assert second.text == replies[1]["content"]


def test_chat_that_outgrows_the_capacity_says_so_and_goes_on(bundle: str) -> None:
    flags = ("--max-new-tokens", "5", "--capacity", "20", "--json")
    result = run("chat", bundle, *flags, stdin=f"hi\n{'x' * 30}\n/reset\nhi\n")
    first, second, third = (json.loads(line) for line in result.stdout.splitlines())
    assert "capacity of 20" in second["error"]
    assert first == third


def test_a_reply_that_is_stopped_is_kept_as_far_as_it_got(bundle: str) -> None:
    with serving.load(bundle) as model:
        conversation = Conversation(model, None, {"ignore_eos": True})
        reply = conversation.reply("hi")
        text = next(reply).text + next(reply).text
        reply.close()  # what Ctrl-C leads to
        assert conversation.messages[-1] == {"role": "assistant", "content": text}
        assert next(conversation.reply("go on")).index == 0


def test_chat_in_the_terminal(bundle: str) -> None:
    result = run("chat", bundle, "--max-new-tokens", "5", stdin="hi\n/reset\nbye\n/exit\n")
    assert result.exit_code == 0, result.output
    assert result.stdout.count("you>") == 4
    assert run("chat", bundle, stdin="").exit_code == 0, "Ctrl-D leaves"


def test_inspect_shows_what_is_in_a_bundle(bundle: str) -> None:
    shown = run("inspect", bundle).stdout
    for part in (
        "tiny (llama)",
        "64 bytes a token",
        "4,096 tokens",
        "engine onnxruntime",
        "passed",
    ):
        assert part in shown, part
    document = json.loads(run("inspect", bundle, "--json").stdout)
    assert document["kv_bytes_per_token"] == 64
    assert document["model"]["name"] == "tiny"


def test_inspect_shows_parity_a_comparison_a_row(tmp_path: Path) -> None:
    comparison = {"name": "prefill", "max_error": 1.23456e-6, "top1_agreement": 1.0}
    parity = {"status": "passed", "divergence": None, "comparisons": [comparison]}
    shown = run("inspect", str(make_bundle(tmp_path / "bundle", parity=parity))).stdout
    assert "status passed" in shown
    assert "parity, prefill" in shown
    assert "max error 1.23e-06, top1 agreement 1" in shown
    assert "divergence" not in shown


def test_doctor_runs_what_it_reports() -> None:
    result = run("doctor", "--json")
    checks = {check["name"]: check for check in json.loads(result.stdout)}
    assert checks["ONNX Runtime on the CPU"]["works"]
    for check in checks.values():
        assert check["works"] or check["remedy"], check
    assert "ONNX Runtime on the CPU" in run("doctor").stdout


def test_help_starts_at_once_and_imports_nothing_heavy() -> None:
    program = (
        "import sys\n"
        "from serving.cli import main\n"
        "main(['--help'], standalone_mode=False)\n"
        "heavy = {'numpy', 'onnxruntime', 'tokenizers', 'jinja2', 'pydantic', 'rich', 'torch'}\n"
        "print(sorted(heavy & set(sys.modules)))"
    )
    begin = time.perf_counter()
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert result.stdout.splitlines()[-1] == "[]", result.stderr
    assert time.perf_counter() - begin < 2
