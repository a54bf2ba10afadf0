"""Flags that commands share: those of films (`render`, `live`, `plan`) and those of `bench`."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Container
from inspect import Parameter
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args

import typer

from helios_cli.errors import InputError
from helios_cli.recipe.options import (
    ContainerChoice,
    DtypeChoice,
    OffloadChoice,
    QuantChoice,
    RenderOptions,
    flag_of,
)
from helios_cli.recipe.sound import Fit
from helios_cli.recipe.speed import SpeedChoice
from helios_cli.weights import hub
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.names import EMBEDDED

OUTPUT = "Output"
MAX_TAKES = 100

_SOURCE = typer.Argument(
    metavar="SOURCE", help='A "quoted prompt", a .txt, .toml, .yaml, .json, .csv, .jsonl or .srt file, or - (stdin).'
)
Sources = Annotated[list[str], _SOURCE]
OptionalSources = Annotated[list[str] | None, _SOURCE]


def _flag(kind: Any, help: str, *short: str, **more: Any) -> Callable[[str, str | None], Parameter]:
    """A flag of films by its name and panel. Its default is that of `RenderOptions`."""

    def parameter(name: str, panel: str | None) -> Parameter:
        names = (flag_of(name), *short) if short or kind is bool else ()  # Typer would add --no-NAME to a switch
        annotation = Annotated[kind, typer.Option(*names, help=help, rich_help_panel=panel, **more)]
        default = None if NoneType in get_args(kind) else getattr(RenderOptions, name, False)
        return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)

    return parameter


def _panel(panel: str | None, **flags: Callable[[str, str | None], Parameter]) -> dict[str, Parameter]:
    """The flags of a panel of the help."""
    return {name: flag(name, panel) for name, flag in flags.items()}


SHARED = _panel(
    None,
    model=_flag(str | None, "Model: auto, tiny, distilled, mid, base, a Hub id or a folder. (default: auto)", "-m"),
    revision=_flag(str | None, "Hub revision; known names are pinned to a commit."),
)
SHARED |= _panel(
    "Length",
    minutes=_flag(float | None, "Length of the film in minutes."),
    seconds=_flag(str | None, "Length in seconds: 90, 1m30s, 1:30."),
    frames=_flag(int | None, "Length in frames."),
    fps=_flag(float | None, "Frames per second. (default: 24)"),
)
SHARED |= _panel(
    "Picture",
    size=_flag(str | None, "Size in pixels, WIDTHxHEIGHT. (default: the model's native size)"),
    seed=_flag(int | None, "Random seed. (default: 42)"),
    negative=_flag(str | None, "Negative prompt: what to avoid; needs guidance above 1."),
    steps=_flag(str | None, "Steps per stage: 2,2,2, or 50. (default: the model's)"),
    guidance=_flag(float | None, "Guidance scale, the strength of the prompt. (default: the model's)"),
    lora=_flag(
        list[str] | None,
        "LoRA file, or owner/name on the Hub, with :WEIGHT behind it; repeatable. none leaves out the recipe's.",
        metavar="FILE[:WEIGHT]",
    ),
    preview_decoder=_flag(
        Path | None,
        "Small decoder in place of the VAE: TAEHV for Wan 2.1, taew2_1.safetensors. It is fast, with other pictures.",
        metavar="FILE",
    ),
    final=_flag(bool, "After the preview of --preview-decoder, decode the film with the VAE."),
)
SHARED |= _panel(
    "Start",
    image=_flag(Path | None, "Picture to start from."),
    video=_flag(Path | None, "Clip to continue."),
    reanchor=_flag(bool, "Take the anchor from the second chunk instead of the first, for starts that hardly move."),
)
SHARED |= _panel(
    "Sound",
    audio=_flag(str | None, "Sound file under the film; none leaves out the recipe's.", metavar="FILE"),
    audio_fit=_flag(
        Fit | None,
        "Fit of the sound: trim cuts it at the film's end, loop repeats it, pad keeps it whole. (default: trim)",
        metavar="FIT",
    ),
    audio_fade=_flag(float | None, "Seconds in which the sound fades out where it is cut. (default: 0.5)"),
)
SHARED |= _panel(
    OUTPUT,
    output=_flag(
        str | None,
        "Output: .mp4, lossless .mkv, folder/ for PNG frames, a folder for films, or - (stdout). (default: NAME.mp4)",
        "-o",
    ),
    container=_flag(
        ContainerChoice | None,
        "Container of the stream that -o - writes to standard output: mkv, mp4, ts or y4m. (default: mkv)",
        metavar="FORM",
    ),
    force=_flag(bool, "Replace a finished film, or an unfinished one of other settings."),
    no_cache=_flag(bool, "Ignore chunks kept from earlier films, and keep none."),
    keep=_flag(bool, "Keep the journal and the pieces next to the finished film."),
    takes=_flag(
        int | None,
        "Render the first chunk with this many seeds, as clips and a contact sheet, instead of a film.",
        min=1,
        max=MAX_TAKES,
    ),
    shot=_flag(int | None, "Shot that --takes shows; it must begin with a cut. (default: the first)", min=1),
    codec=_flag(Literal["h264", "hevc", "av1"], "Video codec of an .mp4."),
    crf=_flag(int, "Constant rate factor of an .mp4; lower is better."),
    preset=_flag(str, "Encoder preset, ultrafast to veryslow."),
    through=_flag(
        str | None,
        "Program for all frames of the film: raw RGB to its stdin and from its stdout. none leaves out a record's.",
        metavar="COMMAND",
    ),
    through_size=_flag(str | None, "Size of the frames that --through gives, WIDTHxHEIGHT. (default: the film's)"),
    through_fps=_flag(float | None, "Rate of the frames that --through gives. (default: the film's)"),
    filter=_flag(
        str | None,
        "Graph of ffmpeg filters for all frames of the film, such as hqdn3d,unsharp. none leaves out a record's.",
        metavar="GRAPH",
    ),
    no_metadata=_flag(bool, "Do not store render settings in the film or the .json."),
    export=_flag(str | None, "Timelines to write next to the film: otio, edl or otio,edl."),
)
SHARED |= _panel(
    "Machine",
    device=_flag(str, "Device to compute on: auto, cuda, cuda:1, mps, cpu."),
    dtype=_flag(
        DtypeChoice,
        "Data type to compute in: auto, bfloat16, float16 or float32; auto is bfloat16 where the device is fast at it.",
        metavar="DTYPE",
    ),
    lanes=_flag(
        int, "Number of films to render side by side; streamed weights are read once for all of them.", min=1, max=64
    ),
    offload=_flag(
        OffloadChoice,
        "Weights to keep off the device. model: parts take turns; stream: block by block; auto: the fastest that fits.",
    ),
    vram=_flag(str | None, "Memory budget of each GPU, such as 6G. (default: what is free)"),
    ram=_flag(str | None, "Host memory budget, such as 16G. (default: what is free)"),
    speed=_flag(
        SpeedChoice | None,
        "Speed: exact; fast, --quant fp8+attention where the GPU has it; or fastest, also --reuse-history and "
        "--reuse-steps 2. (default: exact)",
        metavar="SPEED",
    ),
    quant=_flag(
        QuantChoice | None,
        "Quantization. fp8 computes most of the transformer in 8 bits, fp8+attention self-attention as well; both "
        "change the pictures. (default: none)",
    ),
    reuse_history=_flag(
        bool | None,
        "Compute the history's keys and values in a chunk's coarsest stage alone; faster, and changes the pictures.",
    ),
    reuse_steps=_flag(
        int | None,
        "Number of steps of which one calls the model, for base and mid; 2 is nearly twice as fast, and changes the "
        "pictures. (default: 1)",
        metavar="N",
    ),
    attention=_flag(
        Literal["auto", "triton", "sdpa", "flash", "cudnn", "fa3", "efficient", "math", "blocked"],
        "Attention backend: auto, triton, sdpa, flash, cudnn, fa3, efficient, math or blocked; auto is the fastest "
        "here.",
        metavar="BACKEND",
    ),
)
SHARED |= _panel(
    "Many GPUs",
    workers=_flag(
        str | None,
        "Number of processes that share films, and their segments between cuts; auto: one per GPU. (default: 1)",
    ),
    cluster=_flag(
        str | None, "Ray cluster to render on: auto, local, HOST:PORT or ray://HOST:PORT.", metavar="ADDRESS"
    ),
    share=_flag(bool, "Share the films with other helios processes that work in the same folder."),
    mixed=_flag(bool, "Let workers that round differently (other GPUs or versions) render segments of one film."),
    worker_timeout=_flag(str | None, "Time without an event after which a worker is replaced: 90, 30m. (default: 30m)"),
    gpus_per_film=_flag(
        int, "Number of GPUs (processes, on a CPU) that make one film's model calls together.", min=1, max=64
    ),
    vae_device=_flag(
        str | None,
        "Device of the VAE and the text encoder: cuda:1, cpu; a chunk is decoded there while the next one is denoised.",
    ),
)
SHARED |= _panel(
    None,
    strict=_flag(bool, "Treat adjustments as errors."),
    check=_flag(bool, "Check the finished film as `helios check` does; see --strict."),
)
"""The flags of films, by their parameter, in the order of the help; each is a field of `RenderOptions`."""

NEGATED = {"no_cache": "cache", "no_metadata": "metadata"}
"""Flags that turn a field of `RenderOptions` off."""


def render_options(*, without: Container[str]) -> Callable[[Callable], Callable]:
    """Give a command the SHARED flags in place of its parameter `options: RenderOptions`, except those in `without`."""
    names = [name for name in SHARED if name not in without]

    def decorate(command: Callable) -> Callable:
        @functools.wraps(command)
        def with_flags(**values: Any) -> Any:
            words = {name: values.pop(name) for name in names}
            for name in NEGATED.keys() & words.keys():
                words[NEGATED[name]] = not words.pop(name)
            return command(**values, options=RenderOptions.parse(**words))

        parameters: list[Parameter] = []
        for parameter in inspect.signature(command, eval_str=True).parameters.values():
            shared = [SHARED[name] for name in names]
            parameters += shared if parameter.name == "options" else [parameter]
        setattr(with_flags, "__signature__", inspect.Signature(parameters))  # noqa: B010 (mypy knows no such attribute)
        with_flags.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return with_flags

    return decorate


def named_flags(context: typer.Context) -> set[str]:
    """The parameters that the command line names."""
    sources = ((name, context.get_parameter_source(name)) for name in context.params)
    return {name for name, source in sources if source is not None and source.name != "DEFAULT"}


def flag_words(context: typer.Context, left_out: Container[str]) -> list[str]:
    """The flags of the command line with their values, as words; parameters in `left_out` are left out."""
    words = []
    for parameter in context.command.params:
        value, source = context.params.get(parameter.name), context.get_parameter_source(parameter.name)
        if parameter.name not in left_out and source is not None and source.name == "COMMANDLINE":
            for one in value if isinstance(value, list | tuple) else (value,):
                switch = parameter.opts if one is True else parameter.secondary_opts
                words += switch[:1] if isinstance(one, bool) else [parameter.opts[0], str(one)]
    return words


Device, Dtype, Quant, Attention = (SHARED[name].annotation for name in ("device", "dtype", "quant", "attention"))
Progress = Annotated[
    Literal["auto", "rich", "plain", "json", "none"],
    typer.Option(metavar="DISPLAY", help="Progress display: auto, rich, plain, json or none."),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Same as --progress none.")]
Events = Annotated[bool, typer.Option("--json", help="Same as --progress json: one event per line.")]


def progress_kind(progress: Any, *, quiet: bool, json: bool) -> Any:
    """The display that --progress, --quiet and --json choose together."""
    return "none" if quiet else "json" if json else progress


def _in_a_folder(parameter: typer.CallbackParam, file: Path | None) -> Path | None:
    """Return the file of a flag. InputError, before any work, if its folder does not exist."""
    if file and not file.parent.is_dir():
        message = f"{parameter.opts[0]} {file}: the folder {file.parent} does not exist"
        raise InputError(message, hint="create it, or name another folder")
    return file


def file_option(help: str) -> Any:
    """The settings of a flag for a file to write."""
    return typer.Option(help=help, callback=_in_a_folder)


BenchModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model: tiny, distilled, mid, base, a Hub id or a folder. (default: tiny)"),
]
BenchSize = Annotated[str | None, typer.Option(help="Size in pixels, WIDTHxHEIGHT. (default: the model's)")]
BenchChunks = Annotated[int, typer.Option(min=1, help="Length of the film in chunks of 33 frames.")]
BenchSteps = Annotated[str | None, typer.Option(help="Steps per stage: 2,2,2, or 50. (default: the model's)")]
GpuOrCpu = Annotated[str, typer.Option(help="Device: auto, cuda, cuda:1, cpu.")]
BenchDevice = Annotated[str, typer.Option(help="Device: auto, cuda, cuda:1, mps, cpu.")]
BenchOut = Annotated[Path | None, file_option("File to write the JSON to as well.")]


def open_model(model: str | None, progress: Any) -> tuple[str, Checkpoint]:
    """The name and the checkpoint of --model, which is downloaded if it must be; by default the embedded one."""
    return model or EMBEDDED, Checkpoint.open(hub.resolve(model or EMBEDDED, progress=progress))


def write_out(out: Path | None, data: dict) -> None:
    """Write the JSON that --out asks for."""
    if out:
        out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
