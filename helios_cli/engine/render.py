"""`render`: a film and its options in, events out, the film on disk at the end. Commands and libraries go this way."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial

import torch

from helios_cli.engine.chunks import FingerprintsOf, render_chunks
from helios_cli.engine.events import ChunkDone, Event, FilmDone, Notice, PhaseStarted, PreviewDone
from helios_cli.engine.finish import Finish
from helios_cli.engine.memory import memory_errors, without_frames
from helios_cli.engine.models import Models
from helios_cli.engine.script import Planned, Script
from helios_cli.engine.session import Session
from helios_cli.errors import InputError, OutOfMemory, ReaderGone
from helios_cli.film.cache import Cache
from helios_cli.film.compression import Encoding
from helios_cli.film.encoding import PieceWriter
from helios_cli.film.feed import Feed
from helios_cli.film.parts import LeftChunks, Parts
from helios_cli.film.sound import silence_notice, track_of
from helios_cli.film.stream import DEFAULT_CONTAINER, open_stream, take_stdout
from helios_cli.film.target import Target
from helios_cli.film.writer import open_film
from helios_cli.recipe.film import Film
from helios_cli.recipe.fingerprint import Fingerprints
from helios_cli.recipe.options import STREAM, RenderOptions
from helios_cli.recipe.plan import Plan, too_long
from helios_cli.recipe.sound import choose_sound
from helios_cli.units import counted


@torch.inference_mode()
def render(
    film: Film, options: RenderOptions, session: Session, script: Script | None = None, feed: Feed | None = None
) -> Generator[Event, None, None]:
    """Render `film` to `options.output`, and yield what happens; the last event is FilmDone.

    An interrupted render of the same film is continued, and chunks that earlier films left are taken over. Where memory
    runs out and the placement is left to helios, the rest is rendered with less of the model in memory.

    Args:
        film: as `recipe.sources.read_films` reads it from a prompt or a file.
        options: with the film's own `output` (`film.jobs.find_jobs` chooses it).
        session: holds the model, for any number of films.
        script: decides the chunks of a film whose prompts come while it renders; by default they are planned.
        feed: gets the pieces of the film as they become safe, for whoever watches it.

    Raises:
        HeliosError: the subclass says why. Chunks that are done stay safe, and the same render continues there.
    """
    output = options.output or f"{film.name}.mp4"
    yield from session.load(film, options)
    try:
        if script is None:
            script = Planned(session.plan(film, options), film)
        session.place([script.plan], options, prompts_come=not isinstance(script, Planned))
    finally:
        yield from session.notices()  # they may explain an error
    if options.strict:
        _require_whole_prompts(script.plan, session.models)
    if options.is_stream:  # which cannot begin again where memory runs out
        yield from _render_stream(options, session, script, feed)
        return
    if options.final:
        yield from _render_twice(output, options, session, script, feed)
        return
    yield from with_less_memory(
        session, script.plan, options, partial(_render_placed, output, options, session, script, feed)
    )


def _render_twice(
    output: str, options: RenderOptions, session: Session, script: Script, feed: Feed | None
) -> Iterator[Event]:
    """Render a preview, then the film that takes its place: the VAE decodes the latents that the cache keeps.

    Chunks that are no longer kept are rendered once more. The film is the one that a render without preview makes. A
    `feed` gets the pieces of the preview.
    """
    final = replace(options, preview_decoder=None, final=False)
    if not _finish_of(output, final, session, script).is_finished():
        preview = replace(options, final=False, keep=False, export=(), check=False, repeats=None)
        is_there = isinstance(script, Planned) and _finish_of(output, preview, session, script).is_finished()
        if not is_there:
            attempt = partial(_render_placed, output, preview, session, script, feed)
            for event in with_less_memory(session, script.plan, options, attempt):
                yield _preview_done(event) if isinstance(event, FilmDone) else event
            feed = None
        final, script = replace(final, force=True), Planned(script.plan, script.film)
    yield from with_less_memory(
        session, script.plan, final, partial(_render_placed, output, final, session, script, feed)
    )


def _preview_done(done: FilmDone) -> PreviewDone:
    return PreviewDone(output=done.output, frames=done.frames, seconds=done.seconds, frames_reused=done.frames_reused)


def with_less_memory(
    session: Session, plan: Plan, options: RenderOptions, attempt: Callable[[], Iterator[Event]]
) -> Iterator[Event]:
    """Make an `attempt` to render, and after memory ran out another one with less of the model in memory."""
    for may_try_again in (True, False):
        try:
            yield from attempt()
            return
        except OutOfMemory as error:
            short = without_frames(error)
        if not (may_try_again and session.place_deeper([plan], options)):
            break
        yield from session.notices()
    raise short


def chunks_into(
    writer: PieceWriter,
    script: Script,
    options: RenderOptions,
    session: Session,
    fingerprints: FingerprintsOf,
    cache: Cache | None,
) -> Generator[Event, None, None]:
    """Render the chunks of `script` with the session's model into `writer`, until the session is stopped; its notices
    come between the events. The arguments are those of `render_chunks`."""
    events = render_chunks(
        script,
        session.models,
        writer,
        answer=session.answer,
        clock=session.clock(),
        reanchor=options.reanchor,
        fingerprints=fingerprints,
        cache=cache,
        chunks_beside=session.chunks_beside,
        preview=session.preview(options),
    )
    with closing(events):
        for event in events:
            session.require_not_stopped()
            yield event
            yield from session.notices()


def _render_placed(
    output: str, options: RenderOptions, session: Session, script: Script, feed: Feed | None
) -> Iterator[Event]:
    """Render a film whose model has its place: target, chunks, and the files other than its frames."""
    target = Target.of(output)
    finish = _finish_of(output, options, session, script)
    yield from finish.differences()
    if finish.is_finished():
        yield Notice(f"{output} is finished already")
        yield from finish.complete()
        return
    yield from finish.prospects()
    after, parts = finish.after, Parts(target)
    if parts.kind() is not None:
        for notice in parts.claims.require_alone(output):
            yield Notice(notice)
    chunks: list[float] = []
    done = None
    preview = finish.preview.digest if finish.preview else ""
    writer = open_film(output, script.plan, options, after=after, track=finish.track, preview=preview)
    with (
        _cache(parts, options) as cache,
        session.writing(writer, output, script),
    ):
        writer.feed = feed
        with closing(chunks_into(writer, script, options, session, finish.fingerprints_of, cache)) as events:
            for event in events:
                if event == PhaseStarted("finish"):  # only now is a film decided whose prompts come while it renders
                    finish.describe(writer)
                    if finish.track and not isinstance(script, Planned):
                        seconds = script.plan.num_frames / script.plan.fps
                        yield from map(Notice, filter(None, [silence_notice(finish.track, seconds)]))
                if isinstance(event, ChunkDone):
                    chunks.append(event.seconds)
                if isinstance(event, FilmDone):
                    done = event
                else:
                    yield event
        assert done is not None
        session.keep_speed(script, options, done, chunks, after)
        yield from finish.finish(done)


def _finish_of(output: str, options: RenderOptions, session: Session, script: Script) -> Finish:
    models, plan = session.models, script.plan
    with memory_errors():
        identity = session.identity(plan.size, plan.guidance)
    fingerprints = Fingerprints(identity.weights, identity.arithmetic, reanchor=options.reanchor)
    preview = session.preview(options)
    return Finish(
        script,
        output,
        options,
        models.name,
        models.checkpoint.path,
        models.checkpoint.adapters,
        preview.file if preview else None,
        str(models.device),
        Target.of(output),
        identity,
        fingerprints.of,
        track_of(choose_sound(script.film, options)[0]) if script.film else None,
    )


def _render_stream(
    options: RenderOptions, session: Session, script: Script, feed: Feed | None
) -> Generator[Event, None, None]:
    """Render a film to standard output, until its end or until nobody reads it any more."""
    plan, finish = script.plan, _finish_of(STREAM, options, session, script)
    stream = open_stream(
        take_stdout(),
        options.container or DEFAULT_CONTAINER,
        size=plan.size,
        fps=plan.fps,
        encoding=Encoding.of(options),
        preview=finish.preview.digest if finish.preview else "",
        track=finish.track,
        num_frames=plan.num_frames if isinstance(script, Planned) else None,
    )
    stream.feed = feed
    try:
        with session.writing(stream, STREAM, script):
            cache = Cache() if options.cache else None
            yield from chunks_into(stream, script, options, session, finish.fingerprints_of, cache)
    except ReaderGone as gone:
        yield Notice(f"{gone.message}; kept for later films: {counted(stream.safe_chunks, 'chunk')}")


@contextmanager
def _cache(parts: Parts, options: RenderOptions) -> Iterator[Cache | None]:
    """Provide the cache of chunks; chunks that workers have left of the film are in it, and go once it is whole."""
    cache = Cache() if options.cache else None
    if parts.kind() is None:
        yield cache
        return
    try:
        yield LeftChunks(parts, cache)
        parts.remove()
    finally:
        parts.claims.release_all()


def _require_whole_prompts(plan: Plan, models: Models) -> None:
    """Raise InputError unless the model reads every prompt to its end."""
    texts = list(dict.fromkeys(text for chunk in plan.chunks for text, _ in chunk.prompts))
    models.encode(texts)
    for text in texts:
        if lost := models.prompts[text].lost:
            message = f"{plan.title}, {too_long(plan, text, lost)}"
            raise InputError(message, hint="shorten it, or leave out --strict")
