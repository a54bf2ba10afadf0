"""The phase that trains the VAE of a small model, on pieces of clips that pass through it in one go.

The loss of a sample: L1, squares and slopes of the difference from the clip, the posterior's divergence from the normal
distribution, and the difference between decoded latents and the clip when both are averaged 2x2 or 4x4.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch.func import functional_call

from helios_cli.architecture import VAEConfig
from helios_cli.bench.specs import SPECS
from helios_cli.model.causal import PAST, CausalConv3d
from helios_cli.model.vae import WanVAE, frames_to_uint8
from helios_cli.train.phase import Phase, Share
from helios_cli.train.settings.encoders import POOLS, VAELoss, VAESettings
from helios_cli.train.world.draw import render
from helios_cli.train.world.scene import Split, draw_scene
from helios_cli.units import FRAMES_PER_CHUNK, FRAMES_PER_LATENT, PIXELS_PER_CELL
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.layout import write_component
from helios_cli.weights.load import load_component

FIRST_LOGVAR = -5.0
"""Log-variance of a new VAE's posterior: noise that hides nothing yet."""

RESIDUAL_GAIN = 0.1
"""Factor on the last layer of each residual branch of a new VAE, so that pictures begin as what shortcuts pass on."""

EDGE = 0.1
"""Difference of neighbouring pixels that counts as an edge; black and white differ by 2."""

Choice = TypeVar("Choice")

EDGE_REACH = 7
"""Width in pixels of the area near an edge."""

PROBED = 16
"""Number of held-out clips that the probe uses."""

SHOWN = 4
"""Number of those on the contact sheet."""


class Passes(nn.Module):
    """All calls of the networks for one batch, as one call, for which the weights can be cast to another type."""

    def __init__(self, vae: WanVAE) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, frames_BCTHW: Tensor, noise: Tensor, deviation: float, pool: int) -> dict[str, Tensor]:
        """`noise` [B, 2, z, t, h, w] is the posterior's, and the noise of `deviation` that the decoder gets."""
        mean, logvar = self.vae.posterior(frames_BCTHW)
        z = mean + (0.5 * logvar).exp() * noise[:, 0] + deviation * noise[:, 1]
        return {
            "mean": mean,
            "logvar": logvar,
            "frames": self.vae.reconstruct(z).to(mean.dtype),
            "pooled": self.vae.reconstruct(averaged(z, pool)).to(mean.dtype),
        }


