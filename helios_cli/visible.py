"""Escapes text from elsewhere for display: names of files, prompts, records of films, answers of servers."""

from __future__ import annotations

import re

_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # controls but tab and line feed: a terminal obeys them
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what turns the direction of the text around it
    "\xad\u180e\u200b\u2028\u2029\u2060-\u2065\u206a-\u206f\ufeff\ufff9-\ufffb\ud800-\udc7f\udd00-\udfff\U000e0000-\U000e007f]"
)
"""What acts on a terminal, or cannot be seen in it. Joiners stay, which Persian and emoji are written with."""

_NOT_UTF8 = "[\udc80-\udcff]"
"""How Python holds the bytes of a name that are not UTF-8."""


def visible(text: str) -> str:
    """`text` with each character that would act on a terminal, or hide in it, as an escape: `\\x1b`, `\\u202e`."""
    return re.sub(f"{_NOT_UTF8}|{_UNSEEN.pattern}", lambda found: escaped(found[0]), text)


def printable(text: object, limit: int = 60) -> str:
    """A name or a value on one line: cut to `limit` characters, all escaped that is not printed, in quotes if it
    begins or ends in a space."""
    whole = str(text)
    shown = whole if len(whole) <= limit else whole[: limit - 1] + "…"
    shown = "".join(c if c.isprintable() else escaped(c) for c in shown)
    return f'"{shown}"' if shown != shown.strip() else shown


def escaped(characters: str) -> str:
    return characters.encode("unicode_escape").decode()


def has_unseen(text: str) -> bool:
    """Whether `text` has a character that acts on a terminal or hides in it."""
    return bool(_UNSEEN.search(text))


def without_hidden(name: str) -> str:
    """`name` as it looks."""
    return _UNSEEN.sub("", name).strip()
