"""Tiny configs of any model type, made by rules about what attributes are called.

No rule knows a model type. A rule sets a number that every config holds under one of a few names:
a size, a count of heads or experts, a window, a token id. Numbers that belong together stay
together: a list with one entry a layer is cut to the layers that are kept, and a head size that was
equal to another size stays equal to it.
"""

import re
from collections.abc import Iterator
from typing import Any

from transformers import AutoConfig, PreTrainedConfig

from tests.checkpoints import VOCABULARY, WINDOW

POSITIONS = 256

# Pattern of a name -> the value that an integer of that name gets; the first match counts.
RULES: tuple[tuple[str, int], ...] = (
    (r"(.*_)?vocab(_size.*)?|unpadded_vocab_size", VOCABULARY),
    (r".*max_(target_)?position(_embedding)?s|max_seq_len|n_positions|n_ctx|seq_length", POSITIONS),
    (r"sliding_window(_size)?|window_size|local_attention|attention_(chunk|window)_size", WINDOW),
    (r"local_attention_window_len|keep_window_size|compress_window.*", WINDOW),
    (r"num_centroids|audio_chunk_size|index_block_size|block_size", WINDOW),
    # Experts.
    (r"num(_local|_routed)?_experts|n_routed_experts|moe_num_experts", 4),
    (r"num_experts_per_tok(en)?|moe_top_?k|moe_k|top_k_experts|num_experts_per_topk", 2),
    (r"n_group|moe_n_group", 2),
    (r"topk_group|moe_topk_group|first_k_dense_replace|zero_expert_num", 1),
    (r"num_dense_layers|moe_layer_start_index", 1),
    # State-space and linear-attention layers.
    (r"mamba_(n|num)_heads", 8),
    (r"mamba_(d_head|head_?dim)|mamba_d_state|ssm_state_size|state_size", 16),
    (r"mamba_d_ssm", 64),
    (r"time_step_rank|mamba_dt_rank|mamba_chunk_size", 4),
    # Heads.
    (r"(.*_)?num_(key_value|kv)_heads|num_query_groups|num_kv_heads", 2),
    (r"(.*_)?(num_attention|attention|num|n)_heads?|num_(en|de)coder_attention_heads", 4),
    (r"num_attention_heads_per_layer|index_n_heads|num_encoder_attention_heads", 4),
    (r"qk_rope_head_dim|rotary_dim", 8),
    (r"qk_nope_head_dim|v_head_dim|(swa_|index_|global_)?head_dim|dim_head|d_head|kv_channels", 16),
    (r"d_kv|attention_head_(dim|size)|linear(_key|_value)?_head_dim", 16),
    (r"linear_num(_key|_value)?_heads", 4),
    (r"(q|kv|o)_lora_rank|(.*_)?rank", 16),
    # Widths.
    (r"(moe|shared_experts?|expert|moe_shared_expert)_(intermediate|ffn_hidden)_size", 64),
    (r"(.*_)?(intermediate_size(_mlp)?|ffn_dim|ffn_hidden_size)|d_inner|d_ff|dff|dim_ff", 128),
    (r"mlp_dim|feed_forward_size|attention_hidden_size", 128),
    (r"(.*_)?hidden_size(_global)?|d_model|n_embd|emb(edding)?_(dim|size)|lru_width", 64),
    (r"word_embed_proj_dim|(in|out)put_embedding_size|projector_(in|out)put_dim|adapter_.*", 64),
    (r"hidden_size_per_layer_input|ple_embed_dim|.*_embed_dim", 16),
    (r"(query_pre_attn_scalar|dim_model_base)", 24),
    # Parts that decoding leaves aside, made small: images and sounds.
    (r"image_size|crop_size", 32),
    (r"patch_size", 8),
    (r"depth|conf_num_hidden_layers|num_blocks", 2),
    (r".*_vocab|ngram_vocab_size_base|encoder_hash_byte_group_vocab", VOCABULARY),
    (r"split_ngram_parts", 4),
)
# What counts a stack's layers, in order of precedence.
LAYER_COUNTS = (
    "num_hidden_layers",
    "n_layer",
    "n_layers",
    "num_layers",
    "decoder_layers",
    "num_decoder_layers",
    "num_blocks",
)
# Distances between layers of a kind, and where the first one is.
PERIODS = r".*_(interval|period|pattern|every_n|step|frequency)"
# What some configs leave open and their model needs.
REQUIRED = {
    "head_dim": 16,
    "num_key_value_heads": 2,
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_shared_experts": 1,
    "indexer_n_heads": 2,
    "indexer_kv_heads": 1,
    "indexer_head_dim": 16,
    "indexer_budget": 8,
    "indexer_compress_ratio": 2,
}
# Both parts of one type, whose sizes have to be the same.
_T5GEMMA2 = {
    "vocab_size": VOCABULARY,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": POSITIONS,
    "sliding_window": WINDOW,
    "layer_types": ["sliding_attention", "full_attention"],
    "query_pre_attn_scalar": 24,
}
# What the configs of some types, made without arguments, lack or contradict.
SPECIAL: dict[str, dict[str, Any]] = {
    "bailing_hybrid": {"n_group": 2, "topk_group": 1},
    "cohere_compass_text": {
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 10000.0}
            for kind in ("full_attention", "sliding_attention")
        }
    },
    "dbrx": {"attn_config": {"rope_theta": 10000.0, "kv_n_heads": 2, "clip_qkv": 8.0}},
    "gemma4_assistant": {
        "text_config": {
            "hidden_size_per_layer_input": 0,
            "vocab_size_per_layer_input": 0,
        }
    },
    "esm": {"vocab_size": VOCABULARY, "pad_token_id": 1, "mask_token_id": 2},
    "esmc": {"num_attention_heads": 4, "num_key_value_heads": 4},
    "jamba": {"attn_layer_offset": 1},
    "lfm2": {"layer_types": ["conv", "full_attention"] * 16, "full_attn_idxs": None},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 16},
    "mamba2": {"num_heads": 8, "head_dim": 16, "hidden_size": 64},
    "mobilebert": {"intra_bottleneck_size": 32, "embedding_size": 64},
    "nemotron_h": {"n_groups": 1},
    "perceiver": {
        "d_latents": 64,
        "d_model": 64,
        "num_latents": 16,
        "num_self_attends_per_block": 2,
    },
    "reformer": {"axial_pos_embds_dim": [16, 48], "axial_pos_shape": [16, 16]},
    "t5gemma2": {
        "encoder": {
            "text_config": _T5GEMMA2,
            "vision_config": {
                "model_type": "siglip_vision_model",
                "hidden_size": 32,
                "intermediate_size": 64,
                "num_hidden_layers": 1,
                "num_attention_heads": 2,
                "image_size": 32,
                "patch_size": 8,
            },
        },
        "decoder": _T5GEMMA2,
    },
    "xmod": {"default_language": "en_XX"},
}
FLAGS = {"use_cache": True, "use_sliding_window": True}
TOKEN_ID = r".*_token_(id|index)"


