"""Memory by phase, from the sizes of weights and tensors. What no size tells is stated and called so.

The numbers are of what the engine holds at once, which the tests follow tensor by tensor; an allocator keeps some more,
and so do a GPU's libraries for convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from math import prod

from helios_cli.cost import vae
from helios_cli.cost.model import Model
from helios_cli.cost.tokens import PromptTokens
from helios_cli.cost.work import Work
from helios_cli.device import ITEMSIZE, Device
from helios_cli.recipe.plan import Plan
from helios_cli.units import (
    FRAMES_PER_CHUNK,
    GRAPHS,
    LATENTS_PER_CHUNK,
    PIXELS_PER_CELL,
    PROMPTS_TOGETHER,
    QUEUE_BYTES,
    held_keys,
)
from helios_cli.weights.fp8 import Quant
from helios_cli.weights.placement import DEVICE_SLOTS, HOST_SLOTS, Placement

FLOAT32 = 4

RUNTIME_BYTES = {"cuda": 500_000_000, "mps": 0, "cpu": 0}
"""On the device before anything is put there: a CUDA context with its libraries. Stated."""

FRAGMENTATION = {"cuda": 0.1, "mps": 0.1, "cpu": 0.1}
"""Share of what comes and goes that an allocator holds on top, and libraries of their own. Stated."""

AHEAD_SHARE = 0.9
"""Of a budget, that reading ahead may fill: what is estimated for the rest is some percent off. Stated."""

PROCESS_BYTES = {"cuda": 1_000_000_000, "mps": 600_000_000, "cpu": 550_000_000}
"""Of host memory: Python, PyTorch, what it keeps to be fast, and the libraries' files. On a CPU it was 490 MB."""

ENCODER_BYTES = 64_000_000
"""Of host memory: ffmpeg, beside the frames it looks ahead. Stated."""

ENCODER_FRAMES = 130
"""Frames in 12 bits a pixel that ffmpeg holds: with the above, 112 MB at 640x384, as measured for x264 medium."""


@dataclass(frozen=True)
class PhaseMemory:
    """Bytes on the device in one phase: `weights`, `kept` between chunks, and `working` at the peak of the phase."""

    phase: str
    weights: int
    kept: int
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.kept + self.working


@dataclass(frozen=True)
class Budget:
    """Bytes that a render may take; None where it is not known. On a CPU only `host_bytes` counts."""

    device_bytes: int | None
    host_bytes: int | None


@dataclass(frozen=True)
class MemoryMode:
    """What one way of placing the model takes.

    Attributes:
        placement: the way; its `mode` is a value of `--offload`.
        phases: on the device.
        device_bytes: at most, with what the runtime takes, and without what of the budget is used to read ahead.
        host_bytes: at most, pinned memory included and the kernel's page cache left out; on a CPU, where both are one,
            this is the sum.
        moved_bytes: weights brought to where they compute, a chunk of the film on average.
        read_bytes: those bytes as they are stored, which come out of the page cache or from the disk.
        waited_bytes: of the moved ones, those of parts that come before the transformer or the VAE begins.
        ahead_bytes: of those, what comes of the transformer while a chunk is decoded and of the VAE while one is
            denoised.
        pass_bytes: of the files that are read over and over, as they are stored: what the page cache has to hold.
        overlaps: a chunk is decoded while the next one is denoised.
        fits: into the budget; None if that is not known.
    """

    placement: Placement
    phases: tuple[PhaseMemory, ...]
    device_bytes: int
    host_bytes: int
    moved_bytes: int
    read_bytes: int
    waited_bytes: int
    ahead_bytes: tuple[int, int]
    pass_bytes: int
    overlaps: bool
    fits: bool | None

    @property
    def name(self) -> str:
        return self.placement.mode


