"""`helios plan`: what films will consist of and cost, before anything is loaded. The JSON is that of `cost.report`."""

from __future__ import annotations

from typing import Annotated

import typer

from helios_cli.console import JsonFlag
from helios_cli.cost.estimate import estimate_jobs
from helios_cli.cost.farm import farm_of
from helios_cli.film.clashes import check_shared_out
from helios_cli.film.jobs import plan_jobs
from helios_cli.options import Sources, render_options
from helios_cli.plan_view import show_plans
from helios_cli.recipe.options import RenderOptions

NOT_PLANNED = {
    "container",
    "force",
    "no_cache",
    "keep",
    "takes",
    "shot",
    "preset",
    "no_metadata",
    "export",
    "check",
    "worker_timeout",
}
"""Flags of `helios render` that change nothing of what a film consists of and costs."""


@render_options(without=NOT_PLANNED)
def plan(
    source: Sources,
    options: RenderOptions,
    on: Annotated[str | None, typer.Option(help="Another GPU to plan for: 4090, L40S, A100 40GB, H100.")] = None,
    price: Annotated[float | None, typer.Option(help="Price of a GPU-hour, to show the cost of the film.")] = None,
    json: JsonFlag = False,
) -> None:
    """Show what films consist of and cost: helios plan film.toml --price 2.5"""

    check_shared_out(options)
    estimates = estimate_jobs(plan_jobs(source, options), options, on=on, price=price)
    show_plans(estimates, farm_of(estimates, options, on=on))