def tiny_config(model_type: str, *, is_decoder: bool = True) -> PreTrainedConfig:
    """A config of ``model_type`` with a few small layers, one of each kind that its default has.

    Types that may be both are decoders or, without ``is_decoder``, encoders.
    """
    flags = FLAGS | {"is_decoder": is_decoder}
    special = SPECIAL.get(model_type, {})
    default = AutoConfig.for_model(model_type, **special)
    nested = {
        name: type(part)(**_tiny_values(part, special.get(name, {}), flags))
        for name in default.sub_configs
        if isinstance(part := getattr(default, name, None), PreTrainedConfig)
    }
    return AutoConfig.for_model(model_type, **(_tiny_values(default, special, flags) | nested))


def _tiny_values(
    default: PreTrainedConfig, special: dict[str, Any], flags: dict[str, bool]
) -> dict[str, Any]:
    """The arguments of a config's class that make it tiny."""
    plain = {k: v for k, v in default.to_dict().items() if k not in default.sub_configs}
    values = _small_numbers(plain) | {
        name: value for name, value in flags.items() if isinstance(plain.get(name), bool)
    }
    values |= special
    counts = [name for name in LAYER_COUNTS if isinstance(plain.get(name), int)]
    if not counts:
        return values
    # With the default's number of layers, what each is follows from the new values.
    full = type(default)(**values).to_dict()
    count = full[counts[0]]
    of_layers, of_indices = _layer_lists(full, count), _index_lists(full, count)
    own = {int(index): each for index, each in full.get("per_layer_config", {}).items()}
    chosen = _one_of_each(
        [
            *of_layers.values(),
            *([index in each for index in range(count)] for each in of_indices.values()),
            *([[own.get(index) for index in range(count)]] if own else []),
        ],
        count,
        periodic=any(re.fullmatch(PERIODS, name) for name in plain),
    )
    if any("hybrid" in entries for entries in of_layers.values()):
        chosen = chosen * 2  # such layers share weights with each other
    if shared := full.get("num_kv_shared_layers"):
        values["num_kv_shared_layers"] = len(chosen)
        chosen = chosen if shared == count else chosen * 2
    for name, entries in of_layers.items():
        values[name] = [entries[index] for index in chosen]
    for name, indices in of_indices.items():
        values[name] = [new for new, old in enumerate(chosen) if old in indices]
    if own:
        values["per_layer_config"] = {
            new: {
                name: _small_numbers(plain | own[old]).get(name, value)
                for name, value in own[old].items()
            }
            for new, old in enumerate(chosen)
            if old in own
        }
    return values | dict.fromkeys(counts, len(chosen))


