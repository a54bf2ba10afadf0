"""Choices that are measured before a film begins: attention, convolutions of the VAE, sums of products in fp8.

Each choice decides how numbers are rounded, so that it enters the fingerprints of a film (`cost.arithmetic`).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import partial

import torch

import helios_kernels
from helios_cli import machine
from helios_cli.architecture import DiTConfig, VAEConfig
from helios_cli.cost.arithmetic import fast_sums, product_shapes
from helios_cli.cost.vae import PAST, decoder_levels
from helios_cli.measured import ATTENTION, CONVOLUTIONS, SUMS, Kind, Measured, Measurements
from helios_cli.model.attention import AUTO, Choice, Choice8Bit, attention, auto_rule, choose
from helios_cli.model.backends import distance
from helios_cli.model.convolution import Convolutions
from helios_cli.model.dit import HeliosDiT
from helios_cli.model.fp8 import FAST_LENGTHS, Fp8, product
from helios_cli.units import FRAMES_PER_LATENT, LATENTS_PER_CHUNK, PROMPT_KEYS, grid_of
from helios_cli.weights.checkpoint import Checkpoint
from helios_cli.weights.fp8 import EXACT, FAST, Quant, quantize_weight
from helios_kernels.case import outliers
from helios_kernels.timing import gpu_seconds

COMPARED = 1024
"""Outputs of a product in fp8 that are compared with float32."""

GROWTH = 1.1
"""Error of a product with fast sums up to which it is taken, as a share of its error with float32 sums."""


class Choices:
    """The choices for the films of one model on its devices; nothing is measured on devices other than GPUs.

    Args:
        dtype, vae_dtype: of the transformer, and of the VAE.
        name: --attention.
        wanted: attention by shape that `auto` follows, to repeat another film.

    Attributes:
        fast_sums: lengths of the products in fp8 whose sums are fast.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        device: torch.device,
        vae_device: torch.device,
        dtype: torch.dtype,
        vae_dtype: torch.dtype,
        *,
        quant: Quant,
        name: str,
        wanted: Mapping[str, str] | None,
    ) -> None:
        self._checkpoint, self._device, self._vae_device = checkpoint, device, vae_device
        self._dtype, self._vae_dtype, self._quant, self._is_auto = dtype, vae_dtype, quant, name == AUTO
        config, has_8_bits = checkpoint.architecture.dit, quant == "fp8+attention"
        memory = _memory(ATTENTION, device) if self._is_auto or has_8_bits else None
        heads = config.num_attention_heads, config.attention_head_dim
        self.attention = choose(name, device, dtype, *heads, memory=memory, wanted=wanted)
        self.in_8_bits = Choice8Bit(self.attention, wanted) if has_8_bits else None
        self.convolutions = Convolutions(_memory(CONVOLUTIONS, vae_device))
        self.fast_sums: frozenset[int] = frozenset()

    @property
    def attention_taken(self) -> Mapping[str, str]:
        """The backend that `auto` chose on a GPU for each shape that was measured."""
        return {**self.attention.taken, **(self.in_8_bits.taken if self.in_8_bits else {})}

    def settle(self, size: tuple[int, int], team: int = 1) -> None:
        """Measure for films of `size` what was not measured yet; `team` ranks share a model call."""
        configs, stages = self._checkpoint.architecture, self._checkpoint.stages
        if self._vae_device.type == "cuda":
            measure_convolutions(self.convolutions, configs.vae, size, self._vae_dtype, self._vae_device)
        if self._device.type != "cuda":
            return
        if self._is_auto or self.in_8_bits is not None:
            grids = [grid_of(size, configs.dit.patch_size, halvings) for halvings in reversed(range(stages))]
            measure_attention(self.attention, configs.dit, grids, self._dtype, self._device, team, self.in_8_bits)
        if self._quant != "none":
            shapes = product_shapes(configs.dit, self._checkpoint.native_size, stages)
            memory = _memory(SUMS, self._device)
            measure_sums(memory, shapes, self._device)
            self.take_over(sums=fast_sums(memory.known, shapes))

    def take_over(self, attention: Mapping[str, str] | None = None, sums: Iterable[int] = ()) -> None:
        """Take these backends by shape, which rank 0 has chosen, and fast sums for products of these lengths alone."""
        if attention is not None:
            for choice in filter(None, (self.attention, self.in_8_bits)):
                choice.wanted = attention
        self.fast_sums = frozenset(sums)
        FAST_LENGTHS.clear()
        FAST_LENGTHS.update(self.fast_sums)


def _memory(kind: Kind, device: torch.device) -> Measurements:
    """Return what was measured of a kind on a GPU; nothing for other devices, and for what they would measure."""
    return kind.on(torch.cuda.get_device_name(device)) if device.type == "cuda" else Measurements()


