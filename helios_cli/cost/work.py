"""The work of a film for the model: tokens, model calls and operations, by stage and by phase.

Operations are those of products, 2 for each multiply-add, as `torch.utils.flop_counter` counts them. Work that the
engine skips is not counted: a prompt's keys and values are computed once a prompt and not once a call, all padding is
one row, the last block leaves the history out. Norms, modulation rows (0.7 GFLOP a timestep in the 14B model, once a
film) and samplers are left out: together they are below a thousandth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from helios_cli.architecture import DiTConfig, HistoryTokens, UMT5Config
from helios_cli.cost import taehv, vae
from helios_cli.cost.model import Model
from helios_cli.recipe.plan import Chunk, Plan, has_calls
from helios_cli.units import FRAMES_PER_CHUNK, HISTORY_CHUNKS, MAX_TEXT_TOKENS, grid_of
from helios_cli.weights.tokenizer import read_tokenizer, tokens_of

READ_TOKENIZER = 4 * 2**20
"""Size up to which a tokenizer is read to count tokens. The published one, of 256,000 words, takes over a second."""

CHARACTERS_PER_TOKEN = 4
"""An estimate for English, where the tokenizer is not read."""

PAD_ROWS = {"float32": 1, "bfloat16": 2, "float16": 2}
"""Rows that stand for all padding of a prompt; in bfloat16 a quarter of the lengths needs a third."""


# Prompts


class PromptTokens(NamedTuple):
    """Tokens by prompt, end token included, at most 512.

    Attributes:
        counted: Whether the model's tokenizer counted them; otherwise they are estimated.
        lost: For prompts that are too long, the end that the model does not see.
    """

    tokens: dict[str, int]
    counted: bool
    lost: dict[str, str]

    def rows(self, prompts: Iterable[str], dtype: str) -> int:
        """Return the rows of text that a cross-attention reads for a mix of prompts."""
        longest = max(self.tokens[prompt] for prompt in prompts)
        return min(MAX_TEXT_TOKENS, longest + PAD_ROWS[dtype])


def count_tokens(model: Model, prompts: Iterable[str]) -> PromptTokens:
    file = model.checkpoint.tokenizer if model.checkpoint else None
    if file is None or file.stat().st_size > READ_TOKENIZER:
        estimates = {text: min(MAX_TEXT_TOKENS, len(text) // CHARACTERS_PER_TOKEN + 1) for text in prompts}
        return PromptTokens(estimates, counted=False, lost={})
    tokenizer = read_tokenizer(file)
    read = {text: tokens_of(text, tokenizer, model.text.vocab_size) for text in prompts}
    tokens = {text: len(ids) for text, (ids, _) in read.items()}
    return PromptTokens(tokens, counted=True, lost={text: lost for text, (_, lost) in read.items() if lost})


# Operations


class CallFlops(NamedTuple):
    """Operations of model calls, by part.

    Attributes:
        self_attention: all rows' queries against all rows' keys and values.
        projections: queries, keys, values and output of the self-attention.
        cross_attention: noisy rows against the prompt, with its query and output projections.
        feed_forward: the two products of each block.
        embedding: noise to tokens, tokens to flow.
    """

    self_attention: int
    projections: int
    cross_attention: int
    feed_forward: int
    embedding: int

    @property
    def total(self) -> int:
        return sum(self)


def call_flops(dit: DiTConfig, history: int, noisy: int, text_rows: int, *, past: int = 0) -> CallFlops:
    """Count a forward of the transformer over `history` + `noisy` rows and `text_rows` rows of text. `past` rows have
    keys and values from an earlier call."""
    width, before_last, rows = dit.width, dit.num_layers - 1, history + noisy
    square = 2 * width * width
    guided_rows = before_last * (noisy if dit.guidance_cross_attn else rows) + noisy
    return CallFlops(
        self_attention=4 * width * (past + rows) * (before_last * rows + noisy),
        projections=square * (before_last * 4 * rows + 2 * rows + 2 * noisy),
        cross_attention=guided_rows * (2 * square + 4 * text_rows * width),
        feed_forward=4 * width * dit.ffn_dim * (before_last * rows + noisy),
        embedding=2 * noisy * dit.patch_cells * width * (dit.in_channels + dit.out_channels),
    )


def history_flops(dit: DiTConfig, history: HistoryTokens) -> int:
    """Count the embedding of the history, once a chunk: a token covers 1, 8 and 64 patches."""
    patches = history.short + 8 * history.mid + 64 * history.long
    return 2 * dit.width * dit.in_channels * dit.patch_cells * patches


def context_flops(dit: DiTConfig, text_rows: int) -> int:
    """Count the keys and values of a prompt for every block, once a prompt."""
    embedder = 2 * text_rows * dit.width * (dit.text_dim + dit.width)
    return embedder + 4 * dit.num_layers * text_rows * dit.width**2


def text_flops(text: UMT5Config, tokens: int) -> int:
    """Count the text encoder on one prompt."""
    inner = text.num_heads * text.d_kv
    attention = 8 * tokens * text.d_model * inner + 4 * tokens * tokens * inner
    return text.num_layers * (attention + 6 * tokens * text.d_model * text.d_ff)


# A film


@dataclass(frozen=True)
class StageWork:
    """One level of the pyramid.

    Attributes:
        grid: (rows, columns) of patches.
        noisy, history: rows of a model call.
        first_calls, calls: model calls of a chunk: the first after a cut, and any other.
        film_calls: model calls of the whole film.
        call: operations of one call, with the longest prompt of the film.
        film: operations of the whole film.
    """

    index: int
    grid: tuple[int, int]
    noisy: int
    history: int
    first_calls: int
    calls: int
    film_calls: int
    call: CallFlops
    film: CallFlops

    @property
    def rows(self) -> int:
        return self.history + self.noisy


class Work(NamedTuple):
    """The work of a whole film; operations by phase. `text_rows` is the longest prompt's, padding included."""

    prompts: PromptTokens
    history: HistoryTokens
    text_rows: int
    stages: tuple[StageWork, ...]
    text: int
    conditioning: int
    denoise: int
    decode: int
    final: int = 0
    """The decoding by the VAE that follows a preview."""

    @property
    def calls(self) -> int:
        return sum(stage.film_calls for stage in self.stages)

    @property
    def total(self) -> int:
        return self.text + self.conditioning + self.denoise + self.decode + self.final

    def chunk_calls(self, chunk: Chunk) -> int:
        return sum(stage.first_calls if chunk.fresh else stage.calls for stage in self.stages)