def _small_numbers(plain: dict[str, Any]) -> dict[str, Any]:
    """Values for the numbers among ``plain`` that a rule knows."""
    values: dict[str, Any] = {}
    token_ids = iter(range(VOCABULARY - 1, 0, -1))
    for name, value in plain.items():
        if re.fullmatch(TOKEN_ID, name):
            values[name] = _small_token(name, value, token_ids)
        elif value is None and name in REQUIRED:
            values[name] = REQUIRED[name]
        elif isinstance(value, int) and not isinstance(value, bool) and value > 0:
            if re.fullmatch(PERIODS, name) and value > 1:
                values[name] = 2
            elif (small := _by_rule(name)) is not None:
                values[name] = min(small, value)
        elif isinstance(value, list) and (small := _by_rule(name)) is not None:
            values[name] = [small] * len(value)
    if "kv_lora_rank" in values and "num_key_value_heads" in values:
        # Every head has keys of its own, made from the latent ones.
        values["num_key_value_heads"] = values["num_attention_heads"]
    if {"qk_nope_head_dim", "qk_rope_head_dim", "head_dim"} <= values.keys():
        nope, rope = plain["qk_nope_head_dim"], plain["qk_rope_head_dim"]
        sums = {rope: 8, nope + rope: 24}
        values["head_dim"] = sums.get(plain["head_dim"], 16)
    return values


def _small_token(name: str, value: Any, unused: Iterator[int]) -> Any:
    """A token id within the vocabulary. Without EOS a test decides how long generation goes."""
    if name == "eos_token_id" or value is None:
        return None
    if isinstance(value, list):
        return [_small_token(name, each, unused) for each in value]
    return value if value < VOCABULARY else next(unused)


def _by_rule(name: str) -> int | None:
    return next((small for pattern, small in RULES if re.fullmatch(pattern, name)), None)


def _layer_lists(plain: dict[str, Any], count: int) -> dict[str, list[Any]]:
    """Lists with one entry a layer."""
    return {
        name: list(value)
        for name, value in plain.items()
        if isinstance(value, (list, tuple)) and len(value) == count > 2
        if name not in _index_lists(plain, count)
    }


def _index_lists(plain: dict[str, Any], count: int) -> dict[str, list[int]]:
    """Lists of layers' indices."""
    return {
        name: list(value)
        for name, value in plain.items()
        if re.fullmatch(r".*(layers|_ids|_idxs|indices|indexes)", name)
        and isinstance(value, (list, tuple))
        and value
        and all(type(index) is int and 0 <= index < count for index in value)
        and len(set(value)) == len(value)
    }


def _one_of_each(lists: list[list[Any]], count: int, *, periodic: bool) -> list[int]:
    """The first layer of each kind, and one more where there is only one kind."""
    if not lists:
        return list(range(min(count, 4 if periodic else 2)))
    kinds = [tuple(str(entries[index]) for entries in lists) for index in range(count)]
    first = sorted({kind: index for index, kind in reversed(list(enumerate(kinds)))}.values())
    return first if len(first) > 1 else first * 2
