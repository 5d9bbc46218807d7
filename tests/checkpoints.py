"""Tiny random checkpoints of every architecture that the tests export, built from configs.

A checkpoint made here has weights of a size that makes every part of the model matter: attention
looks at content and position, every norm weight and bias differs from its neutral value, and greedy
decoding wanders instead of repeating one token. What an exporter drops or misplaces therefore
changes the logits.
"""

import functools
import inspect
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, Qwen2Tokenizer

from serving.loading import DEFAULT_CAPACITY

VOCABULARY = 512
WINDOW = 8  # smaller than any prompt of the tests
POSITIONS = DEFAULT_CAPACITY + 904  # so that a test may ask for more than the default

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)

# What all of them share. No EOS: a test decides for itself how long generation goes.
SHARED: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": None,
    "eos_token_id": None,
}
# The names that most configs use for the rest of the shape.
SHAPE: dict[str, Any] = {"intermediate_size": 128, "max_position_embeddings": POSITIONS}
GROUPED: dict[str, Any] = SHAPE | {"num_key_value_heads": 2}
HEADED: dict[str, Any] = GROUPED | {"head_dim": 16}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2}

# Name -> (model type, config). A name differs from its model type where it is a variant.
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", HEADED),
    "qwen2": ("qwen2", GROUPED),
    "qwen2_window": (
        "qwen2",
        GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    ),
    "qwen3": ("qwen3", HEADED),
    "qwen2_moe": (
        "qwen2_moe",
        GROUPED | EXPERTS | {"moe_intermediate_size": 64, "shared_expert_intermediate_size": 64},
    ),
    "qwen3_moe": (
        "qwen3_moe",
        HEADED | EXPERTS | {"moe_intermediate_size": 64, "norm_topk_prob": True},
    ),
    "mixtral": ("mixtral", HEADED | EXPERTS),
    "mistral": ("mistral", HEADED | {"sliding_window": WINDOW}),
    "gpt2": ("gpt2", {"n_positions": POSITIONS}),
    "gemma": ("gemma", HEADED),
    "gemma2": (
        "gemma2",
        HEADED
        | {
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
            "attn_logit_softcapping": 4.0,
            "final_logit_softcapping": 5.0,
        },
    ),
    "gemma3": (
        "gemma3_text",
        HEADED
        | {
            "num_hidden_layers": 3,
            "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
            "sliding_window": WINDOW,
            "query_pre_attn_scalar": 24,
        },
    ),
    "phi": ("phi", GROUPED),
    "phi3": ("phi3", GROUPED | {"original_max_position_embeddings": 512}),
    "gpt_neox": ("gpt_neox", SHAPE),
    "gptj": ("gptj", {"n_positions": POSITIONS, "rotary_dim": 8}),
    "opt": (
        "opt",
        {"ffn_dim": 128, "max_position_embeddings": POSITIONS, "word_embed_proj_dim": 64},
    ),
    "granite": (
        "granite",
        GROUPED
        | {
            "embedding_multiplier": 3.0,
            "residual_multiplier": 0.7,
            "attention_multiplier": 0.2,
            "logits_scaling": 0.5,
        },
    ),
    "olmo2": ("olmo2", GROUPED),
    "starcoder2": ("starcoder2", GROUPED),
    "stablelm": ("stablelm", GROUPED | {"use_qkv_bias": True}),
    "smollm3": ("smollm3", GROUPED | {"no_rope_layer_interval": 2}),
    "falcon": (
        "falcon",
        {"max_position_embeddings": POSITIONS, "new_decoder_architecture": True, "num_kv_heads": 2},
    ),
    "falcon_alibi": (
        "falcon",
        {
            "max_position_embeddings": POSITIONS,
            "alibi": True,
            "bias": True,
            "multi_query": False,
            "num_kv_heads": 4,
            "parallel_attn": False,
        },
    ),
    "bloom": ("bloom", {"seq_length": POSITIONS}),  # it has no limit: any config may name one
    "mpt": ("mpt", {"max_seq_len": POSITIONS, "use_cache": True}),
    "cohere": ("cohere", GROUPED | {"logit_scale": 1.5}),
    "gpt_oss": (
        "gpt_oss",
        HEADED
        | EXPERTS
        | {
            "sliding_window": WINDOW,
            "rope_parameters": {
                "rope_type": "yarn",
                "rope_theta": 10000.0,
                "factor": 4.0,
                "beta_fast": 32.0,
                "beta_slow": 1.0,
                "truncate": False,
                "original_max_position_embeddings": 128,
            },
        },
    ),
}


def make_checkpoint(
    architecture: str, directory: Path, *, seed: int = 0, **config_overrides: Any
) -> Path:
    """Write a tiny float32 checkpoint of ``architecture`` to ``directory`` and return it.

    ``config_overrides`` go to the config last, so that a test can ask for an EOS id, another number
    of layers or a trait of its own.
    """
    model_type, config = ARCHITECTURES[architecture]
    settings = AutoConfig.for_model(model_type, **(SHARED | config | config_overrides))
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(settings, dtype=torch.float32)
        enliven(model)
    model.save_pretrained(directory)
    tokenizer().save_pretrained(directory)
    return directory


def enliven(model: torch.nn.Module) -> None:
    """Draw every weight again, large enough to matter, and move what else is stored."""
    for name, parameter in model.named_parameters():
        noise = torch.randn(parameter.shape)
        if parameter.dim() > 1:
            # About 1.4 / sqrt(hidden size): logits, attention scores and residuals of order one.
            parameter.data = 0.18 * noise
            continue
        parameter.data += 0.2 * noise
        if name.endswith("weight"):
            # A norm's scale becomes about 1 or -1 (whether the model stores it as such or less 1).
            # With positive scales and tied embeddings the likeliest next token is the last one.
            parameter.data -= 2.0 * torch.randint(2, parameter.shape)
    for name, buffer in model.named_buffers():
        if name in model.state_dict() and buffer.is_floating_point():
            buffer += 0.1 * torch.randn(buffer.shape)  # a router's correction, say


@functools.cache
def tokenizer() -> Qwen2Tokenizer:
    """Return the byte-level BPE tokenizer that all tiny checkpoints share.

    It is a Qwen2Tokenizer because transformers turns any other class into one for qwen2.
    """
    texts = [inspect.getsource(functools), inspect.getsource(inspect)]
    trained = Qwen2Tokenizer().train_new_from_iterator(
        texts, VOCABULARY, new_special_tokens=["<|im_start|>", "<|im_end|>"], show_progress=False
    )
    trained.eos_token = None
    trained.padding_side = "left"
    trained.chat_template = CHAT_TEMPLATE
    return trained
