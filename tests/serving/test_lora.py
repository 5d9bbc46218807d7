"""LoRA adapters chosen per request give the tokens of transformers with the adapter merged in."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from transformers import AutoModelForCausalLM, PreTrainedModel

import serving
from engines import onnxruntime as onnxruntime_target
from engines.passes.lora_inputs import lora_tables
from engines.quantization.apply import quantize
from engines.quantization.recipe import Recipe
from engines.standard import optimize
from exporter.adapters import adapted_modules
from exporter.embedding_parity import reference_embeddings
from serving.bundle import GraphInfo, LayerInfo, LoraTable, SpecialTokens, open_bundle
from serving.cli import main as serve_llm
from serving.decoding import Token
from serving.errors import UserError
from serving.generation import Model
from serving.lora import AdapterTables, Factors
from serving.onnxruntime import OnnxRuntimeEngine
from serving.peft_adapter import rank_and_scale, read_adapter
from serving.request_queue import Job
from tests.checkpoints import VOCABULARY
from tests.conftest import Graphs
from tests.exporter.commands import run
from tests.serving.arrivals import Arrival, arrivals, serve
from tests.serving.http.running import running
from tests.serving.peft_files import Weights, merged_into, random_weights, write_adapter

NEW_TOKENS = 12
LENGTHS = (17, 5, 11, 8, 14)
MODULES = {
    "qwen2": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    "gpt2": ["c_attn", "c_proj", "c_fc"],
    "phi3": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
}


class Served:
    """An exported graph beside the model in transformers, and adapters for both."""

    def __init__(self, graph: ir.Model, reference: PreTrainedModel, directory: Path) -> None:
        self.reference = reference
        config = reference.config
        heads = getattr(config, "num_key_value_heads", config.num_attention_heads)
        dim = config.hidden_size // config.num_attention_heads
        layer = LayerInfo(kv_heads=heads, key_dim=dim, value_dim=dim)
        self.info = GraphInfo(
            contract_version=1,
            vocab_size=VOCABULARY,
            dtype="float32",
            integer_weights=any(node.op_type == "DequantizeLinear" for node in graph.graph),
            layers=(layer,) * config.num_hidden_layers,
            lora=lora_tables(graph),
            max_length=512,
        )
        onnxruntime_target.lower(graph)
        directory.mkdir()
        onnxruntime_target.write(graph, directory)
        self.directory = directory

    def shapes(self) -> dict[str, tuple[int, int]]:
        return {m.name: (t.inputs, m.outputs) for t in self.info.lora for m in t.modules}

    def weights(self, *, rank: int, every: int = 1, **options: Any) -> Weights:
        """Random factors of every so many modules."""
        chosen = list(self.shapes().items())[::every]
        return random_weights(dict(chosen), rank, **options)

    @contextmanager
    def model(
        self, adapters: dict[str, Path], slots: int = 2, rows: int | None = None
    ) -> Iterator[Model]:
        read = {name: read_adapter(path, self.info.lora) for name, path in adapters.items()}
        tables = AdapterTables(self.info.lora, "float32", read)
        file = self.directory / "model.onnx"
        engine = OnnxRuntimeEngine(
            file, self.info, slots=rows or slots, capacity=96, threads=1, adapters=tables
        )
        model = Model(
            engine, SpecialTokens(), prefill_chunk=6, slots=slots, adapters=tables.indices
        )
        with model:
            yield model

    def logits(self, ids: list[int], weights: Weights | None = None) -> np.ndarray:
        with torch.no_grad(), merged_into(self.reference, weights):
            return self.reference(torch.tensor([ids])).logits[0].numpy()

    def tokens(self, prompt: list[int], weights: Weights | None = None) -> list[int]:
        ids = torch.tensor([prompt])
        with merged_into(self.reference, weights):
            output = self.reference.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=NEW_TOKENS,
                do_sample=False,
            )
        return output[0, len(prompt) :].tolist()


@pytest.fixture
def served(
    traced_graph: Graphs, checkpoint: Callable[[str], Path], tmp_path: Path
) -> Callable[..., Served]:
    def make(architecture: str, recipe: Recipe | None = None) -> Served:
        reference = AutoModelForCausalLM.from_pretrained(checkpoint(architecture)).eval()
        modules = adapted_modules(reference, ())
        assert sorted(modules) == sorted(MODULES[architecture])
        graph = traced_graph(architecture)
        optimize(graph, modules)
        if recipe is not None:
            quantize(graph, recipe, [np.arange(64)], tmp_path)
        return Served(graph, reference, tmp_path / "graph")

    return make


def prompts() -> list[list[int]]:
    random = np.random.default_rng(5)
    return [random.integers(3, VOCABULARY, length).tolist() for length in LENGTHS]


@pytest.mark.parametrize("architecture", MODULES)
def test_every_row_has_its_own_adapter(
    served: Callable[..., Served], architecture: str, tmp_path: Path
) -> None:
    """More prompts than slots, so that rows move into each other's places."""
    here = served(architecture)
    assert len(here.shapes()) == 2 * len(MODULES[architecture]) + 2 * (architecture == "gpt2")
    adapters = {None: None, "a": here.weights(rank=4), "b": here.weights(rank=2, every=3, seed=1)}
    chosen = ["a", None, "b", "b", "a"]
    paths = {n: write_adapter(tmp_path / n, w) for n, w in adapters.items() if n and w}
    new = [3, NEW_TOKENS, 6, NEW_TOKENS, 4]
    expected = [
        here.tokens(prompt, adapters[name])[:count]
        for prompt, name, count in zip(prompts(), chosen, new, strict=True)
    ]
    assert expected[3] != here.tokens(prompts()[3])
    with here.model(paths) as model:
        scheduler = model.scheduler()
        for index, (ids, name) in enumerate(zip(prompts(), chosen, strict=True)):
            sequence = model.sequence(ids, index, max_new_tokens=new[index], adapter=name)
            scheduler.submit(Job(sequence))
        tokens: list[list[int]] = [[] for _ in chosen]
        for event in scheduler.run():
            assert isinstance(event, Token), event
            tokens[event.index].append(event.token_id)
        assert tokens == expected
        # Slots remember nothing of those who had them before.
        for name in (None, "a", "b"):
            got = model.logits(prompts()[0], adapter=name)
            np.testing.assert_allclose(got, here.logits(prompts()[0], adapters[name]), atol=5e-5)