class VAEPhase(Phase):
    def __init__(self, settings: VAESettings, vae: WanVAE, config: dict, device: torch.device) -> None:
        self.players = {"vae": vae}
        self._settings, self._vae, self._config, self._device = settings, vae, config, device
        self._passes = Passes(vae)
        if settings.part == "decoder":
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)

    def backward(self, player: str, share: Share) -> dict[str, Tensor]:
        """Run one sample at a time: a batch's activations would not fit the processor's cache."""
        settings = self._settings
        piece, pool = (drawn(choices, share.shared) for choices in (settings.data.pieces, POOLS))
        sums: dict[str, Tensor] = {}
        for sample in share.samples:
            frames, noise = (x[None].to(self._device) for x in self._draw(share.generator(sample), piece))
            parts = losses(self._pass(frames, noise, pool), frames, pool, settings.loss)
            (total(parts, settings.loss) / share.batch).backward()
            sums = {name: sums.get(name, 0) + loss.detach() / share.batch for name, loss in parts.items()}
        return sums

    def _pass(self, frames: Tensor, noise: Tensor, pool: int) -> dict[str, Tensor]:
        """Call `Passes` with weights rounded to the run's type; the parameters themselves get the gradients."""
        dtype = getattr(torch, self._settings.dtype)
        weights = {f"vae.{name}": value.to(dtype) for name, value in self._vae.named_parameters()}
        return functional_call(self._passes, weights, (frames, noise, self._settings.loss.noise, pool))

    def _draw(self, generator: torch.Generator, piece: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
        """Draw a piece of a clip [3, T, H, W] and noise for its latents [2, z, t, h, w]."""
        frames, height, width = piece
        seed, start = (drawn(range(n), generator) for n in (2**31, self._settings.data.longest_start + 1))
        scene = draw_scene(seed, variety=self._settings.data.world)
        film = render(scene, frames, start)
        x, y = scene.thing.trajectory.at(np.arange(start, start + frames)).mean(0)
        top = cut(float(y), height, film.shape[1], generator)
        left = cut(float(x), width, film.shape[2], generator)
        piece_of_film = to_frames(film[:, top : top + height, left : left + width])
        cells = (1 + (frames - 1) // FRAMES_PER_LATENT, height // PIXELS_PER_CELL, width // PIXELS_PER_CELL)
        return piece_of_film, torch.randn((2, self._vae.config.z_dim, *cells), generator=generator)

    @torch.no_grad()
    def probe(self, share: Share) -> dict[str, float]:
        """Return the mean and the worst PSNR in dB of whole held-out clips, decoded from the posterior's mean."""
        vae = self._rounded()
        values = torch.cat([psnr(made, clip) for clip, made in (self._round_trip(vae, seed) for seed in range(PROBED))])
        part = len(share.samples) / share.batch  # all processes find the same, and the sum is taken
        return {"psnr": part * values.mean().item(), "psnr_worst": part * values.min().item()}

    @torch.no_grad()
    def samples(self, path: Path, step: int) -> None:
        """Draw clips above their reconstructions, five frames of each, enlarged."""
        rows, vae = [], self._rounded()
        for seed in range(SHOWN):
            for frames in self._round_trip(vae, seed):
                shown = frames_to_uint8(frames[:, :, :: FRAMES_PER_CHUNK // 4])[0]
                rows.append(torch.cat(list(shown), dim=1))
        sheet = Image.fromarray(torch.cat(rows).numpy())
        sheet.resize((sheet.width * 2, sheet.height * 2), Image.Resampling.NEAREST).save(path)

    @torch.no_grad()
    def save(self, folder: Path) -> None:
        """Write the VAE with the statistics of its latents, measured now if the encoder is trained."""
        config = self._config
        if self._settings.part == "all":
            mean, std = self._statistics()
            std = std / self._settings.latents.deviation
            config = {**config, "latents_mean": rounded(mean), "latents_std": rounded(std)}
        write_component(folder, "vae", self._vae, config, dtype=torch.float32)

    def _statistics(self) -> tuple[Tensor, Tensor]:
        """Return the mean and deviation of each channel over the latents of whole clips."""
        sums = torch.zeros(3, self._vae.config.z_dim, dtype=torch.float64)
        clips, vae = self._settings.latents.clips, self._rounded()
        for seed in range(clips):
            mean, logvar = (x.double().cpu() for x in vae.posterior(self._clip(seed, "train")))
            sums += torch.stack([x.mean((0, 2, 3, 4)) for x in (mean, mean.square(), logvar.exp())]) / clips
        mean, square, variance = sums
        return mean, (square - mean.square() + variance).sqrt()

    def _rounded(self) -> WanVAE:
        """Return a copy of the current VAE in the run's type."""
        return copy.deepcopy(self._vae).to(getattr(torch, self._settings.dtype))

    def _round_trip(self, vae: WanVAE, seed: int) -> tuple[Tensor, Tensor]:
        """Return a held-out clip and its reconstruction from the posterior's mean, [1, 3, T, H, W] on the CPU."""
        clip = self._clip(seed, "held_out")
        made = vae.reconstruct(vae.posterior(clip)[0])
        return clip.cpu(), made.float().clamp(-1, 1).cpu()

    def _clip(self, seed: int, split: Split) -> Tensor:
        scene = draw_scene(seed, split=split, variety=self._settings.data.world)
        return to_frames(render(scene, FRAMES_PER_CHUNK))[None].to(self._device)


def losses(made: dict[str, Tensor], frames_BCTHW: Tensor, pool: int, weights: VAELoss) -> dict[str, Tensor]:
    """Return the losses by name, unweighted, as means over the batch."""
    difference = made["frames"] - frames_BCTHW
    detail = detail_weights(frames_BCTHW, weights.detail)
    coarse = made["pooled"] - averaged(frames_BCTHW, pool)
    mean, logvar = made["mean"], made["logvar"]
    return {
        "l1": (detail * difference.abs()).mean(),
        "squares": (detail * difference.square()).mean(),
        "edges": difference.diff(dim=-1).abs().mean() + difference.diff(dim=-2).abs().mean(),
        "kl": 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean(),
        "pooled": coarse.abs().mean() + weights.squares * coarse.square().mean(),
    }


def total(parts: dict[str, Tensor], weights: VAELoss) -> Tensor:
    return parts["l1"] + sum(getattr(weights, name) * loss for name, loss in parts.items() if name != "l1")


def detail_weights(frames_BCTHW: Tensor, more: float) -> Tensor:
    """Return weights [B, 1, T, H, W] of mean 1 in each sample: larger by 1 + `more` near edges."""
    x = frames_BCTHW
    across = F.pad(x.diff(dim=-1).abs().amax(1, keepdim=True), (0, 1))
    down = F.pad(x.diff(dim=-2).abs().amax(1, keepdim=True), (0, 0, 0, 1))
    edges = (torch.maximum(across, down) > EDGE).float()
    near = F.max_pool3d(edges, (1, EDGE_REACH, EDGE_REACH), stride=1, padding=(0, EDGE_REACH // 2, EDGE_REACH // 2))
    weights = 1 + more * near
    return weights / weights.mean((1, 2, 3, 4), keepdim=True)


def averaged(x_BCTHW: Tensor, factor: int) -> Tensor:
    """Return the means of factor x factor pixels or cells."""
    return F.avg_pool3d(x_BCTHW, (1, factor, factor))


def drawn(choices: Sequence[Choice], generator: torch.Generator) -> Choice:
    """Draw one of `choices`."""
    return choices[int(torch.randint(len(choices), (), generator=generator))]


def psnr(made: Tensor, clip: Tensor) -> Tensor:
    """Return the PSNR in decibels, [B], for a peak-to-peak of 2."""
    return 10 * torch.log10(4 / (made - clip).square().mean((1, 2, 3, 4)))


def cut(centre: float, length: int, whole: int, generator: torch.Generator) -> int:
    """Draw where a piece of `length` out of `whole` begins: around `centre`, at most a third of the length off."""
    off = float(torch.rand((), generator=generator) * 2 - 1) * length / 3
    return max(0, min(whole - length, round(centre + off - length / 2)))


def to_frames(film_THWC: np.ndarray) -> Tensor:
    """Convert bytes to [3, T, H, W] in [-1, 1]."""
    return torch.from_numpy(film_THWC).permute(3, 0, 1, 2).float().div_(127.5).sub_(1).contiguous()


def rounded(values: Tensor) -> list[float]:
    return [round(value, 4) for value in values.tolist()]


@torch.no_grad()
def initialise(vae: WanVAE) -> WanVAE:
    """Make a new VAE begin as close to the identity as its shapes allow.

    Shortcuts, resampling and products over channels pass on as many channels as fit. Further outputs keep their random
    weights: zeros behind a norm would stay zeros.
    """
    for name, module in vae.named_modules():
        if not isinstance(module, nn.Conv2d | nn.Conv3d):
            continue
        kind = name.rpartition(".")[2]
        if kind in ("conv_shortcut", "quant_conv", "post_quant_conv", "proj"):
            pass_on(module.weight)
        elif "resample" in name:
            near = slice(0, 2) if module.stride == (2, 2) else slice(1, 2)
            pass_on(module.weight, near, near)
        elif kind == "time_conv" and isinstance(module, CausalConv3d):
            for frame in module.weight.split(module.in_channels):
                pass_on(frame, slice(PAST, None))
        elif kind == "time_conv":
            pass_on(module.weight, slice(1, None))
        if kind in ("conv2", "proj"):
            module.weight.mul_(RESIDUAL_GAIN)
        module.bias.zero_()
    logvar = vae.config.z_dim
    vae.quant_conv.weight[logvar:].mul_(RESIDUAL_GAIN)
    vae.quant_conv.bias[logvar:].fill_(FIRST_LOGVAR)
    return vae


def pass_on(weight: Tensor, *taps: slice) -> None:
    """Set each output of a kernel that has an input of the same index to that input's mean over `taps`."""
    channels = torch.arange(min(weight.shape[:2]))
    weight[: len(channels)] = 0
    at = weight[(slice(None), slice(None), *taps)]
    at[channels, channels] = 1 / at[0, 0].numel()


def build(settings: VAESettings, start: Checkpoint | None, device: torch.device) -> VAEPhase:
    """Return the phase, with the VAE of `start`, or a new one if there is no start or `fresh` is set."""
    config = SPECS["tiny"].vae if start is None else start.components["vae"].config
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        vae = initialise(WanVAE(VAEConfig.from_json(config)))
    if start is not None and not settings.fresh:
        load_component(vae, start.components["vae"], device="cpu", dtype=torch.float32).requires_grad_(True)
    return VAEPhase(settings, vae.to(device), config, device)
