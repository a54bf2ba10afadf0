"""`RenderOptions`: the options of a render, apart from the film's own recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from helios_cli.errors import InputError
from helios_cli.recipe.lora import Lora, parse_loras
from helios_cli.recipe.sound import Fit
from helios_cli.recipe.speed import SpeedChoice
from helios_cli.recipe.values import parse_bytes, parse_duration, parse_size, parse_steps

T = TypeVar("T")

STREAM = "-"
"""The output that means standard output."""

EXPORT_FORMS = ("otio", "edl")

# The choices of flags, for the command line and for Python alike.
DtypeChoice = Literal["auto", "bfloat16", "float16", "float32"]
OffloadChoice = Literal["auto", "none", "model", "stream"]
ContainerChoice = Literal["mkv", "mp4", "ts", "y4m"]
QuantChoice = Literal["none", "fp8", "fp8+attention"]
Workers = int | Literal["auto"]

MAX_WORKERS = 1024
WORKER_TIMEOUT = 1800.0
"""Seconds without an event after which a worker counts as hung: loading a large model over a network takes minutes."""


@dataclass(frozen=True)
class RenderOptions:
    """Options of a render, a plan or a live film: the flags of `helios render`, read.

    In the first group None means "not given": the recipe's value counts, then the checkpoint's, then the default
    (`recipe.settings.resolve`). Pictures and clips are relative to the current folder.

    Attributes:
        size: (width, height) in pixels.
        steps: solver steps of each stage.
        output: file or folder of the film; several films need a folder.
        lora: LoRA files that are folded into the model, in place of the recipe's; relative to the current folder.
        audio: sound file under the film, "none" for none; relative to the current folder.
        audio_fit, audio_fade: how it is fitted to the film's length, and seconds of fading out (`recipe.sound.Sound`).
        container: container of the stream that the output "-" is.
        cache: take chunks that earlier films left, and keep new ones.
        vram, ram: memory budgets in bytes; None is what is free.
        speed: rung of the ladder that the fields None below follow (`recipe.speed`).
        quant: how products are rounded; None is as `speed` says, where the device has such products (`quant_on`).
        reuse_history: compute keys and values of the history in a chunk's coarsest stage alone; other pictures.
        reuse_steps: number of steps of which one makes model calls; the others extrapolate the flow; other pictures.
        attention_taken: attention kernel by shape, as the record of a film to repeat has it; `auto` follows it.
        filter, through: graph of ffmpeg's filters, and command of a program, for the frames of the whole film.
        through_size, through_fps: of the frames that the program gives; by default those of the film.
        repeats: the film that is made again (`film.again.Again`).
        export: names of the timelines to write next to the film, "otio" and "edl".
        takes, shot: render the first chunk of this shot with so many seeds in place of the film.
        workers: worker processes, "auto" for one a GPU; None is not given, which is 1, or all that a cluster has.
        cluster: address of a Ray cluster to render on.
        share: other helios processes may render the same films, which are shared out.
        mixed: segments of one film may be rendered by processors or versions that round differently.
        worker_timeout: seconds without an event after which a worker is replaced.
        gpus_per_film: GPUs, processes on a CPU, that make one film's model calls together.
        vae_device: device of the VAE and the text encoder, if it is another one.
        preview_decoder: file of a small decoder that makes the frames in place of the VAE; other pictures.
        final: decode the film again with the VAE once the preview is done.
    """

    model: str | None = None
    minutes: float | None = None
    seconds: float | None = None
    frames: int | None = None
    fps: float | None = None
    size: tuple[int, int] | None = None
    seed: int | None = None
    negative: str | None = None
    steps: tuple[int, ...] | None = None
    guidance: float | None = None
    image: Path | None = None
    video: Path | None = None
    lora: tuple[Lora, ...] | None = None
    audio: str | None = None
    audio_fit: Fit | None = None
    audio_fade: float | None = None

    revision: str | None = None
    reanchor: bool = False
    reuse_history: bool | None = None
    reuse_steps: int | None = None
    output: str | None = None
    container: str | None = None
    force: bool = False
    cache: bool = True
    keep: bool = False
    codec: str = "h264"
    crf: int = 17
    preset: str = "medium"
    through: str | None = None
    through_size: tuple[int, int] | None = None
    through_fps: float | None = None
    filter: str | None = None
    device: str = "auto"
    dtype: str = "auto"
    lanes: int = 1
    offload: str = "auto"
    vram: int | None = None
    ram: int | None = None
    speed: SpeedChoice | None = None
    quant: QuantChoice | None = None
    attention: str = "auto"
    attention_taken: Mapping[str, str] = field(default_factory=dict)
    strict: bool = False
    metadata: bool = True
    export: tuple[str, ...] = ()
    check: bool = False
    takes: int | None = None
    shot: int | None = None
    repeats: Any = None

    workers: Workers | None = None
    cluster: str | None = None
    share: bool = False
    mixed: bool = False
    worker_timeout: float = WORKER_TIMEOUT
    gpus_per_film: int = 1
    vae_device: str | None = None
    preview_decoder: Path | None = None
    final: bool = False

    @classmethod
    def parse(cls, **values: Any) -> RenderOptions:
        """Options from words as they are typed ("640x384", "1m30s", "2,2,2", "6G") or from values of their own types.

        Raises InputError, which names the flag, for a word that cannot be read.
        """
        for key in ("model", "output", "audio"):
            if isinstance(values.get(key), Path):
                values[key] = os.fspath(values[key])
        if values.get("lora") == []:  # the flag was not given
            values["lora"] = None
        if values.get("lora") is not None:
            values["lora"] = read_flag("--lora", parse_loras, values["lora"])
        for key, choices in CHOICES.items():
            if values.get(key) not in (None, *choices):
                flag = flag_of(key)
                raise InputError(f"{flag} {values[key]}: not a choice", hint=f"write one of {', '.join(choices)}")
        for key, read in READERS.items():
            if isinstance(values.get(key), str):
                values[key] = read_flag(flag_of(key), read, values[key])
        return cls(**{key: value for key, value in values.items() if value is not None})

    @property
    def is_stream(self) -> bool:
        """Return whether the film goes to standard output."""
        return self.output == STREAM

    @property
    def is_shared_out(self) -> bool:
        """Return whether workers render the films, and not this process."""
        return self.cluster is not None or self.share or self.workers not in (None, 1)

    @property
    def changes_frames(self) -> bool:
        """Return whether frames are changed after the render."""
        return self.filter is not None or self.through is not None

    @property
    def memory_is_default(self) -> bool:
        """Return whether helios decides alone where the model is placed."""
        return (self.offload, self.vram, self.ram) == ("auto", None, None)


def flag_of(key: str) -> str:
    """Return the flag of a field."""
    return f"--{key.replace('_', '-')}"


def read_flag(flag: str, read: Callable[[Any], T], text: Any) -> T:
    """The value of a flag. InputError that names it."""
    try:
        return read(text)
    except InputError as error:
        raise InputError(f"{flag}: {error.message}", hint=error.hint) from error


def parse_forms(text: str) -> tuple[str, ...]:
    """`otio,edl` as names of forms. InputError for any other."""
    forms = tuple(dict.fromkeys(part.strip().lower() for part in text.split(",")))
    for form in forms:
        if form not in EXPORT_FORMS:
            raise InputError(f"{text}: unknown timeline format {form!r}", hint="write otio, edl, or otio,edl")
    return forms


def parse_unless_none(text: str) -> str | None:
    """`none` as None, which leaves out what a record has."""
    return None if text == "none" else text


def parse_workers(text: str) -> Workers:
    """`4` or `auto`. InputError for anything else."""
    if text == "auto":
        return "auto"
    if text.isascii() and text.isdigit() and 1 <= int(text) <= MAX_WORKERS:
        return int(text)
    raise InputError(f"{text!r} is not a number of workers", hint=f"write a number from 1 to {MAX_WORKERS}, or auto")


CHOICES = {
    "container": get_args(ContainerChoice),
    "dtype": get_args(DtypeChoice),
    "offload": get_args(OffloadChoice),
    "quant": get_args(QuantChoice),
    "speed": get_args(SpeedChoice),
    "audio_fit": get_args(Fit),
}

READERS: Mapping[str, Callable[[str], Any]] = {
    "seconds": parse_duration,
    "size": parse_size,
    "steps": parse_steps,
    "image": Path,
    "video": Path,
    "preview_decoder": Path,
    "vram": parse_bytes,
    "ram": parse_bytes,
    "export": parse_forms,
    "through": parse_unless_none,
    "through_size": parse_size,
    "filter": parse_unless_none,
    "workers": parse_workers,
    "worker_timeout": parse_duration,
}
