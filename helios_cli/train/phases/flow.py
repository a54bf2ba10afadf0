"""The phases base and mid: the transformer learns the flow of real chunks with teacher forcing.

Base has one stage: `x = (1 - sigma) z + sigma n` with the flow `n - z`. Mid is pyramid flow matching (Jin et al. 2024):
stage k leads from its start point, the upsampled clean latents of stage k - 1 with noise, to its end point, its own
clean latents with less of the same noise. At sampling the start point is the upsampled and renoised end of stage k - 1;
both have the same mean and covariance.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from helios_cli.bench.specs import SCHEDULERS
from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.noise import coarsest, draw
from helios_cli.sampling.schedule import SIGMA_MAX, SchedulerConfig, shifted, stage_spans
from helios_cli.train.ablation import as_trained
from helios_cli.train.data.cache import LatentClips
from helios_cli.train.data.encode import require_same_encoder
from helios_cli.train.history import Clips, Lesson, Lessons
from helios_cli.train.lora import add_lora, merged, save_lora
from helios_cli.train.phase import Phase, Share
from helios_cli.train.probe import Probe
from helios_cli.train.samples import Sampler
from helios_cli.train.settings.flow import BaseSettings, FlowSettings, MidSettings
from helios_cli.train.state import CHECKPOINT, LORA
from helios_cli.train.transformer import (
    checkpointed,
    compile_blocks,
    conditioning_of,
    flow,
    new_transformer,
    plain,
    save_transformer,
    transformer_of,
)
from helios_cli.units import LATENTS_PER_CHUNK
from helios_cli.weights.checkpoint import Checkpoint


@dataclass(frozen=True)
class FlowTarget:
    """The network's inputs for B samples, and the flow that it should predict.

    Attributes:
        noisy: [B, C, 9, h, w].
        timestep: [B].
        flow: the answer, in the shape of `noisy`.
    """

    noisy: Tensor
    timestep: Tensor
    flow: Tensor


class FlowPhase(Phase):
    """Trains `dit` on `clips`. A subclass defines the stages and the targets of each."""

    kind: str

    def __init__(self, settings: FlowSettings, dit: HeliosDiT, clips: Clips, device: torch.device) -> None:
        self.settings, self.dit, self.device = settings, dit, device
        self.dit.compute_dtype = getattr(torch, settings.dtype)
        self.scheduler = SchedulerConfig.from_json(SCHEDULERS[self.kind])
        self.lessons = Lessons(clips, settings.data, settings.history, settings.corruption)
        self.run = checkpointed if settings.memory.checkpoint else plain
        self.players = {"LoRA" if settings.lora else "transformer": dit}
        self.leaves = LORA if settings.lora else CHECKPOINT
        self.sampler: Sampler | None = None
        self.prober: Probe | None = None

    @abstractmethod
    def target_of(self, clean: Tensor, noise: Tensor, stage: int, generators: Sequence[Generator]) -> FlowTarget:
        """Return the targets of a stage for clean latents. Further draws of a sample come from its own generator."""

    @abstractmethod
    def stage_of(self, share: Share) -> int:
        """Return the stage of a step, the same in all processes."""

    def every(self, stage: int) -> int:
        """Return n if the stage uses every n-th sample of a batch."""
        return 1

    def weight(self, stage: int) -> float:
        """Return the weight of the stage's loss."""
        return 1.0

    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        stage = self.stage_of(share)
        used = range(0, share.batch, self.every(stage))
        generators = [share.generator(i) for i in share.samples if i in used]
        loss = torch.zeros((), device=self.device)
        if generators:
            lesson = self.lessons.draw(generators)
            loss = self.errors(lesson, stage, generators).sum() / len(used)
            (loss * self.weight(stage)).backward()
        return {f"stage_{stage}": loss.detach()}

    def errors(self, lesson: Lesson, stage: int, generators: Sequence[Generator]) -> Tensor:
        """Return the mean squared error of each sample's flow, [B]. Noise of the target's size is drawn first."""
        noise = torch.cat([draw((1, *lesson.target.shape[1:]), g) for g in generators])
        target = self.target_of(lesson.target, noise, stage, generators)
        lesson = lesson.to(self.device)
        absolute = self.settings.history.positions == "absolute"
        past_frames = [chunk * LATENTS_PER_CHUNK for chunk in lesson.chunks] if absolute else None
        conditioning = conditioning_of(self.dit, lesson.terms(), lesson.rows, past_frames)
        noisy, timestep = target.noisy.to(self.device), target.timestep.to(self.device)
        predicted = flow(self.dit, noisy, timestep, conditioning, run=self.run)
        return (predicted.float() - target.flow.to(self.device)).square().flatten(1).mean(1)

    def probe(self, share: Share) -> dict[str, float]:
        """Return the figures of `Probe`, of which each process adds its part of the batch."""
        figures = self.prober.figures(self.errors, range(self.scheduler.stages)) if self.prober else {}
        return {name: value * len(share.samples) / share.batch for name, value in figures.items()}

    def samples(self, path: Path, step: int) -> None:
        with as_trained(self.settings.history):
            self.sampler.sheet(path, merged(self.dit), f"{self.kind}, step {step}")

    def save(self, path: Path) -> None:
        if self.settings.lora:
            save_lora(path, self.dit, self.settings.lora)
        else:
            save_transformer(path, self.dit, self.kind, self.settings.knows)


