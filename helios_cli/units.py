"""Frames, latent frames, chunks, pixels and latent cells: the only home of the method's grid constants.

Pure integers, no torch, and with them the limits that the engine keeps to and a plan counts with. A *chunk* is the unit
of autoregression: 9 latent frames, decoded on their own into 33 frames.
"""

from __future__ import annotations

FRAMES_PER_LATENT = 4
"""A latent frame holds 4 frames; the first of a chunk holds 1 (the VAE is causal)."""

PIXELS_PER_CELL = 8
"""Width and height of a latent cell in pixels."""

LATENTS_PER_CHUNK = 9
FRAMES_PER_CHUNK = (LATENTS_PER_CHUNK - 1) * FRAMES_PER_LATENT + 1  # 33

LONG_TERM, MID_TERM, SHORT_TERM = 16, 2, 1
"""History by term, in latent frames, oldest first."""

HISTORY_LATENTS = LONG_TERM + MID_TERM + SHORT_TERM  # 19

HISTORY_CHUNKS = -(-HISTORY_LATENTS // LATENTS_PER_CHUNK)  # 3
"""Chunks at the end of a film that reach into the history."""

MAX_TEXT_TOKENS = 512
"""Rows of text the model was trained with; shorter prompts are padded with zero rows."""

PROMPT_KEYS = (64, 128, 256, MAX_TEXT_TOKENS)
"""Rows of text as `counted_rows` counts them."""

DEFAULT_FPS = 24

PIECE_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""Size of the activations a layer of the VAE works on at a time, as far as whole frames allow; about four live at once.

On a CPU 32 MiB in float32: glibc maps larger blocks anew each time, and their page faults cost a tenth of a decode or
more. On a GPU 0.25 GiB, two frames of 384x640 at 96 channels: a decode fits beside a streamed 14B model in 6 GB.
"""

QUEUE_BYTES = 128 * 2**20
"""Frames that may wait for the encoder."""

PROMPTS_TOGETHER = 64
"""Prompts that are encoded in one walk over a streamed text encoder."""

GRAPHS = 12
"""Recorded model calls that are kept at most: one for each stage and length of prompt keys, the least used going first.
"""

LEAST_SECONDS = 0.1
"""The shortest time that is told."""


def chunks_for(num_frames: int) -> int:
    """Whole chunks that hold `num_frames` frames (at least one)."""
    return max(1, -(-num_frames // FRAMES_PER_CHUNK))


def latent_frames_for(num_frames: int) -> int:
    """Latent frames of a clip of `num_frames` frames, encoded as one causal clip."""
    return (num_frames - 1) // FRAMES_PER_LATENT + 1


def grid_of(size: tuple[int, int], patch_size: tuple[int, int, int], halvings: int = 0) -> tuple[int, int]:
    """(rows, columns) of patches in a picture of `size` (width, height) pixels, halved `halvings` times."""
    width, height = (pixels // PIXELS_PER_CELL // 2**halvings for pixels in size)
    return height // patch_size[1], width // patch_size[2]


def size_multiple(num_stages: int) -> int:
    """Pixels that width and height must be a multiple of: 8 a cell, 2 cells a patch, halved once a further stage.

    16 for one stage (Base), 64 for three (Mid, Distilled).
    """
    return PIXELS_PER_CELL * 2 * 2 ** (num_stages - 1)


def counted_rows(rows: int) -> int:
    """The next power of two from 64 on: so many rows are timed, and their attention chosen, alike."""
    return max(PROMPT_KEYS[0], 1 << (rows - 1).bit_length())


def held_keys(rows: int) -> int:
    """How many keys stand for so many rows of text on a GPU: the next of PROMPT_KEYS, so that model calls are recorded
    for a few lengths of prompts and no more."""
    return next((keys for keys in PROMPT_KEYS if rows <= keys), rows)


def counted(number: int, noun: str) -> str:
    """`1 shot`, `2 shots`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_bytes(count: float) -> str:
    """`28619000000` as `28.6 GB`: decimal units, as disks, the Hub and GPU vendors count."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_seconds(seconds: float) -> str:
    """`< 0.1 s`, `75 s`, `3:05 min`, `2:00:00 h`."""
    if 0 < seconds < LEAST_SECONDS:
        return f"< {LEAST_SECONDS} s"
    if seconds < 100:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def at_least(seconds: float) -> str:
    """`>= 75 s`; a bound that is too short to be told says nothing."""
    return f">= {format_seconds(seconds)}" if seconds >= LEAST_SECONDS else "?"
