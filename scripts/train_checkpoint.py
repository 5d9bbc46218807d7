#!/usr/bin/env python3
"""Train a small decoder on the Python standard library and save it as a Hugging Face checkpoint.

The text is on any machine that runs Python, so nothing is downloaded. A document is one top-level
function or class, followed by the EOS token; functions with a docstring also appear once as a chat
in which the user asks what they do. One module in sixteen is held out.

The result is a Qwen3 of 1.8 million parameters (grouped queries, QK norm, tied embeddings) that
writes text of the right shape and stops. It is for trying the tools, not for using the text.
"""

import ast
import itertools
import math
import random
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import click
import torch
from torch.nn.functional import cross_entropy
from transformers import Qwen2Tokenizer, Qwen3Config, Qwen3ForCausalLM

VOCABULARY = 2048
CONTEXT = 256
BATCH = 8
WARM_UP = 10
# The first is EOS and padding to this tokenizer class as it is.
END, TURN_START, TURN_END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@click.command(help=__doc__)
@click.argument("directory", type=click.Path(file_okay=False, path_type=Path))
@click.option("--steps", default=240, show_default=True, help="Optimiser steps.")
@click.option("--seed", default=0, show_default=True)
def main(directory: Path, steps: int, seed: int) -> None:
    start = time.perf_counter()
    torch.manual_seed(seed)
    torch.set_num_threads(min(2, torch.get_num_threads()))

    modules = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    held_out_modules = modules[::16]
    training = [
        text for path in modules if path not in held_out_modules for text in documents(path)
    ]
    held_out = [text for path in held_out_modules for text in documents(path)]
    random.Random(seed).shuffle(training)
    click.echo(f"{len(modules)} modules, {len(training)} documents to train on", err=True)

    tokenizer = train_tokenizer(training)
    batches = pack(tokenizer, training)
    click.echo(f"{batches.numel():,} tokens after {time.perf_counter() - start:.0f} s", err=True)

    model = new_model(tokenizer)
    train(model, batches, steps, seed)
    training_loss = evaluate(model, batches[:64])
    held_out_loss = evaluate(model, pack(tokenizer, held_out)[:128])

    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    size = sum(path.stat().st_size for path in directory.iterdir())
    click.echo(
        f"train loss {training_loss:.3f} (perplexity {math.exp(training_loss):.1f}), "
        f"held-out loss {held_out_loss:.3f} (perplexity {math.exp(held_out_loss):.1f}); "
        f"uniform would be {VOCABULARY}\n"
        f"{model.num_parameters():,} parameters, {size / 1e6:.1f} MB, "
        f"{time.perf_counter() - start:.0f} s: {directory}"
    )


def documents(path: Path) -> Iterator[str]:
    """Yield the top-level functions and classes of a module, and chats about them."""
    source = path.read_text(encoding="utf-8", errors="replace")
    lines = source.split("\n")
    for node in ast.parse(source).body:
        if not isinstance(node, ast.FunctionDef | ast.ClassDef):
            continue
        yield "\n".join([*lines[node.lineno - 1 : node.end_lineno], END])
        if docstring := ast.get_docstring(node):
            summary = " ".join(docstring.split("\n\n")[0].split())
            yield (
                f"{TURN_START}user\nWhat does {path.stem}.{node.name} do?{TURN_END}\n"
                f"{TURN_START}assistant\n{summary}{TURN_END}\n{END}"
            )


def train_tokenizer(texts: list[str]) -> Qwen2Tokenizer:
    tokenizer = Qwen2Tokenizer().train_new_from_iterator(
        texts, VOCABULARY, new_special_tokens=[TURN_START, TURN_END], show_progress=False
    )
    tokenizer.model_max_length = CONTEXT
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def pack(tokenizer: Qwen2Tokenizer, texts: list[str]) -> torch.Tensor:
    """Return the texts' tokens as rows of a context and the token after it."""
    encodings = tokenizer.backend_tokenizer.encode_batch(texts)
    stream = torch.tensor(list(itertools.chain.from_iterable(e.ids for e in encodings)))
    rows = len(stream) // (CONTEXT + 1)
    return stream[: rows * (CONTEXT + 1)].view(rows, CONTEXT + 1)


def new_model(tokenizer: Qwen2Tokenizer) -> Qwen3ForCausalLM:
    end, turn_end = tokenizer.convert_tokens_to_ids([END, TURN_END])
    model = Qwen3ForCausalLM(
        Qwen3Config(
            vocab_size=VOCABULARY,
            hidden_size=192,
            intermediate_size=448,
            num_hidden_layers=4,
            num_attention_heads=6,
            num_key_value_heads=2,
            head_dim=32,
            max_position_embeddings=CONTEXT,
            initializer_range=0.04,
            tie_word_embeddings=True,
            pad_token_id=end,
            eos_token_id=end,
        )
    )
    for layer in model.model.layers:
        # Every layer starts as the identity, which learns faster.
        torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
        torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    model.generation_config.eos_token_id = [end, turn_end]
    return model


def train(model: Qwen3ForCausalLM, rows: torch.Tensor, steps: int, seed: int) -> None:
    """Run ``steps`` steps of Muon and AdamW with a warm-up and a cosine to zero.

    Muon, for the matrices between the embeddings, needs a third of the steps of AdamW alone.
    """
    embeddings = model.get_input_embeddings().weight
    matrices = [p for p in model.parameters() if p.dim() == 2 and p is not embeddings]
    others = [p for p in model.parameters() if p.dim() == 1 or p is embeddings]
    optimisers = [
        torch.optim.Muon(matrices, lr=0.03, weight_decay=0.0),
        torch.optim.AdamW(others, lr=0.02, betas=(0.9, 0.95), weight_decay=0.0, fused=True),
    ]

    def rate(step: int) -> float:
        return min((step + 1) / WARM_UP, (1 + math.cos(math.pi * step / steps)) / 2)

    schedules = [torch.optim.lr_scheduler.LambdaLR(o, rate) for o in optimisers]
    generator = torch.Generator().manual_seed(seed)
    start = time.perf_counter()
    for step in range(1, steps + 1):
        chosen = torch.randint(len(rows), (BATCH,), generator=generator)
        loss = loss_of(model, rows[chosen])
        model.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for part in optimisers + schedules:
            part.step()
        if step % 20 == 0 or step == steps:
            elapsed = time.perf_counter() - start
            click.echo(
                f"step {step}/{steps}: loss {loss.item():.3f}, {elapsed:.0f} s, "
                f"{elapsed / step * (steps - step):.0f} s to go",
                err=True,
            )
    model.eval()


def loss_of(model: Qwen3ForCausalLM, rows: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=rows[:, :-1], use_cache=False).logits
    return cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten())


@torch.no_grad()
def evaluate(model: Qwen3ForCausalLM, rows: torch.Tensor) -> float:
    return sum(loss_of(model, batch).item() * len(batch) for batch in rows.split(16)) / len(rows)


if __name__ == "__main__":
    main()