@pytest.fixture(scope="module")
def models(
    traced_graph: Graphs,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[Model, Model]]:
    """One that keeps nothing and one that keeps prefixes; both have two adapters."""
    directory = tmp_path_factory.mktemp("mixed")
    graph = traced_graph("qwen2")
    optimize(graph, MODULES["qwen2"])
    reference = AutoModelForCausalLM.from_pretrained(checkpoint("qwen2")).eval()
    here = Served(graph, reference, directory / "graph")
    paths = {
        name: write_adapter(directory / name, here.weights(rank=rank, seed=rank, size=0.6))
        for name, rank in (("a", 4), ("b", 2))
    }
    with here.model(paths, slots=3) as alone, here.model(paths, slots=3, rows=5) as keeping:
        texts = [
            alone.generate(prompts()[0], max_new_tokens=20, adapter=name).token_ids
            for name in (None, "a", "b")
        ]
        assert len({tuple(text) for text in texts}) == len(texts), "adapters that change nothing"
        yield alone, keeping


@settings(max_examples=30, deadline=None)
@given(plan=arrivals(VOCABULARY, [None, "prompt-lookup"], (None, "a", "b"), searches=True))
def test_mixed_adapters_give_each_request_what_it_gets_alone(
    models: tuple[Model, Model], plan: list[Arrival]
) -> None:
    alone, keeping = models
    for index, result in serve(keeping, keeping.scheduler(), plan).items():
        expected = alone.generate(plan[index].prompt, **plan[index].options(slots=3))
        assert result.token_ids == expected.token_ids


