"""The Wan VAE: frames to latents and back, 8x in space and 4x in time.

What is unusual in this model:
- Every 3x3x3 convolution is causal, so a clip can be processed in pieces (`model/causal.py`, whose rules all layers
  keep: activations [B, T, H, W, C], and the clip's `CausalState`, or None for a whole clip).
- The first latent holds one frame and the others four: the temporal resampling layers let a clip's first frame pass.
- The norm divides each position by the length of its channel vector, without a mean.
- Parameter names are those of the checkpoint (`AutoencoderKLWan` in diffusers), so it loads strictly, one to one.

In bfloat16, weights and activations are rounded; norms, the posterior and the latents' scaling stay in float32. Frames
then agree with the float32 decode to a PSNR of 56 dB (peak to peak 2), diffusers' own bfloat16 to 55 dB: 17 frames of
64x96, base_dim 32, random parameters (initial weights, biases and norm gammas spread by 0.2).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from helios_cli.architecture import VAEConfig
from helios_cli.model.attention import scaled_dot_product
from helios_cli.model.causal import (
    CausalConv3d,
    CausalState,
    ResidualBlock,
    Stream,
    in_pieces,
    norm_silu_conv,
    summed,
    usual_piece_elements,
)
from helios_cli.model.channel_norm import ChannelNorm, working_dtype
from helios_cli.model.convolution import (
    Convolutions,
    channels_last,
    convolve,
    convolve_pictures,
    fold_upsampling,
    pointwise,
    upsample_conv,
)
from helios_cli.units import FRAMES_PER_LATENT, PIXELS_PER_CELL

LOGVAR_RANGE = (-30, 20)
"""Limits of the posterior's log-variance, beyond which its exponential is useless."""


class AttentionBlock(nn.Module):
    """Self-attention with one head among the cells of each frame."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = ChannelNorm(channels, gamma_dims=3)
        self.to_qkv = nn.Conv2d(channels, channels * 3, 1)
        self.proj = nn.Conv2d(channels, channels, 1)

    def forward(self, x_BTHWC: Tensor) -> Tensor:
        B, T, H, W, C = x_BTHWC.shape
        qkv = pointwise(self.to_qkv, self.norm(x_BTHWC)).view(B * T, 1, H * W, 3 * C)
        attended = scaled_dot_product(*qkv.chunk(3, dim=-1))
        return x_BTHWC + pointwise(self.proj, attended.reshape(x_BTHWC.shape))


class MidBlock(nn.Module):
    growth = 1

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.attentions = nn.ModuleList([AttentionBlock(channels)])
        self.resnets = nn.ModuleList([ResidualBlock(channels, channels), ResidualBlock(channels, channels)])

    def forward(self, x: Stream, state: CausalState | None) -> Stream:
        before, after = self.resnets
        h, attention = summed(before(x, state)), self.attentions[0]
        return after(attention(h) if state is None else state.over_all_rows(attention, h), state)


class Upsample(nn.Module):
    """Twice the rows and columns at half the channels; with `over_time`, twice the frames too."""

    def __init__(self, channels: int, over_time: bool) -> None:
        super().__init__()
        self.growth = 4 if over_time else 2
        self.resample: Any = nn.ModuleDict({"1": nn.Conv2d(channels, channels // 2, 3)})
        self.time_conv = CausalConv3d(channels, channels * 2, space=1) if over_time else None
        self.folded: Tensor | None = None

    def _apply(self, *arguments: Any, **how: Any) -> Any:
        self.folded = None  # weights that move or change their type are to be prepared again
        return super()._apply(*arguments, **how)

    def forward(self, stream: Stream, state: CausalState | None) -> Tensor:
        x_BTHWC = summed(stream)
        # A clip's first latent is one frame; to `time_conv` the clip begins behind it.
        if self.time_conv is not None and state is None:
            first, others = x_BTHWC[:, :1], x_BTHWC[:, 1:]
            x_BTHWC = torch.cat((first, self._double(others, state)), dim=1) if others.shape[1] else first
        elif self.time_conv is not None and state is not None and not state.first:
            x_BTHWC = self._double(x_BTHWC, state)
        conv = self.resample["1"]
        if state is None:
            return upsample_conv(conv, x_BTHWC)
        return upsample_conv(conv, state.with_edges(x_BTHWC), state.padding((1, 1)), self.folded)

    def _double(self, x_BTHWC: Tensor, state: CausalState | None) -> Tensor:
        assert self.time_conv is not None
        pairs = self.time_conv(x_BTHWC, state).unflatten(-1, (2, -1))
        return pairs.movedim(-2, 2).flatten(1, 2)


class Downsample(nn.Module):
    """Half the rows and columns; with `over_time`, half the frames behind the clip's first."""

    def __init__(self, channels: int, over_time: bool) -> None:
        super().__init__()
        self.resample: Any = nn.ModuleDict({"1": nn.Conv2d(channels, channels, 3, stride=2)})
        self.time_conv = nn.Conv3d(channels, channels, (3, 1, 1), stride=(2, 1, 1)) if over_time else None

    def forward(self, stream: Stream, state: CausalState | None) -> Tensor:
        x_BTHWC = summed(stream)
        frames = F.pad(x_BTHWC.flatten(0, 1), (0, 0, 0, 1, 0, 1)).movedim(-1, 1)
        conv = self.resample["1"]
        x = convolve_pictures(frames, conv.weight, conv.bias, stride=2)
        x = channels_last(x).unflatten(0, x_BTHWC.shape[:2])
        if self.time_conv is None:
            return x
        if state is None:
            return torch.cat((x[:, :1], convolve(self.time_conv, x)), dim=1) if x.shape[1] > 1 else x
        if state.first:
            state.remember(self.time_conv, x, past=1)
            return x
        buffer = state.buffer(self.time_conv, x, past=1)
        buffer[:, 1:] = x
        state.remember(self.time_conv, buffer, past=1)
        return convolve(self.time_conv, buffer)


