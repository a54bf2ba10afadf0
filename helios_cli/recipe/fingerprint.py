"""Fingerprints: one for each chunk, over everything that decides its latents and what comes after, and nothing else.

Two chunks with one fingerprint are the same pictures, bit for bit, in whatever films they stand, and leave the same
history, anchor and generator behind. Resume and the cache
of kept pieces rest on that, so what belongs here is decided by the render loop alone:

- A fresh chunk begins with empty history, an empty anchor and a generator seeded anew: nothing before it counts.
- Any other chunk takes history, anchor and generator from the chunk before it: its fingerprint goes on from that one's.
- How many of a chunk's 33 frames are kept does not count; it is recorded beside the fingerprint (`Chunk.num_frames`).
- Neither do title, place in the film, rate, codec or file: they change no latent. The rate does where a clip is
  continued, which is brought to it first.

Bit for bit holds for one `Arithmetic`: the same products round otherwise on another device, in another dtype, by
another PyTorch, and on a CPU with another number of threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from helios_cli.errors import InputError
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.versions import version_of

NUMERICS_VERSION = 4
"""Raised with every change of helios that moves a bit of a latent or a frame: kernels, samplers, presets, noise."""

REANCHORING = 1
"""Place in its segment of the chunk that leaves another anchor behind if the film is reanchored."""


@dataclass(frozen=True)
class Arithmetic:
    """How numbers are rounded. `device` names the model of the processor, for a CPU with its number of threads.

    `quant` is --quant. `kernels` says what is not as PyTorch has it by itself: kernels, attention and their tuning.
    """

    device: str
    dtype: str
    torch: str
    quant: str = "none"
    kernels: str = ""

    def as_told(self) -> dict[str, str]:
        """What enters a fingerprint: what is as it always was is not told, so that older ones hold."""
        usual = {"quant": "none", "kernels": ""}
        return {key: value for key, value in asdict(self).items() if value != usual.get(key)}


def chunk_fingerprints(plan: Plan, weights: str, arithmetic: Arithmetic, *, reanchor: bool = False) -> list[str]:
    """The fingerprint of each chunk of `plan`, 64 hex digits.

    `weights` is `weights.identity.weights_identity` of the checkpoint. Pictures and clips are read, each once; one that
    cannot be is an InputError.
    """
    return Fingerprints(weights, arithmetic, reanchor=reanchor).of(plan)


class Fingerprints:
    """`chunk_fingerprints` of a film whose plan grows: those of the chunks that it had before are not made again."""

    def __init__(self, weights: str, arithmetic: Arithmetic, *, reanchor: bool = False) -> None:
        self._weights, self._arithmetic, self._reanchor = weights, arithmetic, reanchor
        self._chunks: tuple[Chunk, ...] = ()
        self._found: list[str] = []
        self._places: list[int] = []  # of the chunks in their segments
        self._files: dict[Path, str] = {}

    def of(self, plan: Plan) -> list[str]:
        """The fingerprint of each chunk of `plan`, whose settings are those of the plans before."""
        if plan.chunks is not self._chunks:
            pairs = zip(self._chunks, plan.chunks, strict=False)
            most = min(len(self._chunks), len(plan.chunks))
            same = next((index for index, (a, b) in enumerate(pairs) if a is not b and a != b), most)
            self._found, self._places = self._found[:same], self._places[:same]
            for chunk in plan.chunks[same:]:
                self._add(plan, chunk)
            self._chunks = plan.chunks
        return self._found

    def _add(self, plan: Plan, chunk: Chunk) -> None:
        place = 0 if chunk.fresh else self._places[-1] + 1
        if chunk.fresh:
            before = {"fresh": self._basis(plan), **_start(chunk, plan.fps, self._files)}
        else:
            before = {"after": self._found[-1]}
        if self._reanchor and place == REANCHORING:
            before["reanchor"] = True
        self._found.append(_digest({**before, "prompts": chunk.prompts}))
        self._places.append(place)

    def _basis(self, plan: Plan) -> dict:
        return {
            "numerics": NUMERICS_VERSION,
            "arithmetic": self._arithmetic.as_told(),
            "weights": self._weights,
            "size": plan.size,
            "steps": plan.steps,
            # Up to 1 there is one model call a step and no negative prompt, whatever the number.
            "guidance": (plan.guidance, plan.negative) if plan.guidance > 1 else None,
        }


def film_fingerprint(plan: Plan, chunks: Iterable[str]) -> str:
    """One fingerprint for a film's frames: those of its chunks, and how many frames of each are kept."""
    return _digest([[fingerprint, chunk.num_frames] for fingerprint, chunk in zip(chunks, plan.chunks, strict=True)])


def _start(chunk: Chunk, fps: float, files: dict[Path, str]) -> dict:
    """What a fresh chunk begins with. Decoders are named with their version: they round as well."""
    start: dict = {"seed": chunk.seed}
    if chunk.image:
        start["image"] = [_content(chunk.image, files), version_of("pillow", "PIL")]
    if chunk.video:
        start["video"] = [_content(chunk.video, files), version_of("imageio-ffmpeg", "imageio_ffmpeg"), fps]
    return start


def _content(path: Path, files: dict[Path, str]) -> str:
    if path not in files:
        try:
            with path.open("rb") as file:
                files[path] = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return files[path]


def _digest(value: dict | list) -> str:
    """SHA-256 of a value's JSON, in which every float is written to its last bit."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
