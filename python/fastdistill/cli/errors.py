"""What goes wrong at the command line and is the user's to mend."""

from __future__ import annotations


class UserError(Exception):
    """A one-line message for the user; the command prints it and ends with exit code 2."""
