"""Writing a checkpoint as a float32 GGUF file, for llama.cpp.

Names and meanings are those of the GGUF specification (ggml-org/ggml, docs/gguf.md). The file has
no vocabulary: prompts are token ids.
"""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from gguf import GGUFWriter
from safetensors import safe_open

Tensor = npt.NDArray[np.float32]
Config = dict[str, object]


def write_gguf(checkpoint: Path, file: Path) -> None:
    """Write ``checkpoint`` (llama, qwen2 or gpt2; one or more safetensors files) to ``file``.

    Raises ValueError for another architecture, or a setting that this writer doesn't express.
    """
    config = json.loads((checkpoint / "config.json").read_text())
    architecture = config["model_type"]
    if architecture not in WRITERS:
        raise ValueError(f"no GGUF names for {architecture!r}, only for {', '.join(WRITERS)}")
    describe, rename = WRITERS[architecture]
    writer = GGUFWriter(file, architecture)
    writer.add_file_type(0)  # all float32
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(config["vocab_size"])
    describe(writer, config)
    for name, tensor in _tensors(checkpoint):
        for new_name, new_tensor in rename(name, tensor, config):
            writer.add_tensor(new_name, np.ascontiguousarray(new_tensor, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _tensors(checkpoint: Path) -> Iterator[tuple[str, Tensor]]:
    for file in sorted(checkpoint.glob("*.safetensors")):
        with safe_open(file, "numpy") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - not a mapping
                yield name, tensors.get_tensor(name)


def _describe_llama(writer: GGUFWriter, config: Config) -> None:
    rope = config.get("rope_parameters") or config
    if rope.get("rope_type", "default") != "default" or config.get("rope_scaling"):
        raise ValueError("scaled rotary embeddings are not written")
    heads = config["num_attention_heads"]
    writer.add_context_length(config["max_position_embeddings"])
    writer.add_embedding_length(config["hidden_size"])
    writer.add_block_count(config["num_hidden_layers"])
    writer.add_feed_forward_length(config["intermediate_size"])
    writer.add_head_count(heads)
    writer.add_head_count_kv(config["num_key_value_heads"])
    writer.add_layer_norm_rms_eps(config["rms_norm_eps"])
    writer.add_rope_freq_base(rope.get("rope_theta", 10000.0))
    writer.add_rope_dimension_count(config.get("head_dim") or config["hidden_size"] // heads)


LLAMA_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
LLAMA_OUTER_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
}


def _rename_qwen2(name: str, tensor: Tensor, config: Config) -> Iterator[tuple[str, Tensor]]:
    module, _, kind = name.rpartition(".")
    if module == "lm_head" and config["tie_word_embeddings"]:
        return  # llama.cpp takes the embedding where there is no output tensor
    if module in LLAMA_OUTER_NAMES:
        yield f"{LLAMA_OUTER_NAMES[module]}.{kind}", tensor
        return
    _, _, layer, inner = module.split(".", 3)
    yield f"blk.{layer}.{LLAMA_NAMES[inner]}.{kind}", tensor


def _rename_llama(name: str, tensor: Tensor, config: Config) -> Iterator[tuple[str, Tensor]]:
    for new_name, new_tensor in _rename_qwen2(name, tensor, config):
        if ".attn_q." in new_name:
            yield new_name, _interleave_halves(new_tensor, config["num_attention_heads"])
        elif ".attn_k." in new_name:
            yield new_name, _interleave_halves(new_tensor, config["num_key_value_heads"])
        else:
            yield new_name, new_tensor


def _interleave_halves(weight: Tensor, heads: int) -> Tensor:
    """Reorder rows for llama.cpp's "llama", which rotates neighbours and not halves of a head."""
    halves = weight.reshape(heads, 2, -1, *weight.shape[1:])
    return halves.swapaxes(1, 2).reshape(weight.shape)


def _describe_gpt2(writer: GGUFWriter, config: Config) -> None:
    writer.add_context_length(config["n_positions"])
    writer.add_embedding_length(config["n_embd"])
    writer.add_block_count(config["n_layer"])
    writer.add_feed_forward_length(config["n_inner"] or 4 * config["n_embd"])
    writer.add_head_count(config["n_head"])
    writer.add_layer_norm_eps(config["layer_norm_epsilon"])


GPT2_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}
GPT2_OUTER_NAMES = {"wte": "token_embd", "wpe": "position_embd", "ln_f": "output_norm"}


def _rename_gpt2(name: str, tensor: Tensor, _: Config) -> Iterator[tuple[str, Tensor]]:
    module, _, kind = name.removeprefix("transformer.").rpartition(".")
    if module == "lm_head" or kind in ("masked_bias",) or module.endswith(".attn"):
        return  # tied to the embedding; masks of old checkpoints
    if module in GPT2_OUTER_NAMES:
        yield f"{GPT2_OUTER_NAMES[module]}.{kind}", tensor
        return
    _, layer, inner = module.split(".", 2)
    # GPT-2's linear layers are stored [in, out].
    is_linear = tensor.ndim == 2
    yield f"blk.{layer}.{GPT2_NAMES[inner]}.{kind}", tensor.T if is_linear else tensor


Describe = Callable[[GGUFWriter, Config], None]
Rename = Callable[[str, Tensor, Config], Iterator[tuple[str, Tensor]]]

WRITERS: dict[str, tuple[Describe, Rename]] = {
    "gpt2": (_describe_gpt2, _rename_gpt2),
    "llama": (_describe_llama, _rename_llama),
    "qwen2": (_describe_llama, _rename_qwen2),
}
