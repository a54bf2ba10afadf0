"""Tables and steps of every stage against diffusers' schedulers, and against the numbers of the published model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from helios_cli.sampling.schedule import SchedulerConfig, build_stage
from helios_cli.sampling.solvers import make_solver

TOKENS = (540, 540, 2160)


def mu_of(tokens: int) -> float:
    return 0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)


def theirs_of(kind: str, **given):
    import diffusers

    return getattr(diffusers, kind)(**given)


def ours_for(scheduler) -> SchedulerConfig:
    return SchedulerConfig.from_json({**scheduler.config, "_class_name": type(scheduler).__name__})


SCHEDULERS = [
    *(("HeliosScheduler", dict(use_dynamic_shifting=dynamic, time_shift_type=kind))
      for dynamic in (False, True) for kind in ("exponential", "linear")),
    ("HeliosScheduler", dict(shift=2.0)),
    ("HeliosScheduler", dict(stages=2, stage_range=[0, 0.4, 1], gamma=0.25, use_dynamic_shifting=True)),
    ("HeliosDMDScheduler", dict(use_dynamic_shifting=True)),
    ("HeliosDMDScheduler", dict(use_dynamic_shifting=True, time_shift_type="exponential")),
    ("HeliosDMDScheduler", {}),
]  # fmt: skip
IDS = [f"{kind}-{'-'.join(f'{k}={v}' for k, v in given.items())}" for kind, given in SCHEDULERS]


@pytest.mark.oracle
@pytest.mark.parametrize(("kind", "given"), SCHEDULERS, ids=IDS)
@pytest.mark.parametrize("steps", [1, 2, 3, 5, 20])
def test_pyramid_tables(kind, given, steps):
    scheduler = theirs_of(kind, **given)
    config = ours_for(scheduler)
    for stage in range(config.stages):
        for amplify in (False, True) if kind == "HeliosDMDScheduler" else (False,):
            scheduler.set_timesteps(steps, stage, mu=mu_of(TOKENS[stage]), is_amplify_first_chunk=amplify)
            made = build_stage(config, stage, steps, TOKENS[stage], amplify=amplify)
            assert made.timesteps == tuple(scheduler.timesteps.long().tolist())
            np.testing.assert_allclose(made.sigmas, scheduler.sigmas.numpy(), atol=1e-12)


@pytest.mark.oracle
@pytest.mark.parametrize("steps", [1, 2, 7, 50])
@pytest.mark.parametrize("dynamic", [False, True])
def test_single_stage_tables(steps, dynamic):
    """Base: the pipeline passes its own sigmas; timesteps are not rounded."""
    scheduler = theirs_of("HeliosScheduler", stages=1, stage_range=[0, 1], use_dynamic_shifting=dynamic)
    sigmas = np.linspace(0.999, 0.0, steps + 1)[:-1]
    scheduler.set_timesteps(steps, sigmas=sigmas, mu=mu_of(8640))
    made = build_stage(ours_for(scheduler), 0, steps, 8640)
    np.testing.assert_allclose(made.sigmas, scheduler.sigmas.numpy(), atol=1e-12)
    np.testing.assert_allclose(made.timesteps, scheduler.timesteps.numpy(), atol=1e-9)


def test_renoising_constants_of_the_published_pyramid():
    """The constants alpha and beta at gamma = 1/3 follow the closed form s / (2 - s) of the notes on pyramidal
    flow matching."""
    for index, start in ((1, 0.666333), (2, 0.333666)):
        alpha, beta = build_stage(SchedulerConfig(), index, 2, 540).renoise
        signal = 1 - start
        assert alpha == pytest.approx(1 / (2 - signal), abs=1e-5)
        assert beta == pytest.approx(3**0.5 * start / (2 - signal), abs=1e-5)
    assert build_stage(SchedulerConfig(), 0, 2, 540).renoise is None


SOLVERS = [
    dict(scheduler_type="euler"),
    dict(scheduler_type="unipc"),
    dict(scheduler_type="unipc", solver_order=1),
    dict(scheduler_type="unipc", solver_type="bh1"),
    dict(scheduler_type="unipc", disable_corrector=[0, 2]),
    dict(scheduler_type="unipc", disable_corrector=list(range(20))),
]


@pytest.mark.oracle
@pytest.mark.parametrize("given", SOLVERS, ids=lambda given: "-".join(f"{k}={v}" for k, v in given.items()))
@pytest.mark.parametrize("steps", [2, 3, 4, 20])
def test_solver_steps(given, steps):
    """Every step of every stage with the same random flows, in float64 on the reference's side of the numbers."""
    scheduler = theirs_of("HeliosScheduler", use_dynamic_shifting=True, time_shift_type="exponential", **given)
    config = ours_for(scheduler)
    g = torch.Generator().manual_seed(steps)
    for stage in range(config.stages):
        scheduler.set_timesteps(steps, stage, mu=mu_of(TOKENS[stage]))
        made = build_stage(config, stage, steps, TOKENS[stage])
        x = theirs = torch.randn(1, 4, 3, 5, 6, generator=g)
        solver = make_solver(config, made, x)
        for index, timestep in enumerate(scheduler.timesteps):
            flow = torch.randn(x.shape, generator=g)
            theirs = scheduler.step(flow, timestep, theirs, return_dict=False)[0]
            x = solver.step(index, x, flow)
            # float32 rounding of the two sides, amplified by random flows that do not cancel
            torch.testing.assert_close(x, theirs, atol=2e-5 * theirs.abs().max().item(), rtol=0)


@pytest.mark.oracle
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("amplify", [False, True])
def test_dmd_steps(steps, amplify):
    scheduler = theirs_of("HeliosDMDScheduler", use_dynamic_shifting=True)
    config = ours_for(scheduler)
    g = torch.Generator().manual_seed(steps)
    for stage in range(3):
        scheduler.set_timesteps(steps, stage, mu=mu_of(TOKENS[stage]), is_amplify_first_chunk=amplify)
        made = build_stage(config, stage, steps, TOKENS[stage], amplify=amplify)
        assert made.steps == steps * (2 if amplify else 1)
        x = theirs = start = torch.randn(1, 4, 3, 5, 6, generator=g)
        solver = make_solver(config, made, start)
        for index, timestep in enumerate(scheduler.timesteps):
            flow = torch.randn(x.shape, generator=g)
            theirs = scheduler.step(
                flow,
                timestep,
                theirs,
                return_dict=False,
                cur_sampling_step=index,
                dmd_noisy_tensor=start,
                dmd_sigmas=scheduler.sigmas,
                dmd_timesteps=scheduler.timesteps,
                all_timesteps=scheduler.timesteps,
            )[0]
            x = solver.step(index, x, flow)
            torch.testing.assert_close(x, theirs, atol=2e-6, rtol=0)


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prediction_type", "epsilon"),
        ("thresholding", True),
        ("solver_order", 3),
        ("time_shift_type", "cubic"),
        ("scheduler_type", "heun"),
    ],
)
def test_config_that_is_not_computed_is_refused(key, value):
    with pytest.raises(ValueError, match=key):
        SchedulerConfig.from_json({**theirs_of("HeliosScheduler").config, key: value})
