"""`helios live`: a film is rendered while its shot list is being written."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from helios_cli.console import console
from helios_cli.errors import InputError, Interrupted, MachineError
from helios_cli.film.clashes import check_stdout
from helios_cli.film.target import Target
from helios_cli.live import DEFAULT_OUTPUT
from helios_cli.live.address import Address
from helios_cli.live.film import IN_RECIPE, LiveJob, LiveSetup, find_live, render_live
from helios_cli.live.player import Player, find_player
from helios_cli.live.script import PromptDefaults
from helios_cli.options import Events, Progress, Quiet, flag_words, progress_kind, render_options
from helios_cli.progress import ProgressKind, open_view, show_all
from helios_cli.recipe.flags import read_flag
from helios_cli.recipe.options import OUTPUT, STREAM, RenderOptions
from helios_cli.recipe.settings import film_fps
from helios_cli.recipe.values import DEFAULT_BLEND_SECONDS, Transition, parse_duration
from helios_cli.stop import after_stops, stop_at_once

if TYPE_CHECKING:
    from helios_cli.live.serve import Server

DEFAULT_AHEAD = 3.0
NOT_LIVE = {
    *("output", "reanchor", "takes", "shot", "no_metadata", "export", "lanes", "strict", "check"),
    *("workers", "cluster", "share", "mixed", "worker_timeout"),
}
"""Flags of `helios render` that a live film does without; --output has another default here."""


@render_options(without=NOT_LIVE)
def live(
    context: typer.Context,
    options: RenderOptions,
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="First prompt; the lines of standard input follow it.")
    ] = None,
    transition: Annotated[Transition, typer.Option(help="Transition for prompts that name none.")] = "blend",
    hold: Annotated[
        str, typer.Option(help="Minimum time for prompts that name none: 10s, 1m30s.")
    ] = f"{DEFAULT_BLEND_SECONDS:g}s",
    ahead: Annotated[
        str, typer.Option(help="Seconds of film to render in front of whoever watches; none: as fast as it can.")
    ] = f"{DEFAULT_AHEAD:g}s",
    serve: Annotated[
        str | None,
        typer.Option(
            metavar="[HOST:]PORT",
            help="Show a page on which the film plays and takes prompts; on this machine alone without HOST.",
        ),
    ] = None,
    play: Annotated[bool, typer.Option("--play", help="Show the film in mpv or ffplay while it is rendered.")] = False,
    output: Annotated[
        str,
        typer.Option(
            "--output",
            "-o",
            help="Output: .mp4, lossless .mkv, folder/ for PNG frames, or - (stdout).",
            rich_help_panel=OUTPUT,
        ),
    ] = DEFAULT_OUTPUT,
    progress: Progress = "auto",
    quiet: Quiet = False,
    json: Events = False,
) -> None:
    r"""Render while prompts arrive, one per line of standard input: helios live "a red ball rolls left" -o film.mp4

    A prompt takes effect with the next chunk and stays until the next line.
    Brackets before it replace --transition and --hold:
    \[cut] a harbour, [12s] the sea, \[switch 8s] a storm.
    Empty lines and lines that begin with # are skipped.
    The film ends with the input (Ctrl-D), or at the length given.
    \[pause] stops rendering until \[play]; Ctrl-Z and fg do as well.
    A prompt is on the screen after --ahead and one chunk at most, unless the one
    before it is held longer: rendering waits for whoever watches, or the clock.

    --serve 8000 shows the film at http://127.0.0.1:8000 while it is rendered,
    with a box for prompts; it waits while nobody watches.

    The prompts are saved next to the film as a recipe: helios render film.toml
    makes the same film again, or finishes it. After a kill or Ctrl-C the same
    command goes on. -o - streams the film: helios live -o - | mpv --no-terminal -
    """

    defaults = PromptDefaults(transition, read_flag("--hold", parse_duration, hold))
    seconds_ahead = None if ahead == "none" else read_flag("--ahead", parse_duration, ahead)
    address = None if serve is None else read_flag("--serve", Address.parse, serve)
    kind = progress_kind(progress, quiet=quiet, json=json)
    if output == STREAM:
        check_stdout(json=kind == "json")
    film = find_live(prompt, options, output, lambda path: _render_command(context, path, output))
    if play and (output == STREAM or Target.of(output).kind == "png"):
        raise InputError(f"--play shows a film in a file, not {output}", hint="write -o film.mp4, or leave out --play")
    _render(film, defaults, seconds_ahead, address, kind, play=play, quiet=quiet)


def _render(
    film: LiveJob,
    defaults: PromptDefaults,
    ahead: float | None,
    address: Address | None,
    kind: ProgressKind,
    *,
    play: bool,
    quiet: bool,
) -> None:
    """Render the film for whoever watches it, here and on its page, until the last one has left that."""

    def warn(message: str) -> None:
        console.warning(message)
        if page is not None:
            page.warn(message)

    def open_lines() -> None:
        if typed and not quiet:
            console.status("type a prompt and Enter, one after the other; Ctrl-D ends the film")
        setup.lines.read(None if sys.stdin is None else sys.stdin.fileno())

    typed = sys.stdin is not None and sys.stdin.isatty()
    if typed and kind in ("auto", "rich"):  # a bar would be drawn over what is typed
        kind = "plain"
    command = find_player() if play else None
    setup = LiveSetup.of(film_fps(film.job.options, film.job.film.recipe), ahead, defaults, warn, player=play)
    page = None if address is None else _page(address, film, setup)
    with (
        stop_at_once() as is_stopped,
        after_stops(setup.playhead.skip),
        open_view(kind) as view,
        page or nullcontext() as server,
        Player(command, setup.feed, setup.playhead.show, console.warning) if command else nullcontext(),
    ):
        if server is not None:
            console.status(f"the film plays at {server.address.url} and waits while nobody has it open")
        from helios_cli.engine.session import Session  # takes a while

        with Session(is_stopped=is_stopped, progress=console.progress_bytes) as session, _way_on(film):
            events = render_live(film, open_lines, setup, session)
            show_all(events, view.show if server is None else server.shows(view.show), session)
        if server is not None and server.has_viewers:
            console.status("the page stays until nobody has it open any more; Ctrl-C ends it")
            server.wait_for_viewers()


@contextmanager
def _way_on(film: LiveJob) -> Iterator[None]:
    """Say how a film that is interrupted goes on."""
    try:
        yield
    except Interrupted as stopped:
        file = film.recipe_file
        if not file.path.exists():
            raise
        hint = f"the same command goes on; {file.command} finishes the film"
        if film.job.output == STREAM:
            hint = f"{file.command} makes a file of it"
        raise Interrupted(stopped.message, hint=hint) from None


def _page(address: Address, film: LiveJob, setup: LiveSetup) -> Server:
    """Return the page that --serve asks for. InputError for a film that browsers do not play."""
    options, target = film.job.options, film.target
    if target.kind != "mp4" or options.is_stream or options.codec != "h264":
        raise InputError("--serve: browsers play H.264 alone everywhere", hint="end -o in .mp4, without --codec")
    if options.changes_frames:
        raise InputError(
            "--serve shows chunks as they are made, but --filter and --through begin when all are there",
            hint="leave them out, and give them to the render of the recipe that live writes",
        )
    try:
        from helios_cli.live.serve import Server
    except ImportError as error:
        raise MachineError(f"--serve needs {error.name}", hint="pip install 'helios-render[live]'") from error
    return Server(address, film, setup)


def _render_command(context: typer.Context, path: Path, output: str) -> str:
    """Return the command that makes the same film from its recipe."""

    not_needed = {*IN_RECIPE, "prompt", "model", "transition", "hold", "ahead", "play", "serve"}
    not_needed |= {"force", "progress", "quiet", "json"}
    left_out = not_needed | ({"output", "container"} if output in (f"{path.stem}.mp4", "-") else set())
    return shlex.join(["helios", "render", os.path.relpath(path), *flag_words(context, left_out)])
