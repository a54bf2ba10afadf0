"""Starts a farm: plans the films, and opens the workers that the options ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from helios_cli import machine
from helios_cli.cost.farm import gpus_per_worker
from helios_cli.cost.ladder import quant_of
from helios_cli.cost.planner import Planner
from helios_cli.device import Device, find_device, find_gpus, find_vae_device, pick_dtype, visible_gpus
from helios_cli.errors import MachineError
from helios_cli.farm.cluster import open_cluster
from helios_cli.farm.driver import Driver
from helios_cli.farm.film import FarmFilm
from helios_cli.farm.pool import PASSIVE, Pool
from helios_cli.farm.processes import Processes
from helios_cli.film.jobs import Job
from helios_cli.recipe.options import RenderOptions
from helios_cli.units import counted
from helios_cli.weights import hub
from helios_cli.weights.fp8 import dtype_with


def open_farm(
    jobs: Sequence[Job], options: RenderOptions, *, stop: bool = False, progress: hub.Progress | None = None
) -> Driver:
    """Plan the films, and start the workers for them. With `stop` the farm ends with the first film that fails.

    `progress` shows the download of a model, which the workers of this machine share. Raises HeliosError for what
    prevents the films or the workers.
    """
    films = plan_films(jobs, options, progress)
    return Driver(films, _open_pool(films, options), options, stop=stop or len(films) == 1)


def plan_films(jobs: Sequence[Job], options: RenderOptions, progress: hub.Progress | None = None) -> list[FarmFilm]:
    """Plan the films as `helios plan` does. A model that this machine needs and does not have is downloaded."""
    is_here = options.cluster in (None, "local")
    device = find_device(options.device if is_here else "auto")
    quant = quant_of(options, device)
    dtype, _ = pick_dtype(dtype_with(quant, options.dtype), device)
    vae_device = find_vae_device(options.vae_device, options.device, device) if is_here else None
    planner = Planner(options, device, dtype, quant, vae_device, downloads=is_here, progress=progress)
    return [FarmFilm(job, planner.plan(job.film, job.options)) for job in jobs]


def _open_pool(films: Sequence[FarmFilm], options: RenderOptions) -> Pool:
    if options.cluster is not None:
        return open_cluster(options, most=sum(len(film.segments) for film in films))
    gpus = find_gpus() if find_device(options.device).kind == "cuda" else ()
    environments = gpu_environments(gpus, options) if gpus else cpu_environments(films, options)
    return Processes(environments)


def gpu_environments(gpus: Sequence[Device], options: RenderOptions) -> dict[str, dict[str, str]]:
    """Return the environment of each worker on GPUs: it sees only its own. MachineError for more than there are."""
    each = gpus_per_worker(options)
    most = len(gpus) // each
    wanted = max(1, most) if options.workers == "auto" else options.workers or 1
    if wanted > most:
        needs = f"{counted(wanted, 'worker')} with {counted(each, 'GPU')} each are too many"
        raise MachineError(
            f"{needs}: this machine has {counted(len(gpus), 'GPU')}",
            hint=f"write --workers {most}" if most else "use fewer GPUs for each film (--gpus-per-film)",
        )
    names = visible_gpus(len(gpus))
    groups = [names[first * each : (first + 1) * each] for first in range(wanted)]
    return {f"gpu{index}": {"CUDA_VISIBLE_DEVICES": ",".join(group)} for index, group in enumerate(groups)}


def cpu_environments(films: Sequence[FarmFilm], options: RenderOptions) -> dict[str, Mapping[str, str]]:
    """Return the environment of each worker on the CPU.

    Each has as many threads as a render without workers, on whose number the bits of a film depend. Where they are more
    than there are cores they share those.
    """
    count = options.workers if isinstance(options.workers, int) else 1
    threads = max(machine.cpu_threads(film.model.parameters["transformer"]) for film in films)
    environment = PASSIVE if count * threads > machine.cores() else {}
    return {f"cpu{index}": environment for index in range(count)}