class Base(FlowPhase):
    kind = "base"
    settings: BaseSettings

    def stage_of(self, share: Share) -> int:
        return 0

    def target_of(self, clean: Tensor, noise: Tensor, stage: int, generators: Sequence[Generator]) -> FlowTarget:
        loss = self.settings.loss
        normal = torch.stack([torch.randn((), generator=g) for g in generators])
        sigma = torch.sigmoid(loss.mean + loss.deviation * normal)
        share = sigma.view(-1, 1, 1, 1, 1)
        timestep = sigma * self.scheduler.num_train_timesteps
        return FlowTarget((1 - share) * clean + share * noise, timestep, noise - clean)


class Mid(FlowPhase):
    kind = "mid"
    settings: MidSettings

    def stage_of(self, share: Share) -> int:
        return int(torch.multinomial(torch.tensor(self.settings.loss.ratio), 1, generator=share.shared))

    def every(self, stage: int) -> int:
        return self.settings.loss.every[stage]

    def weight(self, stage: int) -> float:
        return self.settings.loss.weight[stage]

    def target_of(self, clean: Tensor, noise: Tensor, stage: int, generators: Sequence[Generator]) -> FlowTarget:
        start, end = points(clean, noise, self.scheduler, stage)
        first, place = torch.stack([torch.rand(2, generator=g) for g in generators]).unbind(1)
        place = torch.where(first < self.settings.loss.first, 1.0, place)
        grid = tuple(
            side // patch for side, patch in zip(clean.shape[-2:], self.dit.config.patch_size[1:], strict=True)
        )
        sigma, timestep = draw_sigmas(place, self.scheduler, stage, shift_tokens(self.scheduler, stage, grid))
        share = sigma.view(-1, 1, 1, 1, 1)
        return FlowTarget(share * start + (1 - share) * end, timestep, start - end)


def coarse(clean_BCTHW: Tensor, halvings: int) -> Tensor:
    """Return clean latents of a coarser stage: the means of 2x2 cells, `halvings` times."""
    return F.avg_pool3d(clean_BCTHW, (1, 2**halvings, 2**halvings)) if halvings else clean_BCTHW


def points(clean_BCTHW: Tensor, noise_BCTHW: Tensor, config: SchedulerConfig, stage: int) -> tuple[Tensor, Tensor]:
    """Return the start and end point of a stage, both with noise of the stage's size, [B, C, 9, h, w].

    `clean` and `noise` have the last stage's size. The start point of stage 0 is noise alone.
    """
    span, halvings = stage_spans(config)[stage], config.stages - 1 - stage
    noise = coarsest(noise_BCTHW, halvings + 1)
    end = span.end * noise + (1 - span.end) * coarse(clean_BCTHW, halvings)
    if stage == 0:
        return noise, end
    before = F.interpolate(coarse(clean_BCTHW, halvings + 1), scale_factor=(1, 2, 2), mode="nearest")
    return span.start * noise + (1 - span.start) * before, end


def draw_sigmas(share_B: Tensor, config: SchedulerConfig, stage: int, tokens: int) -> tuple[Tensor, Tensor]:
    """Return local sigmas and their whole timesteps, from numbers between 0 and 1.

    The numbers are steps of the sampler's even grid, so that sigmas are as dense as its steps are: 1 is its first step,
    and `tokens` (those of the stage before, as for the sampler) shift them all.
    """
    sigmas = shifted(config, share_B.double().numpy() * SIGMA_MAX, tokens)
    timesteps = np.floor(stage_spans(config)[stage].timesteps(config, sigmas))
    return torch.from_numpy(sigmas).float(), torch.from_numpy(timesteps).float()


def shift_tokens(config: SchedulerConfig, stage: int, grid: tuple[int, int]) -> int:
    """Return the noisy tokens of the stage before `stage` (of the first, for the first) for the last stage's grid."""
    halvings = config.stages - 1 - max(stage - 1, 0)
    return LATENTS_PER_CHUNK * (grid[0] >> halvings) * (grid[1] >> halvings)


def build(settings: FlowSettings, start: Checkpoint, device: torch.device) -> FlowPhase:
    """Return the phase with the transformer of `start` or a new one. InputError if the cache does not fit."""
    clips = LatentClips(settings.data.clips, text_rows=settings.data.text_rows)
    require_same_encoder(clips, start)
    dit = new_transformer(start, settings.seed) if settings.fresh else transformer_of(start)
    dit.to(device).requires_grad_()
    if settings.lora:
        add_lora(dit, settings.lora, settings.seed)
    if settings.memory.compile:
        compile_blocks(dit)
    phase = {"base": Base, "mid": Mid}[settings.phase](settings, dit, clips, device)
    dtype = getattr(torch, settings.dtype)
    phase.sampler = Sampler(start, phase.kind, settings.samples, clips.note.size, device, dtype)
    if settings.data.held_back:
        data, anchor = settings.data, settings.history.anchor
        phase.prober = Probe(clips, data.held_back, phase.sampler.models, data.text_rows, anchor=anchor)
    return phase
