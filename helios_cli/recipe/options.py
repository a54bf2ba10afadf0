"""`RenderOptions`: the options of a render, apart from the film's own recipe. It is the table of the flags of films."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_type_hints

from helios_cli.recipe.flags import Flag, flag, flag_of, read_flag
from helios_cli.recipe.lora import Lora, parse_loras
from helios_cli.recipe.sound import MAX_FADE_SECONDS, Fit
from helios_cli.recipe.speed import SpeedChoice
from helios_cli.recipe.values import (
    MAX_FPS,
    MAX_FRAMES,
    MAX_SECONDS,
    MAX_SEED,
    Workers,
    parse_as,
    parse_bytes,
    parse_duration,
    parse_forms,
    parse_size,
    parse_steps,
    parse_unless_none,
    parse_workers,
)

STREAM = "-"
"""The output that means standard output."""

MAX_TAKES = 100
MAX_STEPS_REUSED = 8
WORKER_TIMEOUT = 1800.0
"""Seconds without an event after which a worker counts as hung: loading a large model over a network takes minutes."""

OUTPUT = "Output"
_LENGTH, _PICTURE, _START, _SOUND, _MACHINE, _GPUS = "Length", "Picture", "Start", "Sound", "Machine", "Many GPUs"


@dataclass(frozen=True)
class RenderOptions:
    """Options of a render, a plan or a live film: the flags of `helios render`, read.

    None means "not given": the recipe's value counts if it has such a key, then the checkpoint's, then the default
    (`recipe.settings.resolve_settings`). Files are relative to the current folder; sizes are (width, height) in pixels.
    """

    model: str | None = flag(
        "Model: auto, tiny, distilled, mid, base, a Hub id or a folder. (default: auto)", short="-m"
    )
    revision: str | None = flag("Hub revision; known names are pinned to a commit.")

    minutes: float | None = flag(
        "Length of the film in minutes.", _LENGTH, least=1 / MAX_FPS / 60, most=MAX_SECONDS / 60
    )
    seconds: float | None = flag(
        "Length in seconds: 90, 1m30s, 1:30.", _LENGTH, read=parse_duration, least=1 / MAX_FPS, most=MAX_SECONDS
    )
    frames: int | None = flag("Length in frames.", _LENGTH, least=1, most=MAX_FRAMES)
    fps: float | None = flag("Frames per second. (default: 24)", _LENGTH, least=1, most=MAX_FPS)

    size: tuple[int, int] | None = flag(
        "Size in pixels, WIDTHxHEIGHT. (default: the model's native size)", _PICTURE, read=parse_size
    )
    seed: int | None = flag("Random seed. (default: 42)", _PICTURE, least=0, most=MAX_SEED)
    negative: str | None = flag("Negative prompt: what to avoid; needs guidance above 1.", _PICTURE)
    steps: tuple[int, ...] | None = flag(
        "Steps per stage: 2,2,2, or 50. (default: the model's)", _PICTURE, read=parse_steps
    )
    guidance: float | None = flag(
        "Guidance scale, the strength of the prompt. (default: the model's)", _PICTURE, least=0, most=100
    )
    lora: tuple[Lora, ...] | None = flag(
        "LoRA file, or owner/name on the Hub, with :WEIGHT behind it; repeatable. none leaves out the recipe's.",
        _PICTURE,
        metavar="FILE[:WEIGHT]",
        read=parse_loras,
        repeats=True,
    )
    preview_decoder: Path | None = flag(
        "Small decoder in place of the VAE: TAEHV for Wan 2.1, taew2_1.safetensors. It is fast, with other pictures.",
        _PICTURE,
        metavar="FILE",
    )
    final: bool = flag("After the preview of --preview-decoder, decode the film with the VAE.", _PICTURE, default=False)

    image: Path | None = flag("Picture to start from.", _START)
    video: Path | None = flag("Clip to continue.", _START)
    reanchor: bool = flag(
        "Take the anchor from the second chunk instead of the first, for starts that hardly move.",
        _START,
        default=False,
    )

    audio: str | None = flag("Sound file under the film; none leaves out the recipe's.", _SOUND, metavar="FILE")
    audio_fit: Fit | None = flag(
        "Fit of the sound: trim cuts it at the film's end, loop repeats it, pad keeps it whole. (default: trim)",
        _SOUND,
        metavar="FIT",
    )
    audio_fade: float | None = flag(
        "Seconds in which the sound fades out where it is cut. (default: 0.5)", _SOUND, least=0, most=MAX_FADE_SECONDS
    )

    output: str | None = flag(
        "Output: .mp4, lossless .mkv, folder/ for PNG frames, a folder for films, or - (stdout). (default: NAME.mp4)",
        OUTPUT,
        short="-o",
    )
    container: Literal["mkv", "mp4", "ts", "y4m"] | None = flag(
        "Container of the stream that -o - writes to standard output: mkv, mp4, ts or y4m. (default: mkv)",
        OUTPUT,
        metavar="FORM",
    )
    force: bool = flag("Replace a finished film, or an unfinished one of other settings.", OUTPUT, default=False)
    cache: bool = flag("Ignore chunks kept from earlier films, and keep none.", OUTPUT, default=True)
    keep: bool = flag("Keep the journal and the pieces next to the finished film.", OUTPUT, default=False)
    takes: int | None = flag(
        "Render the first chunk with this many seeds, as clips and a contact sheet, instead of a film.",
        OUTPUT,
        least=1,
        most=MAX_TAKES,
        shows_limits=True,
    )
    shot: int | None = flag(
        "Shot that --takes shows; it must begin with a cut. (default: the first)", OUTPUT, least=1, shows_limits=True
    )
    codec: Literal["h264", "hevc", "av1"] = flag("Video codec of an .mp4.", OUTPUT, default="h264")
    crf: int = flag("Constant rate factor of an .mp4; lower is better.", OUTPUT, default=17)
    preset: str = flag("Encoder preset, ultrafast to veryslow.", OUTPUT, default="medium")
    through: str | None = flag(
        "Program for all frames of the film: raw RGB to its stdin and from its stdout. none leaves out a record's.",
        OUTPUT,
        metavar="COMMAND",
        read=parse_unless_none,
    )
    through_size: tuple[int, int] | None = flag(
        "Size of the frames that --through gives, WIDTHxHEIGHT. (default: the film's)", OUTPUT, read=parse_size
    )
    through_fps: float | None = flag("Rate of the frames that --through gives. (default: the film's)", OUTPUT)
    filter: str | None = flag(
        "Graph of ffmpeg filters for all frames of the film, such as hqdn3d,unsharp. none leaves out a record's.",
        OUTPUT,
        metavar="GRAPH",
        read=parse_unless_none,
    )
    metadata: bool = flag("Do not store render settings in the film or the .json.", OUTPUT, default=True)
    export: tuple[str, ...] = flag(
        "Timelines to write next to the film: otio, edl or otio,edl.", OUTPUT, default=(), read=parse_forms
    )

    device: str = flag("Device to compute on: auto, cuda, cuda:1, mps, cpu.", _MACHINE, default="auto")
    dtype: Literal["auto", "bfloat16", "float16", "float32"] = flag(
        "Data type to compute in: auto, bfloat16, float16 or float32; auto is bfloat16 where the device is fast at it.",
        _MACHINE,
        default="auto",
        metavar="DTYPE",
    )
    lanes: int = flag(
        "Number of films to render side by side; streamed weights are read once for all of them.",
        _MACHINE,
        default=1,
        least=1,
        most=64,
        shows_limits=True,
    )
    offload: Literal["auto", "none", "model", "stream"] = flag(
        "Weights to keep off the device. model: parts take turns; stream: block by block; auto: the fastest that fits.",
        _MACHINE,
        default="auto",
    )
    vram: int | None = flag(
        "Memory budget of each GPU, such as 6G. (default: what is free)", _MACHINE, read=parse_bytes
    )
    ram: int | None = flag("Host memory budget, such as 16G. (default: what is free)", _MACHINE, read=parse_bytes)
    speed: SpeedChoice | None = flag(
        "Speed: exact; fast, --quant fp8+attention where the GPU has it; or fastest, also --reuse-history and "
        "--reuse-steps 2. (default: exact)",
        _MACHINE,
        metavar="SPEED",
    )
    quant: Literal["none", "fp8", "fp8+attention"] | None = flag(
        "Quantization. fp8 computes most of the transformer in 8 bits, fp8+attention self-attention as well; both "
        "change the pictures. (default: none)",
        _MACHINE,
    )
    reuse_history: bool | None = flag(
        "Compute the history's keys and values in a chunk's coarsest stage alone; faster, and changes the pictures.",
        _MACHINE,
    )
    reuse_steps: int | None = flag(
        "Number of steps of which one calls the model, for base and mid; 2 is nearly twice as fast, and changes the "
        "pictures. (default: 1)",
        _MACHINE,
        metavar="N",
        least=1,
        most=MAX_STEPS_REUSED,
    )
    attention: Literal["auto", "triton", "sdpa", "flash", "cudnn", "fa3", "efficient", "math", "blocked"] = flag(
        "Attention backend: auto, triton, sdpa, flash, cudnn, fa3, efficient, math or blocked; auto is the fastest "
        "here.",
        _MACHINE,
        default="auto",
        metavar="BACKEND",
    )

    workers: Workers | None = flag(
        "Number of processes that share films, and their segments between cuts; auto: one per GPU. (default: 1)",
        _GPUS,
        read=parse_workers,
    )
    cluster: str | None = flag(
        "Ray cluster to render on: auto, local, HOST:PORT or ray://HOST:PORT.", _GPUS, metavar="ADDRESS"
    )
    share: bool = flag(
        "Share the films with other helios processes that work in the same folder.", _GPUS, default=False
    )
    mixed: bool = flag(
        "Let workers that round differently (other GPUs or versions) render segments of one film.", _GPUS, default=False
    )
    worker_timeout: float = flag(
        "Time without an event after which a worker is replaced: 90, 30m. (default: 30m)",
        _GPUS,
        default=WORKER_TIMEOUT,
        read=parse_duration,
    )
    gpus_per_film: int = flag(
        "Number of GPUs (processes, on a CPU) that make one film's model calls together.",
        _GPUS,
        default=1,
        least=1,
        most=64,
        shows_limits=True,
    )
    vae_device: str | None = flag(
        "Device of the VAE and the text encoder: cuda:1, cpu; a chunk is decoded there while the next one is denoised.",
        _GPUS,
    )

    strict: bool = flag("Treat adjustments as errors.", default=False)
    check: bool = flag("Check the finished film as `helios check` does; see --strict.", default=False)

    attention_taken: Mapping[str, str] = field(default_factory=dict)
    """Attention kernel by shape, as the record of a film to repeat has it; `auto` follows it."""
    repeats: Any = None
    """The film that is made again (`film.again.Again`)."""

    @classmethod
    def parse(cls, **values: Any) -> RenderOptions:
        """Options from words as they are typed ("640x384", "1m30s", "2,2,2", "6G") or from values of their own types.

        Raises InputError, which names the flag, for a value that cannot be read. None is one that was not given.
        """
        given = {key: value for key, value in values.items() if value is not None}
        for key, one in FLAGS.items():
            if one.repeats and given.get(key) == []:  # what Typer makes of one that was not given
                del given[key]
            if key in given:
                value = tuple(given[key]) if isinstance(given[key], list) else given[key]
                given[key] = read_flag(flag_of(key), one.read or partial(parse_as, TYPES[key]), value)
        return cls(**given)

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


FLAGS: Mapping[str, Flag] = {one.name: one.metadata["flag"] for one in fields(RenderOptions) if one.metadata}
"""The flags of films by the fields of `RenderOptions`, in the order of the help."""

TYPES: Mapping[str, Any] = get_type_hints(RenderOptions)

RenderOptions.__doc__ = f"{RenderOptions.__doc__}\n    Attributes:\n" + "".join(
    f"        {key}{'=False' if getattr(RenderOptions, key) is True else ''}: {one.help}\n"
    for key, one in FLAGS.items()
)
