"""The phase in which a teacher of many steps makes pairs for a student of few steps. It trains nothing."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from helios_cli.bench.specs import SCHEDULERS
from helios_cli.engine.denoise import stages_of
from helios_cli.errors import InputError
from helios_cli.sampling.noise import BlockNoise
from helios_cli.sampling.schedule import SchedulerConfig
from helios_cli.train.data.cache import LatentClips
from helios_cli.train.data.encode import require_same_encoder
from helios_cli.train.data.pairs import PairsNote, open_pairs, shard_path, write_pairs
from helios_cli.train.events import Event, FillDone, Filled, FillStarted
from helios_cli.train.history import Lesson, Lessons
from helios_cli.train.phase import Share
from helios_cli.train.processes import rank_and_count
from helios_cli.train.rollout import Walk, draw_noise, guided, predictor, teacher_roll_out
from helios_cli.train.settings.student import PairsSettings
from helios_cli.train.transformer import conditioning_of, transformer_of
from helios_cli.units import LATENTS_PER_CHUNK
from helios_cli.weights.checkpoint import Checkpoint, weights_identity

STUDENT = SchedulerConfig.from_json(SCHEDULERS["distilled"])


@dataclass(frozen=True)
class PairsMade(Filled):
    """`done` of `total` pairs are in the folder; the last ones took `seconds` each."""

    seconds: float

    @property
    def text(self) -> str:
        return f"{self.done:,} of {self.total:,} pairs, {self.seconds:.2f} s each"


def run(settings: PairsSettings, start: Checkpoint, device: torch.device) -> Iterator[Event]:
    """Make the pairs that the folder `settings.out` lacks; each is determined by its number and the seed.

    Several processes share the batches.
    """
    if start.kind != "mid":
        raise InputError(f"the teacher {start.path} is of kind {start.kind}", hint="a teacher must be of kind mid")
    clips = LatentClips(settings.data.clips, text_rows=settings.data.text_rows)
    require_same_encoder(clips, start)
    rank, count = rank_and_count()
    yield FillStarted(settings.phase, settings.out, count, str(device), settings.dtype)
    maker = PairMaker(settings, start, clips, device)
    open_pairs(settings.folder, maker.note())
    paths = [shard_path(settings.folder, number) for number in range(-(-settings.pairs // settings.batch))]
    for number, path in enumerate(paths):
        if path.exists() or number % count != rank:
            continue
        began = time.perf_counter()
        write_pairs(path, *maker.make(number))
        seconds = (time.perf_counter() - began) / settings.batch
        done = sum(path.exists() for path in paths)
        yield PairsMade(done * settings.batch, len(paths) * settings.batch, seconds)
    yield FillDone(settings.out)


class PairMaker:
    """The teacher, the student's schedule made finer, and the lessons of both."""

    def __init__(self, settings: PairsSettings, start: Checkpoint, clips: LatentClips, device: torch.device) -> None:
        self.settings, self.start, self.clips, self.device = settings, start, clips, device
        self.dit = transformer_of(start).to(device)
        self.dit.compute_dtype = getattr(torch, settings.dtype)
        self.scheduler = SchedulerConfig.from_json(start.scheduler)
        channels, height, width = clips.note.latent_shape
        self.shape, self.size = (channels, LATENTS_PER_CHUNK, height, width), clips.note.size
        patch = self.dit.config.patch_size
        self.stages = stages_of(STUDENT, (settings.teacher.steps,) * STUDENT.stages, self.size, patch, amplify=False)
        self.block_noise = BlockNoise(STUDENT.gamma, patch)
        self.lessons = Lessons(clips, settings.data, settings.history, settings.corruption)

    def note(self) -> PairsNote:
        settings = self.settings
        named = ("seed", "dtype", "batch", "data", "history", "corruption")
        tables = {name: str(getattr(settings, name)) for name in named}
        teacher = {"steps": str(settings.teacher.steps), "guidance": str(settings.teacher.guidance)}
        identities = {"teacher": weights_identity(self.start), "encoder": self.clips.note.encoder}
        made_with = {**identities, **tables, **teacher}
        return PairsNote(made_with, settings.teacher.kept, self.size)

    def make(self, number: int) -> tuple[Lesson, list[Walk]]:
        """Return the lesson of batch `number`, and the teacher's way through the stages."""
        settings = self.settings
        share = Share(step=number, samples=range(settings.batch), batch=settings.batch, seed=settings.seed)
        lesson = self.lessons.draw([share.generator(i) for i in share.samples]).to(self.device)
        generators = (share.generator(i, purpose=1) for i in share.samples)
        noise = draw_noise(self.shape, STUDENT, self.block_noise, generators).to(self.device)
        # Frozen weights record no gradient. With `no_grad`, a CPU would take the code path of one film, which is slow.
        cond = predictor(self.dit, conditioning_of(self.dit, lesson.terms(), lesson.rows))
        empty = self.lessons.empty.to(self.device).expand_as(lesson.rows)
        uncond = predictor(self.dit, conditioning_of(self.dit, lesson.terms(), empty))
        predict = guided(cond, uncond, settings.teacher.guidance)
        return lesson, teacher_roll_out(predict, self.scheduler, self.stages, noise, settings.teacher.kept)
