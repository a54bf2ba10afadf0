"""Prepares prompts for the text encoder: a shot's prompt, cleaned, with the film's style after it."""

from __future__ import annotations

import re
from functools import lru_cache


@lru_cache(maxsize=1024)
def clean_prompt(text: str) -> str:
    """Return `text` as the models were trained to read it: repaired Unicode, no HTML entities, single spaces.

    The order (ftfy, two rounds of unescaping, white space) is that of the reference pipelines, so that the same words
    give the same tokens.
    """
    if "&" in text or not (text.isascii() and text.isprintable()):
        from ftfy import fix_text  # slow to import, and it changes no other text

        text = unescaped(unescaped(fix_text(text)))
    return re.sub(r"\s+", " ", text).strip()


def unescaped(text: str) -> str:
    """Return `text` without HTML entities. One with thousands of digits, which `html` cannot read, becomes U+FFFD."""
    import html  # slow to import, like ftfy

    return html.unescape(re.sub("&#[0-9]{1000,};?", "\ufffd", text))


def with_style(prompt: str, style: str) -> str:
    """Join the cleaned prompt and style: `A boat leaves.` and `35mm film` give `A boat leaves, 35mm film`.

    A prompt that ends in `!`, `?` or `…` keeps it, and the style follows after a space.
    """
    prompt, style = clean_prompt(prompt), clean_prompt(style)
    if not style:
        return prompt
    if prompt.endswith(("!", "?", "…", "...")):
        return f"{prompt} {style}"
    return f"{prompt.rstrip('.,;: ')}, {style}"


def has_words(text: str) -> bool:
    """Tell whether anything visible is left of `text` after cleaning."""
    return any(c.isprintable() and not c.isspace() for c in clean_prompt(text))
