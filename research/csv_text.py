"""Tables as CSV that a spreadsheet reads as text: no cell begins a formula."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence

# what spreadsheets take for the beginning of a formula, or pass over on the way to one
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n")


def csv_text(rows: Iterable[Sequence[object]]) -> str:
    """Rows as CSV, a line each. Text that a spreadsheet would run has an apostrophe before it; numbers stay as they are, also
    those that are written out.

    Args:
        rows: cells; the first row is the header.
    """
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([_defused(cell) for cell in row] for row in rows)
    return text.getvalue()


def _defused(cell: object) -> object:
    if not isinstance(cell, str) or not cell.lstrip(" ").startswith(_FORMULA) or _is_number(cell):
        return cell
    return f"'{cell}"


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return text == text.strip()
