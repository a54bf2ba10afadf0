"""The record of how a film was made: next to it as `<stem>.json` (its sidecar), and inside an .mp4 or .mkv.

`helios render --from` makes the same film again from either. Paths in a record are relative to the film's folder, so
that film, pictures and model may move together.
"""

from __future__ import annotations

import json
import os
import re
import shlex
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, cast

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, PlainValidator, ValidationError

from helios_cli import __version__
from helios_cli.errors import InputError, in_our_words
from helios_cli.files import replacing
from helios_cli.film import ffmpeg, reading
from helios_cli.film.after import MAX_COMMAND, After
from helios_cli.film.disk import disk_errors
from helios_cli.film.filters import MAX_GRAPH, MAX_RATE
from helios_cli.film.growing import Chapter
from helios_cli.film.reading import MAX_SIDE
from helios_cli.film.sound import Track
from helios_cli.film.target import Target, sidecar_of, sidecars_of
from helios_cli.recipe.export import write_recipe
from helios_cli.recipe.files import absence
from helios_cli.recipe.film import Film
from helios_cli.recipe.fingerprint import Arithmetic, film_fingerprint
from helios_cli.recipe.lora import MAX_LORAS, MAX_WEIGHT, Lora, choose_loras, located
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.settings import DEFAULT_SEED, MAX_STEPS_REUSED
from helios_cli.recipe.sound import MAX_FADE_SECONDS, SOUND_KEYS, Fit
from helios_cli.recipe.speed import KEYS
from helios_cli.recipe.validate import recipe_from
from helios_cli.recipe.values import LENGTH_KEYS, MAX_FRAMES
from helios_cli.visible import has_unseen, printable, visible
from helios_cli.weights.hub import COMMIT, HUB_ID, Source, find_lora, pinned_lora
from helios_cli.weights.names import EMBEDDED_FOLDER, known_repo

if TYPE_CHECKING:
    from helios_cli.recipe.plan import Plan
    from helios_cli.weights.adapters import Adapter
    from helios_cli.weights.preview import PreviewFile

KEY = "helios"
"""The record's key in a film's metadata."""

FORMAT: Final = "helios film"
MAX_BYTES = 16 * 2**20
"""Largest sidecar: a film of 24 hours lists its chunks in 13 MB."""

FILM_SUFFIXES = (".mp4", ".mkv")
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


def _file_name(text: object) -> str:
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
FileName = Annotated[str, PlainValidator(_file_name)]


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


class LoraRecord(_Frozen):
    """A LoRA file that is folded into the model: its name, weight, and hash (`weights.adapters.Adapter`)."""

    name: Line
    weight: Annotated[float, Field(ge=-MAX_WEIGHT, le=MAX_WEIGHT)]
    sha256: Digest


class SoundRecord(_Frozen):
    """The sound under the film: its file's name and hash, and how it is fitted (`recipe.sound.Sound`)."""

    name: Line
    sha256: Digest
    fit: Fit
    fade: Annotated[float, Field(ge=0, le=MAX_FADE_SECONDS)]


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
    """The stage behind the render: the options `--through` to `--filter`, and the film's own `size` and `fps`."""

    through: Annotated[str, Field(min_length=1, max_length=MAX_COMMAND)] | None = None
    through_size: Size | None = None
    through_fps: Rate | None = None
    filter: Annotated[str, Field(max_length=MAX_GRAPH)] | None = None
    size: Size
    fps: Rate


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
        return {"title": self.title, KEY: _utf8(text).decode()}

    def is_same_film(self, other: Record) -> bool:
        """Return whether `other` has the same frames at the same rate in the same encoding, and the same sound."""
        mine = self.fingerprint, self.recipe.get("fps"), self.encoding, self.after
        theirs = other.fingerprint, other.recipe.get("fps"), other.encoding, other.after
        return mine == theirs and self.has_sound_of(other)

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


