"""Adversarial hierarchical distillation: the student learns to make chunks that the real score accepts as real.

The student goes through all stages in few steps, and only the end point of the last stage is judged: by the difference
of the two scores on it (distribution matching), and by discriminator heads on the critic's features. The critic is the
fake score, which learns the student's chunks as they change, and the heads, which learn to tell them from real ones.
All networks get the same real, corrupted history.
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
from helios_cli.train.ablation import as_trained
from helios_cli.train.data.cache import LatentClips
from helios_cli.train.data.encode import require_same_encoder
from helios_cli.train.discriminator import FAKE, REAL, Heads, adversarial_loss, crop_window, smoothness_loss
from helios_cli.train.history import Clips, Lesson, Lessons
from helios_cli.train.memory import cached_loss, frozen
from helios_cli.train.networks import Networks, OneBackbone, ThreeNetworks
from helios_cli.train.phase import Phase, Share
from helios_cli.train.rollout import draw_noise, predictor, student_roll_out
from helios_cli.train.samples import Sampler
from helios_cli.train.score import ScoreTimes, flow_loss, matching_gradient, matching_loss, noised, x0_of
from helios_cli.train.settings.student import DistillMemory, DistillSettings
from helios_cli.train.state import open_start
from helios_cli.train.transformer import conditioning_of, flow, flow_and_hidden, save_transformer, transformer_of
from helios_cli.weights.checkpoint import Checkpoint

KIND = "distilled"
SCHEDULER = SchedulerConfig.from_json(SCHEDULERS[KIND])
STUDENT, CRITIC = "student", "critic"
PURPOSES = {STUDENT: 1, CRITIC: 2}
SCORE_FROM = 1e-3
"""The smallest noise share at which the fake score is trained."""


@dataclass(frozen=True)
class TurnBatch:
    """A batch of one turn. `shared` is the same in all processes; each sample has one of `generators`."""

    lesson: Lesson
    shared: Generator
    generators: list[Generator]
    step: int
    batch: int
    device: torch.device

    def noise(self, x: Tensor) -> Tensor:
        """Draw noise in the shape of `x`."""
        return torch.cat([draw((1, *x.shape[1:]), g) for g in self.generators]).to(self.device)

    def mean(self, loss_B: Tensor) -> Tensor:
        """Return this process's addend of the batch's mean."""
        return loss_B.sum() / self.batch


@dataclass(frozen=True)
class LossTerm:
    """One loss of a turn: its weight, and the function that computes it."""

    weight: float
    compute: Callable[[], Tensor]


class DistillPhase(Phase):
    def __init__(
        self,
        settings: DistillSettings,
        networks: Networks,
        heads: Heads,
        clips: Clips,
        size: tuple[int, int],
        device: torch.device,
    ) -> None:
        self.settings, self.networks, self.heads, self.device = settings, networks, heads, device
        self.critic = nn.ModuleDict({"score": networks.fake, "heads": heads})
        self.players = {STUDENT: networks.student, CRITIC: self.critic}
        self.optimizers = {CRITIC: settings.critic}
        self.lessons = Lessons(clips, settings.data, settings.history, settings.corruption)
        with networks.using("student") as dit:
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
        lesson = self.lessons.draw(generators).to(self.device)
        shared = share.generator(-1, PURPOSES[player])
        drawn = TurnBatch(lesson, shared, generators, share.step, share.batch, self.device)
        return self._student_turn(drawn) if player == STUDENT else self._critic_turn(drawn)

    def adversarial(self, step: int) -> bool:
        """Return whether the discriminator takes part."""
        return step >= self.settings.gan.start

    def roll_out(self, dit: HeliosDiT, drawn: TurnBatch) -> Tensor:
        """Return the student's chunks [B, C, 9, H, W], with a random schedule and random exits."""
        stages = self.schedules[int(torch.randint(len(self.schedules), (), generator=drawn.shared))]
        exits = [int(torch.randint(stage.steps, (), generator=drawn.shared)) for stage in stages]
        shape = tuple(drawn.lesson.target.shape[1:])
        noise = draw_noise(shape, SCHEDULER, self.block_noise, drawn.generators).to(self.device)
        conditioning = conditioning_of(dit, drawn.lesson.terms(), drawn.lesson.rows)
        return student_roll_out(predictor(dit, conditioning, run=self.networks.run("student")), stages, noise, exits)

    def _student_turn(self, drawn: TurnBatch) -> dict[str, Tensor]:
        settings = self.settings
        with frozen(self.critic), self.networks.using("student") as dit:
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
        """Return the gradient of the student's chunks by the two scores; the real one is guided."""
        noisy, scale = noised(x, noise, sigma), self.settings.matching.guidance
        with torch.no_grad(), self.networks.using("real") as dit:
            real = self._flow(dit, noisy, sigma, lesson, lesson.rows)
            if scale != 1:
                empty = self.lessons.empty.to(lesson.rows).expand_as(lesson.rows)
                real = classifier_free(real, self._flow(dit, noisy, sigma, lesson, empty), scale)
        with torch.no_grad(), self.networks.using("fake") as dit:
            fake = self._flow(dit, noisy, sigma, lesson, lesson.rows)
        return matching_gradient(x, x0_of(noisy, real, sigma), x0_of(noisy, fake, sigma))

    def fooling_loss(self, noisy: Tensor, sigma: Tensor, drawn: TurnBatch) -> Tensor:
        """Return the loss of chunks that the heads do not accept as real. The critic must be frozen."""
        window = self._window(drawn)
        with self.networks.using("fake") as dit:

            def loss_of(noisy: Tensor) -> Tensor:
                return drawn.mean(adversarial_loss(self.logits(dit, noisy, sigma, drawn.lesson, window), REAL))

            return cached_loss(noisy, loss_of) if self.settings.memory.cache_gradients else loss_of(noisy)

    def _critic_turn(self, drawn: TurnBatch) -> dict[str, Tensor]:
        with frozen(self.networks.student), self.networks.using("student") as dit:
            x = self.roll_out(dit, drawn).detach()
        with self.networks.using("fake") as dit:
            terms = {"score": self._score_term(dit, x, drawn)}
            if self.adversarial(drawn.step):
                terms |= self._game_terms(dit, x, drawn)
            return self._backward(terms)

    def _score_term(self, dit: HeliosDiT, x: Tensor, drawn: TurnBatch) -> LossTerm:
        """The fake score learns the flow of the student's chunks."""
        sigma = torch.cat([torch.rand(1, generator=g) for g in drawn.generators])
        sigma = (SCORE_FROM + (1 - SCORE_FROM) * sigma).to(self.device)
        noise, lesson = drawn.noise(x), drawn.lesson

        def compute() -> Tensor:
            predicted = self._flow(
                dit, noised(x, noise, sigma), sigma, lesson, lesson.rows, run=self.networks.run("fake")
            )
            return drawn.mean(flow_loss(predicted, noise, x))

        return LossTerm(1.0, compute)

    def _game_terms(self, dit: HeliosDiT, x: Tensor, drawn: TurnBatch) -> dict[str, LossTerm]:
        """The heads, and the features under them, learn to tell the student's chunks from real ones."""
        gan, sigma, noise, window = self.settings.gan, self._score_time(drawn), drawn.noise(x), self._window(drawn)

        def term(chunks: Tensor, label: float, smoothness: float) -> LossTerm:
            noisy, nudge = noised(chunks, noise, sigma), gan.perturbation * drawn.noise(chunks)

            def compute() -> Tensor:
                logits = self.logits(dit, noisy, sigma, drawn.lesson, window)
                loss = adversarial_loss(logits, label)
                if smoothness:
                    nudged = self.logits(dit, noisy + nudge, sigma, drawn.lesson, window)
                    loss = loss + smoothness * smoothness_loss(logits, nudged)
                return drawn.mean(loss)

            return LossTerm(gan.critic, compute)

        return {"told_fake": term(x, FAKE, gan.r2), "told_real": term(drawn.lesson.target, REAL, gan.r1)}

    def _backward(self, terms: dict[str, LossTerm]) -> dict[str, Tensor]:
        """Add the gradients of all terms, one after another or of their sum."""
        losses, total = {}, torch.zeros((), device=self.device)
        for name, term in terms.items():
            loss = term.compute()
            losses[name] = loss.detach()
            if self.settings.memory.separate_backward:
                (term.weight * loss).backward()
            else:
                total = total + term.weight * loss
        if total.requires_grad:
            total.backward()
        return losses

    def logits(
        self, dit: HeliosDiT, noisy: Tensor, sigma: Tensor, lesson: Lesson, window: tuple[slice, slice]
    ) -> Tensor:
        """Return the logits [B, D] of a window of noisy chunks and of their history."""
        rows, columns = window
        noisy = noisy[..., rows, columns]
        terms = tuple(term[..., rows, columns] for term in lesson.terms())
        conditioning = conditioning_of(dit, terms, lesson.rows)
        run = self.networks.run("fake")
        hidden = flow_and_hidden(dit, noisy, 1000 * sigma, conditioning, hidden=self.heads.blocks, run=run)[1]
        grid = tuple(side // step for side, step in zip(noisy.shape[2:], self.config.patch_size, strict=True))
        return self.heads([picture.float() for picture in hidden], grid)

    def _flow(self, dit: HeliosDiT, noisy: Tensor, sigma: Tensor, lesson: Lesson, rows: Tensor, **how) -> Tensor:
        """Return a score network's flow: it has one stage, and its timestep is 1000 sigma."""
        return flow(dit, noisy, 1000 * sigma, conditioning_of(dit, lesson.terms(), rows), **how).float()

    def _score_time(self, drawn: TurnBatch) -> Tensor:
        sigmas = [self.times.draw(drawn.step, g) for g in drawn.generators]
        return torch.tensor(sigmas, device=self.device)

    def _window(self, drawn: TurnBatch) -> tuple[slice, slice]:
        height, width = drawn.lesson.target.shape[-2:]
        if not self.settings.gan.crop:
            return slice(0, height), slice(0, width)
        return crop_window((height, width), self.config.patch_size[1:], drawn.shared)

    def samples(self, path: Path, step: int) -> None:
        with as_trained(self.settings.history):
            self.sampler.sheet(path, self.networks.state(), f"distilled, step {step}")

    def save(self, folder: Path) -> None:
        with torch.device("meta"):
            plain = HeliosDiT(self.config)
        plain.load_state_dict(self.networks.state(), assign=True)
        save_transformer(folder, plain, KIND, self.settings.knows)


def build(settings: DistillSettings, start: Checkpoint, device: torch.device) -> DistillPhase:
    """Return the phase with the student of `start`. InputError if checkpoints, clips and settings do not match."""
    base = open_start(settings.matching.real)
    if base.kind != "base":
        raise InputError(
            f"matching.real is {base.path}, of kind {base.kind}", hint="the real score must be a model of kind base"
        )
    clips = LatentClips(settings.data.clips, text_rows=settings.data.text_rows)
    require_same_encoder(clips, start)
    config, dtype = DiTConfig.from_json(base.component("transformer").config), getattr(torch, settings.dtype)
    blocks = config.num_layers
    if max(settings.gan.blocks) >= blocks:
        raise InputError(
            f"gan.blocks has {max(settings.gan.blocks)}, but the model has blocks 0 to {blocks - 1}",
            hint=f"write for example gan.blocks = [{blocks // 2}, {blocks - 1}]",
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        heads = Heads(config.width, sorted(settings.gan.blocks), settings.gan.channels).to(device)
    networks = _networks(settings.memory, start, base, dtype, device)
    phase = DistillPhase(settings, networks, heads, clips, clips.note.size, device)
    phase.sampler = Sampler(start, KIND, settings.samples, clips.note.size, device, dtype)
    return phase


def _networks(
    memory: DistillMemory, start: Checkpoint, base: Checkpoint, dtype: torch.dtype, device: torch.device
) -> Networks:
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
