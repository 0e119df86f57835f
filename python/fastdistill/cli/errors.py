"""What goes wrong at the command line and is the user's to mend."""

from __future__ import annotations

import typer


class UserError(Exception):
    """A one-line message for the user; the command prints it and ends with exit code 2."""


def wrong_use(message: object) -> typer.Exit:
    """Print ``message`` as an error; what is returned, raised, ends the command with code 2."""
    typer.echo(f"error: {message}", err=True)
    return typer.Exit(2)
