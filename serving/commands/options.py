"""Options that several commands share."""

import functools
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypedDict, TypeVar, cast

import click
from click.core import ParameterSource

from serving.errors import UserError

if TYPE_CHECKING:
    from serving.constraints import Constraint

Command = TypeVar("Command", bound=Callable[..., Any])


def bundle_argument(command: Command) -> Command:
    """Add the argument that every command on a bundle has."""
    return add_options(command, (click.argument("bundle", type=click.Path(path_type=Path)),))


def json_option(command: Command) -> Command:
    """Add --json."""
    return add_options(
        command, (click.option("--json", "as_json", is_flag=True, help="Print JSON."),)
    )


def verify_option(command: Command) -> Command:
    """Add --verify and --no-verify."""
    text = "Compare the files' checksums first (default: yes)."
    return add_options(command, (click.option("--verify/--no-verify", default=True, help=text),))


def key_file_option(command: Command) -> Command:
    """Add --key-file."""
    text = "Key of an encrypted bundle (default: EXPORT_LLM_BUNDLE_KEY in the environment)."
    path = click.Path(path_type=Path)
    return add_options(command, (click.option("--key-file", type=path, help=text),))


def target_option(command: Command) -> Command:
    """Add --target."""
    choice = click.Choice(["onnxruntime", "tensorrt-rtx", "tensorrt"])
    text = "Which of the bundle's engines (default: ONNX Runtime's, if it has one)."
    return add_options(command, (click.option("--target", type=choice, help=text),))


class OpenOptions(TypedDict):
    """The parameters of serving.load that commands on one model offer."""

    target: Literal["onnxruntime", "tensorrt-rtx", "tensorrt"] | None
    capacity: int | None
    threads: int | None
    provider: Literal["cpu", "cuda"] | None
    runtime: Literal["python", "native"]
    prefill_chunk: int
    prepack: bool
    verify: bool
    key_file: Path | None


class LoadOptions(OpenOptions):
    """Those that commands offer which generate text."""

    adapters: dict[str, Path]
    draft: Path | None


def model_options(command: Command) -> Command:
    """Add the options that open a bundle and generate from it.

    The command gets those of serving.load as one LoadOptions named ``opening``, and those of
    Model.generate each by its name. A draft bundle or an adapter that is opened is also used.
    """

    @functools.wraps(command)
    def with_opening(**arguments: Any) -> Any:
        arguments["adapters"] = dict([arguments["adapter"]] if arguments["adapter"] else [])
        arguments["adapter"] = next(iter(arguments["adapters"]), None)
        opening = {name: arguments.pop(name) for name in LoadOptions.__annotations__}
        if opening["draft"] is not None:
            if arguments["speculation"] is not None:
                raise click.UsageError("--speculate drafts without --draft: leave one of them out.")
            arguments["speculation"] = "draft"
        return command(opening=opening, **arguments)

    speculate = click.option(
        "--speculate",
        "speculation",
        flag_value="prompt-lookup",
        help="Draft tokens by looking them up in the text so far.",
    )
    draft = click.option(
        "--draft",
        type=click.Path(path_type=Path),
        metavar="BUNDLE",
        help="Draft tokens with this smaller model, which has the same tokens.",
    )
    adapter = click.option(
        "--adapter",
        callback=named_directory,
        metavar="NAME=DIRECTORY",
        help="Generate with this LoRA adapter, as PEFT saved it.",
    )
    drafting = (speculate, draft)
    opening = (load_options, verify_option, key_file_option)
    options = (generate_options, adapter, *drafting, *opening)
    return add_options(cast(Command, with_opening), options)


def named_directories(
    context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
) -> dict[str, Path]:
    """Read the values NAME=DIRECTORY of an option that may be repeated."""
    pairs = (named_directory(context, parameter, value) for value in values)
    return dict(pair for pair in pairs if pair)


def named_directory(
    _: click.Context, parameter: click.Parameter, value: str | None
) -> tuple[str, Path] | None:
    """Read an option's value NAME=DIRECTORY."""
    if value is None:
        return None
    name, separator, directory = value.partition("=")
    if not (name and separator and directory):
        raise click.BadParameter(
            "give a name and a directory, as in sql=./adapter.", param=parameter
        )
    return name, Path(directory)


