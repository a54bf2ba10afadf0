"""What a command asks for, as far as it can be wrong without a model being loaded."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Container, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.errors import HeliosError, InputError

if TYPE_CHECKING:
    import typer

    from helios_cli.engine.events import FilmDone
    from helios_cli.film.ffmpeg import Encoding
    from helios_cli.film.record import Again
    from helios_cli.recipe.film import Film
    from helios_cli.recipe.settings import Flags


@dataclass
class Job:
    """One film to render, and how that ended: `done` and `error` are None until it is tried.

    `force`: a finished film may be replaced.
    """

    film: Film
    model: str
    output: str
    force: bool = False
    done: FilmDone | None = None
    error: HeliosError | None = None


@dataclass(frozen=True)
class Extras:
    """What is made beside a film, and the film that it is made again from, if it is."""

    again: Again | None
    metadata: bool
    export: tuple[str, ...]
    check: bool


def film_again(sources: list[str] | None, from_film: Path | None) -> Again | None:
    """The film that --from names; exactly one of it and SOURCE is there."""
    if from_film is None:
        if not sources:
            raise InputError("nothing says what to render", hint='helios render "A boat leaves the harbour."')
        return None
    if sources:
        raise InputError("--from makes a film again, and SOURCE says another one", hint="leave one of them out")
    from helios_cli.film.record import read_again

    return read_again(from_film)


def check_takes_flags(
    takes: int | None,
    shot: int | None,
    from_film: Path | None,
    *,
    dry_run: bool,
    lanes: int,
    export: str | None,
    check: bool,
) -> None:
    """InputError for flags that takes have no use for: what is asked for is done or refused."""
    if takes and lanes > 1:
        raise InputError("--lanes renders films together, --takes shows parts of one", hint="leave one of them out")
    if shot and not takes:
        raise InputError("--shot says which shot --takes shows", hint="add --takes 4, or leave --shot out")
    if takes and dry_run:
        raise InputError("--dry-run plans a film, --takes makes none", hint="leave one of them out")
    if takes and (export or check):
        flag = "--export" if export else "--check"
        raise InputError(f"{flag} is for a finished film, --takes makes none", hint="leave one of them out")
    if takes and from_film:
        raise InputError("--from makes a film again, --takes shows others", hint="name its source in place of --from")


def find_jobs(
    sources: list[str],
    flags: Flags,
    output: str | None,
    *,
    force: bool,
    takes_of_shot: int | None,
    films: list[Film] | None,
    strict: bool = False,
) -> list[Job]:
    """Films, models and output names; everything about them that can be wrong without a model is found here.

    Of several films those that are finished may be what an ended run of this command made: that takes the model to say.
    """
    from helios_cli.recipe.plan import check_film
    from helios_cli.recipe.settings import DEFAULT_MODEL, MODEL_VARIABLE, choose_model
    from helios_cli.recipe.sources import read_films

    films = films or read_films(sources)
    for film in films:
        check_film(film, flags)
    films = check_clips(films, flags, strict=strict)
    outputs = _outputs(films, output)
    if takes_of_shot and len(films) > 1:
        raise InputError(f"--takes shows one film, not {len(films)}", hint="name one source")

    from helios_cli.film.target import check_inputs, check_target

    jobs = []
    for film, target in zip(films, outputs, strict=True):
        if takes_of_shot:
            from helios_cli.film.takes import TakesFiles, check_shot

            check_shot(film, takes_of_shot)
            files = TakesFiles.of(target, force=force)
            places = (files.sheet, files.folder)
        else:
            found = check_target(target, force=force or len(films) > 1)
            places = (found.path, *found.beside)
        check_inputs(_inputs(film, flags), places)
        name, origin = choose_model(film.recipe, flags)
        if origin == MODEL_VARIABLE and name != DEFAULT_MODEL:
            _check_variable(name)
        jobs.append(Job(film, name, target, force))
    return jobs


def _inputs(film: Film, flags: Flags) -> Iterator[Path]:
    """All files that a film is made from, but for the model."""
    yield Path(film.source)
    yield from (path for path in (flags.image, flags.video) if path is not None)
    for shot in film.recipe.shots:
        yield from (film.picture(written) for written in (shot.image, shot.video) if written is not None)


def _check_variable(name: str) -> None:
    """InputError, with the variable's name, if HELIOS_MODEL names no model: nobody sees it on the command line."""
    from helios_cli.recipe.settings import MODEL_VARIABLE
    from helios_cli.weights.hub import source_of

    try:
        source_of(name)
    except InputError as error:
        raise InputError(f"{MODEL_VARIABLE}: {error.message}", hint=error.hint) from error


def check_clips(films: list[Film], flags: Flags, *, strict: bool = False) -> list[Film]:
    """The films, which passed `check_film`, with notices of clips that are cut short. RecipeError for the clips that
    they cannot continue, and under `strict` for those cut short; a chunk of each is decoded."""
    from helios_cli.recipe.files import picture_problems
    from helios_cli.recipe.problems import RecipeError
    from helios_cli.recipe.settings import asked_fps

    problems, told = [], []
    for film in films:
        fps = asked_fps(flags, film.recipe)
        start = {"image": flags.image, "video": flags.video}
        problems += picture_problems(film, start, partial(_clip_fault, fps))
        short = list(picture_problems(film, start, _clip_cut_short)) if not problems else []
        problems += short if strict else []
        told.append(replace(film, notices=(*film.notices, *map(str, short))))
    if problems:
        raise RecipeError(problems)
    return told