@dataclass(frozen=True)
class Again:
    """A film to be made again: `record` as it stood in `path`, `suffix` ".mp4", ".mkv" or "/"."""

    path: Path
    record: Record
    film: Film
    suffix: str

    def options(self, given: RenderOptions, named: Collection[str]) -> RenderOptions:
        """The options given, with those of the record that the command line does not name.

        A processor of another kind is never asked for: --device auto takes the GPU that is there, if there is one.
        Raises InputError if the record names a model that a stranger's film cannot be trusted with.
        """
        record = self.record
        has_length = any(getattr(given, key) is not None for key in LENGTH_KEYS)
        recorded: dict[str, Any] = {"dtype": record.dtype, "reanchor": record.reanchor}
        if record.device == "cpu":
            recorded["device"] = "cpu"
        kept = ("quant", "attention", "reuse_history", "reuse_steps")
        named = {*named, *KEYS} if "speed" in named else named  # which goes before the record, as any flag
        recorded |= {key: getattr(record, key) for key in kept if getattr(record, key)}
        recorded |= record.encoding.model_dump() if record.encoding else {}
        recorded |= self._after(named)
        return replace(
            given,
            **{key: value for key, value in recorded.items() if key not in named},
            model=self._checked_model() if given.model is None else given.model,
            revision=given.revision or self._revision(given.model),
            lora=self._checked_loras() if given.lora is None else given.lora,
            # As an option: a film that --frames cut short is not one whose recipe contradicts itself.
            frames=given.frames if has_length else record.frames,
            output=given.output or f"{self.film.name}{self.suffix}",
            attention_taken=record.attention_taken or {},
            repeats=self,
        )

    def _after(self, named: Collection[str]) -> dict[str, Any]:
        """Return the options of what comes behind the render. A record alone makes no machine run a program."""
        after = self.record.after
        if after is None:
            return {}
        if after.through is not None and "through" not in named:
            flags = f"--through {shlex.quote(after.through)}"
            flags += f" --through-size {after.through_size[0]}x{after.through_size[1]}" if after.through_size else ""
            flags += f" --through-fps {after.through_fps:g}" if after.through_fps else ""
            raise InputError(
                f"--from {self.path}: the film's frames went through a program, which a record does not start",
                hint=f"if you trust it, add {printable(flags, MAX_COMMAND)}; or add --through none",
            )
        return {"filter": after.filter}

    def _checked_loras(self) -> tuple[Lora, ...]:
        """Return the LoRA files of the recipe. As with models, a record alone makes no machine fetch weights."""
        loras = tuple(
            located(Lora(entry.path, entry.weight), self.film.folder) for entry in self.film.recipe.lora or ()
        )
        for lora in loras:
            if lora.is_on_hub and find_lora(lora.path) is None:
                message = f"--from {self.path}: its record names the LoRA {lora.path} on the Hub, which is not here"
                words = " ".join(f"--lora {one.path}:{one.weight:g}" for one in loras)
                raise InputError(message, hint=f"if you trust it, add {words}; or write --lora none")
        return loras

    def _revision(self, model: str | None) -> str | None:
        """The recorded commit, unless another model was given."""
        return self.record.model.revision if model in (None, self.record.model.repo) else None

    def _checked_model(self) -> str:
        """Return the model as -m takes it. A record alone makes no machine fetch weights from an unknown place."""
        model, start = self.record.model, f"--from {self.path}: its record's"
        if model.folder:
            folder = os.path.abspath(self.film.folder / model.folder)
            if not os.path.isdir(folder):
                message = f"{start} `model.folder` is not a folder here: {printable(folder, 200)}"
                raise InputError(message, hint="name the model with -m")
            return folder
        if model.repo and not known_repo(model.repo):
            message = f"{start} `model.repo` is {model.repo} on the Hub, which helios does not know"
            raise InputError(message, hint=f"if you trust it, add -m {model.repo}; or name another model with -m")
        return model.repo or EMBEDDED_FOLDER.name


def make_record(
    film: Film,
    options: RenderOptions,
    plan: Plan,
    fingerprints: Sequence[str],
    target: Target,
    *,
    model: ModelRecord,
    adapters: Sequence[Adapter] = (),
    track: Track | None = None,
    device: str,
    arithmetic: Arithmetic,
    attention_taken: dict[str, str] | None = None,
    preview: PreviewFile | None = None,
) -> Record:
    """Make the record of a film that goes to `target`."""
    encoding = EncodingRecord(codec=options.codec, crf=options.crf, preset=options.preset)
    return Record(
        title=_title(plan),
        versions={"helios": __version__, "torch": arithmetic.torch, "ffmpeg": ffmpeg.program().version},
        model=model,
        lora=_lora_records(adapters),
        device=device,
        processor=arithmetic.device,
        dtype=cast(Dtype, arithmetic.dtype),
        quant=None if arithmetic.quant == "none" else arithmetic.quant,
        attention=None if options.attention == "auto" else options.attention,
        attention_taken=attention_taken or None,
        kernels=arithmetic.kernels or None,
        vae=arithmetic.vae or None,
        team=arithmetic.team if arithmetic.team > 1 else None,
        decoders=arithmetic.decoders if arithmetic.decoders > 1 else None,
        preview=PreviewRecord(name=visible(preview.name), sha256=preview.digest) if preview else None,
        reanchor=options.reanchor,
        reuse_history=plan.reuse_history or None,
        reuse_steps=plan.reuse_steps if plan.reuse_steps > 1 else None,
        encoding=encoding if target.kind == "mp4" else None,
        audio=track and _sound_record(track),
        after=_after_record(options, plan, target),
        fingerprint=film_fingerprint(plan, fingerprints, preview.digest if preview else ""),
        frames=plan.num_frames,
        recipe=_resolved(film, options, plan, target.path.parent, adapters, track),
    )


