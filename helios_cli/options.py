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
from helios_cli.files import obstacle
from helios_cli.recipe.flags import Flag, flag_of
from helios_cli.recipe.options import FLAGS, TYPES, RenderOptions
from helios_cli.weights import hub
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.names import EMBEDDED

_SOURCE = typer.Argument(
    metavar="SOURCE", help='A "quoted prompt", a .txt, .toml, .yaml, .json, .csv, .jsonl or .srt file, or - (stdin).'
)
Sources = Annotated[list[str], _SOURCE]
OptionalSources = Annotated[list[str] | None, _SOURCE]


def _parameter(name: str, flag: Flag) -> Parameter:
    """The parameter of a command for a flag of films."""
    kind: Any = TYPES[name]
    default = getattr(RenderOptions, name)
    if flag.read is not None:  # `RenderOptions.parse` reads the text
        kind, default = list[str] | None if flag.repeats else str | None, None
    elif default is True:
        name, default = f"no_{name}", False
    names = [] if flag.short is None and kind is not bool else [flag_of(name)]  # Typer would add --no-NAME to a switch
    option = typer.Option(
        *names,
        *filter(None, [flag.short]),
        help=flag.help,
        metavar=flag.metavar,
        rich_help_panel=flag.panel,
        min=flag.least if flag.shows_limits else None,
        max=flag.most if flag.shows_limits else None,
    )
    return Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=default, annotation=Annotated[kind, option])


SHARED = {parameter.name: parameter for parameter in (_parameter(name, flag) for name, flag in FLAGS.items())}
"""The flags of films, by their parameter, in the order of the help."""

NEGATED = {f"no_{name}": name for name in FLAGS if getattr(RenderOptions, name) is True}
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


def _writable(parameter: typer.CallbackParam, file: Path | None) -> Path | None:
    """Return the file of a flag. InputError, before any work, if it cannot be written."""
    if file and (reason := obstacle(file)):
        hint = "name a file in a folder that exists and that you may write to"
        raise InputError(f"{parameter.opts[0]} {file}: {reason}", hint=hint)
    return file


def file_option(help: str) -> Any:
    """The settings of a flag for a file to write."""
    return typer.Option(help=help, callback=_writable)


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
