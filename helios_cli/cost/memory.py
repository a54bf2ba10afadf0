"""Memory by phase, from the sizes of weights and tensors. Numbers that follow from no size are stated constants.

They count what the engine holds at once, which the tests follow tensor by tensor; an allocator keeps some more, and so
do a GPU's libraries for convolutions.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod
from typing import NamedTuple

from helios_cli.cost import taehv, vae
from helios_cli.cost.workload import FLOAT32, Workload
from helios_cli.units import FRAMES_PER_CHUNK, GRAPHS, PROMPTS_TOGETHER, QUEUE_BYTES
from helios_cli.weights.placement import DEVICE_SLOTS, HOST_SLOTS, Placement

RUNTIME_BYTES = {"cuda": 500_000_000, "mps": 0, "cpu": 0}
"""Device memory of a CUDA context with its libraries. Stated."""

FRAGMENTATION = 0.1
"""Share of the working memory that an allocator holds on top, and libraries of their own. Stated."""

AHEAD_SHARE = 0.9
"""Share of the budget that reading ahead may use; the rest absorbs errors of the estimate. Stated."""

PROCESS_BYTES = {"cuda": 1_000_000_000, "mps": 600_000_000, "cpu": 550_000_000}
"""Host memory of Python, PyTorch with its caches, and the libraries' files. On a CPU it was 490 MB."""

ENCODER_BYTES = 64_000_000
"""Host memory of ffmpeg, without the frames it looks ahead. Stated."""

ENCODER_FRAMES = 130
"""Frames in 12 bits a pixel that ffmpeg holds: with the above, 112 MB at 640x384, as measured for x264 medium."""


class PhaseMemory(NamedTuple):
    """Bytes on a device in one phase: `weights`, `kept` between chunks, and `working` at the peak of the phase.

    `on_vae_device`: on the device that the VAE and the text encoder have for themselves."""

    phase: str
    weights: int
    kept: int
    working: int
    on_vae_device: bool = False

    @property
    def total(self) -> int:
        return self.weights + self.kept + self.working


class MemoryBudget(NamedTuple):
    """Bytes that a render may take; None where it is not known. On a CPU only `host_bytes` counts.

    `vae_device_bytes` is the budget of a second GPU."""

    device_bytes: int | None = None
    host_bytes: int | None = None
    vae_device_bytes: int | None = None