def _without_sound(recipe: dict) -> dict:
    """Return a recipe without its sound, which `Record.audio` identifies: the file may be at another place."""
    return {key: value for key, value in recipe.items() if key not in SOUND_KEYS}


def _sound_record(track: Track) -> SoundRecord:
    sound = track.sound
    return SoundRecord(name=visible(sound.path.name), sha256=track.digest, fit=sound.fit, fade=sound.fade)


def _after_record(options: RenderOptions, plan: Plan, target: Target) -> AfterRecord | None:
    after = After.of(options, plan.size, plan.fps, target.kind)
    if after is None:
        return None
    return AfterRecord(
        through=options.through,
        through_size=options.through_size,
        through_fps=options.through_fps,
        filter=options.filter,
        size=after.made.size,
        fps=float(after.made.rate),
    )


def _lora_records(adapters: Sequence[Adapter]) -> tuple[LoraRecord, ...] | None:
    records = [
        LoraRecord(name=visible(adapter.path.name), weight=adapter.weight, sha256=adapter.digest)
        for adapter in adapters
    ]
    return tuple(records) or None


def model_record(name: str, source: Source, checkpoint: Path, identity: str, folder: Path) -> ModelRecord:
    """Record the model called `name`, from `source` and opened at `checkpoint`, for a film in `folder`."""
    if source.repo:
        revision = checkpoint.name if COMMIT.fullmatch(checkpoint.name) else source.revision
        return ModelRecord(name=visible(name), repo=source.repo, revision=revision, identity=identity)
    if source.folder == EMBEDDED_FOLDER:
        return ModelRecord(name=name, identity=identity)
    return ModelRecord(name=name, folder=os.path.relpath(checkpoint, folder), identity=identity)


