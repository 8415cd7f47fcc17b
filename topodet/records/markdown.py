"""Pages in Markdown whose measured part is made from records."""

from __future__ import annotations

from collections.abc import Sequence

from ..errors import DataError

START, END = "<!-- records: begin -->", "<!-- records: end -->"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose columns also line up as plain text."""
    widths = [max(map(len, column)) for column in zip(head, *rows)]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join("| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths)) + " |" for line in lines)


def replace_measured(page: str, measured: str, *, path: str) -> str:
    """Return a page with the part between its two markers replaced by `measured`.

    Args:
        page: the text.
        measured: the new text.
        path: path of the page, for the message.

    Raises:
        DataError: the page lacks a marker.
    """
    before, start, rest = page.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise DataError(f"{path}: the lines {START} and {END} must surround the measured tables")
    return f"{before}{START}\n\n{measured}\n\n{END}{after}"
