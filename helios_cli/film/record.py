"""The record of how a film was made: next to it as `<stem>.json` (its sidecar), and inside an .mp4 or .mkv.

`helios render --from` makes the same film again from either. Paths in a record are relative to the film's folder, so
that film, pictures and model may move together.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator

from helios_cli.film.after import MAX_COMMAND, After
from helios_cli.film.filters import MAX_GRAPH, MAX_RATE
from helios_cli.film.growing import Chapter
from helios_cli.film.reading import MAX_SIDE
from helios_cli.film.sound import Track
from helios_cli.recipe.export import write_recipe
from helios_cli.recipe.film import Film
from helios_cli.recipe.lora import MAX_LORAS, MAX_WEIGHT, Lora, choose_loras
from helios_cli.recipe.options import MAX_STEPS_REUSED, RenderOptions
from helios_cli.recipe.settings import DEFAULT_SEED
from helios_cli.recipe.sound import MAX_FADE_SECONDS, SOUND_KEYS, Fit
from helios_cli.recipe.values import LENGTH_KEYS, MAX_FRAMES
from helios_cli.visible import has_unseen, printable, visible
from helios_cli.weights.client import COMMIT
from helios_cli.weights.hub import pinned_lora
from helios_cli.weights.names import EMBEDDED_FOLDER
from helios_cli.weights.source import HUB_ID, Source

if TYPE_CHECKING:
    from helios_cli.recipe.plan import Plan
    from helios_cli.weights.adapters import Adapter

KEY = "helios"
"""The record's key in a film's metadata."""

FORMAT: Final = "helios film"
MAX_NAME_BYTES = 255
MAX_RECORDED_TITLE = 1000
MAX_TITLE = 80
"""Characters of a chapter's title that players show on a line."""


def _visible(text: str) -> str:
    if has_unseen(text):
        raise ValueError(f"has invisible characters: {printable(text)}")
    return text


def _repo(text: str) -> str:
    if len(text) > 96 or not HUB_ID.fullmatch(text):
        raise ValueError("is not a Hub id owner/name")
    return text


def file_name(text: object) -> str:
    """Check a file name. Bytes that are not UTF-8 are lone surrogates in it, which pydantic's `str` refuses."""
    if not isinstance(text, str) or not re.fullmatch("[^/\0-\x1f\x7f]+", text) or text in (".", ".."):
        raise ValueError("is not a file name")
    if len(os.fsencode(text)) > MAX_NAME_BYTES:
        raise ValueError("is too long for a file name")
    return text


# A record may be a stranger's: every text in it has a length and a set of characters.
Word = Annotated[str, Field(pattern=r"^[a-z0-9_:-]{1,40}$")]
Line = Annotated[str, Field(max_length=MAX_RECORDED_TITLE), AfterValidator(_visible)]
Folder = Annotated[str, Field(min_length=1, max_length=4096), AfterValidator(_visible)]
Repo = Annotated[str, AfterValidator(_repo)]
Revision = Annotated[str, Field(max_length=250, pattern=r"^[A-Za-z0-9_][A-Za-z0-9_./-]*$")]
Shape = Annotated[str, Field(pattern=r"^[0-9a-z ]{1,60}$")]
Size = tuple[Annotated[int, Field(ge=1, le=MAX_SIDE)], Annotated[int, Field(ge=1, le=MAX_SIDE)]]
Rate = Annotated[float, Field(ge=1, le=MAX_RATE)]
FileName = Annotated[str, PlainValidator(file_name)]


Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Dtype = Literal["bfloat16", "float16", "float32"]


class _Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)


class ModelRecord(_Frozen):
    """The model: `repo` at commit `revision`, or a `folder`, or neither for the one in the package.

    `identity` is that of the weights (`weights.checkpoint.weights_identity`).
    """

    name: Line
    repo: Repo | None = None
    revision: Revision | None = None
    folder: Folder | None = None
    identity: Line

    @classmethod
    def of(cls, name: str, source: Source, checkpoint: Path, identity: str, folder: Path) -> ModelRecord:
        """Record the model called `name`, from `source` and opened at `checkpoint`, for a film in `folder`."""
        if source.repo:
            revision = checkpoint.name if COMMIT.fullmatch(checkpoint.name) else source.revision
            return cls(name=visible(name), repo=source.repo, revision=revision, identity=identity)
        if source.folder == EMBEDDED_FOLDER:
            return cls(name=name, identity=identity)
        return cls(name=name, folder=os.path.relpath(checkpoint, folder), identity=identity)


