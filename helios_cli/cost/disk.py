"""Bytes on disk: of the film, at most, and of the model that is still to come."""

from __future__ import annotations

from math import prod
from pathlib import Path

from helios_cli.recipe.plan import Plan

CEILING_BITS = {"h264": 2.2, "hevc": 1.7, "av1": 1.9}
"""Bits a pixel at CRF 17, preset medium, of a picture with visible grain (noise of 8 levels over ffmpeg's test source,
640x384), as measured. A film without grain takes a fifth of it or less."""

CEILING_CRF = 17
CRF_STEP = 6
"""CRF by which the bits double, about."""

LOSSLESS_BITS = {"mkv": 27, "png": 24.5}
"""Bits a pixel at most: of white noise, which takes more than its 24 bits."""


def film_kind(output: str | None) -> str:
    """ "mp4", "mkv" or "png" of an output's name; "mp4" without one."""
    suffix = Path(output).suffix.lower() if output and not output.endswith("/") else ""
    return "mp4" if output is None else {".mp4": "mp4", ".mkv": "mkv"}.get(suffix, "png")


def film_bytes(plan: Plan, kind: str, codec: str, crf: int) -> int:
    """A ceiling for the finished film, which most films stay far below."""
    bits = CEILING_BITS[codec] * 2 ** ((CEILING_CRF - crf) / CRF_STEP) if kind == "mp4" else LOSSLESS_BITS[kind]
    return int(bits * prod(plan.size) * plan.num_frames / 8)