@dataclass(frozen=True)
class Subject:
    """What is placed: a film, its model, and how it is computed. `lanes` films of its kind render at a time."""

    plan: Plan
    model: Model
    work: Work
    prompts: PromptTokens
    device: Device
    dtype: str
    quant: Quant = "none"
    lanes: int = 1

    @property
    def itemsize(self) -> int:
        return ITEMSIZE[self.dtype]

    @property
    def block_bytes(self) -> int:
        """Matrices of a block of the transformer, as they compute."""
        dit = self.model.dit
        rounded = dit.fp8_block_parameters if self.quant == "fp8" else 0
        return rounded + self.itemsize * (dit.block_matrices - rounded)

    @property
    def transformer_bytes(self) -> int:
        dit = self.model.dit
        rounded = dit.num_layers * dit.fp8_block_parameters if self.quant == "fp8" else 0
        islands = (FLOAT32 - self.itemsize) * dit.fp32_parameters
        return self.itemsize * self.model.parameters["transformer"] + islands - (self.itemsize - 1) * rounded

    @property
    def vae_itemsize(self) -> int:
        return FLOAT32 if self.dtype == "float16" else self.itemsize  # the VAE leaves float16's range

    @property
    def product_itemsize(self) -> int:
        """Of what products take and give: float32 on a CPU that multiplies no smaller type (`model.ops`)."""
        is_wide = self.device.kind == "cpu" and (self.dtype == "float16" or "avx512" not in self.device.name)
        return FLOAT32 if is_wide else self.itemsize

    @cached_property
    def reading_bytes(self) -> int:
        """Memory for reading the picture or clip that takes the most."""
        if not any(chunk.image or chunk.video for chunk in self.plan.chunks):
            return 0  # a bench on a bare machine has no Pillow
        from helios_cli.film.reading import probe
        from helios_cli.recipe.pictures import reading_bytes

        pictures = {reading_bytes(chunk.image) for chunk in self.plan.chunks if chunk.image}
        return max(pictures | {probe(chunk.video).decoder_bytes for chunk in self.plan.chunks if chunk.video})

    def held_keys(self, rows: int) -> int:
        """Keys that this many rows of text take on this device."""
        return held_keys(rows) if self.device.kind == "cuda" else rows

    def stored(self, component: str, count: float) -> int:
        """Bytes of `count` parameters in their files."""
        checkpoint = self.model.checkpoint
        if checkpoint is None:
            return round(FLOAT32 * count)  # as they are published
        part = checkpoint.component(component)
        return round(part.bytes / part.parameters * count)


def streams(subject: Subject) -> bool:
    """Whether blocks can stream: not on Apple's devices, and fp8 weights only from files that hold them."""
    checkpoint = subject.model.checkpoint
    rounded = checkpoint is not None and "F8_E4M3" in checkpoint.component("transformer").dtypes
    return subject.device.kind != "mps" and (subject.quant == "none" or rounded)


def mode_of(subject: Subject, budget: Budget, placement: Placement) -> MemoryMode:
    """What `placement` takes."""
    phases = _phases(subject, placement)
    kind = subject.device.kind
    overlaps = kind == "cuda" and subject.lanes == 1 and placement.overlaps
    on_device = max(phase.total for phase in phases)
    if overlaps:  # with whatever the VAE does, one chunk's decoding or another's conditioning
        *others, denoise = sorted(phases[1:], key=lambda phase: phase.phase == "denoise")
        on_device = max(on_device, denoise.working + max(phase.total for phase in others))
    on_device += RUNTIME_BYTES[kind]
    host = _host_bytes(subject)
    if kind == "cpu":
        host += on_device
    else:
        host += _prompt_bytes(subject)
        if placement.mode == "stream":
            host += HOST_SLOTS * max(subject.block_bytes, _text_layer_bytes(subject))
    fits = _fits(
        [(host, budget.host_bytes)] if kind == "cpu" else [(on_device, budget.device_bytes), (host, budget.host_bytes)]
    )
    moved, read, waited = _moved(subject, placement)
    placement = _with_ahead(subject, placement, phases, budget, host)
    vae_bytes = subject.vae_itemsize * subject.model.parameters["vae"]
    return MemoryMode(
        placement=placement,
        phases=tuple(phases),
        device_bytes=on_device,
        host_bytes=host,
        moved_bytes=moved,
        read_bytes=read,
        waited_bytes=waited,
        ahead_bytes=(
            min(placement.transformer_ahead_bytes, subject.transformer_bytes),
            min(placement.vae_ahead_bytes, vae_bytes),
        ),
        pass_bytes=_pass_bytes(subject, placement),
        overlaps=overlaps,
        fits=fits,
    )


