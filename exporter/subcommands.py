"""A command with others beside it: ``export-llm MODEL BUNDLE``, ``export-llm inspect-engine``."""

import sys
from collections.abc import Sequence
from typing import Any

import click


class CommandWithSubcommands(click.Command):
    """A command that hands over to one of ``subcommands`` if its first argument names that."""

    def __init__(
        self, *arguments: Any, subcommands: Sequence[click.Command] = (), **options: Any
    ) -> None:
        super().__init__(*arguments, **options)
        self.subcommands = {str(command.name): command for command in subcommands}

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run the command that ``args`` name."""
        given = list(sys.argv[1:] if args is None else args)
        command = self.subcommands.get(given[0]) if given else None
        if command is None:
            return super().main(given, *rest, **extra)
        extra["prog_name"] = f"{self.name} {command.name}"
        return command.main(given[1:], *rest, **extra)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options, and behind them the other commands."""
        super().format_options(ctx, formatter)
        rows = [(name, command.get_short_help_str()) for name, command in self.subcommands.items()]
        with formatter.section("Other commands"):
            formatter.write_dl(rows)