def load_options(command: Command) -> Command:
    """Add the options that open a bundle: parameters of serving.load."""
    options = (
        target_option,
        click.option("--capacity", type=int, help="Most tokens of a sequence, prompt included."),
        click.option("--threads", type=int, help="Threads (default: the physical cores)."),
        click.option(
            "--provider", type=click.Choice(["cpu", "cuda"]), help="Where ONNX Runtime runs."
        ),
        click.option(
            "--runtime",
            type=click.Choice(["python", "native"]),
            default="python",
            help="What steps the engine: Python, or the C library (default: python).",
        ),
        click.option("--prefill-chunk", type=int, default=512, help="Prompt tokens run at once."),
        click.option(
            "--prepack",
            is_flag=True,
            help="Copy float weights that our kernels aren't for into a faster layout.",
        ),
    )
    return add_options(command, options)


def generate_options(command: Command) -> Command:
    """Add the sampling and stopping options: parameters of Model.generate."""
    options = (
        click.option("--max-new-tokens", type=int, help="Default: until EOS or the capacity."),
        click.option("--min-new-tokens", type=int, default=0, help="No EOS token before."),
        click.option("--temperature", type=float, default=0.0, help="0 takes the likeliest token."),
        click.option("--top-k", type=int, default=0, help="Keep the k likeliest tokens (0: all)."),
        click.option("--top-p", type=float, default=1.0, help="Keep this much probability."),
        click.option("--min-p", type=float, default=0.0, help="Keep above p times the likeliest."),
        click.option("--repetition-penalty", type=float, default=1.0, help="1 is none."),
        click.option("--presence-penalty", type=float, default=0.0, help="From -2 to 2."),
        click.option("--frequency-penalty", type=float, default=0.0, help="From -2 to 2."),
        click.option("--seed", type=int, help="Makes sampling repeatable."),
        click.option("--stop", multiple=True, help="End before this text; may be repeated."),
        click.option(
            "--bad-word",
            "bad_words",
            multiple=True,
            metavar="TEXT",
            help="Never write this text; may be repeated.",
        ),
        click.option("--ignore-eos", is_flag=True, help="Go on after EOS tokens."),
        click.option(
            "--context-overflow",
            type=click.Choice(["refuse", "truncate", "slide"]),
            default="refuse",
            help="A text that doesn't fit: drop the prompt's beginning, or old tokens as it grows.",
        ),
    )
    return add_options(command, options)


def constraint_options(command: Command) -> Command:
    """Add the options that constrain the output; the command gets them as ``constraint``."""

    @functools.wraps(command)
    def with_constraint(**arguments: Any) -> Any:
        given = {name: arguments.pop(name) for name in ("json_schema", "regex", "grammar")}
        given = {name: value for name, value in given.items() if value is not None}
        if len(given) > 1:
            raise click.UsageError(
                "--json-schema, --regex and --grammar exclude each other: leave all but one out."
            )
        return command(constraint=_constraint(**given) if given else None, **arguments)

    options = (
        click.option(
            "--json-schema", metavar="FILE|TEXT", help="Write JSON that is valid under this schema."
        ),
        click.option("--regex", help="Write what this regular expression matches as a whole."),
        click.option(
            "--grammar",
            type=click.Path(path_type=Path),
            metavar="FILE",
            help="Write a text of this Lark grammar.",
        ),
    )
    return add_options(cast(Command, with_constraint), options)


def _constraint(
    json_schema: str | None = None, regex: str | None = None, grammar: Path | None = None
) -> "Constraint":
    from serving.constraints import Constraint

    if json_schema is not None:
        is_text = json_schema.lstrip().startswith("{")
        return Constraint.json_schema(json_schema if is_text else _read(Path(json_schema)))
    if regex is not None:
        return Constraint.regex(regex)
    assert grammar is not None
    return Constraint.grammar(_read(grammar))


def _read(path: Path) -> str:
    try:
        return path.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{str(path)!r} can't be read ({error}): give another file.") from error


def refuse_given(names: Collection[str], why: str) -> None:
    """Raise UserError if an option of the running command is given that has one of these names.

    ``why`` follows its name in the sentence.
    """
    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        if name in names and context.get_parameter_source(name) is not ParameterSource.DEFAULT:
            raise UserError(f"{parameter.opts[0]} {why}")


def given_options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Of the running command's options those that were given, and not left at their default."""
    source = click.get_current_context().get_parameter_source
    return {
        name: value for name, value in values.items() if source(name) is not ParameterSource.DEFAULT
    }


def add_options(command: Command, options: tuple[Callable[[Command], Command], ...]) -> Command:
    """Decorate a command with options, which its help lists in this order."""
    for option in reversed(options):
        command = option(command)
    return command
