"""Finds the words of prompts that a model with a small vocabulary does not know."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable

from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.files import read_json
from helios_cli.weights.tokenizer import MAX_TOKENIZER_BYTES

SHOWN = 3
"""The most words that a line names."""

_WORD = re.compile(r"[^\W\d_]+")


def introduction(checkpoint: Checkpoint, name: str, texts: Iterable[str]) -> str | None:
    """Return a line about a model that knows little, if it is untrained or `texts` are about something else."""
    if not checkpoint.knows:
        return None
    if not checkpoint.trained:
        return f"{name} is untrained; it knows {checkpoint.knows}"
    texts = list(texts)
    unknown = [*unknown_words(checkpoint, texts), *crowds(checkpoint, texts)]
    if not unknown:
        return None
    words = _listed(unknown, ", ")
    return f"{name} knows {checkpoint.knows}, but not: {words}. For other prompts: helios models pull distilled"


def unknown_words(checkpoint: Checkpoint, texts: Iterable[str]) -> list[str]:
    """Return the words, each once, that were not in the model's training.

    If the checkpoint does not list its words, those without a token in a tokenizer of whole words; with a tokenizer of
    word pieces, none.
    """
    known = set(checkpoint.words) or _tokens(checkpoint)
    if known is None:
        return []
    words = (word for text in texts for word in words_of(text))
    return list(dict.fromkeys(word for word in words if word not in known))


def crowds(checkpoint: Checkpoint, texts: Iterable[str]) -> list[str]:
    """Return "a and b together" for each text with several things, of which the model can show one at a time."""
    groups = ([word for word in words_of(text) if word in checkpoint.things] for text in texts)
    return list(dict.fromkeys(f"{_listed(things, ' and ')} together" for things in groups if len(things) > 1))


def _listed(words: list[str], joint: str) -> str:
    return joint.join(words[:SHOWN]) + (" ..." if len(words) > SHOWN else "")


def words_of(text: str) -> list[str]:
    """Return the words of a text in lower case, without numbers and punctuation."""
    return _WORD.findall(text.lower())


def _tokens(checkpoint: Checkpoint) -> Container[str] | None:
    model = read_json(checkpoint.tokenizer, MAX_TOKENIZER_BYTES).get("model")
    words = isinstance(model, dict) and model.get("type") == "WordLevel" and model.get("vocab")
    return words if isinstance(words, dict) else None
