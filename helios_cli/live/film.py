"""A live film: what is known of it before its first prompt, and its render."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Generator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from helios_cli.errors import InputError, OutOfMemory
from helios_cli.film.feed import Feed
from helios_cli.film.jobs import Job, check_encoding, check_output, find_jobs
from helios_cli.film.journal import recorded_chunks
from helios_cli.film.target import Target
from helios_cli.live import DEFAULT_OUTPUT
from helios_cli.live.clock import Playhead
from helios_cli.live.lines import Lines, read_line
from helios_cli.live.recipe_file import RecipeFile, begun_film, recipe_path
from helios_cli.live.script import LiveScript, PromptDefaults
from helios_cli.recipe.film import Film
from helios_cli.recipe.lora import choose_loras
from helios_cli.recipe.options import STREAM, RenderOptions
from helios_cli.recipe.plan import Plan, plan_film
from helios_cli.recipe.problems import Problems
from helios_cli.recipe.schema import Recipe, Shot
from helios_cli.recipe.settings import Settings
from helios_cli.recipe.sound import SOUND_KEYS, choose_sound
from helios_cli.recipe.sources import is_meant_as_path
from helios_cli.recipe.values import LENGTH_KEYS
from helios_cli.units import counted
from helios_cli.visible import printable
from helios_cli.weights.names import EMBEDDED
from helios_cli.weights.source import source_of

if TYPE_CHECKING:
    from helios_cli.engine.events import Event
    from helios_cli.engine.session import Session

IN_RECIPE = (
    *("fps", "size", *LENGTH_KEYS, "seed", "negative", "steps", "guidance", "image", "video", "lora"),
    *SOUND_KEYS,
)
"""Options that the recipe of a live film holds, so that a render of it needs none of them."""

EXAMPLE = 'helios live "A boat leaves the harbour."'


def first_shot(prompt: str | None) -> Shot | None:
    """The shot of the command's argument, which is read as a line is. InputError for one that cannot be meant."""
    if prompt is None:
        return None
    if is_meant_as_path(prompt) and not os.path.exists(prompt):
        raise InputError(f"{printable(prompt, 200)}: no such file", hint=EXAMPLE)
    if os.path.isfile(prompt):
        raise InputError(f"{prompt} is a file", hint=f"helios live < {shlex.quote(prompt)} takes its lines as prompts")
    shot = read_line(os.fsencode(prompt), Problems("the prompt"))
    if shot is None:
        raise InputError("the prompt is empty", hint="say what the film shows")
    return shot


def film_to_be(path: Path, first: Shot | None) -> Film:
    """The film whose recipe goes to `path`, with a stand-in for the first prompt if that is not known yet."""
    shot = Shot(prompt=first.prompt if first else "a prompt")
    return Film(path.stem, os.path.relpath(path), Recipe(shot=[shot]), path.parent)


@dataclass(frozen=True)
class LiveJob:
    """A live film to render: its job, its recipe, its first prompt where that is known, and the unfinished film that
    goes on."""

    job: Job
    recipe_file: RecipeFile
    first: Shot | None = None
    begun: Film | None = None

    @property
    def target(self) -> Target:
        """The film's place; that of a stream is where its recipe is."""
        return _target_of(self.job.output)

    @property
    def chunks(self) -> int:
        """The chunks that the unfinished film has."""
        return max(1, recorded_chunks(self.target)) if self.begun else 0


def find_live(prompt: str | None, options: RenderOptions, output: str, command_of: Callable[[Path], str]) -> LiveJob:
    """The film that a command asks for, whose recipe `command_of` renders. Raises what `find_jobs` raises."""
    check_output(output)
    path = recipe_path(_target_of(output))
    recipe_file, first = RecipeFile(path, command_of(path)), first_shot(prompt)
    begun = begun_film(path, _target_of(output), force=options.force)
    if begun and output == STREAM:
        raise InputError(f"{path} is the recipe of an unfinished film", hint=f"{recipe_file.command} finishes it")
    job = find_jobs([], replace(options, output=output), [begun or film_to_be(path, first)], is_live=True)[0]
    check_encoding([job])
    return LiveJob(job, recipe_file, first, begun)


def _target_of(output: str) -> Target:
    return Target.of(DEFAULT_OUTPUT if output == STREAM else output)


@dataclass(frozen=True)
class LiveSetup:
    """The parts of a live film that exist before its model is loaded: who watches it, and what they say.

    `warn` gets messages about prompts that are left out."""

    defaults: PromptDefaults
    playhead: Playhead
    lines: Lines
    feed: Feed
    warn: Callable[[str], None]

    @classmethod
    def of(
        cls,
        fps: float,
        ahead: float | None,
        defaults: PromptDefaults,
        warn: Callable[[str], None],
        *,
        player: bool = False,
    ) -> LiveSetup:
        """Return the setup of a film. A `player` says what it has; else all that is in the feed counts as out."""
        playhead, feed = Playhead(fps, ahead), Feed()

        def follow() -> None:
            playhead.set_over(feed.is_over)
            if not player:
                playhead.show(feed.num_frames)

        feed.listen(follow)
        return cls(defaults, playhead, Lines(warn, playhead), feed, warn)


