"""The constants of the method's grid (frames, latent frames, chunks, pixels, cells), limits of the engine, and formats.

A *chunk* is the unit of autoregression: 9 latent frames, decoded on their own into 33 frames.
"""

from __future__ import annotations

FRAMES_PER_LATENT = 4
"""The frames in a latent frame, except the first of a chunk, which has 1 (the VAE is causal)."""

PIXELS_PER_CELL = 8
"""The width and height of a latent cell in pixels."""

LATENTS_PER_CHUNK = 9
FRAMES_PER_CHUNK = (LATENTS_PER_CHUNK - 1) * FRAMES_PER_LATENT + 1  # 33

LONG_TERM, MID_TERM, SHORT_TERM = 16, 2, 1
"""The latent frames in each term of the history, oldest first."""

HISTORY_LATENTS = LONG_TERM + MID_TERM + SHORT_TERM  # 19

HISTORY_CHUNKS = -(-HISTORY_LATENTS // LATENTS_PER_CHUNK)  # 3
"""The chunks at the end of a film that the history can cover."""

MAX_TEXT_TOKENS = 512
"""The rows of text that the model was trained with; shorter prompts are padded with zero rows."""

PROMPT_KEYS = (64, 128, 256, MAX_TEXT_TOKENS)
"""The numbers of text rows that `counted_rows` rounds up to."""

DEFAULT_FPS = 24

PIECE_ELEMENTS = {"cpu": 2**23, "cuda": 2**26}
"""The elements that a layer of the VAE works on at a time, in whole frames; about four such tensors exist.

On a CPU this is 32 MiB in float32: glibc maps larger blocks anew each time, and their page faults cost at least a tenth
of a decode. On a GPU it is 0.25 GiB, two frames of 384x640 at 96 channels, so that a decode fits next to a streamed 14B
model in 6 GB.
"""

LARGE_PIECE_ELEMENTS = 2**28
"""The same on a GPU with LARGE_PIECE_BYTES of memory: fewer launches, and fewer copies between pieces."""

LARGE_PIECE_BYTES = 40e9
"""A GPU's memory, or --vram, from which pieces are large: a decode of 640x384 takes 3.6 GB more with them."""

QUEUE_BYTES = 128 * 2**20
"""The bytes of frames that may wait for the encoder."""

PROMPTS_TOGETHER = 64
"""The prompts that are encoded in one pass over a streamed text encoder."""

GRAPHS = 12
"""The recorded model calls that are kept: one for each stage and prompt length; the least recently used goes first."""

LEAST_SECONDS = 0.1
"""The shortest time that is printed."""


def chunks_for(num_frames: int) -> int:
    """Return the whole chunks that hold `num_frames` frames, at least one."""
    return max(1, -(-num_frames // FRAMES_PER_CHUNK))


def latent_frames_for(num_frames: int) -> int:
    """Return the latent frames of a clip of `num_frames` frames that is encoded as a whole."""
    return (num_frames - 1) // FRAMES_PER_LATENT + 1


def grid_of(size: tuple[int, int], patch_size: tuple[int, int, int], halvings: int = 0) -> tuple[int, int]:
    """Return (rows, columns) of patches in a picture of `size` (width, height) pixels, halved `halvings` times."""
    width, height = (pixels // PIXELS_PER_CELL // 2**halvings for pixels in size)
    return height // patch_size[1], width // patch_size[2]


def size_multiple(num_stages: int) -> int:
    """Return the pixels that width and height must be a multiple of: 16 for one stage (Base), 64 for three.

    A cell has 8 pixels, a patch 2 cells, and each further stage doubles that.
    """
    return PIXELS_PER_CELL * 2 * 2 ** (num_stages - 1)


def counted_rows(rows: int) -> int:
    """Round `rows` up to a power of two of at least 64, for which attention is timed and chosen."""
    return max(PROMPT_KEYS[0], 1 << (rows - 1).bit_length())


IN_8_BITS = " in 8 bits"
"""The end of the key of a shape of attention that is computed in 8 bits."""


def held_keys(rows: int) -> int:
    """Round rows of text up to one of PROMPT_KEYS, so that a GPU records model calls for a few lengths only."""
    return next((keys for keys in PROMPT_KEYS if rows <= keys), rows)


def counted(number: int, noun: str) -> str:
    """Format a count: `1 shot`, `2 shots`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def format_figure(value: float) -> str:
    """Format a number in three figures, or in all those before the point: `1.25`, `78`, `1,046`."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def format_bytes(count: float) -> str:
    """Format 28619000000 as `28.6 GB`, in decimal units like disks, the Hub and GPU vendors."""
    for unit in ("B", "kB", "MB", "GB"):
        if abs(count) < 999.5:
            return f"{count:.0f} B" if unit == "B" else f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def format_seconds(seconds: float) -> str:
    """Format seconds: `< 0.1 s`, `75 s`, `3:05 min`, `2:00:00 h`."""
    if 0 < seconds < LEAST_SECONDS:
        return f"< {LEAST_SECONDS} s"
    if seconds < 99.95:  # 100 in three figures
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02} min" if minutes < 60 else f"{minutes // 60}:{minutes % 60:02}:{rest:02} h"


def format_duration(seconds: float) -> str:
    """Format seconds: `75` as `1:15`, `3675` as `1:01:15`."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def at_least(seconds: float) -> str:
    """Format a lower bound: `>= 75 s`, or `?` if it is too short to print."""
    return f">= {format_seconds(seconds)}" if seconds >= LEAST_SECONDS else "?"
