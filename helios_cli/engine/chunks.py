"""The chunk loop: a plan in, events out, frames in a writer.

For each chunk: noise -> latents -> frames -> bytes -> encoder. Between chunks only the history (19 latent frames) and
the anchor are kept, so memory does not grow with the film. Chunks that were rendered before, by an interrupted run of
this film or for another film, are not rendered again.
"""

from __future__ import annotations

import contextlib
import itertools
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import cached_property, partial

import torch
from torch import Tensor

from helios_cli.device import dtype_name
from helios_cli.engine.after import completed
from helios_cli.engine.clock import Clock
from helios_cli.engine.conditioning import Start, start_of
from helios_cli.engine.denoise import Answer, Denoiser, stages_of
from helios_cli.engine.events import ChunkDone, ChunksReused, Event, FilmDone, FilmStarted, Notice, PhaseStarted
from helios_cli.engine.gpu import Background, FirstUse, on_host, sent_to
from helios_cli.engine.history import History
from helios_cli.engine.memory import memory_errors
from helios_cli.engine.models import Models
from helios_cli.engine.preview import Preview
from helios_cli.engine.script import Planned, Script
from helios_cli.engine.state import State
from helios_cli.errors import PictureError
from helios_cli.film.cache import Cache
from helios_cli.film.encoding import PieceWriter, Safe
from helios_cli.film.resume import Resumed, Wanted, in_words
from helios_cli.machine import peak_bytes_with_children
from helios_cli.model.dit import TextContext
from helios_cli.recipe.plan import Chunk, Plan, too_long

FingerprintsOf = Callable[[Plan], Sequence[str]]
"""The fingerprints of the chunks of a plan (`recipe.fingerprint.Fingerprints.of`)."""


@torch.inference_mode()  # as a decorator, the mode holds only while this runs, not while the consumer handles an event
def render_chunks(
    film: Plan | Script,
    models: Models,
    writer: PieceWriter,
    *,
    answer: Answer | None = None,
    reanchor: bool = False,
    clock: Clock | None = None,
    fingerprints: FingerprintsOf | None = None,
    cache: Cache | None = None,
    chunks_beside: int | None = None,
    preview: Preview | None = None,
) -> Generator[Event, None, None]:
    """Render the chunks of `film` into `writer` and close it; yield each step; abort the writer if anything fails.

    Args:
        film: a plan, or a script whose chunks are decided one by one.
        answer: makes the model calls; `models.answer` by default.
        reanchor: take the anchor from each segment's second chunk, for films whose start hardly moves.
        fingerprints: makes each chunk safe as soon as it is done: after an interruption, the next run of the same film
            continues after its last chunk. Without it nothing is kept.
        cache: source of chunks that earlier films left, and store for new ones. It does not change a frame.
        chunks_beside: how many chunks are decoded at a time, in threads, while the next one is denoised, so that their
            ChunkDone come later, and the next segment's picture or clip is encoded during the chunk before it. By
            default `models.chunks_beside`, and none if the clock is exact or all ranks decode together: since ranks
            make all their exchanges in one order, a decode would wait for model calls.
        preview: makes the frames in place of the VAE. Latents, and so what is kept of them, stay the same.

    Raises:
        PictureError: values that are not finite.
        InputError: a picture or clip that cannot be read.
        MachineError, CheckpointError: weights that can no longer be read, no memory, no disk.
    """
    script: Script = Planned(film) if isinstance(film, Plan) else film
    clock = clock or Clock(models.device)
    decoders = 1 if preview else models.decoders(script.plan.size, script.plan.guidance)
    if chunks_beside is None:
        chunks_beside = models.chunks_beside if decoders == 1 and not clock.exact else 0
    models.use_threads()
    decoding = Background(models.vae_device, threads=chunks_beside, prepare=models.use_threads)
    with writer, memory_errors(), contextlib.closing(decoding) as background:
        loop = _ChunkLoop(
            script,
            models,
            writer,
            answer or models.answer,
            reanchor,
            clock,
            fingerprints,
            cache,
            background,
            decoders,
            preview,
        )
        yield from loop.events()