class LoraRecord(_Frozen):
    """A LoRA file that is folded into the model: its name, weight, and hash (`weights.adapters.Adapter`)."""

    name: Line
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
    sha256: Digest

    @classmethod
    def of(cls, adapter: Adapter) -> LoraRecord:
        return cls(name=visible(adapter.path.name), weight=adapter.weight, sha256=adapter.digest)


class SoundRecord(_Frozen):
    """The sound under the film: its file's name and hash, and how it is fitted (`recipe.sound.Sound`)."""

    name: Line
    sha256: Digest
    fit: Fit
    fade: Annotated[float, Field(ge=0, le=MAX_FADE_SECONDS)]

    @classmethod
    def of(cls, track: Track) -> SoundRecord:
        sound = track.sound
        return cls(name=visible(sound.path.name), sha256=track.digest, fit=sound.fit, fade=sound.fade)


class PreviewRecord(_Frozen):
    """The preview decoder that made the frames in place of the VAE: the name of its file, and its hash."""

    name: Line
    sha256: Digest


class EncodingRecord(_Frozen):
    """The encoding of an .mp4; other films have no choice."""

    codec: Word
    crf: Annotated[int, Field(ge=0, le=100)]
    preset: Word


class AfterRecord(_Frozen):
    """The stage after the render: the options `--through` to `--filter`, and the film's own `size` and `fps`."""

    through: Annotated[str, Field(min_length=1, max_length=MAX_COMMAND)] | None = None
    through_size: Size | None = None
    through_fps: Rate | None = None
    filter: Annotated[str, Field(max_length=MAX_GRAPH)] | None = None
    size: Size
    fps: Rate

    @classmethod
    def of(cls, after: After, options: RenderOptions) -> AfterRecord:
        given = {key: getattr(options, key) for key in ("through", "through_size", "through_fps", "filter")}
        return cls(**given, size=after.made.size, fps=float(after.made.rate))


class Record(_Frozen):
    """The record of everything that decides a film's frames. `recipe` has a recipe file's keys, every setting resolved.

    `lora` and `audio` identify the LoRA files and the sound, whose places are in the recipe. `device` is a value of
    --device, `processor` the name of its model; `fingerprint` is the film's (`recipe.fingerprint.film_fingerprint`).
    `attention` is the value of --attention, `attention_taken` the choices of `auto` on a GPU by shape, and `kernels`
    names what else rounds differently from plain PyTorch (`recipe.fingerprint.Arithmetic`). `vae` describes the device
    of the VAE and the text encoder, if it rounds differently; `preview` is the decoder in the VAE's place, if there was
    one; `team` and `decoders` are the ranks that shared a model call and a decode. A sidecar also names its `film`.
    """

    format: Literal["helios film"] = FORMAT
    version: Literal[1] = 1
    title: Line
    versions: Annotated[dict[Word, Line], Field(max_length=20)]
    model: ModelRecord
    lora: Annotated[tuple[LoraRecord, ...], Field(max_length=MAX_LORAS)] | None = None
    device: Word
    processor: Line
    dtype: Dtype
    quant: Literal["fp8", "fp8+attention"] | None = None
    attention: Word | None = None
    attention_taken: Annotated[dict[Shape, Word], Field(max_length=100)] | None = None
    kernels: Line | None = None
    vae: Line | None = None
    team: Annotated[int, Field(ge=2, le=1000)] | None = None
    decoders: Annotated[int, Field(ge=2, le=1000)] | None = None
    preview: PreviewRecord | None = None
    reanchor: bool
    reuse_history: Literal[True] | None = None
    reuse_steps: Annotated[int, Field(ge=2, le=MAX_STEPS_REUSED)] | None = None
    encoding: EncodingRecord | None = None
    after: AfterRecord | None = None
    audio: SoundRecord | None = None
    fingerprint: Line
    frames: Annotated[int, Field(ge=1, le=MAX_FRAMES)]
    recipe: dict
    film: FileName | None = None

    def metadata(self) -> dict[str, str]:
        """Return metadata for the file itself. It has no times or dates: the same film is the same file."""
        record = self.model_dump(mode="json", exclude_none=True)
        text = json.dumps(record, ensure_ascii=False, separators=(",", ":"))
        return {"title": self.title, KEY: as_bytes(text).decode()}

    def is_same_film(self, other: Record) -> bool:
        """Return whether `other` has the same frames at the same rate in the same encoding, and the same sound."""
        mine = self.fingerprint, self.recipe.get("fps"), self.encoding, self.after
        theirs = other.fingerprint, other.recipe.get("fps"), other.encoding, other.after
        return mine == theirs and self.has_sound_of(other)

    def is_same_film_elsewhere(self, other: Record) -> bool:
        """Return whether `other` is this film, or would be if it were rendered on the same machine."""
        machines = {"versions", "processor", "attention", "kernels"}
        return self.frames == other.frames and machines.issuperset(self.differences(other))

    def has_sound_of(self, other: Record) -> bool:
        """Return whether `other` has the same sound, under whatever name."""
        mine, theirs = (record.audio and record.audio.model_dump(exclude={"name"}) for record in (self, other))
        return mine == theirs

    def differences(self, other: Record) -> list[str]:
        """Return the keys under which `other` differs."""
        rounding = "versions", "processor", "dtype", "quant", "attention", "kernels", "vae", "team", "decoders"
        keys = *rounding, "reanchor", "reuse_history", "reuse_steps", "encoding", "after"
        different = [key for key in keys if getattr(self, key) != getattr(other, key)]
        different += [] if _without_sound(self.recipe) == _without_sound(other.recipe) else ["recipe"]
        different += [] if self.has_sound_of(other) else ["audio"]
        if (self.preview and self.preview.sha256) != (other.preview and other.preview.sha256):
            different.append("preview decoder")
        loras = [(record.weight, record.sha256) for record in self.lora or ()]
        others = [(record.weight, record.sha256) for record in other.lora or ()]
        if loras != others:
            return ["lora", *different]  # which the identity of the model depends on
        return ["model", *different] if self.model.identity != other.model.identity else different