class UpBlock(nn.Module):
    def __init__(self, in_channels: int, out_channels: int, num_res_blocks: int, upsample: Upsample | None) -> None:
        super().__init__()
        self.resnets = nn.ModuleList([ResidualBlock(in_channels, out_channels)])
        self.resnets.extend(ResidualBlock(out_channels, out_channels) for _ in range(num_res_blocks))
        self.upsamplers = nn.ModuleList([upsample] if upsample else [])

    @property
    def layers(self) -> list[nn.Module]:
        return [*self.resnets, *self.upsamplers]


class Encoder(nn.Module):
    """Frames to the 2 * z_dim channels that `quant_conv` makes mean and log-variance of."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        self.conv_in = CausalConv3d(config.in_channels, config.base_dim)
        self.down_blocks = nn.ModuleList()
        channels = config.base_dim
        for width, over_time in zip(config.widths, (*config.temporal_downsample, None), strict=True):
            for _ in range(config.num_res_blocks):
                self.down_blocks.append(ResidualBlock(channels, width))
                channels = width
            if over_time is not None:
                self.down_blocks.append(Downsample(width, over_time))
        self.mid_block = MidBlock(channels)
        self.norm_out = ChannelNorm(channels)
        self.conv_out = CausalConv3d(channels, 2 * config.z_dim)

    def forward(self, x_BTHWC: Tensor, state: CausalState | None) -> Tensor:
        x = self.conv_in(x_BTHWC, state)
        for layer in (*self.down_blocks, self.mid_block):
            x = layer(x, state)
        return summed(norm_silu_conv(self.norm_out, self.conv_out, x, state)[0])


class Decoder(nn.Module):
    """Latents behind `post_quant_conv` to frames."""

    def __init__(self, config: VAEConfig) -> None:
        super().__init__()
        widths = config.widths[::-1]
        self.conv_in = CausalConv3d(config.z_dim, widths[0])
        self.mid_block = MidBlock(widths[0])
        self.up_blocks: Any = nn.ModuleList()
        channels = widths[0]
        for width, over_time in zip(widths, (*reversed(config.temporal_downsample), None), strict=True):
            upsample = None if over_time is None else Upsample(width, over_time)
            self.up_blocks.append(UpBlock(channels, width, config.num_res_blocks, upsample))
            channels = width // 2
        self.norm_out = ChannelNorm(widths[-1])
        self.conv_out = CausalConv3d(widths[-1], config.out_channels)

    def forward(self, z_BTHWC: Tensor, state: CausalState, *, last: bool = False) -> Iterator[Tensor]:
        """Yield pieces of consecutive frames [B, t, 8H, 8W, C]; with `last` the clip ends with z."""
        state.last = last
        x = self.conv_in(z_BTHWC, state)
        for piece in in_pieces(self._layers, x, state, (self.norm_out, self.conv_out), last=last):
            yield summed(norm_silu_conv(self.norm_out, self.conv_out, piece, state)[0])

    def whole(self, z_BTHWC: Tensor) -> Tensor:
        """Return all frames of a clip's latents at once, [B, T, 8H, 8W, C]; gradients are recorded."""
        x = self.conv_in(z_BTHWC, None)
        for layer in self._layers:
            x = layer(x, None)
        return summed(norm_silu_conv(self.norm_out, self.conv_out, x, None)[0])

    @property
    def _layers(self) -> list[nn.Module]:
        return [self.mid_block, *(layer for block in self.up_blocks for layer in block.layers)]


