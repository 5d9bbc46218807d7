"""The click group of every command line: a UserError becomes one line on stderr and exit code 1."""

from typing import Any

import click

from serving.errors import UserError


class CommandGroup(click.Group):
    """A group whose commands may raise UserError."""

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a UserError is printed as 'Error: sentence'."""
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from error