def _without_sound(recipe: dict) -> dict:
    """Return a recipe without its sound, which `Record.audio` identifies: the file may be at another place."""
    return {key: value for key, value in recipe.items() if key not in SOUND_KEYS}


def resolved_recipe(
    film: Film,
    options: RenderOptions,
    plan: Plan,
    folder: Path,
    adapters: Sequence[Adapter],
    track: Track | None,
) -> dict:
    """Return the recipe's keys with the values that were used, without the film's length (`Record.frames`)."""
    keys = json.loads(write_recipe(film, "json", folder))
    for key in ("model", "lora", *SOUND_KEYS, *LENGTH_KEYS):
        keys.pop(key, None)
    shots = keys.pop("shot")
    for key, path in (("image", options.image), ("video", options.video)):
        if path is not None:
            shots[0].pop("video", None)
            shots[0].pop("image", None)
            shots[0][key] = os.path.relpath(path, folder)
    loras, _ = choose_loras(film, options)
    if loras:
        keys["lora"] = [_written(*pair, folder) for pair in zip_longest(loras, adapters)]
    if track:
        values = (Path(os.path.relpath(track.sound.path, folder)).as_posix(), track.sound.fit, track.sound.fade)
        keys |= dict(zip(SOUND_KEYS, values, strict=True))
    seeds = (options.seed, film.recipe.seed, DEFAULT_SEED)
    settings = {
        "fps": plan.fps,
        "size": f"{plan.size[0]}x{plan.size[1]}",
        "seed": next(seed for seed in seeds if seed is not None),
        "negative": plan.negative,
        "steps": list(plan.steps),
        "guidance": plan.guidance,
    }
    rest = {key: value for key, value in keys.items() if key not in ("version", "title", *settings)}
    return {"version": keys["version"], "title": title_of(plan)[:200], **rest, **settings, "shot": shots}


def _written(lora: Lora, adapter: Adapter | None, folder: Path) -> dict:
    """Return the recipe's entry of a LoRA: a file relative to `folder`, or one on the Hub with its commit.

    `adapter` is what was opened, or None if another machine did that."""
    if not lora.is_on_hub:
        return {"path": Path(os.path.relpath(lora.path, folder)).as_posix(), "weight": lora.weight}
    path = lora.path if adapter is None else pinned_lora(lora.path, adapter.path)
    return {"path": path, "weight": lora.weight}


def title_of(plan: Plan) -> str:
    """Return the title, in which any characters of a file's name may be."""
    return visible(as_bytes(plan.title).decode())[:MAX_RECORDED_TITLE]


def as_bytes(text: str) -> bytes:
    """Encode text; a byte of a file's name that is not UTF-8 becomes `\\udce9`, which JSON reads back as it was."""
    return text.encode(errors="backslashreplace")


def chapters(film: Film, plan: Plan) -> list[Chapter]:
    """Return a chapter for each shot that has frames, if there are several."""
    found = []
    for shot in plan.shots:
        title = " ".join(film.recipe.shots[shot.index].prompt.split())
        if len(title) > MAX_TITLE:
            title = title[: MAX_TITLE - 1].rstrip() + "…"
        if shot.num_frames > 0:
            found.append(Chapter(title, shot.start_frame, shot.num_frames))
    return found if len(found) > 1 else []
