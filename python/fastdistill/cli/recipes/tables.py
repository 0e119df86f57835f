"""Tables of results, for a terminal and for a page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as TerminalTable


class Table(NamedTuple):
    """A title, which a page does not show, and cells."""

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def markdown(self, names: int | None = None) -> str:
        """All columns to the left; or only the first ``names``, and the numbers to the right."""
        count = len(self.columns)
        rule = ["---" if names is None or column < names else "--:" for column in range(count)]
        return "\n".join(f"| {' | '.join(line)} |" for line in (self.columns, rule, *self.rows))


def print_tables(tables: Iterable[Table], console: Console) -> None:
    """Print tables, as narrow as they can be."""
    for title, columns, rows in tables:
        table = TerminalTable(
            *columns, title=title, box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False
        )
        for row in rows:
            table.add_row(*row)
        console.print(table)
