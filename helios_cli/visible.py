"""Escapes untrusted text for display: file names, prompts, records of films, answers of servers."""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls except tab and line feed
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # marks that change the direction of the text around them
    "\xad\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\ud800-\udc7f\udd00-\udfff\U000e0000-\U000e007f]"
)
"""The characters that act on a terminal, or are invisible in it; not joiners, which Persian and emoji need."""

_NOT_UTF8 = "[\udc80-\udcff]"
"""The characters by which Python represents bytes of a file name that are not UTF-8."""


def visible(text: str) -> str:
    """Return `text` with characters that act on a terminal, or are invisible, as escapes: `\\x1b`, `\\u202e`."""
    return re.sub(f"{_NOT_UTF8}|{_UNSEEN.pattern}", lambda match: escaped(match[0]), text)


def printable(text: object, limit: int = 60) -> str:
    """Return a name or value for one line of a message: cut to `limit` characters, unprintable ones escaped, in quotes
    if it begins or ends with a space."""
    whole = str(text)
    shown = whole if len(whole) <= limit else whole[: limit - 1] + "…"
    shown = "".join(c if c.isprintable() else escaped(c) for c in shown)
    return f'"{shown}"' if shown != shown.strip() else shown


def escaped(characters: str) -> str:
    return characters.encode("unicode_escape").decode()


def has_unseen(text: str) -> bool:
    """Return whether `text` has a character that acts on a terminal or is invisible."""
    return bool(_UNSEEN.search(text))


def without_hidden(name: str) -> str:
    """Return `name` without invisible characters."""
    return _UNSEEN.sub("", name).strip()
