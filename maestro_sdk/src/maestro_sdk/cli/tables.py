"""Tables: on a terminal as wide as that, else a line for each row however long, which other programs can search."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterable

from rich.console import Console, RenderableType
from rich.markup import escape
from rich.table import Table

_WIDE = 10_000


def new_table(titles: Iterable[str], *, numbers: Collection[str] = (), header: str = "bold") -> Table:
    """An empty table. No cell is ever cut: one that is too long goes on below. `numbers` are set to the right."""
    table = Table(box=None, pad_edge=False, header_style=header)
    for title in titles:
        table.add_column(escape(title), overflow="fold", justify="right" if title in numbers else "left")
    return table


def display(*found: RenderableType) -> None:
    """Prints one below the other."""
    # Rich takes a pipe for a terminal of 80 columns.
    width = None if sys.stdout.isatty() or "COLUMNS" in os.environ else _WIDE
    console = Console(highlight=False, width=width)
    for each in found:
        console.print(each)
