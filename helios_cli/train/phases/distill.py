"""Adversarial hierarchical distillation: the student's chunks become those that the real score takes for real.

The student goes through all stages in few steps, and only what the last stage ends with is judged: by how the two
scores differ on it (distribution matching), and by discriminator heads on the critic's features. The critic is the
fake score, which learns the student's chunks as they change, and the heads, which learn to tell them from real ones.
All networks are told the same real, corrupted history.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Generator, Tensor, nn

from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SCHEDULERS
from helios_cli.engine.denoise import stages_of
from helios_cli.errors import InputError
from helios_cli.model.dit import HeliosDiT
from helios_cli.sampling.guidance import classifier_free
from helios_cli.sampling.noise import BlockNoise, draw
from helios_cli.sampling.schedule import SchedulerConfig
from helios_cli.train.ablation import as_taught
from helios_cli.train.cast import Cast, OneBackbone, ThreeNetworks
from helios_cli.train.data.cache import LatentClips
from helios_cli.train.data.encode import require_same_encoder
from helios_cli.train.discriminator import FAKE, REAL, Heads, adversarial_loss, crop_window, smoothness_loss
from helios_cli.train.flow import transformer_of
from helios_cli.train.forward import flow, flow_and_hidden, given
from helios_cli.train.history import Lesson, Source, Teacher
from helios_cli.train.memory import cached_loss, frozen
from helios_cli.train.networks import predictor
from helios_cli.train.phase import Share
from helios_cli.train.rollout import draw_noise, student_roll_out
from helios_cli.train.samples import Sampler
from helios_cli.train.score import ScoreTimes, flow_loss, matching_gradient, matching_loss, noised, x0_of
from helios_cli.train.settings.distill import Settings
from helios_cli.train.state import open_start
from helios_cli.units import PIXELS_PER_CELL
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.layout import set_kind, set_trained, write_component

KIND = "distilled"
SCHEDULER = SchedulerConfig.from_json(SCHEDULERS[KIND])
STUDENT, CRITIC = "student", "critic"
PURPOSES = {STUDENT: 1, CRITIC: 2}
SCORE_FROM = 1e-3
"""Smallest noise share at which the fake score is trained."""


@dataclass(frozen=True)
class Draw:
    """A batch of one turn. `shared` is alike in all processes; each sample has its own of `generators`."""

    lesson: Lesson
    shared: Generator
    generators: list[Generator]
    step: int
    batch: int
    device: torch.device

    def noise(self, x: Tensor) -> Tensor:
        """In the shape of `x`."""
        return torch.cat([draw((1, *x.shape[1:]), g) for g in self.generators]).to(self.device)

    def mean(self, loss_B: Tensor) -> Tensor:
        """This process's addend of the batch's mean."""
        return loss_B.sum() / self.batch


@dataclass(frozen=True)
class Part:
    """One loss of a turn: its weight, and what computes it."""

    weight: float
    compute: Callable[[], Tensor]


class DistillPhase:
    def __init__(
        self, settings: Settings, cast: Cast, heads: Heads, clips: Source, size: tuple[int, int], device: torch.device
    ) -> None:
        self.settings, self.cast, self.heads, self.device = settings, cast, heads, device
        self.critic = nn.ModuleDict({"score": cast.fake, "heads": heads})
        self.players = {STUDENT: cast.student, CRITIC: self.critic}
        self.optimizers = {CRITIC: settings.critic}
        self.lessons = Teacher(clips, settings.data, settings.history, settings.corruption)
        with cast.using("student") as dit:
            self.config: DiTConfig = dit.config
        patch = self.config.patch_size
        self.schedules = [
            stages_of(SCHEDULER, (steps,) * SCHEDULER.stages, size, patch, amplify=False)
            for steps in settings.student.steps
        ]
        self.block_noise = BlockNoise(SCHEDULER.gamma, patch)
        matching = settings.matching
        self.times = ScoreTimes(matching.shift, matching.low, matching.high, matching.beta, matching.anneal)
        self.sampler: Sampler | None = None

    def turns(self, step: int) -> Sequence[str]:
        return (*[CRITIC] * self.settings.matching.critic_turns, STUDENT)

    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        generators = [share.generator(i, PURPOSES[player]) for i in share.samples]
        lesson = self.lessons.lesson(generators).to(self.device)
        shared = share.generator(-1, PURPOSES[player])
        drawn = Draw(lesson, shared, generators, share.step, share.batch, self.device)
        return self._student_turn(drawn) if player == STUDENT else self._critic_turn(drawn)

    def adversarial(self, step: int) -> bool:
        """Whether the discriminator takes part."""
        return step >= self.settings.gan.start

    def roll_out(self, dit: HeliosDiT, drawn: Draw) -> Tensor:
        """The student's chunks [B, C, 9, H, W], by a schedule and exits that are drawn."""
        stages = self.schedules[int(torch.randint(len(self.schedules), (), generator=drawn.shared))]
        exits = [int(torch.randint(stage.steps, (), generator=drawn.shared)) for stage in stages]
        shape = tuple(drawn.lesson.target.shape[1:])
        noise = draw_noise(shape, SCHEDULER, self.block_noise, drawn.generators).to(self.device)
        told = given(dit, drawn.lesson.terms(), drawn.lesson.rows)
        return student_roll_out(predictor(dit, told, run=self.cast.run("student")), stages, noise, exits)

    def _student_turn(self, drawn: Draw) -> dict[str, Tensor]:
        settings = self.settings
        with frozen(self.critic), self.cast.using("student") as dit:
            x = self.roll_out(dit, drawn)
            sigma, noise = self._score_time(drawn), drawn.noise(x)
            gradient = self.matching_gradient(x.detach(), noise, sigma, drawn.lesson)
            losses = {"matching": drawn.mean(matching_loss(x, gradient))}
            total = settings.matching.weight * losses["matching"]
            if self.adversarial(drawn.step):
                losses["adversarial"] = self.fooling_loss(noised(x, noise, sigma), sigma, drawn)
                total = total + settings.gan.student * losses["adversarial"]
            total.backward()
        return {name: loss.detach() for name, loss in losses.items()}

    def matching_gradient(self, x: Tensor, noise: Tensor, sigma: Tensor, lesson: Lesson) -> Tensor:
        """Of the student's chunks, by the two scores; the real one is guided."""
        noisy, scale = noised(x, noise, sigma), self.settings.matching.guidance
        with torch.no_grad(), self.cast.using("real") as dit:
            real = self._flow(dit, noisy, sigma, lesson, lesson.rows)
            if scale != 1:
                empty = self.lessons.empty.to(lesson.rows).expand_as(lesson.rows)
                real = classifier_free(real, self._flow(dit, noisy, sigma, lesson, empty), scale)
        with torch.no_grad(), self.cast.using("fake") as dit:
            fake = self._flow(dit, noisy, sigma, lesson, lesson.rows)
        return matching_gradient(x, x0_of(noisy, real, sigma), x0_of(noisy, fake, sigma))

    def fooling_loss(self, noisy: Tensor, sigma: Tensor, drawn: Draw) -> Tensor:
        """How little the heads take the student's noisy chunks for real. The critic is to be frozen."""
        window = self._window(drawn)
        with self.cast.using("fake") as dit:

            def loss_of(noisy: Tensor) -> Tensor:
                return drawn.mean(adversarial_loss(self.logits(dit, noisy, sigma, drawn.lesson, window), REAL))

            return cached_loss(noisy, loss_of) if self.settings.memory.cache_gradients else loss_of(noisy)

    def _critic_turn(self, drawn: Draw) -> dict[str, Tensor]:
        with frozen(self.cast.student), self.cast.using("student") as dit:
            x = self.roll_out(dit, drawn).detach()
        with self.cast.using("fake") as dit:
            parts = {"score": self._score_part(dit, x, drawn)}
            if self.adversarial(drawn.step):
                parts |= self._game_parts(dit, x, drawn)
            return self._backward(parts)

    def _score_part(self, dit: HeliosDiT, x: Tensor, drawn: Draw) -> Part:
        """The fake score learns the flow of the student's chunks."""
        sigma = torch.cat([torch.rand(1, generator=g) for g in drawn.generators])
        sigma = (SCORE_FROM + (1 - SCORE_FROM) * sigma).to(self.device)
        noise, lesson = drawn.noise(x), drawn.lesson

        def compute() -> Tensor:
            predicted = self._flow(dit, noised(x, noise, sigma), sigma, lesson, lesson.rows, run=self.cast.run("fake"))
            return drawn.mean(flow_loss(predicted, noise, x))

        return Part(1.0, compute)

    def _game_parts(self, dit: HeliosDiT, x: Tensor, drawn: Draw) -> dict[str, Part]:
        """The heads, and the features under them, learn to tell the student's chunks from real ones."""
        gan, sigma, noise, window = self.settings.gan, self._score_time(drawn), drawn.noise(x), self._window(drawn)

        def part(chunks: Tensor, label: float, smoothness: float) -> Part:
            noisy, nudge = noised(chunks, noise, sigma), gan.perturbation * drawn.noise(chunks)

            def compute() -> Tensor:
                logits = self.logits(dit, noisy, sigma, drawn.lesson, window)
                loss = adversarial_loss(logits, label)
                if smoothness:
                    nudged = self.logits(dit, noisy + nudge, sigma, drawn.lesson, window)
                    loss = loss + smoothness * smoothness_loss(logits, nudged)
                return drawn.mean(loss)

            return Part(gan.critic, compute)

        return {"told_fake": part(x, FAKE, gan.r2), "told_real": part(drawn.lesson.target, REAL, gan.r1)}

    def _backward(self, parts: dict[str, Part]) -> dict[str, Tensor]:
        """Adds the gradients of all parts: one after the other, or of their sum at once."""
        losses, total = {}, torch.zeros((), device=self.device)
        for name, part in parts.items():
            loss = part.compute()
            losses[name] = loss.detach()
            if self.settings.memory.separate_backward:
                (part.weight * loss).backward()
            else:
                total = total + part.weight * loss
        if total.requires_grad:
            total.backward()
        return losses

    def logits(
        self, dit: HeliosDiT, noisy: Tensor, sigma: Tensor, lesson: Lesson, window: tuple[slice, slice]
    ) -> Tensor:
        """[B, D] of a window of noisy chunks and of their history."""
        rows, columns = window
        noisy = noisy[..., rows, columns]
        told = given(dit, tuple(term[..., rows, columns] for term in lesson.terms()), lesson.rows)
        run = self.cast.run("fake")
        hidden = flow_and_hidden(dit, noisy, 1000 * sigma, told, hidden=self.heads.blocks, run=run)[1]
        grid = tuple(side // step for side, step in zip(noisy.shape[2:], self.config.patch_size, strict=True))
        return self.heads([picture.float() for picture in hidden], grid)

    def _flow(self, dit: HeliosDiT, noisy: Tensor, sigma: Tensor, lesson: Lesson, rows: Tensor, **how) -> Tensor:
        """A score network's flow: it has one stage, and its timestep is sigma's thousandfold."""
        return flow(dit, noisy, 1000 * sigma, given(dit, lesson.terms(), rows), **how).float()

    def _score_time(self, drawn: Draw) -> Tensor:
        sigmas = [self.times.draw(drawn.step, g) for g in drawn.generators]
        return torch.tensor(sigmas, device=self.device)

    def _window(self, drawn: Draw) -> tuple[slice, slice]:
        height, width = drawn.lesson.target.shape[-2:]
        if not self.settings.gan.crop:
            return slice(0, height), slice(0, width)
        return crop_window((height, width), self.config.patch_size[1:], drawn.shared)

    def samples(self, path: Path, step: int) -> None:
        with as_taught(self.settings.history):
            self.sampler.sheet(path, self.cast.state(), f"distilled, step {step}")

    def save(self, folder: Path) -> None:
        """Puts the student into the checkpoint `folder`, which is then of kind distilled."""
        with torch.device("meta"):
            plain = HeliosDiT(self.config)
        plain.load_state_dict(self.cast.state(), assign=True)
        write_component(folder, "transformer", plain)
        set_kind(folder, KIND, SCHEDULERS[KIND])
        set_trained(folder, self.settings.knows)


def build(settings: Settings, start: Checkpoint, device: torch.device) -> DistillPhase:
    """The phase with the student of `start`. InputError if checkpoints, clips and settings do not go together."""
    base = open_start(settings.matching.real)
    if base.kind != "base":
        raise InputError(
            f"matching.real is {base.path}, of kind {base.kind}", hint="the real score is a model of kind base"
        )
    clips = LatentClips(settings.data.clips, text_rows=settings.data.text_rows)
    require_same_encoder(clips, start)
    real, dtype = transformer_of(base), getattr(torch, settings.dtype)
    blocks = len(real.blocks)
    if max(settings.gan.blocks) >= blocks:
        raise InputError(
            f"gan.blocks has {max(settings.gan.blocks)}, and the model has blocks 0 to {blocks - 1}",
            hint=f"write for example gan.blocks = [{blocks // 2}, {blocks - 1}]",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        heads = Heads(real.config.width, sorted(settings.gan.blocks), settings.gan.channels).to(device)
    height, width = (cells * PIXELS_PER_CELL for cells in clips.note.latent_shape[1:])
    phase = DistillPhase(settings, _cast(settings, start, base, dtype, device), heads, clips, (width, height), device)
    phase.sampler = Sampler(start, KIND, settings.samples, (width, height), device, dtype)
    return phase


def _cast(
    settings: Settings, start: Checkpoint, base: Checkpoint, dtype: torch.dtype, device: torch.device
) -> ThreeNetworks | OneBackbone:
    memory = settings.memory
    student, real = transformer_of(start), transformer_of(base)
    student.compute_dtype = real.compute_dtype = dtype
    if memory.adapters:
        state = student.state_dict()
        return OneBackbone(real, state, memory.adapters, device, checkpoint_blocks=memory.checkpoint_blocks)
    fake = transformer_of(base)
    fake.compute_dtype = dtype
    return ThreeNetworks(
        {"student": student, "real": real, "fake": fake},
        device,
        checkpoint_blocks=memory.checkpoint_blocks,
        rest_on_host=memory.rest_on_host,
    )