def _with_ahead(
    subject: Subject, placement: Placement, phases: list[PhaseMemory], budget: Budget, host: int
) -> Placement:
    """`placement` with how much of the part that works next may be read while another works: what the budget leaves."""
    kind, totals = subject.device.kind, {phase.phase: phase.total for phase in phases}
    room = None
    if kind == "cpu" and budget.host_bytes is not None:
        room = AHEAD_SHARE * budget.host_bytes - (host - max(totals.values()))
    elif kind == "cuda" and budget.device_bytes is not None:
        room = AHEAD_SHARE * budget.device_bytes - RUNTIME_BYTES[kind]
    if placement.mode != "model" or room is None:
        return placement
    vae_room = room - totals.pop("denoise")
    transformer_room = room - max(totals.values())
    return replace(
        placement, transformer_ahead_bytes=max(0, int(transformer_room)), vae_ahead_bytes=max(0, int(vae_room))
    )


def _fits(sizes: list[tuple[int, int | None]]) -> bool | None:
    """Of (needed, most), the first of which has to be known for a yes."""
    if any(most is not None and needed > most for needed, most in sizes):
        return False
    return None if sizes[0][1] is None else True


def _moved(subject: Subject, placement: Placement) -> tuple[int, int, int]:
    """Bytes of weights a chunk on average: as they compute, as they are stored, and those computed that are waited for.

    Parts that take turns come whole but for blocks that stream.
    """
    plan, model, chunks = subject.plan, subject.model, len(subject.plan.chunks)
    dit = model.dit
    if placement.mode == "none":
        return 0, 0, 0
    streamed = dit.num_layers - placement.resident if placement.mode == "stream" else 0
    whole = read_whole = 0
    if placement.takes_turns:
        stays = model.parameters["transformer"] - streamed * dit.block_matrices
        vae_weights = model.parameters["vae"]
        whole = subject.transformer_bytes - streamed * subject.block_bytes + subject.vae_itemsize * vae_weights
        read_whole = subject.stored("transformer", stays) + subject.stored("vae", vae_weights)
    branches = 2 if plan.guidance > 1 else 1
    passes = subject.work.calls / branches / chunks
    changes = (
        sum(chunk.prompts != before.prompts for before, chunk in zip(plan.chunks, plan.chunks[1:], strict=False))
        + branches
    )
    share = 2 * dit.width**2 / dit.block_matrices  # keys and values of the prompts
    blocks = streamed * (passes + subject.lanes * share * changes / chunks)
    return (
        round(blocks * subject.block_bytes) + whole,
        subject.stored("transformer", blocks * dit.block_matrices) + read_whole,
        whole,
    )


def _pass_bytes(subject: Subject, placement: Placement) -> int:
    """Of the files that are read over and over, as they are stored."""
    model = subject.model
    if placement.takes_turns:
        return subject.stored("transformer", model.parameters["transformer"]) + subject.stored(
            "vae", model.parameters["vae"]
        )
    streamed = model.dit.num_layers - placement.resident if placement.mode == "stream" else 0
    return subject.stored("transformer", streamed * model.dit.block_matrices)


