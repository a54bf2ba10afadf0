"""Flags that commands share: those about a film, of `render` and `plan`, and those of measurements, of `bench`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TypeVar

import typer

from helios_cli.errors import InputError

if TYPE_CHECKING:
    from helios_cli.recipe.settings import Flags
    from helios_cli.weights.placement import Wish

T = TypeVar("T")

LENGTH, LOOK, START, OUTPUT, MACHINE = "Length", "Picture", "Start", "Output", "Machine"

Sources = Annotated[
    list[str],
    typer.Argument(
        metavar="SOURCE", help='"a quoted prompt", .txt, .toml, .yaml, .json, .csv, .jsonl, .srt, or - (stdin).'
    ),
]
Model = Annotated[
    str | None,
    typer.Option("--model", "-m", help="auto, tiny, distilled, mid, base, a Hub id or a folder. (default: auto)"),
]
Revision = Annotated[str | None, typer.Option(help="Hub revision; known names are pinned to a commit.")]
Minutes = Annotated[float | None, typer.Option(rich_help_panel=LENGTH, help="Length of the film.")]
Seconds = Annotated[str | None, typer.Option(rich_help_panel=LENGTH, help="Length: 90, 1m30s, 1:30.")]
Frames = Annotated[int | None, typer.Option(rich_help_panel=LENGTH, help="Length in frames.")]
Fps = Annotated[float | None, typer.Option(rich_help_panel=LENGTH, help="Frames a second. (default: 24)")]
Size = Annotated[
    str | None, typer.Option(rich_help_panel=LOOK, help="WIDTHxHEIGHT. (default: the model's native size)")
]
Seed = Annotated[int | None, typer.Option(rich_help_panel=LOOK, help="Seed of the random numbers (default: 42).")]
Negative = Annotated[
    str | None, typer.Option(rich_help_panel=LOOK, help="What should not be seen; only with guidance over 1.")
]
Steps = Annotated[
    str | None, typer.Option(rich_help_panel=LOOK, help="Steps a stage: 2,2,2, or 50. (default: the model's)")
]
Guidance = Annotated[
    float | None, typer.Option(rich_help_panel=LOOK, help="Strength of the prompt (default: the model's).")
]
Image = Annotated[Path | None, typer.Option(rich_help_panel=START, help="Start from this picture.")]
Video = Annotated[Path | None, typer.Option(rich_help_panel=START, help="Continue this clip.")]
Reanchor = Annotated[
    bool,
    typer.Option(
        "--reanchor",
        rich_help_panel=START,
        help="Hold on to the look of the second chunk, not the first: for starts that hardly move.",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        rich_help_panel=OUTPUT,
        help=".mp4, lossless .mkv, folder/ for PNG frames, or a folder that films go into. (default: NAME.mp4)",
    ),
]
Force = Annotated[
    bool, typer.Option("--force", rich_help_panel=OUTPUT, help="Replace a finished film, or an unfinished other one.")
]
NoCache = Annotated[
    bool, typer.Option("--no-cache", rich_help_panel=OUTPUT, help="Take no chunks of earlier films, keep none.")
]
Keep = Annotated[bool, typer.Option("--keep", rich_help_panel=OUTPUT, help="Leave journal and pieces beside the film.")]
Codec = Annotated[Literal["h264", "hevc", "av1"], typer.Option(rich_help_panel=OUTPUT, help="Video codec of an .mp4.")]
Crf = Annotated[int, typer.Option(rich_help_panel=OUTPUT, help="Quality, lower is better.")]
Preset = Annotated[str, typer.Option(rich_help_panel=OUTPUT, help="Encoder preset, ultrafast to veryslow.")]
Device = Annotated[str, typer.Option(rich_help_panel=MACHINE, help="auto, cuda, cuda:1, mps, cpu.")]
Dtype = Annotated[
    Literal["auto", "bfloat16", "float16", "float32"],
    typer.Option(rich_help_panel=MACHINE, help="auto is bfloat16 where the device is fast at it."),
]
Quant = Annotated[
    Literal["none", "fp8"],
    typer.Option(rich_help_panel=MACHINE, help="fp8: most of the transformer's products in 8 bits, other pictures."),
]
Attention = Annotated[
    Literal["auto", "triton", "sdpa", "flash", "cudnn", "efficient", "math", "blocked"],
    typer.Option(rich_help_panel=MACHINE, help="auto takes what was fastest here; `helios doctor` shows which."),
]
Lanes = Annotated[
    int,
    typer.Option(
        min=1,
        max=64,
        rich_help_panel=MACHINE,
        help="Films that render at a time; where weights stream, each block comes once for all of them.",
    ),
]
Offload = Annotated[
    Literal["auto", "none", "model", "stream"],
    typer.Option(
        rich_help_panel=MACHINE,
        help="none; model: parts take turns on the device; stream: block by block. auto is the fastest that fits.",
    ),
]
Vram = Annotated[
    str | None, typer.Option(rich_help_panel=MACHINE, help="GPU memory to take at most, 6G. (default: what is free)")
]
Ram = Annotated[
    str | None, typer.Option(rich_help_panel=MACHINE, help="Host memory to take at most, 16G. (default: what is free)")
]
Strict = Annotated[bool, typer.Option("--strict", help="Treat what would be adjusted as an error.")]

Progress = Annotated[Literal["auto", "rich", "plain", "json", "none"], typer.Option(help="How progress is shown.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Same as --progress none.")]
Events = Annotated[bool, typer.Option("--json", help="Same as --progress json: one event a line.")]

BenchModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="tiny, distilled, mid, base, a Hub id or a folder. (default: tiny)"),
]
BenchSize = Annotated[str | None, typer.Option(help="WIDTHxHEIGHT. (default: the model's native size)")]
BenchChunks = Annotated[int, typer.Option(min=1, help="Length of the film in chunks of 33 frames.")]
BenchSteps = Annotated[str | None, typer.Option(help="Steps a stage: 2,2,2, or 50. (default: the model's)")]
BenchOut = Annotated[Path | None, typer.Option(help="Write the JSON to this file, too.")]


def require_folder(out: Path | None, flag: str = "--out") -> None:
    """InputError if the file that a flag names could not be written for want of its folder."""
    if out and not out.parent.is_dir():
        raise InputError(f"{flag} {out}: the folder {out.parent} does not exist", hint="create it, or name another")


def write_out(out: Path | None, data: dict) -> None:
    """What --out asks for."""
    if out:
        out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read(flag: str, parse: Callable[[str], T], text: str | None) -> T | None:
    """The value of a flag, if it is given. InputError that names the flag."""
    try:
        return None if text is None else parse(text)
    except InputError as error:
        raise InputError(f"{flag}: {error.message}", hint=error.hint) from error


def read_size(size: str | None) -> tuple[int, int] | None:
    """Of --size: width and height."""
    from helios_cli.recipe.values import parse_size

    return read("--size", parse_size, size)


def read_steps(steps: str | None) -> tuple[int, ...] | None:
    """Of --steps: those of each stage."""
    from helios_cli.recipe.values import parse_steps

    return read("--steps", parse_steps, steps)


def memory_wish(offload: str, vram: str | None, ram: str | None) -> Wish:
    """What the command line says about memory. InputError for an amount that cannot be read."""
    from helios_cli.recipe.values import parse_bytes
    from helios_cli.weights.placement import Wish

    return Wish(offload, read("--vram", parse_bytes, vram), read("--ram", parse_bytes, ram))


def film_flags(
    *,
    model: str | None,
    minutes: float | None,
    seconds: str | None,
    frames: int | None,
    fps: float | None,
    size: str | None,
    seed: int | None,
    negative: str | None,
    steps: str | None,
    guidance: float | None,
    image: Path | None,
    video: Path | None,
) -> Flags:
    """What the command line says about a film. InputError for a duration, size or steps that cannot be read."""
    from helios_cli.recipe.settings import Flags
    from helios_cli.recipe.values import parse_duration

    return Flags(
        model=model,
        fps=fps,
        size=read_size(size),
        seconds=read("--seconds", parse_duration, seconds),
        minutes=minutes,
        frames=frames,
        seed=seed,
        negative=negative,
        steps=read_steps(steps),
        guidance=guidance,
        image=image,
        video=video,
    )
