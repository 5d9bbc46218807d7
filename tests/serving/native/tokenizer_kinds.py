"""Tokenizers with the parts of real families: the same JSON but for a smaller vocabulary.

What a family's tokenizer.json has is what transformers' converters write
(convert_slow_tokenizer.py, models/*/tokenization_*.py), or what the family publishes (DeepSeek,
Mistral Nemo, GPT-4o).
"""

# ruff: noqa: RUF001 - characters that look like others are what this is about

import json
from collections.abc import Callable, Sequence
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    normalizers,
    pre_tokenizers,
    processors,
)
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from transformers import (
    GemmaTokenizer,
    GPT2Tokenizer,
    LlamaTokenizer,
    PreTrainedTokenizerBase,
    Qwen2Tokenizer,
)

LLAMA_3 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_2 = LLAMA_3.replace(r"\p{N}{1,3}", r"\p{N}")
QWEN_3_5 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}"
    r"| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
TEKKEN = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)?|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+"
    r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
DEEPSEEK_3 = (
    r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
    r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"""
)
KIMI = r"[\p{Han}]+|" + O200K
BLOOM = " ?[^(\\s|[.,!?…。，、।۔،])]+"  # a class in a class, as it is published
RIGHT_TO_LEFT_DIGITS = r"\p{N}{1,3}(?=(?:\p{N}{3})*(?:\P{N}|$))|\P{N}+"

BOS, EOS = "<s>", "</s>"
TURN_START, TURN_END = "<|im_start|>", "<|im_end|>"

Vocabulary = tuple[dict[str, int], list[tuple[str, str]]]
Kind = Callable[[], Tokenizer]


def learn(texts: Sequence[str], size: int, *, byte_level: bool) -> Vocabulary:
    """Vocabulary and merges of a BPE trained on ``texts``."""
    tokenizer = Tokenizer(BPE())
    if byte_level:
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(O200K), "isolated"), pre_tokenizers.ByteLevel(False)]
        )
        special, alphabet = [], pre_tokenizers.ByteLevel.alphabet()
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="never")
        special = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256))]
        alphabet = ["▁"]
    trainer = BpeTrainer(
        vocab_size=size,
        special_tokens=special,
        initial_alphabet=alphabet,
        limit_alphabet=2000,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    model = json.loads(tokenizer.to_str())["model"]
    return model["vocab"], [tuple(merge) for merge in model["merges"]]


def byte_level(
    learnt: Vocabulary,
    *patterns: str,
    ignore_merges: bool = False,
    steps: Sequence[Any] = (),
    special: Sequence[str] = (TURN_START, TURN_END),
) -> Tokenizer:
    """A byte-level tokenizer that splits by each pattern in turn, and then by ``steps``.

    With ``ignore_merges`` some tokens, as in real vocabularies, aren't what merging comes to.
    """
    vocabulary, merges = learnt
    if ignore_merges:
        merges = [merge for number, merge in enumerate(merges) if number % 5]
    tokenizer = Tokenizer(BPE(vocabulary, merges, ignore_merges=ignore_merges))
    splits = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    last = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not (splits or steps))
    parts = [*splits, *steps, last]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else last
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(special))
    return tokenizer


def of_characters(
    learnt: Vocabulary, *, prefix: bool, fuse_unk: bool = True, byte_fallback: bool = True
) -> Tokenizer:
    """A tokenizer of characters; ``prefix``: text decodes without its first space."""
    model = BPE(*learnt, unk_token="<unk>", fuse_unk=fuse_unk, byte_fallback=byte_fallback)
    tokenizer = Tokenizer(model)
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefix:
        parts.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens(["<unk>", BOS, EOS])
    return tokenizer


def framed(tokenizer: Tokenizer, single: str) -> Tokenizer:
    """The tokenizer with special tokens around a text: ``"<s> $A"``."""
    names = [name for name in single.split() if name != "$A"]
    tokens = [(name, tokenizer.token_to_id(name)) for name in dict.fromkeys(names)]
    tokenizer.post_processor = processors.TemplateProcessing(
        single=single, pair=f"{single} $B:1", special_tokens=tokens
    )
    return tokenizer


def backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """What transformers' class makes of a vocabulary and merges."""
    made: Tokenizer = tokenizer.backend_tokenizer
    return made


class Kinds:
    """The tokenizers of all kinds, from a vocabulary of bytes and one of characters."""

    def __init__(self, bytes_: Vocabulary, characters: Vocabulary) -> None:
        self.bytes = bytes_
        self.characters = characters
        self.makers: dict[str, Kind] = {
            name.removeprefix("make_"): getattr(self, name)
            for name in dir(self)
            if name.startswith("make_")
        }

    @classmethod
    def learnt(cls, texts: Sequence[str], size: int) -> "Kinds":
        """With vocabularies of this size, trained on ``texts``."""
        return cls(learn(texts, size, byte_level=True), learn(texts, size, byte_level=False))

    def make_gpt2(self) -> Tokenizer:
        tokenizer = byte_level(self.bytes, special=("<|endoftext|>",))
        tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
        return tokenizer

    def make_llama3(self) -> Tokenizer:
        special = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
        tokenizer = byte_level(self.bytes, LLAMA_3, ignore_merges=True, special=special)
        template = framed(tokenizer, "<|begin_of_text|> $A").post_processor
        parts = [processors.ByteLevel(trim_offsets=False), template]
        tokenizer.post_processor = processors.Sequence(parts)
        return tokenizer

    def make_qwen2(self) -> Tokenizer:
        tokenizer = byte_level(self.bytes, QWEN_2)
        tokenizer.normalizer = normalizers.NFC()
        tokenizer.add_tokens([AddedToken("<tool_call>", normalized=False)])
        return tokenizer

    def make_qwen3_5(self) -> Tokenizer:
        tokenizer = byte_level(self.bytes, QWEN_3_5)
        tokenizer.normalizer = normalizers.NFC()
        return tokenizer

    def make_tekken(self) -> Tokenizer:
        special = (BOS, EOS, "[INST]", "[/INST]")
        tokenizer = byte_level(self.bytes, TEKKEN, ignore_merges=True, special=special)
        return framed(tokenizer, f"{BOS} $A")

    def make_o200k(self) -> Tokenizer:
        return byte_level(self.bytes, O200K)

    def make_kimi(self) -> Tokenizer:
        return byte_level(self.bytes, KIMI)

    def make_deepseek3(self) -> Tokenizer:
        special = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
        cjk = "[一-龥぀-ゟ゠-ヿ]+"
        tokenizer = byte_level(self.bytes, r"\p{N}{1,3}", cjk, DEEPSEEK_3, special=special)
        tokenizer.normalizer = normalizers.Sequence([])
        return framed(tokenizer, f"{special[0]} $A")

    def make_deepseek2(self) -> Tokenizer:
        letters = r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶ-ͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-Ⴥａ-ｚ𐐀-𐑏]+"
        marks = r"\s?[!-/:-~！-／：-～‘-‟　-。]+"
        cjk = "[一-龥ࠀ-一가-퟿]+"
        digits = pre_tokenizers.Digits(individual_digits=True)
        patterns = ("[\r\n]", letters, marks, r"\s+$", cjk)
        return byte_level(self.bytes, *patterns, steps=[digits])

    def make_starcoder(self) -> Tokenizer:
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer = byte_level(self.bytes)
        words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
        return tokenizer

    def make_bloom(self) -> Tokenizer:
        return byte_level(self.bytes, BLOOM)

    def make_right_to_left_digits(self) -> Tokenizer:
        return byte_level(self.bytes, RIGHT_TO_LEFT_DIGITS)

    def make_roberta(self) -> Tokenizer:
        tokenizer = byte_level(self.bytes, special=(BOS, EOS))
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        end, start = ((token, tokenizer.get_vocab()[token]) for token in (EOS, BOS))
        tokenizer.post_processor = processors.RobertaProcessing(end, start)
        mask = AddedToken("<mask>", lstrip=True, normalized=False)
        tokenizer.add_special_tokens([mask])
        return tokenizer

    def make_llama2(self) -> Tokenizer:
        tokenizer = of_characters(self.characters, prefix=True)
        steps = [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        return framed(tokenizer, f"{BOS} $A")

    def make_llama2_metaspace(self) -> Tokenizer:
        tokenizer = of_characters(self.characters, prefix=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        return framed(tokenizer, f"{BOS} $A {EOS}")

    def make_metaspace(self) -> Tokenizer:
        tokenizer = of_characters(self.characters, prefix=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
        tokenizer.decoder = decoders.Metaspace(prepend_scheme="always", split=True)
        return tokenizer

    def make_gemma(self) -> Tokenizer:
        tokenizer = of_characters(self.characters, prefix=False)
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", "merged_with_previous")
        runs = [AddedToken("\n" * n, normalized=False) for n in range(2, 6)]
        spaces = [AddedToken("▁" * n, normalized=False) for n in range(2, 6)]
        tokenizer.add_tokens([*runs, *spaces, AddedToken("<div>", normalized=False)])
        return framed(tokenizer, f"{BOS} $A")

    def make_unknown(self) -> Tokenizer:
        """Many characters are unknown: each is, or all of a run are, or its bytes are in part."""
        return self.with_unknown(fuse_unk=False, byte_fallback=False)

    def make_unknown_fused(self) -> Tokenizer:
        return self.with_unknown(fuse_unk=True, byte_fallback=False)

    def make_unknown_bytes(self) -> Tokenizer:
        return self.with_unknown(fuse_unk=True, byte_fallback=True)

    def with_unknown(self, *, fuse_unk: bool, byte_fallback: bool) -> Tokenizer:
        vocabulary, merges = self.characters
        known = [token for token in vocabulary if token.isascii() and not token.endswith("F>")]
        kept = {token: number for number, token in enumerate([*known, "▁", "é", "中"])}
        inside = [merge for merge in merges if {*merge, "".join(merge)} <= kept.keys()]
        tokenizer = of_characters(
            (kept, inside), prefix=False, fuse_unk=fuse_unk, byte_fallback=byte_fallback
        )
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
        return tokenizer

    def make_transformers_llama(self) -> Tokenizer:
        return backend(LlamaTokenizer(*self.characters, add_bos_token=True))

    def make_transformers_gemma(self) -> Tokenizer:
        return backend(GemmaTokenizer(*self.characters))

    def make_transformers_qwen2(self) -> Tokenizer:
        return backend(Qwen2Tokenizer(*self.bytes))

    def make_transformers_gpt2(self) -> Tokenizer:
        return backend(GPT2Tokenizer(*self.bytes))

    def make_added(self) -> Tokenizer:
        """Added tokens of all sorts, and no decoder of its own."""
        tokenizer = of_characters(self.characters, prefix=False)
        steps = [normalizers.NFC(), normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
        tokenizer.normalizer = normalizers.Sequence(steps)
        tokenizer.add_tokens(
            [
                AddedToken("def", single_word=True, normalized=False),
                AddedToken("self", single_word=True, lstrip=True, rstrip=True, normalized=True),
                AddedToken("return", lstrip=True, normalized=False),
                AddedToken("import", rstrip=True, normalized=False),
                AddedToken("é", normalized=True),
                AddedToken("in", normalized=True),
                AddedToken("<|im", normalized=False),
                AddedToken("if x", normalized=True),
            ]
        )
        changed = AddedToken("<a b>", special=True, normalized=True)
        tokenizer.add_special_tokens([TURN_START, changed])
        return tokenizer