def _resolved(
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
    return {"version": keys["version"], "title": _title(plan)[:200], **rest, **settings, "shot": shots}


def _written(lora: Lora, adapter: Adapter | None, folder: Path) -> dict:
    """Return the recipe's entry of a LoRA: a file relative to `folder`, or one on the Hub with its commit.

    `adapter` is what was opened, or None if another machine did that."""
    if not lora.is_on_hub:
        return {"path": Path(os.path.relpath(lora.path, folder)).as_posix(), "weight": lora.weight}
    path = lora.path if adapter is None else pinned_lora(lora.path, adapter.path)
    return {"path": path, "weight": lora.weight}


def _title(plan: Plan) -> str:
    """Return the title, in which any characters of a file's name may be."""
    return visible(_utf8(plan.title).decode())[:MAX_RECORDED_TITLE]


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


# The sidecar


def sidecar_path(target: Target, source: str) -> Path | None:
    """Return where the sidecar of the film at `target`, made from `source`, replaces no other file; None if nowhere.

    That is `boat.json`, or `boat.mp4.json` if the first is the source, another film's sidecar, or anything else.
    """
    first, second = sidecars_of(target.path, folder=target.kind == "png")
    recipe = Path(os.path.abspath(source))
    if second != recipe and _is_ours(second, target):
        return second  # where there is one, it is the one that is read
    free = (path for path in (first, second) if not os.path.lexists(path) or _is_ours(path, target))
    return next((path for path in free if path != recipe), None)


def _is_ours(path: Path, target: Target) -> bool:
    """Return whether a file is the sidecar of this film, or of one that is gone."""
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > MAX_BYTES:
            return False
        content = json.loads(path.read_bytes())
        film = _file_name(content["film"])
        is_sidecar = content["format"] == FORMAT
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return False
    return is_sidecar and (film == target.path.name or not os.path.lexists(path.with_name(film)))


def write_sidecar(
    path: Path, record: Record, target: Target, plan: Plan, fingerprints: Sequence[str], seconds: float
) -> None:
    """Write the record and the list of chunks to `path`, whole or not at all. MachineError if it cannot be written."""
    settings = ("size", "fps", "steps", "guidance", "seed", "negative")
    keys = ("start_frame", "num_frames", "fresh", "shot")
    content = {
        **record.model_dump(mode="json", exclude_none=True, exclude={"recipe", "frames"}),
        "film": target.path.name,
        "frames": record.frames,
        **{key: record.recipe[key] for key in settings},
        "seconds": round(seconds, 3),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "recipe": record.recipe,
        "chunks": [
            {**{key: getattr(chunk, key) for key in keys}, "fingerprint": fingerprint}
            for chunk, fingerprint in zip(plan.chunks, fingerprints, strict=True)
        ],
    }
    replace_text(path, json.dumps(content, indent=2, ensure_ascii=False) + "\n")


def replace_text(path: Path, text: str) -> None:
    """Replace a file, whole or not at all. MachineError if it cannot be written."""
    with disk_errors(path), replacing(path, durable=True) as new:
        new.write_bytes(_utf8(text))


def _utf8(text: str) -> bytes:
    """Encode text; a byte of a file's name that is not UTF-8 becomes `\\udce9`, which JSON reads back as it was."""
    return text.encode(errors="backslashreplace")


# Reading


def is_finished(target: Target, record: Record) -> bool:
    """Return whether the record of the film at `target` is that of the film of `record`."""
    try:
        return _film_and_record(target.path)[1].is_same_film(record)
    except InputError:
        return False


def is_preview(target: Target) -> bool:
    """Return whether the record of the film at `target` is that of a preview."""
    try:
        return os.path.lexists(target.path) and _film_and_record(target.path)[1].preview is not None
    except InputError:
        return False


def is_finished_by_another(target: Target, record: Record) -> bool:
    """Return whether the film at `target` is that of `record`, or would be if it were rendered on the same machine."""
    try:
        there = _film_and_record(target.path)[1]
    except InputError:
        return False
    machines = {"versions", "processor", "attention", "kernels"}
    return there.frames == record.frames and machines.issuperset(there.differences(record))


def read_again(path: Path) -> Again:
    """Read how to make a film again from `path`, the film or its sidecar. InputError if it has no record."""
    name, record = _film_and_record(path)
    recipe = recipe_from(record.recipe, {}, Problems(f"{path} (its record)"))
    suffix = PurePath(name).suffix.lower() if PurePath(name).suffix.lower() in FILM_SUFFIXES else "/"
    stem = PurePath(name).stem if suffix != "/" else name
    folder = Path(os.path.abspath(path.parent))
    return Again(path, record, Film(f"{stem}-again", str(path), recipe, folder), suffix)


def _film_and_record(path: Path) -> tuple[str, Record]:
    """Return the film's name and its record, from a film, its sidecar or, for a folder, the sidecar next to it."""
    source = sidecar_of(path) if os.path.isdir(path) else path
    if not os.path.isfile(source):
        if os.path.isdir(path):
            raise _without_record(path, f"there is no {source.name} next to it")
        next_step = "name a film that helios rendered, or its sidecar .json"
        message, hint = absence(path, (*FILM_SUFFIXES, ".json"), next_step) or ("not a file", next_step)
        raise InputError(f"--from {printable(path, 200)}: {message}", hint=hint)
    in_film = source.suffix.lower() in FILM_SUFFIXES
    try:
        if in_film:
            metadata = reading.metadata(source)
            if metadata is None:
                raise _without_record(path, f"its metadata is larger than {reading.MAX_TEXT_BYTES >> 20} MiB")
            text = metadata.get(KEY, "")
        elif source.stat().st_size > MAX_BYTES:
            raise _without_record(path, "too large for a sidecar")
        else:
            text = source.read_text("utf-8")
        record = Record.model_validate(json.loads(text))
    except OSError as error:
        raise InputError(f"--from {path}: {error.strerror or error}") from error
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = printable(".".join(map(str, first["loc"])))
        raise _without_record(path, f"`{key}`: {in_our_words(first['msg'])}") from error
    except (ValueError, RecursionError) as error:
        raise _without_record(path, "no record in it") from error
    film = source.name if in_film else record.film or source.name
    if path.is_dir() and Path(film).suffix.lower() in FILM_SUFFIXES:
        raise _without_record(path, f"{source.name} describes {film}")
    return film, record


def _without_record(path: Path, why: str) -> InputError:
    return InputError(
        f"--from {path}: the file does not say how it was made ({why})",
        hint="name a film that helios rendered without --no-metadata, or its sidecar .json",
    )
