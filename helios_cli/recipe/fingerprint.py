"""Fingerprints: a hash for each chunk of everything that decides its latents and the state after it, and nothing else.

Two chunks with the same fingerprint are the same pictures, bit for bit, in any film, and leave the same history, anchor
and generator behind. Resume and the cache of chunks depend on that, so the render loop alone decides what is hashed:

- A fresh chunk begins with empty history, an empty anchor and a generator seeded anew: nothing before it counts.
- Any other chunk takes history, anchor and generator from the chunk before it: its fingerprint goes on from that one's.
- The number of a chunk's 33 frames that are kept does not count; it is recorded next to the fingerprint
  (`Chunk.num_frames`). Title, place in the film, codec and file do not count: they change no latent. The rate counts
  only where a clip is continued, which is converted to it first.
- A preview decoder does not count either: its frames are others, of the same latents. Its hash is part of the key of
  encoded pieces (`film.growing`), and of the film's fingerprint.

Bit for bit holds for one `Arithmetic`: products are rounded differently on another device, in another dtype, by another
PyTorch, and on a CPU with another number of threads.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path

from helios_cli.errors import InputError
from helios_cli.files import sha256_of
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.versions import version_of

NUMERICS_VERSION = 6
"""Raise it with every change that moves a bit of a latent or a frame: kernels, samplers, presets, noise."""

REANCHORING = 1
"""Index in its segment of the chunk that leaves another anchor behind if the film is reanchored."""


@dataclass(frozen=True)
class Arithmetic:
    """The arithmetic that numbers are rounded by. `device` is the processor's model, for a CPU with its number of
    threads.

    `quant` is --quant. `kernels` names what replaces PyTorch's own: kernels, attention and their tuning. `vae` is the
    device of the VAE and the text encoder with its kernels, where it rounds differently. `team` is the number of ranks
    that share a model call, whose sums have another order, `decoders` the number that decode a chunk together.
    `latents` is the dtype of the transformer and the text encoder, where it is another.
    """

    device: str
    dtype: str
    torch: str
    quant: str = "none"
    kernels: str = ""
    vae: str = ""
    team: int = 1
    decoders: int = 1
    latents: str = ""

    def without_defaults(self) -> dict[str, str | int]:
        """Return the values that are hashed: defaults are left out, so that old fingerprints stay valid."""
        values = ((one, getattr(self, one.name)) for one in fields(self))
        return {one.name: value for one, value in values if value != one.default}


@dataclass(frozen=True)
class Identity:
    """Everything that decides a film's pixels except its plan: the weights, and how numbers are rounded.

    `attention_taken` is the backend that `auto` chose on a GPU for each attention shape.
    """

    weights: str
    arithmetic: Arithmetic
    attention_taken: Mapping[str, str] = field(default_factory=dict)


def chunk_fingerprints(plan: Plan, weights: str, arithmetic: Arithmetic, *, reanchor: bool = False) -> list[str]:
    """Return the fingerprint of each chunk of `plan`, 64 hex digits.

    `weights` is `weights.checkpoint.weights_identity` of the checkpoint. Pictures and clips are read, each once.
    InputError if one cannot be read.
    """
    return Fingerprints(weights, arithmetic, reanchor=reanchor).of(plan)


class Fingerprints:
    """`chunk_fingerprints` of a film whose plan grows: chunks it had before are not hashed again."""

    def __init__(self, weights: str, arithmetic: Arithmetic, *, reanchor: bool = False) -> None:
        self._weights, self._arithmetic, self._reanchor = weights, arithmetic, reanchor
        self._chunks: tuple[Chunk, ...] = ()
        self._hashes: list[str] = []
        self._places: list[int] = []  # indices of the chunks in their segments
        self._files: dict[Path, str] = {}

    def of(self, plan: Plan) -> list[str]:
        """Return the fingerprint of each chunk of `plan`; its settings must be those of the plans before."""
        if plan.chunks is not self._chunks:
            pairs = zip(self._chunks, plan.chunks, strict=False)
            most = min(len(self._chunks), len(plan.chunks))
            same = next((index for index, (a, b) in enumerate(pairs) if a is not b and a != b), most)
            self._hashes, self._places = self._hashes[:same], self._places[:same]
            for chunk in plan.chunks[same:]:
                self._add(plan, chunk)
            self._chunks = plan.chunks
        return self._hashes

    def _add(self, plan: Plan, chunk: Chunk) -> None:
        place = 0 if chunk.fresh else self._places[-1] + 1
        if chunk.fresh:
            before = {"fresh": self._basis(plan), **_start(chunk, plan.fps, self._files)}
        else:
            before = {"after": self._hashes[-1]}
        if self._reanchor and place == REANCHORING:
            before["reanchor"] = True
        self._hashes.append(_digest({**before, "prompts": chunk.prompts}))
        self._places.append(place)

    def _basis(self, plan: Plan) -> dict:
        # Without them, old fingerprints stay valid.
        reuse = {"reuse_history": True} if plan.reuse_history else {}
        steps = {"reuse_steps": plan.reuse_steps} if plan.reuse_steps > 1 else {}
        return {
            **reuse,
            **steps,
            "numerics": NUMERICS_VERSION,
            "arithmetic": self._arithmetic.without_defaults(),
            "weights": self._weights,
            "size": plan.size,
            "steps": plan.steps,
            # Up to 1 there is one model call per step and no negative prompt.
            "guidance": (plan.guidance, plan.negative) if plan.guidance > 1 else None,
        }


def film_fingerprint(plan: Plan, chunks: Iterable[str], preview: str = "") -> str:
    """Return one fingerprint for a film's frames: those of its chunks, and the number of frames kept of each.

    `preview` is the hash of a decoder that made the frames in place of the VAE: it changes no chunk's latents, so that
    the chunks' own fingerprints stay the same.
    """
    kept: list = [[fingerprint, chunk.num_frames] for fingerprint, chunk in zip(chunks, plan.chunks, strict=True)]
    return _digest([*kept, {"preview": preview}] if preview else kept)


def _start(chunk: Chunk, fps: float, files: dict[Path, str]) -> dict:
    """Return what a fresh chunk begins with. Decoders are hashed with their version, since they round too."""
    start: dict = {"seed": chunk.seed}
    if chunk.image:
        start["image"] = [_content(chunk.image, files), version_of("pillow", "PIL")]
    if chunk.video:
        start["video"] = [_content(chunk.video, files), version_of("imageio-ffmpeg", "imageio_ffmpeg"), fps]
    return start


def _content(path: Path, files: dict[Path, str]) -> str:
    if path not in files:
        try:
            files[path] = sha256_of(path)
        except OSError as error:
            raise InputError(f"{path} cannot be read: {error.strerror or error}") from error
    return files[path]


def _digest(value: dict | list) -> str:
    """Return the SHA-256 of a value's JSON, in which every float is written to its last bit."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, allow_nan=False).encode()).hexdigest()
