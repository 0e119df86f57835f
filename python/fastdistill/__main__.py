"""``python -m fastdistill``: the command line."""

from __future__ import annotations

import sys


def main() -> None:
    """Run the command line; say what to install where its own packages are missing."""
    try:
        from .cli import app
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in ("typer", "rich"):
            raise
        print(
            f"error: the command line needs the package {package}: "
            "pip install 'fastdistill[distill]'",
            file=sys.stderr,
        )
        raise SystemExit(2) from None
    app()


if __name__ == "__main__":
    main()