class _ChunkLoop:
    """The state of a film between chunks: history, generator, text context, and the work that runs in parallel."""

    def __init__(
        self,
        script: Script,
        models: Models,
        writer: PieceWriter,
        answer: Answer,
        reanchor: bool,
        clock: Clock,
        fingerprints_of: FingerprintsOf | None,
        cache: Cache | None,
        background: Background,
        decoders: int,
        preview: Preview | None,
    ) -> None:
        self.script, self.models, self.writer, self.answer = script, models, writer, answer
        self.reanchor, self.clock = reanchor, clock
        self.fingerprints_of, self.cache, self.background = fingerprints_of, cache, background
        self.decoders, self.preview = decoders, preview
        self.started = time.perf_counter()
        self.history: History
        self.generator: torch.Generator
        self.chunks_in_segment = 0
        self.frames_reused = 0
        self.first_use = FirstUse.of(models.dit_config.width, models.dtype)
        self.decoding: deque[Future[ChunkDone]] = deque()
        self.chunk_ended = self.started
        self.chunks_noted = 0
        self.starting: dict[int, Future[Start]] = {}  # at most one, by the index of its chunk
        self.text: tuple[tuple[tuple[str, float], ...], TextContext] | None = None

    @property
    def plan(self) -> Plan:
        return self.script.plan

    @property
    def fingerprints(self) -> Sequence[str]:
        assert self.fingerprints_of is not None, "only films with fingerprints ask for them"
        return self.fingerprints_of(self.plan)

    def events(self) -> Iterator[Event]:
        resumed = self._resume()
        yield self._film_started()
        if resumed.notice:
            yield Notice(resumed.notice)
        if resumed.chunks:
            yield self._reused(resumed.chunks, "journal", resumed.chunks)
        rest = self.plan.chunks[resumed.chunks :]
        yield from self._prepare([chunk for chunk in rest if not self._is_kept(chunk)])
        for index in itertools.count(resumed.chunks):
            if self.script.is_early(index):
                yield from self._end_of_decoding()
            yield from self.script.decide(index)
            if index == len(self.plan.chunks):
                break
            chunk = self.plan.chunks[index]
            if self._is_kept(chunk):
                yield from self._end_of_decoding()
            if self._take_kept(chunk):
                yield self._reused(index + 1, "cache", 1)
            else:
                yield from self._render(chunk)
        yield from self._end_of_decoding()
        self._note_film()
        yield from self._complete()
        yield PhaseStarted("finish")
        with self.clock("finish"):
            output = self.writer.close()
        if self.writer.cache_problem:
            yield Notice(f"chunks could not be kept for other films: {self.writer.cache_problem}")
        yield self._done(str(output))

    def _complete(self) -> Iterator[Event]:
        """Do what comes after the render, if there is something."""
        with contextlib.closing(completed(self.writer)) as events:
            while self.writer.has_after:
                with self.clock("after"):
                    event = next(events, None)
                if event is None:
                    break
                yield event

    def _resume(self) -> Resumed:
        """Continue an interrupted run, if the film has a journal."""
        if self.fingerprints_of is None:
            return Resumed()
        models = self.models
        settings = in_words(self.plan, models.name, str(models.device), dtype_name(models.dtype))
        wanted = Wanted(self.plan.chunks, self.fingerprints, settings)
        resumed = self.writer.resume(wanted, self.cache)
        if resumed.state is not None:
            state = State.from_bytes(resumed.state)
            assert state is not None, "resume checks the state"
            self._restore(state)
        self._note_film()
        return resumed

    def _note_film(self) -> None:
        """Note in the cache which chunks the film has, if more are decided than last time."""
        if self.cache and self.chunks_noted < len(self.plan.chunks):
            self.chunks_noted = len(self.plan.chunks)
            with contextlib.suppress(OSError):  # a line of `helios cache list` is no reason to fail
                self.cache.note_film(self.plan.title, str(self.writer.target.path), self.fingerprints)

    def _is_kept(self, chunk: Chunk) -> bool:
        return self.cache is not None and self.cache.has(self.fingerprints[chunk.index])

    def _take_kept(self, chunk: Chunk) -> bool:
        """Take the chunk from the cache, as a piece or decoded again from its latents; return whether it is there."""
        if self.cache is None:
            return False
        state = State.from_bytes(self.cache.state(self.fingerprints[chunk.index]))
        if state is None:
            return False
        self._restore(state)
        safe = Safe(self.fingerprints[chunk.index], state.to_bytes)
        if not self.writer.take_kept(safe, chunk.num_frames):
            self._write_frames(chunk, state.chunk.to(self.models.vae_device))
            self.writer.end_piece(safe)
        return True

    def _restore(self, state: State) -> None:
        self.history, self.generator = state.restore(self.models.device)
        self.chunks_in_segment = state.place

    def _prepare(self, chunks: list[Chunk]) -> Iterator[Event]:
        """Encode the prompts of chunks to be rendered, and load what all chunks share."""
        if not chunks:
            return
        yield PhaseStarted("text")
        yield from self._encode_prompts(chunks)
        if "denoiser" in vars(self):
            return
        yield PhaseStarted("load")
        with self.clock("load"):
            _ = self.denoiser
            if self.preview is not None:
                _ = self.preview.network
            elif not self.models.placement.takes_turns:
                _ = self.models.vae
        if self.first_use and self.first_use.notice:
            yield Notice(self.first_use.notice)

    def _render(self, chunk: Chunk) -> Iterator[Event]:
        began = time.perf_counter()
        if "denoiser" not in vars(self) or any(text not in self.models.prompts for text, _ in chunk.prompts):
            # The prompt was not known when the film began. Parts may have to make room for the text encoder.
            yield from self._end_of_decoding()
            yield from self._prepare([chunk])
        if chunk.fresh:
            yield from self._start_segment(chunk)
        self._start_early(chunk.index + 1)
        yield PhaseStarted("denoise")
        latents, finite = yield from self._denoise(chunk)
        yield from self._gpu_notices()
        yield from self._end_of_decoding(most=max(0, self.background.threads - 1))
        yield PhaseStarted("decode")
        sent, before = sent_to(self.models.vae_device, latents, finite), self.decoding[-1] if self.decoding else None
        finish = partial(self._finish, chunk, sent, self._safe(chunk), began, before)
        self.decoding.append(self.background.start(finish))
        if not self.background.threads:
            yield from self._end_of_decoding()

    def _end_of_decoding(self, most: int = 0) -> Iterator[Event]:
        """Yield the ends of chunks that are decoded; wait until at most so many are not. Re-raises their errors."""
        while self.decoding and (len(self.decoding) > most or self.decoding[0].done()):
            yield self.decoding.popleft().result()

    def _gpu_notices(self) -> Iterator[Event]:
        """Yield what kernels and graphs have to report once a chunk is denoised."""
        if self.first_use:
            self.first_use.done()
            self.first_use = None
        graphs = self.models.graphs
        if graphs is not None and graphs.problem and not graphs.problem_reported:
            graphs.problem_reported = True
            yield Notice(graphs.problem)

    def _finish(
        self,
        chunk: Chunk,
        sent: Callable[[], tuple[Tensor, ...]],
        safe: Safe | None,
        began: float,
        chunk_before: Future[ChunkDone] | None,
    ) -> ChunkDone:
        """Decode, write and secure a chunk. It may run during later chunks, so it reads no state of the loop.

        `sent` returns its latents, and whether they are finite, on the VAE's device. Its frames are written behind
        those of the chunk before, which may be decoded at the same time."""
        latents, finite = sent()
        if not finite:
            raise self._not_finite("latents", chunk)
        self._write_frames(chunk, latents, chunk_before)
        self.writer.end_piece(safe)
        before, self.chunk_ended = self.chunk_ended, time.perf_counter()
        return ChunkDone(
            chunk=chunk.index,
            chunks=self.script.num_chunks,
            frames=self.writer.num_frames,
            seconds=self.chunk_ended - max(began, before),
        )

    def _safe(self, chunk: Chunk) -> Safe | None:
        if self.fingerprints_of is None:
            return None
        state = State.of(self.history, self.generator, self.chunks_in_segment)
        return Safe(self.fingerprints[chunk.index], state.to_bytes)

    def _encode_prompts(self, chunks: list[Chunk]) -> Iterator[Event]:
        texts = [text for chunk in chunks for text, _ in chunk.prompts]
        if self.plan.guidance > 1:
            texts.append(self.plan.negative)
        with self.clock("text"):
            self.models.encode(texts)
        for text in dict.fromkeys(texts):
            lost = self.models.prompts[text].lost
            if lost:
                yield Notice(too_long(self.plan, text, lost))

    @cached_property
    def denoiser(self) -> Denoiser:
        settings = replace(self.models.checkpoint.preset, steps=self.plan.steps, guidance=self.plan.guidance)
        return Denoiser(
            self.models.dit,
            self.models.scheduler,
            settings,
            self.plan.size,
            self.clock,
            self.answer,
            reuse_history=self.plan.reuse_history,
            reuse_steps=self.plan.reuse_steps,
        )

    @cached_property
    def negative(self) -> TextContext | None:
        if self.plan.guidance <= 1:
            return None
        self.models.encode([self.plan.negative])
        return self.models.embed_text(((self.plan.negative, 1.0),))

    def _start_segment(self, chunk: Chunk) -> Iterator[Event]:
        """Set a fresh history and generator, from a picture or a clip if the chunk has one."""
        if chunk.image or chunk.video:
            yield PhaseStarted("conditioning")
        if chunk.index in self.starting:
            start = self.starting.pop(chunk.index).result()
            assert start.history.anchor is not None, "a picture or clip has an anchor"
            self.background.hand_over(start.history.latents, start.history.anchor)
        else:
            start = self._start_of(chunk)
        self.history, self.generator, self.chunks_in_segment = start.history.to(self.models.device), start.generator, 0
        if start.notice:
            yield Notice(start.notice)

    def _start_early(self, index: int) -> None:
        """Encode the picture or clip of chunk `index`, if it has one, during the chunk before it."""
        self.starting.clear()  # for a chunk that came from the cache after all
        chunks = self.plan.chunks[index : index + 1]
        for chunk in chunks if self.background.threads else ():
            if chunk.fresh and (chunk.image or chunk.video) and not self._is_kept(chunk):
                self.starting[index] = self.background.start(partial(self._start_of, chunk))

    def _start_of(self, chunk: Chunk) -> Start:
        """Return how a segment starts, where the VAE is if that encodes something."""
        with self.clock("conditioning") if chunk.image or chunk.video else contextlib.nullcontext():
            return start_of(chunk, self.plan, self.models)

    def _denoise(self, chunk: Chunk) -> Generator[Event, None, tuple[Tensor, Tensor]]:
        """Return the chunk's latents, and on the device whether they are finite: reading that waits for the GPU."""
        self.answer(())  # other lanes first finish their work with the other networks
        latents = yield from self.denoiser.chunk(
            chunk.index,
            self.history,
            self._text_context(chunk),
            self.negative,
            self.generator,
            amplify=self.models.checkpoint.preset.amplify_first_chunk and self.chunks_in_segment == 0,
            before_call=self.writer.check,  # a full disk costs a model call, not a chunk
        )
        self.history.remember(latents, reanchor=self.reanchor and self.chunks_in_segment == 1)
        self.chunks_in_segment += 1
        return latents, torch.isfinite(latents).all()

    def _text_context(self, chunk: Chunk) -> TextContext:
        """Return keys and values of the chunk's prompts, computed again only where the prompts change."""
        if self.text is None or self.text[0] != chunk.prompts:
            self.text = None  # no chunk needs those keys and values any more
            self.models.encode(text for text, _ in chunk.prompts)
            self.text = (chunk.prompts, self.models.embed_text(chunk.prompts))
            rest = self.plan.chunks[chunk.index :]
            self.models.want(self, (text for later in rest for text, _ in later.prompts))
        return self.text[1]

    def _write_frames(self, chunk: Chunk, latents: Tensor, chunk_before: Future[ChunkDone] | None = None) -> None:
        """Decode the chunk group by group, and pass the frames that are kept to the writer, once it has those of the
        chunk before."""
        if self.preview is not None:
            groups = on_host(self.preview.pictures(latents, chunk.num_frames))
        else:
            groups = on_host(self.models.pictures(latents, chunk.num_frames, self.decoders))
        if chunk_before is not None and not chunk_before.done():
            with self.clock("decode"):
                groups = iter(list(groups))
            chunk_before.result()
        while True:
            with self.clock("decode"):
                group = next(groups, None)
            if group is None:
                return
            pictures, finite = group
            if not finite:
                raise self._not_finite("frames", chunk)
            with self.clock("write"):
                self.writer.write(pictures.numpy())

    def _not_finite(self, what: str, chunk: Chunk) -> PictureError:
        where, dtype = f"chunk {chunk.index + 1}", dtype_name(self.models.dtype)
        return PictureError(
            f"the {what} of {where} are not finite numbers (computed in {dtype})",
            hint="try --dtype bfloat16 or float32; if that fails too, check the weights with `helios models verify`",
        )

    def _film_started(self) -> FilmStarted:
        models, plan, script = self.models, self.plan, self.script
        amplified = models.checkpoint.preset.amplify_first_chunk
        steps = {
            amplify: sum(
                stage.steps
                for stage in stages_of(
                    models.scheduler, plan.steps, plan.size, models.dit_config.patch_size, amplify=amplify
                )
            )
            for amplify in (False, True)
        }
        return FilmStarted(
            film=plan.title,
            output=str(self.writer.target.path),
            model=models.name,
            device=str(models.device),
            dtype=dtype_name(models.dtype),
            width=plan.size[0],
            height=plan.size[1],
            fps=plan.fps,
            frames=script.num_frames,
            chunks=script.num_chunks,
            stages=models.scheduler.stages,
            steps=sum(steps[amplified and chunk.fresh] for chunk in plan.chunks)
            if script.num_chunks == len(plan.chunks)
            else None,
            preview=self.preview.file.name if self.preview else None,
        )

    def _reused(self, chunks_so_far: int, source: str, count: int) -> ChunksReused:
        first = chunks_so_far - count
        frames = [chunk.num_frames for chunk in self.plan.chunks[:chunks_so_far]]
        self.frames_reused += sum(frames[first:])
        return ChunksReused(
            chunk=chunks_so_far - 1, chunks=self.script.num_chunks, frames=sum(frames), count=count, source=source
        )

    def _done(self, output: str) -> FilmDone:
        seconds = time.perf_counter() - self.started
        peaks = [
            torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None for device in self.models.devices
        ]
        return FilmDone(
            output=output,
            frames=self.writer.num_frames,
            seconds=seconds,
            frames_per_second=(self.writer.num_frames - self.frames_reused) / seconds,
            peak_host_bytes=peak_bytes_with_children(),
            peak_device_bytes=peaks[0],
            peak_vae_device_bytes=peaks[1] if self.models.is_apart else None,
            phases=dict(self.clock.seconds),
            frames_reused=self.frames_reused,
        )