def work_of(
    plan: Plan,
    model: Model,
    dtype: str,
    prompts: PromptTokens | None = None,
    *,
    preview: bool = False,
    final: bool = False,
) -> Work:
    """Count the work of a film. `prompts` are counted here unless they are given.

    With `preview` a preview decoder is in the place of the VAE, which with `final` decodes the film afterwards."""
    prompts = prompts or count_tokens(model, plan.texts)
    rows = {chunk.prompts: prompts.rows((text for text, _ in chunk.prompts), dtype) for chunk in plan.chunks}
    negative = prompts.rows([plan.negative], dtype) if plan.guidance > 1 else None
    history = model.dit.history_tokens(plan.size)
    chunks = Counter((rows[chunk.prompts], chunk.fresh) for chunk in plan.chunks)
    stages = tuple(
        _stage(index, noisy, history.total, plan, model, chunks, negative)
        for index, noisy in enumerate(model.dit.noisy_tokens(plan.size, model.stages))
    )
    denoise = sum(stage.film.total for stage in stages)
    denoise += len(plan.chunks) * history_flops(model.dit, history) + _context_flops(plan, model, rows, negative)
    frames = Counter(chunk.num_frames for chunk in plan.chunks)
    whole = sum(vae.decode_flops(model.vae, plan.size, count) * chunks for count, chunks in frames.items())
    small = sum(taehv.decode_flops(plan.size, count) * chunks for count, chunks in frames.items()) if preview else 0
    return Work(
        prompts=prompts,
        history=history,
        text_rows=max(rows.values()),
        stages=stages,
        text=sum(text_flops(model.text, prompts.tokens[text]) for text in plan.texts),
        conditioning=sum(_conditioning_flops(chunk, plan, model) for chunk in plan.chunks),
        denoise=denoise,
        decode=small if preview else whole,
        final=whole if final else 0,
    )


