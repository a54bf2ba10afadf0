"""The known models: `distilled`, `mid`, `base` on the Hub, `tiny` in the package."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import NamedTuple

EMBEDDED = "tiny"
EMBEDDED_FOLDER = Path(__file__).resolve().parent.parent / EMBEDDED

WEIGHT_BYTES = 80_481_086_028
"""The safetensors of a published repository, in float32: transformer 57.25 GB, text encoder 22.72 GB, VAE 0.51 GB."""


class KnownModel(NamedTuple):
    """A published checkpoint. `revision` is a full commit hash, so a name means the same weights everywhere."""

    name: str
    repo: str
    revision: str
    about: str


# Other projects recorded these commits when they verified the repositories (12 safetensors files, WEIGHT_BYTES each).
# We have downloaded none of them.
KNOWN = {
    model.name: model
    for model in (
        KnownModel(
            "distilled",
            "BestWishYsh/Helios-Distilled",
            "b991c0379a018f4de3227d95468237f56066f5bb",
            "6 model calls a chunk, no guidance",
        ),
        KnownModel(
            "mid",
            "BestWishYsh/Helios-Mid",
            "477c55427ec0ea774bdebd0fbe736313cfc5a312",
            "120 model calls a chunk, three-stage pyramid",
        ),
        KnownModel(
            "base",
            "BestWishYsh/Helios-Base",
            "5c50b6bc90eae9bd815d2a50b0c9877e3fd2cf88",
            "100 model calls a chunk, full resolution",
        ),
    )
}
NAMES = (EMBEDDED, *KNOWN)


def known_repo(repo: str) -> KnownModel | None:
    """Return the known model that is published as exactly this Hub id, or None."""
    return next((model for model in KNOWN.values() if model.repo == repo), None)


def nearest(model: str) -> str | None:
    """Return the known name or Hub id that `model` was probably meant to be, or None.

    Case is ignored: many write `BestWishYSH`, the Hub has `BestWishYsh`.
    """
    candidates = [known.repo for known in KNOWN.values()] if "/" in model else list(NAMES)
    spelled = {candidate.lower(): candidate for candidate in candidates}
    matches = difflib.get_close_matches(model.lower(), spelled, n=1, cutoff=0.7)
    return spelled[matches[0]] if matches else None
