"""The files of a film other than its frames: its record, the sidecar, timelines, a check."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from helios_cli import __version__
from helios_cli.cost.estimate import film_bytes, growing_bytes
from helios_cli.engine.events import Event, FilmDone, Notice
from helios_cli.engine.script import Script
from helios_cli.errors import HeliosError, MachineError
from helios_cli.film import ffmpeg
from helios_cli.film.after import After
from helios_cli.film.export import export, export_path
from helios_cli.film.record import (
    AfterRecord,
    Dtype,
    EncodingRecord,
    LoraRecord,
    ModelRecord,
    PreviewRecord,
    Record,
    SoundRecord,
    chapters,
    resolved_recipe,
    title_of,
)
from helios_cli.film.sidecar import record_at, sidecar_path, write_sidecar
from helios_cli.film.sound import Track
from helios_cli.film.target import Target, check_space
from helios_cli.film.writer import FilmWriter
from helios_cli.machine import peak_host_bytes
from helios_cli.recipe.film import Film
from helios_cli.recipe.fingerprint import Identity, film_fingerprint
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan
from helios_cli.units import counted
from helios_cli.visible import visible
from helios_cli.weights.adapters import Adapter
from helios_cli.weights.preview import PreviewFile
from helios_cli.weights.source import source_of


@dataclass(frozen=True)
class Finish:
    """Makes what belongs to the film at `target` that `script` decides.

    Attributes:
        model, checkpoint: name of the model, and its folder.
        adapters: LoRA files that are folded into it.
        preview: the decoder in the VAE's place, if there is one.
        device: that the film is rendered on, as --device names it.
        fingerprints_of: the fingerprints of the chunks of a plan.
        track: the sound under the film.
    """

    script: Script
    output: str
    options: RenderOptions
    model: str
    checkpoint: Path
    adapters: Sequence[Adapter]
    preview: PreviewFile | None
    device: str
    target: Target
    identity: Identity
    fingerprints_of: Callable[[Plan], Sequence[str]]
    track: Track | None = None

    @property
    def film(self) -> Film:
        assert self.script.film is not None, "only chunks have no film"
        return self.script.film

    def record(self) -> Record:
        """The record of how the film is made, as far as it is decided."""
        plan, options, preview, folder = self.script.plan, self.options, self.preview, self.target.path.parent
        arithmetic, after, source = self.identity.arithmetic, self.after, source_of(self.model, self.options.revision)
        encoding = EncodingRecord(codec=options.codec, crf=options.crf, preset=options.preset)
        return Record(
            title=title_of(plan),
            versions={"helios": __version__, "torch": arithmetic.torch, "ffmpeg": ffmpeg.program().version},
            model=ModelRecord.of(self._model_name(), source, self.checkpoint, self.identity.weights, folder),
            lora=tuple(map(LoraRecord.of, self.adapters)) or None,
            device=self.device,
            processor=arithmetic.device,
            dtype=cast(Dtype, arithmetic.dtype),
            quant=None if arithmetic.quant == "none" else arithmetic.quant,
            attention=None if options.attention == "auto" else options.attention,
            attention_taken=dict(self.identity.attention_taken) or None,
            kernels=arithmetic.kernels or None,
            vae=arithmetic.vae or None,
            team=arithmetic.team if arithmetic.team > 1 else None,
            decoders=arithmetic.decoders if arithmetic.decoders > 1 else None,
            preview=PreviewRecord(name=visible(preview.name), sha256=preview.digest) if preview else None,
            reanchor=options.reanchor,
            reuse_history=plan.reuse_history or None,
            reuse_steps=plan.reuse_steps if plan.reuse_steps > 1 else None,
            encoding=encoding if self.target.kind == "mp4" else None,
            audio=SoundRecord.of(self.track) if self.track else None,
            after=AfterRecord.of(after, options) if after else None,
            fingerprint=film_fingerprint(plan, self.fingerprints_of(plan), preview.digest if preview else ""),
            frames=plan.num_frames,
            recipe=resolved_recipe(self.film, options, plan, folder, self.adapters, self.track),
        )

    def _model_name(self) -> str:
        """Return the model's name. A folder that --from found keeps the name of the record it repeats: its path here is
        no part of the film."""
        known = self.options.repeats.record.model if self.options.repeats else None
        if known and known.folder and known.identity == self.identity.weights:
            return known.name
        return self.model

    def is_finished(self) -> bool:
        """Return whether the target holds this very film already, and need not be rendered. Of films that are shared,
        one counts as well that a machine made which rounds differently."""
        if not self.options.metadata or self.options.force or (there := record_at(self.target)) is None:
            return False
        record = self.record()
        return there.is_same_film(record) or (self.options.share and there.is_same_film_elsewhere(record))

    def differences(self) -> Iterator[Notice]:
        """A notice if this render of a film that --from repeats will not be identical to it."""
        repeats = self.options.repeats
        if repeats is None:
            return
        record, there = self.record(), repeats.record
        is_other = there.fingerprint != record.fingerprint or there.after != record.after
        if is_other or not there.has_sound_of(record):
            names = ", ".join(there.differences(record)) or "picture or clip"
            yield Notice(f"this film will not be bit-identical to {repeats.path}: it differs in {names}")

    @property
    def after(self) -> After | None:
        """The stage after the render, tried on a few frames; None for nothing. InputError if it cannot be done."""
        plan = self.script.plan
        return After.of(self.options, plan.size, plan.fps, self.target.kind)

    def prospects(self) -> Iterator[Notice]:
        """Say what the film takes of the disk, and what becomes of its frames. MachineError if it has no room."""
        plan, options, after = self.script.plan, self.options, self.after
        space = film_bytes(plan, self.target.kind, options.codec, options.crf, after)
        if notice := check_space(self.target, space, growing_bytes(plan, after)):
            yield Notice(notice)
        if after is not None and after.made != after.rendered:
            yield Notice(f"after the render, {after} will make frames of {after.made}")

    def describe(self, writer: FilmWriter) -> None:
        """Have the file itself say how it is made; a take is known by its title."""
        if self.options.metadata:
            writer.describe(self.record().metadata(), chapters(self.film, self.script.plan))
        elif self.options.takes:
            writer.describe({"title": self.target.path.stem}, ())

    def complete(self) -> Iterator[Event]:
        """For a film that an earlier run finished, make the timelines that are missing, and the check."""
        missing = tuple(form for form in self.options.export if not export_path(self.target, form).exists())
        done = FilmDone(
            output=str(self.target.path),
            frames=self.script.plan.num_frames,
            seconds=0.0,
            frames_per_second=0.0,
            peak_host_bytes=peak_host_bytes(),
            peak_device_bytes=None,
            frames_reused=self.script.plan.num_frames,
        )
        yield from self._export_and_check(missing, done)

    def finish(self, done: FilmDone) -> Iterator[Event]:
        """Write the sidecar and the timelines, and check the film, which is in its place."""
        if self.options.metadata:
            yield from self._write_sidecar(done.seconds)
        yield from self._export_and_check(self.options.export, done)

    def _write_sidecar(self, seconds: float) -> Iterator[Notice]:
        """The film is complete: nothing that prevents its sidecar makes the render fail."""
        path = sidecar_path(self.target, self.film.source)
        if path is None:
            yield Notice(f"{self.output} gets no sidecar: both of its possible names belong to other files")
            return
        if path.name.count(".") > self.target.path.name.count(".") + (self.target.kind == "png"):
            yield Notice(f"the sidecar is {path.name}, since {self.target.path.stem}.json is another file")
        try:
            plan = self.script.plan
            write_sidecar(path, self.record(), self.target, plan, self.fingerprints_of(plan), seconds)
        except MachineError as error:
            yield Notice(f"{self.output} is complete, but its sidecar could not be written: {error.message}")

    def _export_and_check(self, forms: tuple[str, ...], done: FilmDone) -> Iterator[Event]:
        plan, after = self.script.plan, self.after
        for notice in export(self.target, after.retimed(plan) if after else plan, forms):
            yield Notice(notice)
        findings = 0
        if self.options.check:
            from helios_cli.check.examine import examine  # needs Pillow, which a bare machine may lack

            report = examine(self.target.path)
            findings = len(report.findings)
            for notice in report.notices:
                yield Notice(notice)
            for finding in report.findings:
                yield Notice(f"check: {finding}")
            if not findings:
                yield Notice(f"check: nothing found in {counted(len(report.chunks), 'chunk')}")
        yield done
        if findings and self.options.strict:
            raise HeliosError(
                f"{self.output} is complete, with {counted(findings, 'finding')}, but --strict allows none"
            )