def _phases(subject: Subject, placement: Placement) -> list[PhaseMemory]:
    """The text encoder alone and gone; then transformer and VAE, together or in turns, to the film's end."""
    plan, model, itemsize = subject.plan, subject.model, subject.itemsize
    work = replace(subject.work, text_rows=subject.held_keys(subject.work.text_rows))
    transformer, vae_weights = subject.transformer_bytes, subject.vae_itemsize * model.parameters["vae"]
    if placement.mode == "stream":
        slots = HOST_SLOTS if subject.device.kind == "cpu" else DEVICE_SLOTS
        streamed = model.dit.num_layers - placement.resident
        transformer -= (streamed - min(streamed, 1) * slots) * subject.block_bytes
    together = 0 if placement.takes_turns else transformer + vae_weights
    kept = subject.lanes * _kept_bytes(plan, model, work, itemsize)
    if subject.device.kind == "cpu":
        kept += _prompt_bytes(subject)
    kind = "cpu" if subject.device.kind == "cpu" else "cuda"
    slack = 1 + FRAGMENTATION[subject.device.kind]
    calling = _call_bytes(model, work, subject.product_itemsize)
    if subject.device.kind == "cuda" and placement.mode == "none" and placement.graphs:
        kept += round(slack * calling) + _recorded_bytes(subject)
    phases = [_text_phase(subject, placement)]
    if placement.text_beside:
        phases[0] = replace(phases[0], weights=phases[0].weights + together)
    if any(chunk.image or chunk.video for chunk in plan.chunks):
        working = max(subject.vae_itemsize, subject.product_itemsize) * vae.encode_elements(model.vae, plan.size, kind)
        phases.append(PhaseMemory("conditioning", together or vae_weights, kept, round(slack * working)))
    if placement.mode == "stream":
        branches = 2 if plan.guidance > 1 else 1
        calling += (subject.lanes * branches - 1) * _stream_bytes(model, work, itemsize)
    # A prompt's keys and values are there twice when they are put together, beside those of the one before.
    working = max(calling, 2 * _context_bytes(model, work.text_rows, itemsize))
    working += 3 * FLOAT32 * subject.lanes * _latent_elements(plan, model)
    phases.append(PhaseMemory("denoise", together or transformer, kept, round(slack * working)))
    working = max(subject.vae_itemsize, subject.product_itemsize) * vae.decode_elements(model.vae, plan.size, kind)
    phases.append(PhaseMemory("decode", together or vae_weights, kept, round(slack * working)))
    return phases


def _text_layer_bytes(subject: Subject) -> int:
    """Matrices of a layer of the text encoder, as they compute."""
    shape = subject.model.text
    wide = shape.float16_fp32_parameters // shape.num_layers if subject.dtype == "float16" else 0
    return subject.itemsize * shape.layer_matrices + (FLOAT32 - subject.itemsize) * wide


def _text_phase(subject: Subject, placement: Placement) -> PhaseMemory:
    model, prompts, itemsize = subject.model, subject.prompts, subject.itemsize
    shape, tokens = model.text, max(prompts.tokens.values())
    if placement.mode == "stream":
        weights = (HOST_SLOTS if subject.device.kind == "cpu" else DEVICE_SLOTS) * _text_layer_bytes(subject)
    else:
        weights = itemsize * model.parameters["text_encoder"]
        if subject.dtype == "float16":
            weights += (FLOAT32 - itemsize) * shape.float16_fp32_parameters
    kept = _prompt_bytes(subject)
    if subject.device.kind != "cpu":  # they leave the device as they come, some at a time where the encoder streams
        together = PROMPTS_TOGETHER if placement.mode == "stream" else 1
        kept = itemsize * shape.d_model * sum(sorted(prompts.tokens.values())[-together:])
    # All heads' products, their bias and the sum of both; or in float32, before and after the softmax.
    scores = max(3 * itemsize, 2 * FLOAT32) * shape.num_heads * tokens * tokens
    gate = 3 * itemsize * tokens * shape.d_ff
    rows = itemsize * tokens * shape.d_model
    return PhaseMemory("text", weights, kept, max(scores + 5 * rows, gate + 3 * rows))


def _prompt_bytes(subject: Subject) -> int:
    """The encoded prompts of all lanes, on the host; used ones are dropped."""
    shape = subject.model.text
    return subject.lanes * subject.itemsize * shape.d_model * sum(subject.prompts.tokens.values())


