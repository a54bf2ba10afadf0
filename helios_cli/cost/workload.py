"""The workload of a film: the bytes and counts that its memory and time are computed from, all from sizes alone."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import prod
from typing import TYPE_CHECKING

from helios_cli import machine
from helios_cli.cost import vae
from helios_cli.cost.model import Model
from helios_cli.cost.team import Team
from helios_cli.cost.work import PromptTokens, Work, work_of
from helios_cli.device import ITEMSIZE, Device, is_gpu_of_rank, latent_dtype
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.plan import Plan
from helios_cli.units import FRAMES_PER_CHUNK, LATENTS_PER_CHUNK, PIXELS_PER_CELL, held_keys
from helios_cli.weights.fp8 import Quant
from helios_cli.weights.low_bit import BYTES
from helios_cli.weights.placement import FOLDED_BYTES, GPU_READERS, Placement

if TYPE_CHECKING:
    from helios_cli.weights.preview import PreviewFile

FLOAT32 = 4


@dataclass(frozen=True)
class Workload:
    """A film whose memory and time are planned: its plan, its model, and how it is computed.

    `lanes` films like it render at a time. `vae_device` is the device of the VAE and the text encoder, or None if it is
    `device`. `ranks` processes make the transformer's calls together, each on a GPU of its own; on a CPU all on one.
    With `joins_rank` the VAE and the text encoder are on the GPU of a rank other than the first. `preview` is the
    decoder in the VAE's place, if there is one; with `final` the VAE decodes the film afterwards. `vram` is --vram.
    `prompts` are counted unless they are given. `processes` share the cores of a CPU."""

    plan: Plan
    model: Model
    device: Device
    dtype: str
    quant: Quant = "none"
    lanes: int = 1
    vae_device: Device | None = None
    ranks: int = 1
    joins_rank: bool = False
    preview: PreviewFile | None = None
    final: bool = False
    vram: int | None = None
    prompts: PromptTokens | None = None
    processes: int = 1

    @classmethod
    def of(
        cls,
        plan: Plan,
        model: Model,
        options: RenderOptions,
        device: Device,
        dtype: str,
        quant: Quant,
        lanes: int,
        vae_device: Device | None,
        preview: PreviewFile | None,
        prompts: PromptTokens | None = None,
    ) -> Workload:
        """Return the film that `options` ask for, on devices that were found for them."""
        ranks = options.gpus_per_film
        joins = is_gpu_of_rank(options.vae_device, options.device, ranks)
        how = preview, options.final, options.vram, prompts
        return cls(plan, model, device, dtype, quant, lanes, vae_device, ranks, joins, *how)

    @cached_property
    def work(self) -> Work:
        how = {"preview": self.preview is not None, "final": self.final}
        return work_of(self.plan, self.model, self.latent_dtype, self.prompts, **how)

    @property
    def decoder(self) -> Device:
        """The device of the VAE and the text encoder."""
        return self.vae_device or self.device

    @property
    def piece_elements(self) -> int:
        """Elements that a layer of the VAE's decoder works on at a time."""
        return vae.piece_elements_on(self.decoder, self.vram)

    @property
    def branches(self) -> int:
        return 2 if self.plan.guidance > 1 else 1

    @property
    def teams(self) -> Team:
        return Team.of(self.ranks, self.plan.guidance, self.model.dit.num_attention_heads, self.model.name)

    @property
    def team(self) -> int:
        """Ranks that share a call's rows."""
        return self.teams.size

    @property
    def decoders(self) -> int:
        """Ranks that decode a chunk together; a preview decoder works alone."""
        if self.preview:
            return 1
        return self.teams.decoders(self.plan.size, is_apart=self.vae_device is not None)

    def chunks_beside(self, placement: Placement) -> int:
        """Return how many chunks are decoded at a time while the next one is denoised; lanes and ranks take turns."""
        if self.lanes > 1 or self.decoders > 1:
            return 0
        is_apart, on_cores = self.vae_device is not None, self._chunks_on_cores
        return placement.chunks_beside(self.device.kind, is_apart=is_apart, on_cores=on_cores)

    @cached_property
    def _chunks_on_cores(self) -> int:
        if self.device.kind != "cpu" or self.ranks > 1:
            return 0
        return machine.chunks_beside(machine.cpu_threads(self.model.parameters["transformer"]), self.processes)

    @cached_property
    def latent_dtype(self) -> str:
        """The dtype of the transformer and the text encoder."""
        return latent_dtype(self.dtype, self.device.kind, self.model.parameters, quant=self.quant)

    @property
    def itemsize(self) -> int:
        """Bytes of a number of the transformer and the text encoder."""
        return ITEMSIZE[self.latent_dtype]

    @property
    def vae_dtype(self) -> str:
        return "float32" if self.dtype == "float16" else self.dtype  # the VAE leaves float16's range

    @property
    def vae_itemsize(self) -> int:
        return ITEMSIZE[self.vae_dtype]

    @property
    def product_itemsize(self) -> int:
        """Bytes of a number that products take and give: float32 on a CPU that multiplies no smaller type fast."""
        return FLOAT32 if self._is_wide_on(self.device) else self.itemsize

    @property
    def frame_itemsize(self) -> int:
        """Bytes of a number that the VAE's convolutions take and give."""
        return FLOAT32 if self._is_wide_on(self.decoder) else self.vae_itemsize

    def _is_wide_on(self, device: Device) -> bool:
        return device.kind == "cpu" and (self.dtype == "float16" or "bf16" not in device.name)

    @property
    def block_bytes(self) -> int:
        """Bytes of the matrices of a block that model calls need, as they compute."""
        dit = self.model.dit
        if self.model.low_bit:
            return round(BYTES[self.model.low_bit] * dit.call_matrices)
        rounded = dit.fp8_block_parameters if self.quant != "none" else 0
        return rounded + self.itemsize * (dit.call_matrices - rounded)

    @property
    def prompt_block_bytes(self) -> int:
        """Bytes of the matrices of a block that only prompts need."""
        return self.itemsize * self.model.dit.prompt_matrices

    @property
    def transformer_bytes(self) -> int:
        dit = self.model.dit
        islands = (FLOAT32 - self.itemsize) * dit.fp32_parameters
        rounded = dit.num_layers * (self.itemsize * dit.call_matrices - self.block_bytes)
        # A weight in few bits is widened for its product: the largest, and pieces of the next one.
        largest = dit.width * max(3 * dit.width, dit.ffn_dim)
        widened = self.itemsize * largest + 8 * 1024 * dit.ffn_dim if self.model.low_bit else 0
        return self.itemsize * self.model.parameters["transformer"] + islands - rounded + widened

    @property
    def vae_bytes(self) -> int:
        return self.vae_itemsize * self.model.parameters["vae"]

    def alternates(self, placement: Placement) -> bool:
        """Return whether the transformer leaves the device for each decoding: a preview decoder has room next to it."""
        return placement.takes_turns and self.preview is None

    @property
    def text_layer_bytes(self) -> int:
        """Bytes of the matrices of a layer of the text encoder, as they compute."""
        text = self.model.text
        wide = text.float16_fp32_parameters // text.num_layers if self.dtype == "float16" else 0
        return self.itemsize * text.layer_matrices + (FLOAT32 - self.itemsize) * wide

    @property
    def prompt_bytes(self) -> int:
        """Bytes of the encoded prompts of all lanes, on the host; prompts that no film needs any more are dropped."""
        return self.lanes * self.itemsize * self.model.text.d_model * sum(self.work.prompts.tokens.values())

    @property
    def latent_bytes(self) -> int:
        """Bytes of the latents of one chunk."""
        cells = prod(pixels // PIXELS_PER_CELL for pixels in self.plan.size)
        return FLOAT32 * self.model.dit.in_channels * LATENTS_PER_CHUNK * cells

    @property
    def picture_bytes(self) -> int:
        """Bytes of the frames of one chunk, one for each colour of a pixel."""
        return 3 * prod(self.plan.size) * FRAMES_PER_CHUNK

    @property
    def rope_bytes(self) -> int:
        """Bytes of the rotations of all stages."""
        return FLOAT32 * sum(stage.rows for stage in self.work.stages) * self.model.dit.attention_head_dim

    @property
    def history_bytes(self) -> int:
        """Bytes of the embedded history."""
        return self.work.history.total * self.model.dit.width * self.itemsize

    @property
    def past_bytes(self) -> int:
        """Bytes of the history's keys and values that calls of a chunk leave for later ones."""
        return self.branches * self.context_bytes(self.work.history.total) if self.plan.reuse_history else 0

    @property
    def text_rows(self) -> int:
        """Rows of the longest prompt's keys on this device."""
        return self.held_keys(self.work.text_rows)

    def held_keys(self, rows: int) -> int:
        """Return the keys that stand for this many rows of text on this device."""
        return held_keys(rows) if self.device.kind == "cuda" else rows

    def context_bytes(self, rows: int) -> int:
        """Return the bytes of keys and values for all blocks, of rows of a prompt or of the history."""
        return 2 * self.model.dit.num_layers * rows * self.model.dit.width * self.itemsize

    def streamed(self, placement: Placement) -> int:
        """Return how many blocks of the transformer stream."""
        return self.model.dit.num_layers - placement.resident if placement.mode == "stream" else 0

    @property
    def prompt_changes(self) -> int:
        """The times that keys and values of prompts are computed after those that all lanes begin with."""
        chunks = self.plan.chunks
        return self.lanes * sum(now.prompts != before.prompts for before, now in pairwise(chunks))

    def stored(self, component: str, count: float) -> int:
        """Return the bytes of `count` parameters in their files, with their share of LoRA files."""
        checkpoint = self.model.checkpoint
        if checkpoint is None:
            return round(FLOAT32 * count)  # as they are published
        part = checkpoint.component(component)
        loras = sum(adapter.bytes for adapter in checkpoint.adapters) if component == "transformer" else 0
        return round((part.bytes + loras) / part.parameters * count)

    @property
    def folding_bytes(self) -> int:
        """Bytes of host memory in which LoRA files are folded into a weight as it is read."""
        adapters = self.model.checkpoint.adapters if self.model.checkpoint else ()
        if not adapters:
            return 0
        readers = GPU_READERS if self.device.kind == "cuda" else 1
        return readers * (FOLDED_BYTES + max(adapter.working_bytes for adapter in adapters))

    @property
    def can_stream(self) -> bool:
        """Return whether blocks can stream: not on Apple's devices, and fp8 weights only from files that hold them as
        they compute, without a LoRA."""
        checkpoint = self.model.checkpoint
        if self.quant != "none" and (checkpoint is None or checkpoint.adapters):
            return False
        is_stored = checkpoint is not None and "F8_E4M3" in checkpoint.component("transformer").dtypes
        return self.device.kind != "mps" and (self.quant == "none" or is_stored)

    @property
    def is_conditioned(self) -> bool:
        return any(chunk.image or chunk.video for chunk in self.plan.chunks)

    @cached_property
    def reading_bytes(self) -> int:
        """Bytes for reading the largest picture or clip."""
        if not self.is_conditioned:
            return 0  # a bench on a bare machine has no Pillow
        from helios_cli.film.reading import probe
        from helios_cli.recipe.pictures import reading_bytes

        pictures = {reading_bytes(chunk.image) for chunk in self.plan.chunks if chunk.image}
        return max(pictures | {probe(chunk.video).decoder_bytes for chunk in self.plan.chunks if chunk.video})
