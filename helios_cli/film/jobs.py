"""Finds the films that a command asks for, and every fault that needs no model to be found."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.errors import InputError
from helios_cli.film.clashes import check_after, check_preview, check_stream
from helios_cli.film.compression import Encoding
from helios_cli.film.target import FRAME_NAME, Target, check_inputs, check_target, is_taken
from helios_cli.recipe.files import check_loras
from helios_cli.recipe.film import Film
from helios_cli.recipe.flags import flag_of
from helios_cli.recipe.lora import Lora, choose_loras
from helios_cli.recipe.options import STREAM, RenderOptions
from helios_cli.recipe.settings import DEFAULT_MODEL, MODEL_VARIABLE, choose_model, film_fps
from helios_cli.recipe.sound import NONE, SOUND_KEYS, ChosenSound, Sound, choose_sound

if TYPE_CHECKING:
    from helios_cli.film.again import Again


@dataclass(frozen=True)
class Job:
    """One film to render; its `options` name a `model`, an `output` and LoRA files of its own."""

    film: Film
    options: RenderOptions

    @property
    def model(self) -> str:
        assert self.options.model is not None, "`find_jobs` chooses it"
        return self.options.model

    @property
    def output(self) -> str:
        assert self.options.output is not None, "`find_jobs` chooses it"
        return self.options.output


def film_to_repeat(sources: list[str] | None, from_film: Path | None) -> Again | None:
    """The film that --from names. InputError unless exactly one of --from and SOURCE is given."""
    if from_film is None:
        if not sources:
            raise InputError("no source to render", hint='helios render "A boat leaves the harbour."')
        return None
    if sources:
        raise InputError("--from repeats a film, but SOURCE names another one", hint="leave one of them out")
    from helios_cli.film.again import read_again  # slow to import, and few films are made again

    return read_again(from_film)


def find_jobs(
    sources: list[str], options: RenderOptions, films: list[Film] | None = None, *, is_live: bool = False
) -> list[Job]:
    """The films of `sources`, or `films`, each with its model and output. Writes nothing. The length of a film that
    `is_live` is not known yet.

    Raises InputError, CheckpointError or MachineError for everything that can be wrong before a model is loaded. Of
    several films those that are finished are accepted: they may be what an interrupted run of this command made.
    """
    from helios_cli.recipe.plan import check_film
    from helios_cli.recipe.sources import read_films

    check_after(options)
    check_preview(options)
    films = films or read_films(sources)
    lengths = [check_film(film, options).num_frames for film in films]
    films = check_clips(films, options)
    sounds = [choose_sound(film, options) for film in films]
    films = check_sounds(films, sounds, options, None if is_live else lengths)
    check_stream(options, len(films), has_sound=any(sound for sound, _ in sounds))
    if options.takes and len(films) > 1:
        raise InputError(f"--takes shows one film, not {len(films)}", hint="name one source")
    outputs = _outputs(films, options.output)
    several = len(films) > 1
    chosen = zip(films, sounds, outputs, strict=True)
    return [_job(film, sound, options, output, several) for film, (sound, _), output in chosen]


def plan_jobs(sources: list[str], options: RenderOptions, films: list[Film] | None = None) -> list[Job]:
    """`find_jobs` for a plan, which accepts films that are there already."""
    Encoding.of(options)
    return find_jobs(sources, replace(options, force=True), films)


def check_encoding(jobs: list[Job]) -> None:
    """Encode one frame as the films will be, if any of them is an .mp4: now, not two hours later."""
    from helios_cli.film import ffmpeg

    options, encoding = jobs[0].options, Encoding.of(jobs[0].options)
    is_coded = options.is_stream and options.container != "y4m"
    if options.takes or is_coded or any(job.output.lower().endswith(".mp4") for job in jobs):
        ffmpeg.check_encoding(encoding)


def _job(film: Film, sound: Sound | None, options: RenderOptions, output: str, several: bool) -> Job:
    if options.is_stream:
        places: tuple[Path, ...] = ()
    elif options.takes:
        from helios_cli.film.takes import TakesFiles, check_shot

        check_shot(film, options.shot or 1)
        files = TakesFiles.of(output, force=options.force)
        places = (files.sheet, files.folder)
    else:
        # The film may be what another process made, or an earlier run, which perhaps was killed before its very end.
        was_finishing = options.is_shared_out and os.path.exists(Target.of(output).parts)
        may_replace = options.force or options.share or several or was_finishing
        target = check_target(output, force=may_replace or (options.final and _is_preview(output)))
        places = (target.path, *target.beside)
        if target.kind == "png" and sound:
            hint = "name an .mp4 or .mkv with -o, or write --audio none"
            raise InputError(f"{output}: a folder of pictures has no sound", hint=hint)
        fps = _finished_rate(film, options, target.kind)
        if options.export:
            _check_exports(film, target, options, fps, several)
    loras, from_ = choose_loras(film, options)
    check_inputs(_inputs(film, sound, loras, options), places)
    model, origin = choose_model(film.recipe, options)
    if origin == MODEL_VARIABLE and model != DEFAULT_MODEL:
        _check_variable(model)
    check_loras(loras, from_)
    return Job(film, replace(options, model=model, output=output, lora=loras))


def _finished_rate(film: Film, options: RenderOptions, kind: str) -> float:
    """Return the rate of the finished film. What comes after the render is tried on a few frames."""
    fps = film_fps(options, film.recipe)
    if not options.changes_frames:
        return fps
    from helios_cli.film.after import try_after  # slow to import

    after = try_after(options, options.size or film.recipe.size, fps, kind)
    assert after is not None, "options that change frames name a program or filters"
    return float(after.made.rate)


def _is_preview(output: str) -> bool:
    from helios_cli.film.sidecar import record_at

    record = record_at(Target.of(output))
    return record is not None and record.preview is not None


def _check_exports(film: Film, target: Target, options: RenderOptions, fps: float, several: bool) -> None:
    from helios_cli.film.export import check_exports

    may_replace = options.force or ((several or options.share) and is_taken(target))
    check_exports(target, options.export, len(film.recipe.shots), fps, force=may_replace)


def _inputs(film: Film, sound: Sound | None, loras: Iterable[Lora], options: RenderOptions) -> Iterator[Path]:
    """All files that a film is made from, except the model."""
    yield Path(film.source)
    yield from (path for path in (options.image, options.video) if path is not None)
    for shot in film.recipe.shots:
        yield from (film.picture(written) for written in (shot.image, shot.video) if written is not None)
    yield from [sound.path] if sound else []
    yield from (Path(lora.path) for lora in loras if not lora.is_on_hub)


def _check_variable(name: str) -> None:
    """Raise InputError that names HELIOS_MODEL if it names no model: the command line does not show it."""
    from helios_cli.weights.source import source_of

    try:
        source_of(name)
    except InputError as error:
        raise InputError(f"{MODEL_VARIABLE}: {error.message}", hint=error.hint) from error


def check_clips(films: list[Film], options: RenderOptions) -> list[Film]:
    """The films, which passed `check_film`, with a notice for each clip that is cut short.

    Decodes a chunk of each clip. Raises RecipeError for clips that cannot be continued, and with `options.strict` for
    those that are cut short.
    """
    from helios_cli.recipe.files import picture_problems
    from helios_cli.recipe.problems import Problem, RecipeError

    problems: list[Problem] = []
    checked = []
    for film in films:
        problems += picture_problems(film, options, partial(_clip_fault, film_fps(options, film.recipe)))
        short = list(picture_problems(film, options, _clip_cut_short)) if not problems else []
        problems += short if options.strict else []
        checked.append(replace(film, notices=(*film.notices, *map(str, short))))
    if problems:
        raise RecipeError(problems)
    return checked


def _clip_fault(fps: float, path: Path, key: str, base: str) -> tuple[str, str | None] | None:
    if key != "video":
        return None
    from helios_cli.film.media import check_clip

    try:
        check_clip(path, fps)
    except InputError as error:
        return error.message, error.hint
    return None


def _clip_cut_short(path: Path, key: str, base: str) -> tuple[str, str | None] | None:
    if key != "video":
        return None
    from helios_cli.film.reading import extent

    message = extent(path).cut_short
    return (f"{path} {message}", "use a complete copy") if message else None


def check_sounds(
    films: list[Film], sounds: Sequence[ChosenSound], options: RenderOptions, lengths: list[int] | None
) -> list[Film]:
    """The films, with a notice for each whose sound of `sounds` ends before its `lengths` in frames; None if those are
    not known.

    Reads the sound files through. Raises RecipeError for those that cannot be put under a film, and with
    `options.strict` for those that are too short.
    """
    from helios_cli.recipe.problems import Problem, RecipeError

    problems: list[Problem] = []
    checked = []
    for index, (film, (sound, origins)) in enumerate(zip(films, sounds, strict=True)):
        is_flag = origins["audio"] == "flag"
        num_frames = None if lengths is None else lengths[index]
        fault = None if sound is None else _sound_fault(sound, film, options, num_frames, is_flag=is_flag)
        notices: tuple[str, ...] = ()
        if fault is not None:
            message, hint, is_error = fault
            source, where = ("--audio", {}) if is_flag else (film.source, film.where("audio"))
            problem = Problem(source, message, **where, suggestion=hint)
            if is_error or options.strict:
                problems.append(problem)
            else:
                notices = (str(problem),)
        checked.append(replace(film, notices=(*film.notices, *notices)))
    if problems:
        raise RecipeError(list(dict.fromkeys(problems)))  # a flag's file is that of every film
    fits = [key for key in SOUND_KEYS[1:] if getattr(options, key) is not None]
    if fits and not any(sound for sound, _ in sounds):
        raise InputError(f"{flag_of(fits[0])} fits a sound, but the film has none", hint="name a file with --audio")
    return checked


def _sound_fault(
    sound: Sound, film: Film, options: RenderOptions, num_frames: int | None, *, is_flag: bool
) -> tuple[str, str | None, bool] | None:
    """Return what is wrong with a film's sound, what to do about it, and whether no film can be made with it."""
    from helios_cli.film.ffmpeg import frame_rate
    from helios_cli.film.sound import open_track, silence_notice
    from helios_cli.recipe.files import SOUNDS, absence, is_url
    from helios_cli.recipe.settings import film_fps
    from helios_cli.visible import printable

    if is_flag and is_url(str(options.audio)):
        return f"{printable(str(options.audio), 200)}: only local files are read", "download it first", True
    base = "the current folder" if is_flag else "the recipe"
    if absent := absence(sound.path, SOUNDS, f"paths are relative to {base}; --audio {NONE} leaves it out"):
        return f"{printable(str(sound.path), 200)}: {absent[0]}", absent[1], True
    try:
        track = open_track(sound)
        if num_frames is None:
            if sound.fit == "pad":
                raise InputError(
                    "pad needs a film of a known length", hint="write --audio-fit trim or --audio-fit loop"
                )
            return None
        short = silence_notice(track, float(num_frames / frame_rate(film_fps(options, film.recipe))))
    except InputError as error:
        return error.message, error.hint, True
    return (short, None, False) if short else None