def test_beams_scores_and_embeddings_have_the_adapter(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    """Each after slots that had another one."""
    here, (ids, other, *_) = served("qwen2"), prompts()
    weights = here.weights(rank=4, size=0.6)
    with here.model({"a": write_adapter(tmp_path / "a", weights)}, slots=3) as model:
        for name, factors in (("a", weights), (None, None), ("a", weights)):
            model.generate([other] * 3, max_new_tokens=2, adapter=None if name else "a")
            searched = model.generate(ids, max_new_tokens=8, num_beams=3, adapter=name)
            model.generate([other] * 3, max_new_tokens=2, adapter=None if name else "a")
            scored = model.score(ids, adapter=name)
            model.generate([other] * 3, max_new_tokens=2, adapter=None if name else "a")
            (vector,) = model.embed(ids, adapter=name, normalize=False).vectors
            with merged_into(here.reference, factors):
                output = here.reference.generate(
                    torch.tensor([ids]),
                    attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                    max_new_tokens=8,
                    num_beams=3,
                    do_sample=False,
                )
            assert searched.token_ids == output[0, len(ids) :].tolist()
            logprobs = torch.tensor(here.logits(ids, factors)).log_softmax(-1).numpy()
            expected = [logprobs[at, token] for at, token in enumerate(ids[1:])]
            np.testing.assert_allclose(scored.logprobs, expected, atol=5e-5)
            with merged_into(here.reference, factors):
                states = reference_embeddings(here.reference, ids)
            np.testing.assert_allclose(vector, states[-1], atol=5e-5)


@pytest.mark.parametrize(
    ("architecture", "recipe"),
    [
        ("qwen2", Recipe(bits=8)),
        ("gpt2", Recipe(bits=8, activations=True)),
        ("phi3", Recipe(bits=4, group_size=16)),
    ],
    ids=["int8", "w8a8", "int4"],
)
def test_quantised_layers_lose_no_more_with_an_adapter(
    served: Callable[..., Served], architecture: str, recipe: Recipe, tmp_path: Path
) -> None:
    here, (ids, *_) = served(architecture, recipe), prompts()
    weights = here.weights(rank=4)
    assert here.info.integer_weights
    with here.model({"a": write_adapter(tmp_path / "a", weights)}) as model:
        ours = {name: model.logits(ids, adapter=name) for name in (None, "a")}
    plain, adapted = here.logits(ids), here.logits(ids, weights)
    lost, lost_adapted = np.abs(ours[None] - plain).mean(), np.abs(ours["a"] - adapted).mean()
    assert 0 < lost_adapted < 1.5 * lost
    assert np.abs(ours[None] - adapted).mean() > 1.5 * lost_adapted


def test_scale_and_rank_are_those_of_the_config(
    served: Callable[..., Served], tmp_path: Path
) -> None:
    here, (ids, *_) = served("qwen2"), prompts()
    weights = here.weights(rank=4)
    path = write_adapter(tmp_path / "a", weights, lora_alpha=6, use_rslora=True)
    with here.model({"a": path}) as model, torch.no_grad():
        got = model.logits(ids, adapter="a")
        with merged_into(here.reference, weights, scale=3.0):  # 6 / sqrt(4)
            expected = here.logits(ids)
    np.testing.assert_allclose(got, expected, atol=5e-5)


PATTERNS = {
    "rank_pattern": {"q_proj": 8, r"layers\.1\.mlp\..*_proj": 2, "proj": 1},
    "alpha_pattern": {"layers.0.self_attn.q_proj": 2},
}


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        ("model.layers.0.self_attn.q_proj", (8, 2 / 8)),
        ("model.layers.1.self_attn.q_proj", (8, 16 / 8)),
        ("model.layers.1.mlp.up_proj", (2, 16 / 2)),
        ("model.layers.11.mlp.up_proj", (4, 16 / 4)),  # no pattern is the end of its path
    ],
)
def test_patterns_name_ends_of_paths(module: str, expected: tuple[int, float]) -> None:
    assert rank_and_scale(module, {"r": 4, "lora_alpha": 16} | PATTERNS) == expected


QUERY, VALUE = "layers.0.q_proj", "layers.0.v_proj"
TABLES = (
    LoraTable(
        name="layers.0.q_proj_k_proj_v_proj",
        inputs=8,
        outputs=12,
        modules=(
            {"name": QUERY, "first_output": 0, "outputs": 8},  # type: ignore[arg-type]
            {"name": VALUE, "first_output": 10, "outputs": 2},  # type: ignore[arg-type]
        ),
    ),
)
SHAPES = {QUERY: (8, 8), VALUE: (8, 2)}