def _kept_bytes(plan: Plan, model: Model, work: Work, itemsize: int) -> int:
    """Keys and values of the prompts, rotations, modulation rows, history and its tokens."""
    dit = model.dit
    contexts = 2 if plan.guidance > 1 else 1
    text = contexts * _context_bytes(model, work.text_rows, itemsize)
    rows = sum(stage.noisy + stage.history for stage in work.stages)
    rotations = FLOAT32 * rows * dit.attention_head_dim
    amplified = model.preset.amplify_first_chunk and model.stages > 1
    schedules = {2 if amplified and chunk.fresh else 1 for chunk in plan.chunks}  # by how often a step is doubled
    timesteps = sum(plan.steps) * sum(schedules)
    modulation = FLOAT32 * timesteps * 2 * 6 * dit.num_layers * dit.width
    history = FLOAT32 * 3 * _latent_elements(plan, model)  # 19 frames and the anchor, while 9 more come in
    return text + rotations + modulation + history + work.history.total * dit.width * itemsize


def _context_bytes(model: Model, rows: int, itemsize: int) -> int:
    """Keys and values of a prompt for all blocks."""
    return 2 * model.dit.num_layers * rows * model.dit.width * itemsize


def _recorded_bytes(subject: Subject) -> int:
    """What recorded calls hold beside a call's memory: copies of the inputs and the results of each shape, and the
    inputs of earlier chunks that the copies were made of."""
    plan, model, work, itemsize = subject.plan, subject.model, subject.work, subject.itemsize
    dit, latents = model.dit, _latent_elements(plan, model)
    prompts = [[text for text, _ in chunk.prompts] for chunk in plan.chunks]
    prompts += [[plan.negative]] if plan.guidance > 1 else []
    lengths = {subject.held_keys(subject.prompts.rows(texts, subject.dtype)) for texts in prompts}
    texts = 2 * sum(_context_bytes(model, rows, itemsize) for rows in lengths)
    # The film keeps one of them; each film beside it, at most as long a prompt, may have one of another length.
    texts += (2 * (subject.lanes - 1) - 1) * _context_bytes(model, subject.held_keys(work.text_rows), itemsize)
    history = 2 * work.history.total * dit.width * itemsize
    rotations = FLOAT32 * sum(stage.noisy + stage.history for stage in work.stages) * dit.attention_head_dim
    modulation = FLOAT32 * 2 * (6 * dit.num_layers + 1) * dit.width
    return texts + history + rotations + modulation + (2 * len(work.stages) + GRAPHS) * FLOAT32 * latents


def _latent_elements(plan: Plan, model: Model) -> int:
    """Of one chunk."""
    return model.dit.in_channels * LATENTS_PER_CHUNK * prod(pixels // PIXELS_PER_CELL for pixels in plan.size)


def _call_bytes(model: Model, work: Work, itemsize: int) -> int:
    """A model call in its widest stage: the more of two moments in a block.

    One is the norm of the keys, in float32 in three steps (two where nothing is rounded), beside the stream, its norm,
    queries, keys and values. The other is the feed-forward, whose hidden rows are there before and after GELU, beside
    the stream and its norm, and what cross-attention leaves of the noisy rows, its norm and its result.
    """
    dit = model.dit
    widest = max(work.stages, key=lambda stage: stage.noisy)
    rows = widest.noisy + widest.history
    at_keys = rows * dit.width * (5 * itemsize + (3 if itemsize < FLOAT32 else 2) * FLOAT32)
    at_hidden = 2 * (rows + widest.noisy) * dit.width * itemsize + 2 * rows * dit.ffn_dim * itemsize
    return max(at_keys, at_hidden)


def _stream_bytes(model: Model, work: Work, itemsize: int) -> int:
    """The rows of one more call that waits for its turn in the same block, and their norm."""
    return 2 * max(stage.noisy + stage.history for stage in work.stages) * model.dit.width * itemsize


def _host_bytes(subject: Subject) -> int:
    """Beside the model: this process, what reading a picture or clip takes, and for each film frames on their way to
    the encoder, and the encoder."""
    plan = subject.plan
    pixels = prod(plan.size)
    chunk = 3 * pixels * min(FRAMES_PER_CHUNK, plan.num_frames)
    waiting = min(QUEUE_BYTES, 3 * pixels * plan.num_frames)
    process = PROCESS_BYTES[subject.device.kind] + subject.reading_bytes
    return process + subject.lanes * (chunk + waiting + ENCODER_BYTES + ENCODER_FRAMES * pixels * 3 // 2)