def check_output(output: str) -> None:
    """Raise InputError for a film's name that is empty, a suffix alone, a URL, or has invisible characters."""
    from helios_cli.recipe.files import is_url
    from helios_cli.visible import printable, without_hidden

    shown, name = printable(output, 200), os.path.basename(output.rstrip("/"))
    visible_name = without_hidden(re.sub(r"[\n\t]", "", name))
    if not output.strip() or visible_name.lower() in (".mp4", ".mkv"):
        raise InputError(f"-o {shown}: the film has no name", hint="write -o film.mp4; is a shell variable empty?")
    if is_url(output):
        form = "flv" if output.lower().startswith("rtmp") else "mpegts"
        hint = f"write -o film.mp4; to send it there: -o - | ffmpeg -re -i - -c copy -f {form} {shown}"
        raise InputError(f"-o {shown}: films are written to local files", hint=hint)
    if visible_name != name and not os.path.isdir(output):
        hint = f"write {visible_name or 'film.mp4'}"
        raise InputError(f"-o {shown}: the name has invisible characters", hint=hint)


def _outputs(films: list[Film], output: str | None) -> list[str]:
    if output is not None:
        check_output(output)
    if output == STREAM:
        return [output]
    if len(films) == 1 and not _is_folder_for_films(output):
        return [output or f"{films[0].name}.mp4"]
    if output and not os.path.isdir(output):
        hint = "name a folder with -o" if Path(output).suffix else f"mkdir -p {shlex.quote(output)}"
        raise InputError(f"-o {output}: {len(films)} films need a folder that exists", hint=hint)
    names = [f"{film.name}.mp4" for film in films]
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        same = len({film.recipe for film in films}) < len(films)
        hint = "leave out the source that is given twice" if same else "rename the sources, or render each with -o"
        raise InputError(f"several films would be called {', '.join(doubled)}", hint=hint)
    return [str(Path(output or "") / name) for name in names]


def _is_folder_for_films(output: str | None) -> bool:
    """Return whether `output` is a folder to put films into. A film of PNG pictures ends in a slash, or has some
    already."""
    if not output or output.endswith(("/", os.sep)) or not os.path.isdir(output):
        return False
    return not any(FRAME_NAME.fullmatch(path.name) for path in Path(output).glob("*.png"))
