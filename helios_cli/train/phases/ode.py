"""ODE regression: from a state on the teacher's way through a stage, the student jumps to the stage's end point."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor

from helios_cli.bench.specs import SCHEDULERS
from helios_cli.engine.denoise import stages_of
from helios_cli.errors import InputError
from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.schedule import SchedulerConfig
from helios_cli.train.data.encode import encoder_identity
from helios_cli.train.data.pairs import PairsFolder
from helios_cli.train.phase import Phase, Share
from helios_cli.train.samples import Sampler
from helios_cli.train.score import per_sample, x0_of
from helios_cli.train.settings.student import OdeSettings
from helios_cli.train.transformer import (
    checkpointed,
    compile_blocks,
    conditioning_of,
    flow,
    plain,
    save_transformer,
    transformer_of,
)
from helios_cli.weights.checkpoint import Checkpoint, weights_identity

KIND = "distilled"
SCHEDULER = SchedulerConfig.from_json(SCHEDULERS[KIND])


class OdePhase(Phase):
    """Trains `dit` on the pairs of a folder; each sample is one step of a schedule, drawn with its own generator."""

    def __init__(self, settings: OdeSettings, dit: HeliosDiT, pairs: PairsFolder, device: torch.device) -> None:
        self.settings, self.dit, self.pairs, self.device = settings, dit, pairs, device
        self.dit.compute_dtype = getattr(torch, settings.dtype)
        self.run = checkpointed if settings.memory.checkpoint else plain
        self.players = {"student": dit}
        kept = pairs.note.kept
        self.stages = stages_of(
            SCHEDULER, (kept,) * SCHEDULER.stages, pairs.note.size, dit.config.patch_size, amplify=False
        )
        self.sampler: Sampler | None = None

    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        loss = self.settings.loss
        stage = int(torch.multinomial(torch.tensor(loss.ratio), 1, generator=share.shared))
        generators = [share.generator(i) for i in share.samples]
        picks = [int(torch.randint(len(self.pairs), (), generator=g)) for g in generators]
        places = [self.draw_state(g) for g in generators]
        error = self.errors(stage, picks, places).sum() / share.batch
        (0.5 * loss.weight * loss.stages[stage] * error).backward()
        return {f"stage_{stage}": error.detach()}

    def draw_state(self, generator: Generator) -> int:
        """Draw one of a stage's kept states: a step of a schedule that the student will be sampled with."""
        schedules = self.settings.student.steps
        steps = schedules[int(torch.randint(len(schedules), (), generator=generator))]
        return int(torch.randint(steps, (), generator=generator)) * (self.pairs.note.kept // steps)

    def errors(self, stage: int, picks: Sequence[int], places: Sequence[int]) -> Tensor:
        """Return the mean squared error of the student's x0 from states of a stage, against its end point, [B]."""
        pairs, numbers = self.pairs.batch(picks, stage), self.stages[stage]
        rows = torch.arange(len(picks))
        state, end = pairs.states[rows, list(places)].to(self.device), pairs.end.to(self.device)
        timestep = torch.tensor([numbers.timesteps[place] for place in places], device=self.device)
        sigma = torch.tensor([numbers.sigmas[place] for place in places], device=self.device)
        lesson = pairs.lesson.to(self.device)
        conditioning = conditioning_of(self.dit, lesson.terms(), lesson.rows)
        predicted = flow(self.dit, state, timestep, conditioning, run=self.run)
        return per_sample((x0_of(state, predicted, sigma) - end).square())

    def samples(self, path: Path, step: int) -> None:
        self.sampler.sheet(path, self.dit.state_dict(), f"ode, step {step}")

    def save(self, folder: Path) -> None:
        save_transformer(folder, self.dit, KIND, self.settings.knows)


def build(settings: OdeSettings, start: Checkpoint, device: torch.device) -> OdePhase:
    """Return the phase with the transformer of `start`.

    InputError if the pairs come from another model, or lack a step of the student's.
    """
    pairs = PairsFolder(settings.data.pairs)
    for steps in settings.student.steps:
        if pairs.note.kept % steps:
            raise InputError(
                f"student.steps has {steps}, but the pairs in {pairs.folder} keep {pairs.note.kept} states per stage",
                hint="make pairs with a multiple of it as teacher.kept, or leave it out",
            )
    _require_same_models(pairs, start)
    dit = transformer_of(start).to(device).requires_grad_()
    if settings.memory.compile:
        compile_blocks(dit)
    phase = OdePhase(settings, dit, pairs, device)
    dtype = getattr(torch, settings.dtype)
    phase.sampler = Sampler(start, KIND, settings.samples, pairs.note.size, device, dtype)
    return phase


def _require_same_models(pairs: PairsFolder, start: Checkpoint) -> None:
    """InputError if the pairs were made with another encoder than `start`'s, or by another teacher than `start`.

    A student that has already begun may continue with pairs of any teacher.
    """
    made_with, hint = pairs.note.made_with, "make pairs of this one, in another folder, with the phase pairs"
    if made_with.get("encoder") != encoder_identity(start):
        raise InputError(
            f"the pairs in {pairs.folder} come from another VAE or text encoder than those of {start.path}", hint=hint
        )
    if start.kind == "mid" and made_with.get("teacher") != weights_identity(start):
        raise InputError(f"the pairs in {pairs.folder} come from another teacher than {start.path}", hint=hint)
