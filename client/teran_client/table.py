"""Tables on a terminal; lines with tabs, for other programs, where there is none."""

from collections.abc import Iterable, Sequence

from rich.console import Console
from rich.table import Table

from teran.commandline import plain, printable


def show_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print rows of text under their columns. Nothing is cut off: what is long takes more lines."""
    console = Console()
    if not console.is_terminal:
        for row in (columns, *rows):
            print("\t".join(map(printable, row)))
        return
    table = Table()
    for column in columns:
        table.add_column(column, overflow="fold")
    for row in rows:
        table.add_row(*map(plain, row))
    console.print(table)
