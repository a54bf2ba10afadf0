"""A terminal without a window, with endless rows: what remains on it of what was written."""

from __future__ import annotations

import re

SEQUENCE = re.compile(r"\x1b\[(\??)([\d;]*)([A-Za-z])")


def rows(written: str) -> list[str]:
    """Return the rows of the terminal after all was written. AssertionError for a sequence that it does not know."""
    rows, row, column, at = [""], 0, 0, 0
    while at < len(written):
        sequence, character = SEQUENCE.match(written, at), written[at]
        at = sequence.end() if sequence else at + 1
        if sequence:
            private, number, kind = sequence.groups()
            if kind == "A":
                row -= int(number)
                assert row >= 0, "above the first row"
            elif kind == "K":
                assert number == "2"
                rows[row] = ""
            else:
                assert kind == "m" or private, sequence[0]
        elif character == "\n":
            row, column = row + 1, 0
            rows += [""] * (row + 1 - len(rows))
        elif character == "\r":
            column = 0
        else:
            rows[row] = rows[row].ljust(column)[:column] + character + rows[row][column + 1 :]
            column += 1
    return [row.rstrip() for row in rows]
