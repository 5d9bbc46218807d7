"""``serve-llm chat``: a conversation in the terminal, or line by line for programs."""

import json
import sys
from collections.abc import Generator
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Unpack

import click

from serving.commands.options import LoadOptions, bundle_argument, json_option, model_options
from serving.errors import UserError

if TYPE_CHECKING:
    from serving.chat import Message
    from serving.decoding import Token
    from serving.generation import GenerateOptions, Model


@click.command()
@bundle_argument
@click.option("--system", help="The system message.")
@model_options
@json_option
def chat(
    bundle: Path,
    system: str | None,
    opening: LoadOptions,
    as_json: bool,
    **options: Unpack["GenerateOptions"],
) -> None:
    """Talk with the model in BUNDLE.

    /reset starts over, /exit or Ctrl-D leaves, Ctrl-C stops a reply. With --json every line of
    standard input is a message, and every line of output a JSON reply.
    """
    from serving.loading import load

    with load(bundle, slots=1, **opening) as model:
        conversation = Conversation(model, system, options)
        if as_json:
            _answer_lines(conversation)
        else:
            _talk(conversation)


class Conversation:
    """The messages so far; raises UserError if the model has no chat template."""

    def __init__(self, model: "Model", system: str | None, options: "GenerateOptions") -> None:
        self._model = model
        self._options = options
        self._start: list[Message] = [{"role": "system", "content": system}] if system else []
        self.reset()
        model.encode_chat([*self._start, {"role": "user", "content": "?"}])

    def reset(self) -> None:
        """Forget all but the system message."""
        self.messages = list(self._start)

    def reply(self, text: str) -> "Generator[Token]":
        """Answer a message, token by token; a reply that is broken off is kept as far as it got.

        Raises UserError, and forgets the message, if the conversation no longer fits.
        """
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        tokens = self._model.generate(
            self._model.encode_chat(messages), stream=True, **self._options
        )
        self.messages = messages
        answer: Message = {"role": "assistant", "content": ""}
        self.messages.append(answer)
        for token in tokens:
            answer["content"] += token.text
            yield token


def _talk(conversation: Conversation) -> None:
    while True:
        try:
            text = click.prompt(click.style("you", bold=True), prompt_suffix="> ")
        except click.Abort:
            click.echo()
            return
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
            continue
        try:
            with closing(conversation.reply(text)) as tokens:
                for token in tokens:
                    click.echo(token.text, nl=False)
        except KeyboardInterrupt:
            click.echo(" [stopped]", nl=False)
        except UserError as error:
            click.echo(f"{error} (/reset starts over.)", err=True, nl=False)
        click.echo()


def _answer_lines(conversation: Conversation) -> None:
    for line in sys.stdin:
        text = line.rstrip("\n")
        if text == "/exit":
            return
        if text == "/reset":
            conversation.reset()
            continue
        try:
            tokens = list(conversation.reply(text))
        except UserError as error:
            click.echo(json.dumps({"error": str(error)}))
            continue
        reply = {
            **conversation.messages[-1],
            "new_tokens": len(tokens),
            "finish_reason": tokens[-1].finish_reason,
        }
        click.echo(json.dumps(reply, ensure_ascii=False))