class WanVAE(nn.Module):
    """Both directions, in the model's own latent space: normalised per channel to mean 0 and deviation 1."""

    def __init__(self, config: VAEConfig, piece_elements: int | None = None) -> None:
        """Build the networks. `piece_elements` is what a layer of the decoder works on at a time, by default
        PIECE_ELEMENTS."""
        super().__init__()
        self.config, self.piece_elements = config, piece_elements
        self.encoder = Encoder(config)
        self.quant_conv = nn.Conv3d(2 * config.z_dim, 2 * config.z_dim, 1)
        self.post_quant_conv = nn.Conv3d(config.z_dim, config.z_dim, 1)
        self.decoder = Decoder(config)

    def use_convolutions(self, choice: Convolutions) -> None:
        """Have `choice` decide what computes the causal convolutions."""
        for layer in self.modules():
            if isinstance(layer, CausalConv3d):
                layer.choice = choice

    @torch.no_grad()
    def prepare(self) -> None:
        """Fold the weights of upsampling and lay all weights out as a GPU's convolutions read them, once for all calls.

        Call it when the weights are where they will stay, and again when they have changed.
        """
        layouts = {4: torch.channels_last, 5: torch.channels_last_3d}
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Conv3d) and layer.weight.is_cuda and math.prod(layer.kernel_size) > 1:
                layer.weight.data = layer.weight.data.contiguous(memory_format=layouts[layer.weight.dim()])
            if isinstance(layer, Upsample):
                folded = fold_upsampling(layer.resample["1"].weight)
                layer.folded = folded.contiguous(memory_format=torch.channels_last) if folded.is_cuda else folded

    @torch.no_grad()
    def decode(self, latents_BCTHW: Tensor, state: CausalState | None = None) -> Iterator[Tensor]:
        """Yield frames [B, 3, t, 8H, 8W] in [-1, 1] of the normalised latents of one chunk, in order, a few at a time.

        The first piece is the first latent's single frame; a further latent adds four. No state outlives the call,
        except `state`, a new one of which is that of ranks that decode together (`vae_rows`).
        """
        mean, std = self._statistics(latents_BCTHW.device)
        z_BTHWC = latents_BCTHW.movedim(1, -1).float() * std + mean
        z_BTHWC = pointwise(self.post_quant_conv, z_BTHWC.to(self.dtype))
        state = state or CausalState(self.piece_elements)
        groups = [group for group in (z_BTHWC[:, :1], z_BTHWC[:, 1:]) if group.shape[1]]
        for latents in groups:
            for frames_BTHWC in self.decoder(latents, state, last=latents is groups[-1]):
                yield frames_BTHWC.clamp_(-1, 1).movedim(-1, 1)
            state.first = False

    def posterior(self, frames_BCTHW: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean and log-variance, [B, z_dim, t, H / 8, W / 8], of clips of 4(t - 1) + 1 frames, with gradients.

        Latents here and in `reconstruct` are as the networks make them, not normalised: for training, which is to find
        their statistics. Takes the memory of all activations.
        """
        x_BTHWC = frames_BCTHW.to(self.dtype).movedim(1, -1)
        moments = pointwise(self.quant_conv, self.encoder(x_BTHWC, None))
        mean, logvar = moments.movedim(-1, 1).to(working_dtype(moments)).chunk(2, dim=1)
        return mean, logvar.clamp(*LOGVAR_RANGE)

    def reconstruct(self, z_BCTHW: Tensor) -> Tensor:
        """Return frames [B, 3, 4(t - 1) + 1, 8H, 8W], not clipped, of latents as of `posterior`, with gradients."""
        z_BTHWC = pointwise(self.post_quant_conv, z_BCTHW.to(self.dtype).movedim(1, -1))
        return self.decoder.whole(z_BTHWC).movedim(-1, 1)

    @torch.no_grad()
    def encode(self, frames_BCTHW: Tensor, generator: torch.Generator) -> Tensor:
        """Return normalised latents [B, z_dim, 1 + (T - 1) / 4, H / 8, W / 8], float32, of a clip of frames in [-1, 1].

        A sample of the posterior: the noise is drawn on the generator's device in the model's dtype, as diffusers draws
        it, so that one seed gives the same picture. T is 4k + 1, H and W are multiples of 8.
        """
        T, H, W = frames_BCTHW.shape[2:]
        if T % FRAMES_PER_LATENT != 1 or H % PIXELS_PER_CELL or W % PIXELS_PER_CELL:
            raise ValueError(f"cannot encode {T} frames of {H}x{W}: frames are 4k + 1, height and width multiples of 8")
        state = CausalState()
        x_BTHWC = frames_BCTHW.to(self.dtype).movedim(1, -1)
        moments = []
        # A latent's four frames at a time, or as many as a piece holds behind the first convolution.
        widest = len(x_BTHWC) * FRAMES_PER_LATENT * H * W * self.config.base_dim
        step = FRAMES_PER_LATENT * max(1, usual_piece_elements(x_BTHWC.device) // widest)
        groups = [group for group in (x_BTHWC[:, :1], *x_BTHWC[:, 1:].split(step, dim=1)) if group.shape[1]]
        for group in groups:
            state.last = group is groups[-1]
            moments.append(self.encoder(group, state))
            state.first = False
        mean_BTHWC, logvar_BTHWC = pointwise(self.quant_conv, torch.cat(moments, dim=1)).chunk(2, dim=-1)
        shape_BCTHW = mean_BTHWC.movedim(-1, 1).shape
        noise = torch.randn(shape_BCTHW, generator=generator, device=generator.device, dtype=self.dtype)
        noise_BTHWC = noise.to(mean_BTHWC.device).movedim(1, -1)
        z_BTHWC = mean_BTHWC.float() + (0.5 * logvar_BTHWC.float().clamp(*LOGVAR_RANGE)).exp() * noise_BTHWC.float()
        mean, std = self._statistics(z_BTHWC.device)
        return ((z_BTHWC - mean) / std).movedim(-1, 1).contiguous()

    @property
    def dtype(self) -> torch.dtype:
        return self.post_quant_conv.weight.dtype

    def _statistics(self, device: torch.device) -> tuple[Tensor, Tensor]:
        return _statistics_of(self.config, device)


@functools.cache
@torch.inference_mode(False)
def _statistics_of(config: VAEConfig, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return mean and deviation of each latent channel; cached, since creating them waits for the GPU."""
    mean, std = torch.tensor([config.latents_mean, config.latents_std]).to(device)
    return mean, std


def frames_to_uint8(frames_BCTHW: Tensor) -> Tensor:
    """Return bytes [B, T, H, W, C] of frames in [-1, 1], rounded to nearest and clipped, on the same device."""
    levels = frames_BCTHW.movedim(1, -1).float().div(2).add_(0.5).clamp_(0, 1).mul_(255)
    return levels.round_().to(torch.uint8).contiguous()


def kept_pictures(pieces: Iterator[Tensor], frames: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the first `frames` frames of pieces [1, 3, t, H, W], in groups of uint8 [t, H, W, 3], and whether each is
    finite."""
    for piece in pieces:
        piece = piece[:, :, :frames]
        yield frames_to_uint8(piece)[0], torch.isfinite(piece).all()
        frames -= piece.shape[2]
        if not frames:
            return