def attention_facts(device: torch.device) -> dict:
    """Return what --attention auto chooses on `device`, why, and what was measured there."""
    rule = auto_rule(device)
    known = _memory(ATTENTION, device).known
    return {
        "auto": rule.name,
        "reason": rule.reason,
        "measured": {shape: asdict(measured) for shape, measured in sorted(known.items())},
        "pytorch": list(machine.attention_backends(device)),
    }


@torch.no_grad()
def measure_attention(
    choice: Choice,
    config: DiTConfig,
    grids: Sequence[tuple[int, int]],
    dtype: torch.dtype,
    device: torch.device,
    team: int = 1,
    in_8_bits: Choice | None = None,
) -> None:
    """Time the attention shapes of a film that `choice` (`auto`) has not timed yet, and those of self-attention
    `in_8_bits`; `grids` are coarsest first.

    The choice is thus made before the film begins, and can enter its fingerprints
    (`cost.arithmetic.attention_shapes`). With a `team` of ranks each has a share of the heads in self-attention, and of
    the rows in cross-attention (`model.sharded`).
    """
    with torch.device("meta"):
        dit = HeliosDiT(config)
    heads, size = config.num_attention_heads, config.attention_head_dim
    for grid in grids:
        rows, noisy = len(dit.rope(grids[-1], grid)), LATENTS_PER_CHUNK * grid[0] * grid[1]
        together = torch.randn(1, rows, 3, heads // team, size, device=device, dtype=dtype)
        q, k, v = together.unbind(2)  # slices of one product, or of what ranks exchange
        x = q.contiguous()
        if team == 1 and not helios_kernels.runs(x, "qk_norm_rope"):
            q, k, v = x, x, x
        if team == 1 and config.is_amplify_history:
            k = x  # amplified keys are a separate tensor
        for one in filter(None, (choice, in_8_bits)):
            attention(q, k, v, None, one)
            attention(x[:, -noisy:], x, x, None, one)  # the last block computes its queries separately
        asking = noisy if config.guidance_cross_attn else rows
        for own in sorted({-(-asking // team), asking // team}, reverse=True):
            queries = torch.randn(1, own, heads, size, device=device, dtype=dtype)
            for keys in PROMPT_KEYS:
                prompt = torch.randn(1, keys, heads, size, device=device, dtype=dtype)
                attention(queries, prompt, prompt, torch.zeros(keys, device=device), choice)
            attention(queries, prompt, prompt, None, choice)  # a prompt that fills all 512


@torch.no_grad()
def measure_convolutions(
    choice: Convolutions, config: VAEConfig, size: tuple[int, int], dtype: torch.dtype, device: torch.device
) -> None:
    """Choose for the convolutions of a film's decoder; those that were not timed yet are, on four frames.

    That is before the film begins, so that the choice enters its fingerprints (`cost.arithmetic.convolution_shapes`).
    """
    for rows, columns, channels in decoder_levels(config, size):
        x = torch.randn(1, PAST + FRAMES_PER_LATENT, rows, columns, channels, device=device, dtype=dtype)
        weight = torch.randn(channels, PAST + 1, 3, 3, channels, device=device) * (27 * channels) ** -0.5
        choice.settle(x, weight.to(dtype).movedim(-1, 1))


def measure_sums(memory: Measurements, shapes: Iterable[str], device: torch.device) -> None:
    """Time and compare the products in fp8 of these shapes that `memory` does not have yet."""
    for shape in shapes:
        if shape not in memory.known:
            with contextlib.suppress(torch.OutOfMemoryError):  # not known, so not fast
                rows, inner, outer = map(int, shape.split("x"))
                memory.keep(shape, compare_sums(rows, inner, outer, device, gpu_seconds))


@torch.no_grad()
def compare_sums(
    rows: int, inner: int, outer: int, device: torch.device, seconds: Callable[[Callable[[], object]], float]
) -> Measured:
    """Time a product and compare it with float32, with sums in float32 and with fast ones.

    Those are taken where they are faster and their error is that of fp8 all the same."""
    x = outliers(rows, inner, dtype=torch.bfloat16, device=device)  # as in the stream of a trained model
    weight = torch.randn(outer, inner, device=device)
    bias = torch.zeros(outer, device=device, dtype=torch.bfloat16)
    exact = x.float() @ weight[:COMPARED].T
    rounded, (values, scales) = Fp8.of(x), quantize_weight(weight)
    del x, weight
    ms, apart = {}, {}
    for name in (EXACT, FAST):
        call = partial(product, rounded, values, scales, bias, fast_sums=name == FAST)
        apart[name] = distance(call()[:, :COMPARED], exact)
        ms[name] = 1e3 * seconds(call)
    return Measured(sums_to_take(ms, apart), ms, apart=apart)


def sums_to_take(ms: Mapping[str, float], apart: Mapping[str, float]) -> str:
    return FAST if ms[FAST] < ms[EXACT] and apart[FAST] <= GROWTH * apart[EXACT] else EXACT