def _clip_fault(fps: float, path: Path, key: str, base: str) -> tuple[str, str | None] | None:
    if key != "video":
        return None
    from helios_cli.film.media import check_clip

    try:
        check_clip(path, fps)
    except InputError as error:
        return error.message, error.hint
    return None


def check_output(output: str) -> None:
    """Raises InputError for a film's name that is empty, a suffix alone, a URL, or has invisible characters."""
    from helios_cli.recipe.files import is_url
    from helios_cli.visible import printable, without_hidden

    shown, name = printable(output, 200), os.path.basename(output.rstrip("/"))
    meant = without_hidden(re.sub(r"[\n\t]", "", name))
    if not output.strip() or meant.lower() in (".mp4", ".mkv"):
        raise InputError(f"-o {shown}: the film has no name", hint="write -o film.mp4; is a shell variable empty?")
    if is_url(output):
        raise InputError(f"-o {shown}: films are written to local files", hint="write -o film.mp4")
    if meant != name and not os.path.isdir(output):
        raise InputError(f"-o {shown}: a part of the name cannot be seen", hint=f"write {meant or 'film.mp4'}")


def _clip_cut_short(path: Path, key: str, base: str) -> tuple[str, str | None] | None:
    if key != "video":
        return None
    from helios_cli.film.reading import extent

    message = extent(path).cut_short
    return (f"{path} {message}", "give a whole one") if message else None


def _outputs(films: list[Film], output: str | None) -> list[str]:
    if output is not None:
        check_output(output)
    if len(films) == 1 and not _holds_films(output):
        return [output or f"{films[0].name}.mp4"]
    if output and not os.path.isdir(output):
        hint = "name a folder with -o" if Path(output).suffix else f"mkdir -p {shlex.quote(output)}"
        raise InputError(f"-o {output}: {len(films)} films need a folder that exists", hint=hint)
    names = [f"{film.name}.mp4" for film in films]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        twice = len({film.recipe for film in films}) < len(films)
        hint = "leave out what is given twice" if twice else "rename their sources, or render them one by one with -o"
        raise InputError(f"several films would be called {', '.join(doubled)}", hint=hint)
    return [str(Path(output or "") / name) for name in names]


def given_flags(context: typer.Context, left_out: Container[str]) -> list[str]:
    """The words of the command line that are flags and their values, but for parameters of these names."""
    words = []
    for parameter in context.command.params:
        value, source = context.params.get(parameter.name), context.get_parameter_source(parameter.name)
        if parameter.name not in left_out and source is not None and source.name == "COMMANDLINE":
            words += [parameter.opts[0]] if value is True else [parameter.opts[0], str(value)]
    return words


def _holds_films(output: str | None) -> bool:
    """Whether `output` is a folder that films go into, and not a film of PNG pictures: that ends in a slash, or has
    some already."""
    from helios_cli.film.target import FRAME_NAME

    if not output or output.endswith(("/", os.sep)) or not os.path.isdir(output):
        return False
    return not any(FRAME_NAME.fullmatch(path.name) for path in Path(output).glob("*.png"))


def find_encoding(jobs: list[Job], codec: str, crf: int, preset: str, *, clips: bool) -> Encoding:
    """The .mp4 encoding, tried on one frame if any film needs it: not two hours later."""
    from helios_cli.film.ffmpeg import Encoding, check_encoding

    if clips or any(job.output.lower().endswith(".mp4") for job in jobs):
        return check_encoding(codec=codec, crf=crf, preset=preset)
    return Encoding(codec, crf, preset)


def find_planned(
    sources: list[str],
    flags: Flags,
    output: str | None,
    codec: str,
    crf: int,
    preset: str = "medium",
    *,
    export: str | None = None,
    films: list[Film] | None = None,
    strict: bool = False,
) -> list[Job]:
    """The jobs of a plan. InputError for all that a render would refuse, but for files that are there already."""
    from helios_cli.film.ffmpeg import Encoding

    Encoding(codec, crf, preset)
    jobs = find_jobs(sources, flags, output, force=True, takes_of_shot=None, films=films, strict=strict)
    export_forms(export, jobs, force=True)
    return jobs


def export_forms(export: str | None, jobs: list[Job], *, force: bool) -> tuple[str, ...]:
    """What --export asks for. InputError if it cannot be written. Beside a finished film of several it may stand."""
    from helios_cli.film.export import check_exports, parse_forms
    from helios_cli.film.target import Target, is_taken

    forms = () if export is None else parse_forms(export)
    for job in jobs:
        target = Target.of(job.output)
        may_stand = force or (len(jobs) > 1 and is_taken(target))
        check_exports(target, forms, len(job.film.recipe.shots), force=may_stand)
    return forms
