"""What a model that knows little is asked for beyond that: one line, for render and plan alike."""

from __future__ import annotations

import re
from collections.abc import Iterable

from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.files import read_json

SHOWN = 3
"""Unknown words that the line names."""


def introduction(checkpoint: Checkpoint, name: str, texts: Iterable[str]) -> str | None:
    """What `checkpoint` knows, where it is little, untrained or not what `texts` are about; else None."""
    if not checkpoint.knows:
        return None
    if not checkpoint.trained:
        return f"{name} is untrained; it knows {checkpoint.knows}"
    unknown = unknown_words(checkpoint, texts)
    if not unknown:
        return None
    words = ", ".join(unknown[:SHOWN]) + (" ..." if len(unknown) > SHOWN else "")
    return f"{name} knows {checkpoint.knows}, and not: {words}. For anything: helios models pull distilled"


def unknown_words(checkpoint: Checkpoint, texts: Iterable[str]) -> list[str]:
    """Words that a tokenizer of words has no token for, each once; none where it is one of pieces of words."""
    model = read_json(checkpoint.tokenizer)["model"]
    if model["type"] != "WordLevel":
        return []
    words = (word for text in texts for word in re.findall(r"[^\W\d_]+", text.lower()))
    return list(dict.fromkeys(word for word in words if word not in model["vocab"]))
