"""What the phases base and mid have in common: the transformer learns the flow of real chunks under teacher forcing."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor

from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SCHEDULERS
from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.noise import draw
from helios_cli.sampling.schedule import SchedulerConfig
from helios_cli.train.ablation import as_taught
from helios_cli.train.data.cache import LatentClips
from helios_cli.train.data.encode import require_same_encoder
from helios_cli.train.forward import checkpointed, flow, given, plain
from helios_cli.train.history import Lesson, Source, Teacher
from helios_cli.train.initial import initialise
from helios_cli.train.phase import Share
from helios_cli.train.probe import Probe
from helios_cli.train.samples import Sampler
from helios_cli.train.tables import FlowConfig
from helios_cli.units import LATENTS_PER_CHUNK, PIXELS_PER_CELL
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.layout import set_kind, set_trained, write_component
from helios_cli.weights.load import load_component

PLAYER = "transformer"


@dataclass(frozen=True)
class Question:
    """What the network is asked about B samples.

    Attributes:
        noisy: [B, C, 9, h, w].
        timestep: [B].
        answer: the flow, in the shape of `noisy`.
    """

    noisy: Tensor
    timestep: Tensor
    answer: Tensor


class FlowPhase(ABC):
    """Trains `dit` on `clips`. A subclass says which stages there are, and what is asked in each."""

    kind: str

    def __init__(self, settings: FlowConfig, dit: HeliosDiT, clips: Source, device: torch.device) -> None:
        self.settings, self.dit, self.device = settings, dit, device
        self.dit.compute_dtype = getattr(torch, settings.dtype)
        self.scheduler = SchedulerConfig.from_json(SCHEDULERS[self.kind])
        self.teacher = Teacher(clips, settings.data, settings.history, settings.corruption)
        self.run = checkpointed if settings.memory.checkpoint else plain
        self.players = {PLAYER: dit}
        self.sampler: Sampler | None = None
        self.prober: Probe | None = None

    @abstractmethod
    def ask(self, target: Tensor, noise: Tensor, stage: int, generators: Sequence[Generator]) -> Question:
        """The question of a stage about clean latents. What else it takes, a sample draws from its own generator."""

    @abstractmethod
    def stage_of(self, share: Share) -> int:
        """The stage of a step, alike in all processes."""

    def every(self, stage: int) -> int:
        """Every how many-th sample of a batch takes part."""
        return 1

    def weight(self, stage: int) -> float:
        """Of the stage's loss."""
        return 1.0

    def turns(self, step: int) -> Sequence[str]:
        return (PLAYER,)

    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        stage = self.stage_of(share)
        taking = range(0, share.batch, self.every(stage))
        generators = [share.generator(i) for i in share.samples if i in taking]
        loss = torch.zeros((), device=self.device)
        if generators:
            lesson = self.teacher.lesson(generators)
            loss = self.errors(lesson, stage, generators).sum() / len(taking)
            (loss * self.weight(stage)).backward()
        return {f"stage_{stage}": loss.detach()}

    def errors(self, lesson: Lesson, stage: int, generators: Sequence[Generator]) -> Tensor:
        """Mean squared error of each sample's flow, [B]. The noise is drawn first, of the size of the target."""
        noise = torch.cat([draw((1, *lesson.target.shape[1:]), g) for g in generators])
        question = self.ask(lesson.target, noise, stage, generators)
        lesson = lesson.to(self.device)
        absolute = self.settings.history.positions == "absolute"
        passed = [chunk * LATENTS_PER_CHUNK for chunk in lesson.chunks] if absolute else None
        told = given(self.dit, lesson.terms(), lesson.rows, passed)
        noisy, timestep = question.noisy.to(self.device), question.timestep.to(self.device)
        predicted = flow(self.dit, noisy, timestep, told, run=self.run)
        return (predicted.float() - question.answer.to(self.device)).square().flatten(1).mean(1)

    def probe(self, share: Share) -> dict[str, float]:
        """Figures of `Probe`; each process adds its part of the batch's share of them."""
        figures = self.prober.figures(self.errors, range(self.scheduler.stages)) if self.prober else {}
        return {name: value * len(share.samples) / share.batch for name, value in figures.items()}

    def samples(self, path: Path, step: int) -> None:
        with as_taught(self.settings.history):
            self.sampler.sheet(path, self.dit.state_dict(), f"{self.kind}, step {step}")

    def save(self, folder: Path) -> None:
        """Puts the transformer into the checkpoint `folder`."""
        write_component(folder, "transformer", self.dit)
        set_kind(folder, self.kind, SCHEDULERS[self.kind])
        set_trained(folder, self.settings.knows)


def build(phase: type[FlowPhase], settings: FlowConfig, start: Checkpoint, device: torch.device) -> FlowPhase:
    """The phase with the transformer of `start`, or a new one of its config. InputError if the cache does not fit."""
    clips = LatentClips(settings.data.clips, text_rows=settings.data.text_rows)
    require_same_encoder(clips, start)
    dit = new_transformer(start, settings.seed) if settings.fresh else transformer_of(start)
    dit.to(device).requires_grad_()
    if settings.memory.compile:
        for block in dit.blocks:
            block.compile()
    made = phase(settings, dit, clips, device)
    height, width = (cells * PIXELS_PER_CELL for cells in clips.note.latent_shape[1:])
    dtype = getattr(torch, settings.dtype)
    made.sampler = Sampler(start, phase.kind, settings.samples, (width, height), device, dtype)
    if settings.data.held_back:
        data, anchor = settings.data, settings.history.anchor
        made.prober = Probe(clips, data.held_back, made.sampler.models, data.text_rows, anchor=anchor)
    return made


def transformer_of(start: Checkpoint) -> HeliosDiT:
    """The transformer of a checkpoint with float32 parameters."""
    component = start.component("transformer")
    with torch.device("meta"):
        dit = HeliosDiT(DiTConfig.from_json(component.config))
    return load_component(dit, component, device="cpu", dtype=torch.float32)


def new_transformer(start: Checkpoint, seed: int) -> HeliosDiT:
    """A transformer with the config of the checkpoint's, and new weights."""
    dit = HeliosDiT(DiTConfig.from_json(start.component("transformer").config))
    initialise(dit, torch.Generator().manual_seed(seed))
    return dit