class MemoryPlan(NamedTuple):
    """A placement of a model, and the memory and transfers that it takes.

    Attributes:
        phases: Memory of the device by phase.
        device_bytes: The peak, with the runtime's memory and without what is only used to read ahead.
        host_bytes: The peak, with pinned memory and without the page cache; on a CPU, where both are one, the sum.
        moved_bytes: Weights brought to where they compute, a chunk of the film on average.
        read_bytes: Those weights as they are stored, which come out of the page cache or from the disk.
        waited_bytes: The moved bytes of parts that have to come before the transformer or the VAE begins.
        ahead_bytes: What is read of the transformer while a chunk is decoded, and of the VAE while one is denoised.
        pass_bytes: Stored bytes of the files that are read over and over, which the page cache has to hold.
        chunks_beside: The number of chunks that are decoded at a time while the next one is denoised.
        fits: Whether it fits the budget; None if that is not known.
        vae_device_bytes: The peak of the device that the VAE and the text encoder have for themselves, or None; on a
            CPU part of `host_bytes`.
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
    chunks_beside: int
    fits: bool | None
    vae_device_bytes: int | None = None

    @property
    def name(self) -> str:
        return self.placement.mode

    @property
    def is_apart(self) -> bool:
        """Return whether the VAE and the text encoder have a device for themselves."""
        return self.vae_device_bytes is not None


def plan_memory(load: Workload, budget: MemoryBudget, placement: Placement) -> MemoryPlan:
    """Return what `placement` takes."""
    phases = _phases(load, placement)
    kind = load.device.kind
    is_apart = load.vae_device is not None
    beside = load.chunks_beside(placement)
    on_device = max(phase.total for phase in phases if not phase.on_vae_device)
    if beside and not is_apart:  # denoising with the largest work of the VAE: a chunk's decoding or conditioning
        *others, denoise = sorted(phases[1:], key=lambda phase: phase.phase == "denoise")
        # Each further chunk that is decoded has its own tensors, and frames that wait until those before are written.
        more = max(phase.working for phase in others) + load.picture_bytes
        on_device = max(on_device, denoise.working + max(phase.total for phase in others) + (beside - 1) * more)
    on_device += RUNTIME_BYTES[kind]
    on_vae_device = None
    if load.vae_device is not None:
        on_vae_device = max(phase.total for phase in phases if phase.on_vae_device)
        on_vae_device += RUNTIME_BYTES[load.vae_device.kind]
        if load.joins_rank:
            on_vae_device += next(phase.total for phase in phases if phase.phase == "denoise")
    host = _host_bytes(load) + load.folding_bytes + (load.ranks - 1) * _rank_bytes(load, placement)
    if kind == "cpu":
        host += on_device
    else:
        host += load.prompt_bytes
        text = HOST_SLOTS * load.text_layer_bytes if placement.mode == "stream" else 0
        host += max(_pinned_bytes(load, placement), text)
    if load.vae_device is not None and load.vae_device.kind == "cpu":
        host += on_vae_device or 0
    needs = [(host, budget.host_bytes)] if kind == "cpu" else []
    needs = needs or [(on_device, budget.device_bytes), (host, budget.host_bytes)]
    if load.vae_device is not None and load.vae_device.kind != "cpu":
        needs.insert(1, (on_vae_device or 0, budget.vae_device_bytes))
    is_over = any(most is not None and need > most for need, most in needs)
    unknown = any(most is None for _, most in needs[:-1] or needs)  # the host's memory alone may be
    fits = False if is_over else None if unknown else True
    moved, read, waited = _moved(load, placement)
    placement = _with_ahead(load, placement, phases, budget, host)
    return MemoryPlan(
        placement=placement,
        phases=tuple(phases),
        device_bytes=on_device,
        host_bytes=host,
        moved_bytes=moved,
        read_bytes=read,
        waited_bytes=waited,
        ahead_bytes=(
            min(placement.transformer_ahead_bytes, _loaded_bytes(load, placement)),
            0 if load.preview else min(placement.vae_ahead_bytes, load.vae_bytes),
        ),
        pass_bytes=_pass_bytes(load, placement),
        chunks_beside=beside,
        fits=fits,
        vae_device_bytes=on_vae_device,
    )


def _with_ahead(
    load: Workload, placement: Placement, phases: list[PhaseMemory], budget: MemoryBudget, host: int
) -> Placement:
    """Return `placement` with how much of the next part may be read while another works: what the budget leaves."""
    kind, totals = load.device.kind, {phase.phase: phase.total for phase in phases}
    room = None
    if kind == "cpu" and budget.host_bytes is not None:
        room = AHEAD_SHARE * budget.host_bytes - (host - max(totals.values()))
    elif kind == "cuda" and budget.device_bytes is not None:
        room = AHEAD_SHARE * budget.device_bytes - RUNTIME_BYTES[kind]
    if placement.mode != "model" or room is None:
        return placement
    vae_room = 0 if load.preview else room - totals.pop("denoise")
    transformer_room = room - max(totals.values())
    return replace(
        placement, transformer_ahead_bytes=max(0, int(transformer_room)), vae_ahead_bytes=max(0, int(vae_room))
    )


def _moved(load: Workload, placement: Placement) -> tuple[int, int, int]:
    """Return the bytes of weights moved a chunk on average: in the compute dtype, as stored, and those waited for.

    Parts that take turns come whole, except for blocks that stream. Matrices that only prompts need come with each.
    """
    dit, chunks, streamed = load.model.dit, len(load.plan.chunks), load.streamed(placement)
    prompts = load.lanes * load.branches + load.prompt_changes if placement.reads_for_prompts else 0
    walks = prompts * dit.num_layers / chunks
    waited = walks * load.prompt_block_bytes
    read = load.stored("transformer", walks * dit.prompt_matrices)
    if load.alternates(placement):
        waited += load.transformer_bytes - _left_out_bytes(load, placement) + load.vae_bytes
        read += load.stored("transformer", _taken_parameters(load, placement))
        read += load.stored("vae", load.model.parameters["vae"])
    blocks = streamed * load.work.calls / load.branches / chunks
    streaming = load.stored("transformer", blocks * dit.call_matrices)
    return round(blocks * load.block_bytes + waited), streaming + read, round(waited)


def _left_out_bytes(load: Workload, placement: Placement) -> int:
    """Return the bytes of matrices that are not loaded with the transformer, but read block by block."""
    for_prompts = load.model.dit.num_layers * load.prompt_block_bytes if placement.reads_for_prompts else 0
    return load.streamed(placement) * load.block_bytes + for_prompts


def _taken_parameters(load: Workload, placement: Placement) -> int:
    """Return how many parameters are loaded with the transformer."""
    dit, streamed = load.model.dit, load.streamed(placement)
    for_prompts = dit.num_layers * dit.prompt_matrices if placement.reads_for_prompts else 0
    return load.model.parameters["transformer"] - streamed * dit.call_matrices - for_prompts


def _pass_bytes(load: Workload, placement: Placement) -> int:
    """Return the stored bytes of the files that are read over and over."""
    dit, streamed = load.model.dit, load.streamed(placement)
    again = streamed * dit.call_matrices
    if placement.reads_for_prompts and load.prompt_changes:
        again += dit.num_layers * dit.prompt_matrices
    if not load.alternates(placement):
        return load.stored("transformer", again)
    again += _taken_parameters(load, placement)
    return load.stored("transformer", again) + load.stored("vae", load.model.parameters["vae"])


def _pinned_bytes(load: Workload, placement: Placement) -> int:
    """Return the host memory that blocks of the transformer pass through on their way to a GPU."""
    streamed = load.block_bytes if placement.mode == "stream" else 0
    for_prompts = load.prompt_block_bytes if placement.reads_for_prompts else 0
    return HOST_SLOTS * (streamed + for_prompts)


def _phases(load: Workload, placement: Placement) -> list[PhaseMemory]:
    """Return the phases: the text encoder, which is freed; then transformer and VAE, together, in turns, or each on a
    device of its own. A preview decoder is next to whatever is there."""
    on_cpu, slack, is_apart = load.device.kind == "cpu", 1 + FRAGMENTATION, load.vae_device is not None
    transformer = _loaded_bytes(load, placement)
    preview = load.vae_itemsize * load.preview.parameters if load.preview else 0
    coder = load.vae_bytes if load.preview is None or load.final or load.is_conditioned else 0
    together = 0 if placement.takes_turns or is_apart else transformer + coder + preview
    kept = load.lanes * _kept_bytes(load) + (load.prompt_bytes if on_cpu else 0)
    calling = _call_bytes(load)
    if load.device.kind == "cuda" and placement.mode == "none" and placement.graphs and load.team == 1:
        kept += round(slack * calling) + _recorded_bytes(load)
    calling += _waiting_bytes(load, placement)
    denoising = max(calling, _embedding_bytes(load, placement)) + 3 * load.lanes * load.latent_bytes
    size, kind = load.plan.size, "cpu" if load.decoder.kind == "cpu" else "cuda"
    encoding = load.frame_itemsize * vae.encode_elements(load.model.vae, size, kind)
    decoding = load.frame_itemsize * vae.decode_elements(load.model.vae, size, load.piece_elements)
    works = [("conditioning", coder + preview, encoding)] if load.is_conditioned else []
    works.append(("denoise", transformer + preview * (not is_apart), denoising))
    if load.preview:
        showing = load.frame_itemsize * taehv.decode_elements(size, kind)
        works.append(("decode", preview + (coder if is_apart else transformer), showing))
    if load.final or not load.preview:
        works.append(("final" if load.final else "decode", coder + preview, decoding))
    others = (together or (coder + preview) * is_apart) if placement.text_beside else preview
    phases = [_text_phase(load, placement, others)]
    for phase, alone, working in works:
        elsewhere = is_apart and phase != "denoise"
        held = load.lanes * load.latent_bytes if elsewhere else kept
        phases.append(PhaseMemory(phase, together or alone, held, round(slack * working), elsewhere))
    return phases


def _loaded_bytes(load: Workload, placement: Placement) -> int:
    """Return the bytes of the transformer where it computes."""
    slots = _slots(load) * load.block_bytes if load.streamed(placement) else 0
    return load.transformer_bytes - _left_out_bytes(load, placement) + slots


def _slots(load: Workload) -> int:
    """Return how many blocks that are read block by block are there at a time."""
    return HOST_SLOTS if load.device.kind == "cpu" else DEVICE_SLOTS


def _embedding_bytes(load: Workload, placement: Placement) -> int:
    """Return the working memory in which a prompt's keys and values are made: they are there twice when they are put
    together. Those of the prompt before are gone."""
    matrices = _slots(load) * load.prompt_block_bytes if placement.reads_for_prompts else 0
    return load.context_bytes(load.text_rows) + matrices


def _waiting_bytes(load: Workload, placement: Placement) -> int:
    """Return the bytes of further calls that wait for their turn in a streamed block: their rows and the norm."""
    rows = max(stage.rows for stage in load.work.stages)
    calls = load.lanes * load.branches * load.team // load.ranks  # of a step, in which a rank takes part
    waiting = calls - 1 if placement.mode == "stream" else 0
    return waiting * 2 * -(-rows // load.team) * load.model.dit.width * load.itemsize


def _rank_bytes(load: Workload, placement: Placement) -> int:
    """Return the host memory of each further rank: its process, and on a CPU its transformer, inputs and calls, and the
    VAE with its share of a decode where ranks decode together."""
    process = PROCESS_BYTES[load.device.kind]
    if load.device.kind != "cpu":
        return process + _pinned_bytes(load, placement)
    working, inputs = _call_bytes(load) + _waiting_bytes(load, placement), load.lanes * _kept_bytes(load)
    working = max(working, _embedding_bytes(load, placement))
    weights = _loaded_bytes(load, placement)
    if load.decoders > 1:
        decoding = load.frame_itemsize * vae.decode_elements(load.model.vae, load.plan.size, load.piece_elements)
        working, weights = max(working, decoding // load.decoders), weights + load.vae_bytes
    return process + weights + inputs + round((1 + FRAGMENTATION) * working)


def _text_phase(load: Workload, placement: Placement, others: int) -> PhaseMemory:
    """Return the phase of the text encoder, next to `others`, the bytes of other weights."""
    text, itemsize, tokens = load.model.text, load.itemsize, sorted(load.work.prompts.tokens.values())
    if placement.mode == "stream":
        weights = (HOST_SLOTS if load.decoder.kind == "cpu" else DEVICE_SLOTS) * load.text_layer_bytes
    else:
        wide = text.float16_fp32_parameters if load.dtype == "float16" else 0
        weights = itemsize * load.model.parameters["text_encoder"] + (FLOAT32 - itemsize) * wide
    kept = load.prompt_bytes
    if load.device.kind != "cpu":  # they leave the device as they come, some at a time where the encoder streams
        kept = itemsize * text.d_model * sum(tokens[-(PROMPTS_TOGETHER if placement.mode == "stream" else 1) :])
    # All heads' products, their bias and the sum of both; or in float32, before and after the softmax.
    longest = tokens[-1]
    scores = max(3 * itemsize, 2 * FLOAT32) * text.num_heads * longest * longest
    gate, rows = 3 * itemsize * longest * text.d_ff, itemsize * longest * text.d_model
    working = max(scores + 5 * rows, gate + 3 * rows)
    return PhaseMemory("text", others + weights, kept, working, load.vae_device is not None)


def _kept_bytes(load: Workload) -> int:
    """Return the bytes of a film's prompts' keys and values, rotations, modulation rows, history with its tokens and
    with the keys and values that pass from call to call."""
    dit, preset = load.model.dit, load.model.preset
    amplified = preset.amplify_first_chunk and load.model.stages > 1
    schedules = {2 if amplified and chunk.fresh else 1 for chunk in load.plan.chunks}  # by how often a step is doubled
    timesteps = sum(load.plan.steps) * sum(schedules)
    modulation = FLOAT32 * timesteps * 2 * 6 * dit.num_layers * dit.width
    latents = 3 * load.latent_bytes  # 19 frames and the anchor, while 9 more come in
    latents += 2 * load.latent_bytes * (load.plan.reuse_steps > 1)  # two flows
    texts = load.branches * load.context_bytes(load.text_rows)
    return texts + load.rope_bytes + modulation + latents + load.history_bytes + load.past_bytes


def _recorded_bytes(load: Workload) -> int:
    """Return the bytes that recorded calls hold on top of a call's memory: copies of the inputs and the results of each
    shape."""
    plan, work, dit = load.plan, load.work, load.model.dit
    prompts = [[text for text, _ in chunk.prompts] for chunk in plan.chunks]
    prompts += [[plan.negative]] if plan.guidance > 1 else []
    lengths = {load.held_keys(work.prompts.rows(texts, load.latent_dtype)) for texts in prompts}
    texts = sum(load.context_bytes(rows) for rows in lengths)
    # Each other film, whose prompt is at most as long, may have one of another length.
    texts += (load.lanes - 1) * load.context_bytes(load.text_rows)
    modulation = FLOAT32 * 2 * (6 * dit.num_layers + 1) * dit.width
    latents = (len(work.stages) + GRAPHS) * load.latent_bytes
    return texts + load.history_bytes + load.rope_bytes + modulation + latents


def _call_bytes(load: Workload) -> int:
    """Return the bytes of a model call in its widest stage, for one of a team of ranks: the largest moment in a block.

    One is the norm of the keys, in float32 in three steps (two where nothing is rounded), next to the stream, its norm,
    queries, keys and values. The other is the feed-forward, whose hidden rows are there before and after GELU, next to
    the stream and its norm, and what cross-attention leaves of the noisy rows, its norm and its result. In a team there
    is a third: what is given to the other ranks and what they give, three times a rank's rows each, next to the stream,
    queries, keys and values.
    """
    dit, itemsize, team = load.model.dit, load.product_itemsize, load.team
    widest = max(load.work.stages, key=lambda stage: stage.noisy)
    noisy = -(-widest.noisy // team)
    rows = noisy + -(-(widest.rows - widest.noisy) // team)
    at_keys = rows * dit.width * (5 * itemsize + (3 if itemsize < FLOAT32 else 2) * FLOAT32)
    at_hidden = 2 * itemsize * ((rows + noisy) * dit.width + rows * dit.ffn_dim)
    at_exchange = rows * dit.width * 10 * itemsize if team > 1 else 0
    return max(at_keys, at_hidden, at_exchange)


def _host_bytes(load: Workload) -> int:
    """Return the host memory without the model: this process, reading a picture or clip, and for each film its frames
    on their way to the encoder, and the encoder."""
    pixels = prod(load.plan.size)
    chunk = 3 * pixels * min(FRAMES_PER_CHUNK, load.plan.num_frames)
    waiting = min(QUEUE_BYTES, 3 * pixels * load.plan.num_frames)
    process = PROCESS_BYTES[load.device.kind] + load.reading_bytes
    return process + load.lanes * (chunk + waiting + ENCODER_BYTES + ENCODER_FRAMES * pixels * 3 // 2)
