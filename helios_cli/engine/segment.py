"""Renders one segment of a film, the part between two cuts, for the process that joins them."""

from __future__ import annotations

from collections.abc import Generator, Iterator

import torch

from helios_cli.engine.chunks import FingerprintsOf
from helios_cli.engine.events import Event
from helios_cli.engine.render import chunks_into, with_less_memory
from helios_cli.engine.script import Planned
from helios_cli.engine.session import Session
from helios_cli.film.cache import Cache
from helios_cli.film.parts import ChunkStore, PartsWriter, segment_film
from helios_cli.film.target import Target
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan


@torch.inference_mode()
def render_segment(
    plan: Plan,
    options: RenderOptions,
    session: Session,
    target: Target,
    store: ChunkStore,
    fingerprints: FingerprintsOf,
) -> Generator[Event, None, None]:
    """Render the chunks of `plan`, one segment, into `store`; the last event is FilmDone. Raises what `render` raises.

    Chunks that the store has are not rendered again. `session` has the model open.
    """
    try:
        session.place([plan], options)
    finally:
        yield from session.notices()  # they may explain an error

    def attempt() -> Iterator[Event]:
        writer = PartsWriter(target, segment_film(plan, target, options), plan.size, store)
        cache = Cache() if options.cache else None
        yield from chunks_into(writer, Planned(plan), options, session, fingerprints, cache)

    yield from with_less_memory(session, plan, options, attempt)
