"""All that a film makes the model do: calls, tokens and operations, by stage and by phase."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from helios_cli.cost import flops, tokens, vae
from helios_cli.cost.flops import CallFlops
from helios_cli.cost.model import Model
from helios_cli.cost.tokens import HistoryTokens, PromptTokens
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.units import FRAMES_PER_CHUNK, HISTORY_CHUNKS, grid_of


@dataclass(frozen=True)
class StageWork:
    """One level of the pyramid.

    Attributes:
        grid: (rows, columns) of patches.
        noisy, history: rows of a model call.
        first_calls, calls: model calls in a segment's first chunk, and in any other.
        film_calls: in the whole film.
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


@dataclass(frozen=True)
class Work:
    """Of a whole film; operations by phase. `text_rows` is the longest prompt's, padding included."""

    history: HistoryTokens
    text_rows: int
    stages: tuple[StageWork, ...]
    text: int
    conditioning: int
    denoise: int
    decode: int

    @property
    def calls(self) -> int:
        return sum(stage.film_calls for stage in self.stages)

    @property
    def total(self) -> int:
        return self.text + self.conditioning + self.denoise + self.decode

    def chunk_calls(self, chunk: Chunk) -> int:
        return sum(stage.first_calls if chunk.fresh else stage.calls for stage in self.stages)


def texts_of(plan: Plan) -> list[str]:
    """The prompts that are encoded, each once, in the order of the film."""
    texts = [text for chunk in plan.chunks for text, _ in chunk.prompts]
    return list(dict.fromkeys([*texts, plan.negative] if plan.guidance > 1 else texts))


def work_of(plan: Plan, model: Model, prompts: PromptTokens, dtype: str) -> Work:
    guided = plan.guidance > 1
    rows = {chunk.prompts: prompts.rows((text for text, _ in chunk.prompts), dtype) for chunk in plan.chunks}
    negative = prompts.rows([plan.negative], dtype) if guided else None
    history = tokens.history_tokens(model.dit, plan.size)
    counts = Counter((rows[chunk.prompts], chunk.fresh) for chunk in plan.chunks)
    stages = tuple(
        _stage(stage, noisy, history, plan, model, counts, negative)
        for stage, noisy in enumerate(tokens.noisy_tokens(model.dit, plan.size, model.stages))
    )
    kept = Counter(chunk.num_frames for chunk in plan.chunks)
    return Work(
        history=history,
        text_rows=max(rows.values()),
        stages=stages,
        text=sum(flops.text_flops(model.text, prompts.tokens[text]) for text in texts_of(plan)),
        conditioning=sum(_conditioning(chunk, plan, model) for chunk in plan.chunks),
        denoise=sum(stage.film.total for stage in stages)
        + len(plan.chunks) * flops.history_flops(model.dit, history)
        + _contexts(plan, model, rows, negative),
        decode=sum(vae.decode_flops(model.vae, plan.size, frames) * count for frames, count in kept.items()),
    )


def stage_calls(plan: Plan, model: Model, stage: int, *, fresh: bool) -> int:
    """Model calls of one branch: one a step, twice the steps where a segment begins (DMD), none under zero-init."""
    preset, steps = model.preset, plan.steps[stage]
    if preset.amplify_first_chunk and fresh and model.stages > 1:
        steps *= 2
    skipped = preset.zero_steps + 1 if preset.zero_init and plan.guidance > 1 and stage == 0 else 0
    return max(0, steps - skipped)


def _stage(
    index: int,
    noisy: int,
    history: HistoryTokens,
    plan: Plan,
    model: Model,
    counts: Counter[tuple[int, bool]],
    negative: int | None,
) -> StageWork:
    calls = {fresh: stage_calls(plan, model, index, fresh=fresh) for fresh in (False, True)}
    parts = []
    for (rows, fresh), chunks in counts.items():
        for branch in (rows, negative):  # with guidance, the second call is for the negative prompt
            if branch is not None:
                parts.append((flops.call_flops(model.dit, history.total, noisy, branch), calls[fresh] * chunks))
    longest = max(rows for rows, _ in counts)
    branches = 1 if negative is None else 2
    return StageWork(
        index=index,
        grid=grid_of(plan.size, model.dit.patch_size, model.stages - 1 - index),
        noisy=noisy,
        history=history.total,
        first_calls=branches * calls[True],
        calls=branches * calls[False],
        film_calls=sum(count for _, count in parts),
        call=flops.call_flops(model.dit, history.total, noisy, longest),
        film=flops.sum_flops(parts),
    )


def _contexts(plan: Plan, model: Model, rows: dict, negative: int | None) -> int:
    """Keys and values of the prompts, made anew wherever the prompts change."""
    found = flops.context_flops(model.dit, negative) if negative is not None else 0
    before = None
    for chunk in plan.chunks:
        if chunk.prompts != before:
            found += flops.context_flops(model.dit, rows[chunk.prompts])
        before = chunk.prompts
    return found


def _conditioning(chunk: Chunk, plan: Plan, model: Model) -> int:
    """A picture is encoded alone and held for a chunk; of a clip the first frame and, at most, its last chunks."""
    if not chunk.image and not chunk.video:
        return 0
    whole = vae.encode_flops(model.vae, plan.size, FRAMES_PER_CHUNK)
    return vae.encode_flops(model.vae, plan.size, 1) + (HISTORY_CHUNKS if chunk.video else 1) * whole