def refusal(directory: Path) -> str:
    with pytest.raises(UserError) as caught:
        read_adapter(directory, TABLES)
    said = str(caught.value)
    assert said.endswith(".")
    return said


@pytest.mark.parametrize(
    ("config", "says"),
    [
        ({"peft_type": "IA3"}, "is an adapter of type IA3: only LoRA can be used"),
        ({"use_dora": True}, "has DoRA, which isn't supported"),
        ({"bias": "lora_only"}, "has biases, which isn't supported"),
        ({"lora_bias": True}, "has biases, which isn't supported"),
        ({"modules_to_save": ["lm_head"]}, "has whole modules beside the factors"),
        ({"init_lora_weights": "pissa_niter_4"}, "has a part of the base model's weights"),
        ({"r": 3}, "lora_A of layers.0.q_proj should be [3, 8] and is [2, 8]"),
        ({"r": None}, "gives no rank and scale for layers.0.q_proj"),
        ({"rank_pattern": {"(": 1}}, "gives no rank and scale for layers.0.q_proj"),
    ],
)
def test_what_the_config_says_is_refused(tmp_path: Path, config: dict[str, Any], says: str) -> None:
    assert says in refusal(write_adapter(tmp_path / "a", random_weights(SHAPES, 2), **config))


@pytest.mark.parametrize(
    ("weights", "more", "says"),
    [
        (random_weights({"layers.0.k_proj": (8, 2)}, 2), {}, "changes layers.0.k_proj, which the"),
        (random_weights({QUERY: (8, 9)}, 2), {}, "lora_B of layers.0.q_proj should be [8, 2] and"),
        (
            random_weights(SHAPES, 2),
            {"base_model.model.lm_head.weight": torch.ones(2, 2)},
            "has base_model.model.lm_head.weight, which is no LoRA factor",
        ),
        (
            random_weights(SHAPES, 2),
            {f"base_model.model.{QUERY}.lora_magnitude_vector": torch.ones(8)},
            "lora_magnitude_vector, which is no LoRA factor",
        ),
        (
            random_weights({QUERY: (8, 8)}, 2),
            {f"base_model.model.{VALUE}.lora_A.weight": torch.ones(2, 8)},
            "lora_B of layers.0.v_proj should be [2, 2] and is none",
        ),
        (
            {QUERY: (torch.full((2, 8), float("nan")), torch.ones(8, 2))},
            {},
            "has values that are NaN or infinite in layers.0.q_proj",
        ),
    ],
)
def test_tensors_that_have_no_place_are_refused(
    tmp_path: Path, weights: Weights, more: dict[str, torch.Tensor], says: str
) -> None:
    assert says in refusal(write_adapter(tmp_path / "a", weights, more=more))


def test_damaged_and_missing_files_are_refused(tmp_path: Path) -> None:
    assert "is no adapter, it has no adapter_config.json" in refusal(tmp_path / "nowhere")
    path = write_adapter(tmp_path / "a", random_weights(SHAPES, 2))
    weights = path / "adapter_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "is missing, truncated or damaged" in refusal(path)
    weights.unlink()
    assert "has no adapter_model.safetensors" in refusal(path)
    weights.touch()
    (path / "adapter_config.json").write_text("{")
    assert "adapter_config.json' can't be read" in refusal(path)


