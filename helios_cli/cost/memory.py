"""Memory by phase, from the sizes of weights and tensors. What no size tells is stated and called so.

The numbers are of what the engine holds at once, which the tests follow tensor by tensor; an allocator keeps some more,
and so do a GPU's libraries for convolutions.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from helios_cli.cost import vae
from helios_cli.cost.device import ITEMSIZE, Device
from helios_cli.cost.model import Model
from helios_cli.cost.tokens import PromptTokens
from helios_cli.cost.work import Work
from helios_cli.recipe.plan import Plan
from helios_cli.units import FRAMES_PER_CHUNK, LATENTS_PER_CHUNK, PIXELS_PER_CELL

FLOAT32 = 4

RUNTIME_BYTES = {"cuda": 500_000_000, "mps": 0, "cpu": 0}
"""On the device before anything is put there: a CUDA context with its libraries. Stated."""

PROCESS_BYTES = 400_000_000
"""Of host memory: Python and PyTorch. Stated."""

ENCODER_BYTES = 64_000_000
"""Of host memory: ffmpeg, beside the frames it looks ahead. Stated."""

ENCODER_FRAMES = 130
"""Frames in 12 bits a pixel that ffmpeg holds: with the above, 112 MB at 640x384, as measured for x264 medium."""

QUEUE_BYTES = 128 * 2**20
"""Frames that may wait for the encoder, as `engine.writer` has it."""


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
class MemoryMode:
    """What one way of placing the model takes.

    Attributes:
        name: value of `--offload`; today there is "none", everything on the device.
        phases: on the device.
        device_bytes: at most, with what the runtime takes.
        host_bytes: at most; on a CPU, where both are one, this is the sum.
        fits: into what is free now; None if that is not known.
    """

    name: str
    phases: tuple[PhaseMemory, ...]
    device_bytes: int
    host_bytes: int
    fits: bool | None


def memory_modes(
    plan: Plan, model: Model, work: Work, prompts: PromptTokens, device: Device, dtype: str
) -> tuple[MemoryMode, ...]:
    """Every mode that the engine has, the fastest first."""
    phases = _resident_phases(plan, model, work, prompts, device, dtype)
    on_device = max(phase.total for phase in phases) + RUNTIME_BYTES[device.kind]
    host = _host_bytes(plan)
    if device.kind == "cpu":
        host += on_device
    needed = host if device.kind == "cpu" else on_device
    fits = None if device.free_bytes is None else needed <= device.free_bytes
    return (MemoryMode("none", tuple(phases), on_device, host, fits),)


def _resident_phases(
    plan: Plan, model: Model, work: Work, prompts: PromptTokens, device: Device, dtype: str
) -> list[PhaseMemory]:
    """The text encoder alone and gone; then transformer and VAE together, to the film's end."""
    itemsize = ITEMSIZE[dtype]
    vae_itemsize = FLOAT32 if dtype == "float16" else itemsize  # the VAE leaves float16's range
    islands = (FLOAT32 - itemsize) * model.dit.fp32_parameters
    weights = itemsize * model.parameters["transformer"] + islands + vae_itemsize * model.parameters["vae"]
    kept = _kept_bytes(plan, model, work, itemsize)
    kind = "cpu" if device.kind == "cpu" else "cuda"
    phases = [_text_phase(model, prompts, itemsize, dtype)]
    if any(chunk.image or chunk.video for chunk in plan.chunks):
        working = vae_itemsize * vae.encode_elements(model.vae, plan.size, kind)
        phases.append(PhaseMemory("conditioning", weights, kept, working))
    working = _call_bytes(model, work, itemsize) + 3 * FLOAT32 * _latent_elements(plan, model)
    phases.append(PhaseMemory("denoise", weights, kept, working))
    working = vae_itemsize * vae.decode_elements(model.vae, plan.size, kind)
    phases.append(PhaseMemory("decode", weights, kept, working))
    return phases


def _text_phase(model: Model, prompts: PromptTokens, itemsize: int, dtype: str) -> PhaseMemory:
    shape, tokens = model.text, max(prompts.tokens.values())
    weights = itemsize * model.parameters["text_encoder"]
    if dtype == "float16":
        weights += (FLOAT32 - itemsize) * shape.float16_fp32_parameters
    kept = itemsize * shape.d_model * sum(prompts.tokens.values())
    # All heads' products, their bias and the sum of both; or in float32, before and after the softmax.
    scores = max(3 * itemsize, 2 * FLOAT32) * shape.num_heads * tokens * tokens
    gate = 3 * itemsize * tokens * shape.d_ff
    rows = itemsize * tokens * shape.d_model
    return PhaseMemory("text", weights, kept, max(scores + 5 * rows, gate + 3 * rows))


def _kept_bytes(plan: Plan, model: Model, work: Work, itemsize: int) -> int:
    """Keys and values of the prompts, rotations, modulation rows, history."""
    dit = model.dit
    contexts = 2 if plan.guidance > 1 else 1
    text = 2 * dit.num_layers * work.text_rows * dit.width * itemsize * contexts
    rows = sum(stage.noisy + stage.history for stage in work.stages)
    rotations = FLOAT32 * rows * dit.attention_head_dim
    amplified = model.preset.amplify_first_chunk and model.stages > 1
    schedules = {2 if amplified and chunk.fresh else 1 for chunk in plan.chunks}  # by how often a step is doubled
    timesteps = sum(plan.steps) * sum(schedules)
    modulation = FLOAT32 * timesteps * 2 * 6 * dit.num_layers * dit.width
    history = FLOAT32 * 3 * _latent_elements(plan, model)  # 19 frames and the anchor, while 9 more come in
    return text + rotations + modulation + history


def _latent_elements(plan: Plan, model: Model) -> int:
    """Of one chunk."""
    return model.dit.in_channels * LATENTS_PER_CHUNK * prod(pixels // PIXELS_PER_CELL for pixels in plan.size)


def _call_bytes(model: Model, work: Work, itemsize: int) -> int:
    """A model call in its widest stage: the noisy tokens that enter it, and the more of two moments in a block.

    One is the norm of the keys, in float32 in three steps (two where nothing is rounded), beside the stream, its norm,
    queries, keys and values. The other is the feed-forward, whose hidden rows are there before and after GELU, beside
    the stream and its norm, and what cross-attention leaves of the noisy rows, its norm and its result.
    """
    dit = model.dit
    widest = max(work.stages, key=lambda stage: stage.noisy)
    rows = widest.noisy + widest.history
    entering = (work.history.total + widest.noisy) * dit.width * itemsize
    at_keys = rows * dit.width * (5 * itemsize + (3 if itemsize < FLOAT32 else 2) * FLOAT32)
    at_hidden = 2 * (rows + widest.noisy) * dit.width * itemsize + 2 * rows * dit.ffn_dim * itemsize
    return entering + max(at_keys, at_hidden)


def _host_bytes(plan: Plan) -> int:
    """Beside the model: this process, frames on their way to the encoder, the encoder."""
    pixels = prod(plan.size)
    chunk = 3 * pixels * min(FRAMES_PER_CHUNK, plan.num_frames)
    waiting = min(QUEUE_BYTES, 3 * pixels * plan.num_frames)
    return PROCESS_BYTES + chunk + waiting + ENCODER_BYTES + ENCODER_FRAMES * pixels * 3 // 2