def render_live(
    live: LiveJob, open_lines: Callable[[], None], setup: LiveSetup, session: Session
) -> Generator[Event, None, None]:
    """Render the film of the first prompt and of those that lines bring while it renders.

    `open_lines` is called once the model can take prompts.

    Raises what `engine.render.render` raises, and InputError if there is no prompt at all.
    """
    from helios_cli.engine.events import Notice
    from helios_cli.engine.render import render

    job, first, chunks = live.job, live.first, live.chunks
    yield from session.load(job.film, job.options)
    settings = session.settings(job.film, job.options)  # what the model cannot do is reported before a prompt comes
    options = replace(job.options, **cast("dict[str, Any]", dict.fromkeys(IN_RECIPE)))
    lines = setup.lines
    if chunks:
        film = job.film
        _require_same(film, job.options, session)
        if first is not None and first.prompt != film.recipe.shots[0].prompt:  # else it is the same command again
            lines.put(first)
        open_lines()
    else:
        open_lines()
        if first is None:
            _preload(plan_film(job.film, settings), job.options, session)
            yield from session.notices()
            line = lines.wait()
            first = line.shot if line else None
        if first is None:
            raise InputError("standard input holds no prompt", hint=EXAMPLE)
        film = _resolved(job.film, first, job.options, settings, session.models.name)

    def plan_of(film: Film) -> Plan:
        session.introduce([film.recipe.shots[-1].prompt])
        return plan_film(film, session.settings(film, options))

    script = LiveScript(
        *(film, settings.fps, lines, setup.defaults, setup.playhead),
        chunks=chunks,
        plan_of=plan_of,
        keep=live.recipe_file.write,
        warn=setup.warn,
    )
    yield from render(film, options, session, script, setup.feed)
    if waiting := len(lines.waiting):
        yield Notice(f"{counted(waiting, 'prompt')} came too late for the film")


def _require_same(film: Film, options: RenderOptions, session: Session) -> None:
    """Raise InputError if flags would make another film of one that goes on."""
    begun = replace(options, **cast("dict[str, Any]", dict.fromkeys(("model", *IN_RECIPE))))
    were, are = session.settings(film, begun), session.settings(film, options)
    start, folder = film.recipe.shots[0], film.folder
    pairs = [(key, getattr(were, key), getattr(are, key)) for key in ("size", "steps", "guidance", "fps", "seed")]
    pairs += [("negative", were.negative, are.negative), ("length", were.num_frames, are.num_frames)]
    pairs += [("sound", choose_sound(film, begun)[0], choose_sound(film, options)[0])]
    pairs += [("lora", choose_loras(film, begun)[0], choose_loras(film, options)[0])]
    for key, written, given in (("image", start.image, are.image), ("video", start.video, are.video)):
        place = None if written is None else os.path.realpath(folder / written)
        pairs.append((key, place, place if given is None else os.path.realpath(given)))
    if options.model is not None and film.recipe.model is not None:
        pairs.append(("model", film.recipe.model, _written(session.models.name)))
    if changed := [key for key, was, now in pairs if was != now]:
        raise InputError(
            f"the unfinished film of {film.source} was begun with another {' and '.join(changed)}",
            hint="leave out the flag to go on with it, add --force to start over, or choose another -o",
        )


def _written(model: str) -> str:
    """Return the model as a recipe that may be moved names it."""
    folder = source_of(model).folder
    return model if folder is None or model == EMBEDDED else str(folder.absolute())


def _preload(plan: Plan, options: RenderOptions, session: Session) -> None:
    """Load the model for a film like `plan` before its first prompt, if the text encoder then has room next to it.

    If memory runs out, the film begins as if nothing had been loaded.
    """
    import torch

    from helios_cli.engine.memory import memory_errors

    session.place([plan], options, prompts_come=True)
    models = session.models
    if models.placement.text_beside:
        try:
            with memory_errors(), torch.inference_mode():
                _ = models.dit, preview.network if (preview := session.preview(options)) else models.vae
        except OutOfMemory:
            models.unload()


def _resolved(film: Film, first: Shot, options: RenderOptions, settings: Settings, model: str) -> Film:
    """The film of the first prompt with every setting written out, so that its recipe needs no flags."""
    loras = [{"path": lora.path, "weight": lora.weight} for lora in choose_loras(film, options)[0]]
    keys = {
        "model": _written(model),
        "fps": settings.fps,
        "size": settings.size,
        **{key: getattr(options, key) for key in LENGTH_KEYS if getattr(options, key) is not None},
        "seed": settings.seed,
        **({"negative": settings.negative} if settings.negative else {}),
        "steps": settings.steps,
        "guidance": settings.guidance,
        **({"lora": loras} if loras else {}),
    }
    if sound := choose_sound(film, options)[0]:
        keys |= dict(zip(SOUND_KEYS, (str(sound.path), sound.fit, sound.fade), strict=True))
    start = {"image": settings.image, "video": settings.video}
    shot = first.model_copy(update={key: str(path) for key, path in start.items() if path is not None})
    return replace(film, recipe=Recipe.model_validate({**keys, "shot": [shot]}))