def _stage_calls(plan: Plan, model: Model, stage: int, *, fresh: bool) -> int:
    """Count the calls of one branch in a chunk: one a step, two a step after a cut (DMD), none under zero-init and
    where steps are reused."""
    preset, steps = model.preset, plan.steps[stage]
    if preset.amplify_first_chunk and fresh and model.stages > 1:
        steps *= 2
    skipped = preset.zero_steps + 1 if preset.zero_init and plan.guidance > 1 and stage == 0 else 0
    return sum(has_calls(step, steps - skipped, plan.reuse_steps) for step in range(steps - skipped))


def _whole_calls(plan: Plan, model: Model, stage: int, *, fresh: bool) -> int:
    """Count those of `_stage_calls` that compute the history: all, or with `reuse_history` those of the coarsest stage
    and, where it makes none, a chunk's first."""
    calls = _stage_calls(plan, model, stage, fresh=fresh)
    if not plan.reuse_history or stage == 0:
        return calls
    before = sum(_stage_calls(plan, model, earlier, fresh=fresh) for earlier in range(stage))
    return 0 if before else min(1, calls)


def _stage(
    index: int, noisy: int, history: int, plan: Plan, model: Model, chunks: Counter, negative: int | None
) -> StageWork:
    """`chunks` are counted by the rows of their prompts and by whether they begin after a cut."""
    calls = {fresh: _stage_calls(plan, model, index, fresh=fresh) for fresh in (False, True)}
    whole = {fresh: _whole_calls(plan, model, index, fresh=fresh) for fresh in (False, True)}

    def flops(text_rows: int, *, is_whole: bool) -> CallFlops:
        own, past = (history, 0) if is_whole else (0, history)
        return call_flops(model.dit, own, noisy, text_rows, past=past)

    parts = [
        (flops(branch, is_whole=is_whole), number * count)
        for (rows, fresh), count in chunks.items()
        for branch in (rows, negative)  # with guidance, the second call is for the negative prompt
        for is_whole, number in ((True, whole[fresh]), (False, calls[fresh] - whole[fresh]))
        if branch is not None
    ]
    film = zip(*([count * one for one in call] for call, count in parts), strict=True)
    branches = 1 if negative is None else 2
    return StageWork(
        index=index,
        grid=grid_of(plan.size, model.dit.patch_size, model.stages - 1 - index),
        noisy=noisy,
        history=history,
        first_calls=branches * calls[True],
        calls=branches * calls[False],
        film_calls=sum(count for _, count in parts),
        call=flops(max(rows for rows, _ in chunks), is_whole=calls[False] == whole[False]),
        film=CallFlops(*map(sum, film)),
    )


def _context_flops(plan: Plan, model: Model, rows: dict, negative: int | None) -> int:
    """Count the keys and values of the prompts, which are computed again wherever the prompts change."""
    changes = [
        chunk.prompts
        for before, chunk in zip((None, *plan.chunks), plan.chunks, strict=False)
        if before is None or chunk.prompts != before.prompts
    ]
    counts = [rows[prompts] for prompts in changes] + ([] if negative is None else [negative])
    return sum(context_flops(model.dit, count) for count in counts)


def _conditioning_flops(chunk: Chunk, plan: Plan, model: Model) -> int:
    """Count the encoding of a picture, alone and held for a chunk, or of a clip's first frame and its last chunks."""
    if not chunk.image and not chunk.video:
        return 0
    whole = vae.encode_flops(model.vae, plan.size, FRAMES_PER_CHUNK)
    return vae.encode_flops(model.vae, plan.size, 1) + (HISTORY_CHUNKS if chunk.video else 1) * whole