def test_a_table_holds_blocks_as_wide_as_the_largest_adapter() -> None:
    ones = {name: Factors(np.full((8, rank), rank), np.full((rank, out), rank + 1))
            for name, rank, out in ((QUERY, 2, 8), (VALUE, 1, 2))}  # fmt: skip
    wide = {QUERY: Factors(np.full((8, 4), 9), np.full((4, 8), 9))}
    tables = AdapterTables(TABLES, "float16", {"ones": ones, "wide": wide})
    assert tables.indices == {"ones": 1, "wide": 2}
    (a, b) = tables.inputs(adapted=True).values()
    assert a.dtype == b.dtype == np.float16
    assert a.shape == (3, 8, 4)
    assert b.shape == (3, 4, 12)
    assert not a[0].any()
    assert not b[0].any()
    assert a[1].tolist() == [[2, 2, 1, 0]] * 8
    assert b[1].tolist() == [[3] * 8 + [0] * 4] * 2 + [[0] * 10 + [2] * 2, [0] * 12]
    assert [array.size for array in tables.inputs(adapted=False).values()] == [0, 0]
    large = {QUERY: Factors(np.full((8, 4), 9.0), np.full((4, 8), 7e4))}
    with pytest.raises(UserError, match="The adapter 'large' leaves the range of float16"):
        AdapterTables(TABLES, "float16", {"ones": ones, "large": large})


def test_from_the_command_to_the_text(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    bundle = tmp_path / "bundle"
    result = run(checkpoint("qwen2"), bundle, "--lora-modules", "q_proj,v_proj", "--max-length", 80)
    assert result.exit_code == 0, result.output
    manifest = open_bundle(bundle).manifest
    names = [c["name"] for c in manifest.parity["comparisons"]]
    assert names[3:] == [f"{name}, with adapters" for name in names[:3]]
    assert "q_proj (2), v_proj (2)" in (bundle / "report.md").read_text()
    shapes = {m.name: (t.inputs, m.outputs) for t in manifest.graph.lora for m in t.modules}
    assert list(shapes.values()) == [(64, 64), (64, 32)] * 2

    weights = random_weights(shapes, 4, size=0.6)
    adapter = write_adapter(tmp_path / "a", weights)
    reference = AutoModelForCausalLM.from_pretrained(checkpoint("qwen2")).eval()
    with serving.load(bundle, adapters={"a": adapter}, threads=1) as model:
        ids = model.encode("def main(")
        with torch.no_grad(), merged_into(reference, weights):
            output = reference.generate(torch.tensor([ids]), max_new_tokens=20, do_sample=False)
        expected = output[0, len(ids) :].tolist()
        result_ids = [
            generation.token_ids
            for generation in model.generate([ids, ids], max_new_tokens=20, adapter="a")
        ]
        assert result_ids == [expected, expected]
        adapted_text = model.generate(ids, max_new_tokens=20, adapter="a").text
        assert model.generate(ids, max_new_tokens=20).token_ids != expected
        for speculation in ("prompt-lookup", None):
            again = model.generate(
                ids,
                max_new_tokens=20,
                adapter="a",
                speculation=speculation,  # type: ignore[arg-type]
            )
            assert again.token_ids == expected
        with pytest.raises(UserError, match="There is no adapter 'b', only 'a': open the bundle"):
            model.generate(ids, adapter="b")

    with running({"m": bundle}, adapters={"a": adapter}, capacity=80) as server:
        assert [model.id for model in server.openai.models.list()] == ["m", "m:a"]
        texts = [
            server.openai.completions.create(model=name, prompt=ids, max_tokens=20, temperature=0)
            for name in ("m:a", "m")
        ]
        vectors = [
            server.openai.embeddings.create(model=name, input=ids).data[0].embedding
            for name in ("m:a", "m")
        ]
    assert texts[0].choices[0].text == adapted_text
    assert texts[1].choices[0].text != adapted_text
    assert not np.allclose(*vectors, atol=1e-3)

    def command(*arguments: object) -> str:
        done = CliRunner().invoke(serve_llm, [str(argument) for argument in arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    flags = (bundle, "def main(", "--max-new-tokens", 20, "--json", "--adapter", f"x={adapter}")
    assert json.loads(command("generate", *flags))["token_ids"] == expected
    assert "4 layers: q_proj, v_proj" in command("inspect", bundle)
    wrong = CliRunner().invoke(serve_llm, ["generate", str(bundle), "x", "--adapter", str(adapter)])
    assert wrong.exit_code == 2
    assert "give a name and a directory" in wrong.stderr
    with pytest.raises(UserError, match="take LoRA adapters run on the CPU only"):
        serving.load(bundle, provider="cuda")
