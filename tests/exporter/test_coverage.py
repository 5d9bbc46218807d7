"""Coverage: one type for each trait through the script's own path, and the table of all."""

import pytest

from scripts.coverage import TABLE, registered_types, try_type
from scripts.coverage_table import table_types

# Trait -> a type that has it. None of them is among the architectures that other tests export.
EXACT = {
    "experts beside shared ones, and a router's correction": "ernie4_5_moe",
    "position offset by the padding id": "roberta",
    "decoder of an encoder-decoder model that counts positions itself": "bart",
    "keys and values of different size, complex rotation": "deepseek_v2",
    "two attentions a layer": "diffllama",
    "a table that is assigned while running": "ctrl",
    "layers that share a cache": "gemma4_text",
    "a larger model whose language part is exported": "got_ocr2",
    "windows on some layers and sinks": "mimo_v2_flash",
}
REFUSED = {
    "mamba": "recurrent state",
    "jamba": "recurrent state",
    "qwen3_next": "recurrent state",
    "deepseek_v32": "sparse attention",
    "openai-gpt": "no key-value cache",
}


@pytest.mark.parametrize("model_type", EXACT.values(), ids=EXACT.keys())
def test_one_type_of_each_trait_is_exact(model_type: str) -> None:
    outcome = try_type(model_type)
    assert (outcome.status, outcome.reason) in (
        ("exact", ""),
        ("exact", "transformers' generate differs from its own forward, which is what is served"),
    )


@pytest.mark.parametrize(("model_type", "reason"), REFUSED.items())
def test_refusals_say_why(model_type: str, reason: str) -> None:
    outcome = try_type(model_type)
    assert outcome.status == "refused"
    assert reason in outcome.reason


def test_every_registered_type_is_in_the_table() -> None:
    table = table_types(TABLE)
    missing = set(registered_types()) - set(table)
    assert not missing, f"run `python -m scripts.coverage --only {','.join(sorted(missing))}`"
    assert list(table.values()).count("exact") >= 110
    assert all(table[model_type] == "exact" for model_type in EXACT.values())
    assert all(table[model_type] == "refused" for model_type in REFUSED)
