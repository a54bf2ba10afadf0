"""Flags that commands share: those of films (`render`, `live`, `plan`) and those of `bench`."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable, Container
from inspect import Parameter
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from helios_cli.errors import InputError
from helios_cli.recipe.options import ContainerChoice, DtypeChoice, OffloadChoice, QuantChoice, RenderOptions, read_flag
from helios_cli.recipe.sound import Fit
from helios_cli.recipe.speed import SpeedChoice
from helios_cli.recipe.values import parse_size, parse_steps

LENGTH, LOOK, START, SOUND, OUTPUT = "Length", "Picture", "Start", "Sound", "Output"
MACHINE, FARM = "Machine", "Many GPUs"
MAX_TAKES = 100

_SOURCE = typer.Argument(
    metavar="SOURCE", help='A "quoted prompt", a .txt, .toml, .yaml, .json, .csv, .jsonl or .srt file, or - (stdin).'
)
Sources = Annotated[list[str], _SOURCE]
OptionalSources = Annotated[list[str] | None, _SOURCE]


def _option(kind: Any, help: str, *names: str, panel: str | None = None, default: Any = None, **more: Any) -> Parameter:
    """A shared flag without its name; `names` where Typer would choose others."""
    annotation = Annotated[kind, typer.Option(*names, help=help, rich_help_panel=panel, **more)]
    return Parameter("flag", Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=annotation)


SHARED = {
    "model": _option(
        str | None, "Model: auto, tiny, distilled, mid, base, a Hub id or a folder. (default: auto)", "--model", "-m"
    ),
    "revision": _option(str | None, "Hub revision; known names are pinned to a commit."),
    "minutes": _option(float | None, "Length of the film in minutes.", panel=LENGTH),
    "seconds": _option(str | None, "Length in seconds: 90, 1m30s, 1:30.", panel=LENGTH),
    "frames": _option(int | None, "Length in frames.", panel=LENGTH),
    "fps": _option(float | None, "Frames per second. (default: 24)", panel=LENGTH),
    "size": _option(str | None, "Size in pixels, WIDTHxHEIGHT. (default: the model's native size)", panel=LOOK),
    "seed": _option(int | None, "Random seed. (default: 42)", panel=LOOK),
    "negative": _option(str | None, "Negative prompt: what to avoid; needs guidance above 1.", panel=LOOK),
    "steps": _option(str | None, "Steps per stage: 2,2,2, or 50. (default: the model's)", panel=LOOK),
    "guidance": _option(float | None, "Guidance scale, the strength of the prompt. (default: the model's)", panel=LOOK),
    "lora": _option(
        list[str] | None,
        "LoRA file, or owner/name on the Hub, with :WEIGHT behind it; repeatable. none leaves out the recipe's.",
        metavar="FILE[:WEIGHT]",
        panel=LOOK,
    ),
    "preview_decoder": _option(
        Path | None,
        "Small decoder in place of the VAE: TAEHV for Wan 2.1, taew2_1.safetensors. It is fast, with other pictures.",
        metavar="FILE",
        panel=LOOK,
    ),
    "final": _option(
        bool,
        "After the preview of --preview-decoder, decode the film with the VAE.",
        "--final",
        panel=LOOK,
        default=False,
    ),
    "image": _option(Path | None, "Picture to start from.", panel=START),
    "video": _option(Path | None, "Clip to continue.", panel=START),
    "reanchor": _option(
        bool,
        "Take the anchor from the second chunk instead of the first, for starts that hardly move.",
        "--reanchor",
        panel=START,
        default=False,
    ),
    "audio": _option(
        str | None, "Sound file under the film; none leaves out the recipe's.", metavar="FILE", panel=SOUND
    ),
    "audio_fit": _option(
        Fit | None,
        "Fit of the sound: trim cuts it at the film's end, loop repeats it, pad keeps it whole. (default: trim)",
        metavar="FIT",
        panel=SOUND,
    ),
    "audio_fade": _option(
        float | None, "Seconds in which the sound fades out where it is cut. (default: 0.5)", panel=SOUND
    ),
    "output": _option(
        str | None,
        "Output: .mp4, lossless .mkv, folder/ for PNG frames, a folder for films, or - (stdout). (default: NAME.mp4)",
        "--output",
        "-o",
        panel=OUTPUT,
    ),
    "container": _option(
        ContainerChoice | None,
        "Container of the stream that -o - writes to standard output: mkv, mp4, ts or y4m. (default: mkv)",
        metavar="FORM",
        panel=OUTPUT,
    ),
    "force": _option(
        bool, "Replace a finished film, or an unfinished one of other settings.", "--force", panel=OUTPUT, default=False
    ),
    "no_cache": _option(
        bool, "Ignore chunks kept from earlier films, and keep none.", "--no-cache", panel=OUTPUT, default=False
    ),
    "keep": _option(
        bool, "Keep the journal and the pieces next to the finished film.", "--keep", panel=OUTPUT, default=False
    ),
    "takes": _option(
        int | None,
        "Render the first chunk with this many seeds, as clips and a contact sheet, instead of a film.",
        panel=OUTPUT,
        min=1,
        max=MAX_TAKES,
    ),
    "shot": _option(
        int | None, "Shot that --takes shows; it must begin with a cut. (default: the first)", panel=OUTPUT, min=1
    ),
    "codec": _option(Literal["h264", "hevc", "av1"], "Video codec of an .mp4.", panel=OUTPUT, default="h264"),
    "crf": _option(int, "Constant rate factor of an .mp4; lower is better.", panel=OUTPUT, default=17),
    "preset": _option(str, "Encoder preset, ultrafast to veryslow.", panel=OUTPUT, default="medium"),
    "through": _option(
        str | None,
        "Program for all frames of the film: raw RGB to its stdin and from its stdout. none leaves out a record's.",
        metavar="COMMAND",
        panel=OUTPUT,
    ),
    "through_size": _option(
        str | None, "Size of the frames that --through gives, WIDTHxHEIGHT. (default: the film's)", panel=OUTPUT
    ),
    "through_fps": _option(
        float | None, "Rate of the frames that --through gives. (default: the film's)", panel=OUTPUT
    ),
    "filter": _option(
        str | None,
        "Graph of ffmpeg filters for all frames of the film, such as hqdn3d,unsharp. none leaves out a record's.",
        metavar="GRAPH",
        panel=OUTPUT,
    ),
    "no_metadata": _option(
        bool, "Do not store render settings in the film or the .json.", "--no-metadata", panel=OUTPUT, default=False
    ),
    "export": _option(str | None, "Timelines to write next to the film: otio, edl or otio,edl.", panel=OUTPUT),
    "device": _option(str, "Device to compute on: auto, cuda, cuda:1, mps, cpu.", panel=MACHINE, default="auto"),
    "dtype": _option(
        DtypeChoice,
        "Data type to compute in: auto, bfloat16, float16 or float32; auto is bfloat16 where the device is fast at it.",
        metavar="DTYPE",
        panel=MACHINE,
        default="auto",
    ),
    "lanes": _option(
        int,
        "Number of films to render side by side; streamed weights are read once for all of them.",
        panel=MACHINE,
        default=1,
        min=1,
        max=64,
    ),
    "offload": _option(
        OffloadChoice,
        "Weights to keep off the device. model: parts take turns; stream: block by block; auto: the fastest that fits.",
        panel=MACHINE,
        default="auto",
    ),
    "vram": _option(str | None, "Memory budget of each GPU, such as 6G. (default: what is free)", panel=MACHINE),
    "ram": _option(str | None, "Host memory budget, such as 16G. (default: what is free)", panel=MACHINE),
    "speed": _option(
        SpeedChoice | None,
        "Speed: exact; fast, --quant fp8+attention where the GPU has it; or fastest, also --reuse-history and "
        "--reuse-steps 2. (default: exact)",
        metavar="SPEED",
        panel=MACHINE,
    ),
    "quant": _option(
        QuantChoice | None,
        "Quantization. fp8 computes most of the transformer in 8 bits, fp8+attention self-attention as well; both "
        "change the pictures. (default: none)",
        panel=MACHINE,
    ),
    "reuse_history": _option(
        bool | None,
        "Compute the history's keys and values in a chunk's coarsest stage alone; faster, and changes the pictures.",
        "--reuse-history/--no-reuse-history",
        panel=MACHINE,
    ),
    "reuse_steps": _option(
        int | None,
        "Number of steps of which one calls the model, for base and mid; 2 is nearly twice as fast, and changes the "
        "pictures. (default: 1)",
        panel=MACHINE,
        metavar="N",
    ),
    "attention": _option(
        Literal["auto", "triton", "sdpa", "flash", "cudnn", "fa3", "efficient", "math", "blocked"],
        "Attention backend: auto, triton, sdpa, flash, cudnn, fa3, efficient, math or blocked; auto is the fastest "
        "here.",
        metavar="BACKEND",
        panel=MACHINE,
        default="auto",
    ),
    "workers": _option(
        str | None,
        "Number of processes that share films, and their segments between cuts; auto: one per GPU. (default: 1)",
        panel=FARM,
    ),
    "cluster": _option(
        str | None,
        "Ray cluster to render on: auto, local, HOST:PORT or ray://HOST:PORT.",
        metavar="ADDRESS",
        panel=FARM,
    ),
    "share": _option(
        bool,
        "Share the films with other helios processes that work in the same folder.",
        "--share",
        panel=FARM,
        default=False,
    ),
    "mixed": _option(
        bool,
        "Let workers that round differently (other GPUs or versions) render segments of one film.",
        "--mixed",
        panel=FARM,
        default=False,
    ),
    "worker_timeout": _option(
        str | None, "Time without an event after which a worker is replaced: 90, 30m. (default: 30m)", panel=FARM
    ),
    "gpus_per_film": _option(
        int,
        "Number of GPUs (processes, on a CPU) that make one film's model calls together.",
        panel=FARM,
        default=1,
        min=1,
        max=64,
    ),
    "vae_device": _option(
        str | None,
        "Device of the VAE and the text encoder: cuda:1, cpu; a chunk is decoded there while the next one is denoised.",
        panel=FARM,
    ),
    "strict": _option(bool, "Treat adjustments as errors.", "--strict", default=False),
    "check": _option(bool, "Check the finished film as `helios check` does; see --strict.", "--check", default=False),
}
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
            shared = [SHARED[name].replace(name=name) for name in names]
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


BenchModel = Annotated[
    str | None,
    typer.Option("--model", "-m", help="Model: tiny, distilled, mid, base, a Hub id or a folder. (default: tiny)"),
]
BenchSize = Annotated[str | None, typer.Option(help="Size in pixels, WIDTHxHEIGHT. (default: the model's)")]
BenchChunks = Annotated[int, typer.Option(min=1, help="Length of the film in chunks of 33 frames.")]
BenchSteps = Annotated[str | None, typer.Option(help="Steps per stage: 2,2,2, or 50. (default: the model's)")]
BenchOut = Annotated[Path | None, typer.Option(help="File to write the JSON to as well.")]


def require_folder(out: Path | None, flag: str = "--out") -> None:
    """Raise InputError if the folder of the file that a flag names does not exist."""
    if out and not out.parent.is_dir():
        raise InputError(
            f"{flag} {out}: the folder {out.parent} does not exist", hint="create it, or name another folder"
        )


def write_out(out: Path | None, data: dict) -> None:
    """Write the JSON that --out asks for."""
    if out:
        out.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")


def read_size(size: str | None) -> tuple[int, int] | None:
    """Width and height that --size gives."""
    return None if size is None else read_flag("--size", parse_size, size)


def read_steps(steps: str | None) -> tuple[int, ...] | None:
    """Steps per stage that --steps gives."""
    return None if steps is None else read_flag("--steps", parse_steps, steps)
