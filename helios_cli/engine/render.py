"""The render loop: plan in, events out, a film on disk at the end.

For each chunk: noise -> latents -> frames -> bytes -> encoder, then nothing of it is kept but 19 latent frames and the
anchor. Memory does not grow with the film.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import replace

import torch
from torch import Tensor

from helios_cli.engine import events
from helios_cli.engine.clock import Clock
from helios_cli.engine.conditioning import start_from_clip, start_from_picture
from helios_cli.engine.denoise import Denoiser, stages_of
from helios_cli.engine.events import Event
from helios_cli.engine.history import History
from helios_cli.engine.media import VideoClip, read_image
from helios_cli.engine.models import Models
from helios_cli.engine.writer import FilmWriter
from helios_cli.errors import PictureError
from helios_cli.machine import peak_host_bytes
from helios_cli.model.dit import TextContext
from helios_cli.model.vae import frames_to_uint8
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.units import PIXELS_PER_CELL


def render(
    plan: Plan, models: Models, writer: FilmWriter, *, reanchor: bool = False, clock: Clock | None = None
) -> Iterator[Event]:
    """Renders `plan` into `writer` and closes it, telling each step; stops the writer if anything fails.

    `reanchor` takes the anchor from each segment's second chunk, for films whose start hardly moves. Raises
    PictureError (values that are not finite), InputError (a picture or clip that cannot be read), MachineError.
    """
    film = _Film(plan, models, writer, reanchor, clock or Clock(models.device))
    with writer, torch.inference_mode():
        yield from film.events()


class _Film:
    """One film while it renders: the models' contexts that are kept between chunks, the history, the generator."""

    def __init__(self, plan: Plan, models: Models, writer: FilmWriter, reanchor: bool, clock: Clock) -> None:
        self.plan, self.models, self.writer, self.reanchor, self.clock = plan, models, writer, reanchor, clock
        self.started = time.perf_counter()
        self.history: History
        self.generator: torch.Generator
        self.chunks_in_segment = 0
        self.text: tuple[tuple[tuple[str, float], ...], TextContext] | None = None

    def events(self) -> Iterator[Event]:
        yield self._film_started()
        yield events.PhaseStarted("text")
        yield from self._encode_prompts()
        yield events.PhaseStarted("load")
        with self.clock("load"):
            denoiser = self._denoiser()
            _ = self.models.vae
        negative = self._negative_context()
        for chunk in self.plan.chunks:
            began = time.perf_counter()
            if chunk.fresh:
                yield from self._start_segment(chunk)
            yield events.PhaseStarted("denoise")
            latents = yield from self._denoise(denoiser, chunk, negative)
            yield events.PhaseStarted("decode")
            self._write_frames(chunk, latents)
            yield events.ChunkDone(
                chunk=chunk.index,
                chunks=len(self.plan.chunks),
                frames=self.writer.num_frames,
                seconds=time.perf_counter() - began,
            )
        yield events.PhaseStarted("finish")
        with self.clock("finish"):
            output = self.writer.close()
        yield self._done(str(output))

    def _encode_prompts(self) -> Iterator[Event]:
        texts = [text for chunk in self.plan.chunks for text, _ in chunk.prompts]
        if self.plan.guidance > 1:
            texts.append(self.plan.negative)
        with self.clock("text"):
            self.models.encode(texts)
        for text in dict.fromkeys(texts):
            lost = self.models.prompts[text].lost
            if lost:
                yield events.Notice(f"a prompt is longer than 512 tokens; this end of it is not seen: {lost!r}")

    def _denoiser(self) -> Denoiser:
        settings = replace(self.models.checkpoint.preset, steps=self.plan.steps, guidance=self.plan.guidance)
        return Denoiser(self.models.dit, self.models.scheduler, settings, self.plan.size, self.clock)

    def _negative_context(self) -> TextContext | None:
        if self.plan.guidance <= 1:
            return None
        return self.models.dit.embed_text(self.models.prompts[self.plan.negative].rows[None])

    def _start_segment(self, chunk: Chunk) -> Iterator[Event]:
        """Fresh history and generator, from a picture or a clip if the chunk has one."""
        width, height = self.plan.size
        channels = self.models.dit_config.in_channels
        self.history = History(channels, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL, self.models.device)
        self.generator = torch.Generator("cpu").manual_seed(chunk.seed)
        self.chunks_in_segment = 0
        if chunk.image or chunk.video:
            yield events.PhaseStarted("conditioning")
            with self.clock("conditioning"):
                if chunk.image:
                    picture = read_image(chunk.image, self.plan.size)
                    start_from_picture(self.history, self.models.vae, picture, self.generator)
                else:
                    clip = VideoClip(chunk.video, self.plan.size, self.plan.fps)
                    start_from_clip(self.history, self.models.vae, clip, self.generator)

    def _denoise(
        self, denoiser: Denoiser, chunk: Chunk, negative: TextContext | None
    ) -> Generator[Event, None, Tensor]:
        latents = yield from denoiser.chunk(
            chunk.index, self.history, self._text_context(chunk), negative, self.generator, amplify=self._amplify()
        )
        if not torch.isfinite(latents).all():
            raise self._not_finite("latents", chunk)
        self.history.remember(latents, reanchor=self.reanchor and self.chunks_in_segment == 1)
        self.chunks_in_segment += 1
        return latents

    def _amplify(self) -> bool:
        return self.models.checkpoint.preset.amplify_first_chunk and self.chunks_in_segment == 0

    def _text_context(self, chunk: Chunk) -> TextContext:
        """Keys and values of the chunk's prompts, made again only where the prompts change."""
        if self.text is None or self.text[0] != chunk.prompts:
            self.text = (chunk.prompts, self.models.dit.embed_text(self.models.mixed(chunk.prompts)))
        return self.text[1]

    def _write_frames(self, chunk: Chunk, latents: Tensor) -> None:
        """Decodes the chunk on its own, group by group, and hands the frames that are kept to the writer."""
        left = chunk.num_frames
        groups = self.models.vae.decode(latents)
        while left > 0:
            with self.clock("decode"):
                frames = next(groups)[:, :, :left]
                if not torch.isfinite(frames).all():
                    raise self._not_finite("frames", chunk)
                pictures = frames_to_uint8(frames)[0].cpu().numpy()
            left -= len(pictures)
            with self.clock("write"):
                self.writer.write(pictures)

    def _not_finite(self, what: str, chunk: Chunk) -> PictureError:
        dtype = str(self.models.dtype).removeprefix("torch.")
        return PictureError(
            f"the {what} of chunk {chunk.index + 1} are not finite numbers (computed in {dtype})",
            hint="try --dtype bfloat16 or float32; if it stays, `helios models verify` checks the weights",
        )

    def _film_started(self) -> events.FilmStarted:
        models, plan = self.models, self.plan
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
        return events.FilmStarted(
            film=plan.title,
            output=str(self.writer.target.path),
            model=models.name,
            device=str(models.device),
            dtype=str(models.dtype).removeprefix("torch."),
            width=plan.size[0],
            height=plan.size[1],
            fps=plan.fps,
            frames=plan.num_frames,
            chunks=len(plan.chunks),
            stages=models.scheduler.stages,
            steps=sum(steps[amplified and chunk.fresh] for chunk in plan.chunks),
        )

    def _done(self, output: str) -> events.FilmDone:
        seconds = time.perf_counter() - self.started
        device = self.models.device
        return events.FilmDone(
            output=output,
            frames=self.writer.num_frames,
            seconds=seconds,
            frames_per_second=self.writer.num_frames / seconds,
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=torch.cuda.max_memory_allocated(device) if device.type == "cuda" else None,
            phases=dict(self.clock.seconds),
        )
