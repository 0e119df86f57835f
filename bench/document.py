"""Blocks of the documents that are written by a command, between two marks of the same name."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent


def replace_block(document: Path, name: str, text: str) -> None:
    """Replace what stands between the marks. Raises ValueError where a mark is missing."""
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    head, found, rest = document.read_text().partition(begin)
    _, found_too, tail = rest.partition(end)
    if not (found and found_too):
        raise ValueError(f"{document.name} must have the marks of a block {name!r}")
    document.write_text(f"{head}{begin}{text}\n{end}{tail}")
