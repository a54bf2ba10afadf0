"""An estimate as plain values: what `helios plan --json` prints.

    version     1; raised when a key changes its meaning or goes
    films       one for each film, in the order of the sources:
      title, source
      frames, seconds, fps, size [width, height], chunks_total
      settings    name -> {value, from}: from is flag, recipe, model, default, speed (--speed) or HELIOS_MODEL
      speed       what became of the choices that --speed names: [{key, value, is_taken, origin (flag or speed), times
                  (as fast as without it; null if unknown or not taken), loss}]; empty without it
      model       name, kind, repo, revision, path, trained, downloaded, download_bytes, parameters by component
      audio       the sound: {path, sha256, seconds, fit, fade}, or null
      device      kind, name, total_bytes, free_bytes, from; as seen without torch
      vae_device  of the VAE and the text encoder, as `device`; null if it is the same
      preview_decoder     {path, sha256, parameters, final (whether the VAE decodes the film afterwards)} or null
      dtype       {value, from}
      notices     what was decided or adjusted, in words
      prompts     [{text, tokens}]; the others point into this list. `tokens_counted`: false if estimated
      shots       [{index, start_frame, frames, start_seconds, seconds, transition, seed, prompt, blend_frames}];
                  seed is null unless the shot begins with a cut, as the first does
      roundings   [{shot, asked_frame, actual_frame}]: where the 33-frame grid moved a prompt
      chunks      [{index, shot, start_frame, frames, fresh, seed, prompts [[index, weight]], calls, fingerprint,
                  kept (from an earlier film: not rendered again)}]
      segments    [{index, first_chunk, chunks, frames, seconds}]: parts between cuts, which workers share out; seconds
                  are those on one worker, null if unknown
      history     tokens by term: {long, mid, short, total}; short is the anchor and the newest frame
      stages      [{stage, grid [rows, columns], noisy_tokens, tokens, calls_first_chunk, calls_chunk, calls,
                  call_flops {part: flops}, flops {part: flops}}]; coarsest first, calls and flops of the whole film
      calls       of the whole film
      flops       by phase: {text, conditioning, denoise, decode, final, total}; final is the decoding by the VAE
                  that --final adds to a preview
      budget      {device_bytes, host_bytes, vae_device_bytes}: what may be taken, null if not known; from flags, or
                  what is free
      lanes       films that render together: memory and seconds of a chunk below are those of all
      memory      by mode of --offload, as it would be placed: [{mode, chosen, fits, resident_blocks (of the
                  transformer), turns (transformer and VAE), device_bytes, vae_device_bytes (null without a
                  vae_device), host_bytes (with pinned memory, without page cache), moved_bytes and read_bytes (of
                  weights, a chunk), transfer_seconds and seconds (a chunk, null if unknown),
                  phases [{phase, weights, kept, working, on_vae_device, total}]}]
      bandwidths  {disk, cache, upload (null on a CPU), basis}, bytes a second
      after       what comes after the render: {through, filter, size [width, height], fps, frames} of the finished
                  film, {seconds} as an earlier film took here, null if unknown; null for nothing
      disk        {film_bytes (a ceiling), download_bytes}
      time        {text, conditioning, denoise, decode, final, encode: computing; total: in the mode chosen} in seconds,
                  null if unknown; measured, basis. The total has the seconds of `after` if they are known
      cost        {price_per_hour, total}, or null without --price; total null if the time is unknown
      fingerprint of the film's frames; null, as are those of chunks, where weights or device are not here
    total       {films, frames, chunks, calls, flops, seconds, cost}
    farm        all films on the workers that the flags ask for:
      segments    how many there are in all films
      longest     {film, segment}: indices of the longest one, which bounds the time
      workers     null if only the cluster, or the other processes under --share, decide
      useful_workers      further ones would only wait
      gpus        [{name, workers}] that they run on, where known; empty on a CPU
      mixed       whether GPUs of several kinds may render one film
      gpus_per_film       with `split` {share (of a chunk's time on one GPU), moved_bytes (that each GPU receives, a
                  chunk), basis}, the first two null if unknown; null for one GPU
      load_seconds        in which a worker reads the models, once; part of the times below
      seconds, speedup    of these workers; the speed-up is against one worker with one GPU; null if unknown
      bound_seconds, bound_speedup    of the useful workers, which are the best: the longest segment, or all cores of a
                  CPU, bound them; null if unknown
      cost        of these workers, or null without --price
      table       [{workers, gpus, seconds, speedup, cost}] for other numbers of workers
      notices     what is special about these workers, in words

All indices count from 0. Operations are multiplies and adds of products. Bytes are bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from helios_cli.cost.estimate import Estimate
from helios_cli.cost.farm import Farm
from helios_cli.cost.model import Model
from helios_cli.cost.placing import mode_report
from helios_cli.cost.speeds import total
from helios_cli.cost.work import StageWork
from helios_cli.device import Device
from helios_cli.recipe.plan import Plan
from helios_cli.recipe.sound import SOUND_KEYS

if TYPE_CHECKING:
    from helios_cli.film.sound import Track
    from helios_cli.weights.adapters import Adapter

VERSION = 1


def report(estimates: list[Estimate], farm: Farm) -> dict:
    return {
        "version": VERSION,
        "films": [film_report(estimate, farm, place) for place, estimate in enumerate(estimates)],
        "total": {
            "films": len(estimates),
            "frames": sum(estimate.plan.num_frames for estimate in estimates),
            "chunks": sum(len(estimate.plan.chunks) for estimate in estimates),
            "calls": sum(estimate.work.calls for estimate in estimates),
            "flops": sum(estimate.work.total for estimate in estimates),
            "seconds": total([estimate.seconds for estimate in estimates]),
            "cost": total([estimate.money for estimate in estimates]),
        },
        "farm": farm_report(farm),
    }


def farm_report(farm: Farm) -> dict:
    film, segment = farm.longest
    chosen = None if farm.workers is None else farm.on(farm.workers)
    split = farm.split and {key: getattr(farm.split, key) for key in ("share", "moved_bytes", "basis")}
    return {
        "segments": len(farm.all_costs),
        "longest": {"film": film, "segment": segment},
        "workers": farm.workers,
        "useful_workers": farm.useful,
        "gpus": [{"name": name, "workers": count} for name, count in farm.kinds.items()],
        "mixed": farm.mixed,
        "gpus_per_film": farm.gpus_per_film,
        "split": split,
        "load_seconds": farm.load_seconds,
        "seconds": chosen and chosen.seconds,
        "speedup": chosen and chosen.speedup,
        "bound_seconds": farm.best.seconds,
        "bound_speedup": farm.best.speedup,
        "cost": chosen and chosen.cost,
        "table": [outcome._asdict() for outcome in farm.table],
        "notices": list(farm.notices),
    }


def film_report(estimate: Estimate, farm: Farm, place: int) -> dict:
    plan, work, duration = estimate.plan, estimate.work, estimate.duration
    places = {text: place for place, text in enumerate(estimate.work.prompts.tokens)}
    seconds = {key: getattr(duration, key) for key in ("text", "conditioning", "denoise", "decode", "final", "encode")}
    seconds["total"] = estimate.seconds
    flops = {key: getattr(work, key) for key in ("text", "conditioning", "denoise", "decode", "final", "total")}
    layers = estimate.model.dit.num_layers
    cost = {"price_per_hour": estimate.price, "total": estimate.money} if estimate.price is not None else None
    return {
        "title": plan.title,
        "source": estimate.film.source,
        "frames": plan.num_frames,
        "seconds": plan.num_frames / plan.fps,
        "fps": plan.fps,
        "size": list(plan.size),
        "chunks_total": len(plan.chunks),
        "settings": settings_of(estimate),
        "model": _model(estimate.model),
        "audio": estimate.track and _audio(estimate.track),
        "device": _device(estimate.device, estimate.device_origin),
        "vae_device": estimate.vae_device and _device(estimate.vae_device, "flag"),
        "preview_decoder": _preview(estimate),
        "dtype": {"value": estimate.dtype, "from": estimate.dtype_origin},
        "notices": list(estimate.notices),
        "prompts": [{"text": text, "tokens": tokens} for text, tokens in estimate.work.prompts.tokens.items()],
        "tokens_counted": estimate.work.prompts.counted,
        "shots": _shots(plan),
        "roundings": [asdict(rounding) for rounding in plan.roundings],
        "chunks": _chunks(estimate, places),
        "segments": _segments(plan, farm.costs[place] if farm.timed else None),
        "speed": [taken._asdict() for taken in estimate.taken],
        "history": {**work.history._asdict(), "total": work.history.total},
        "stages": [_stage(stage) for stage in work.stages],
        "calls": work.calls,
        "flops": flops,
        "budget": estimate.budget._asdict(),
        "lanes": estimate.lanes,
        "memory": [
            mode_report(mode, layers, estimate.budget, estimate.speed, chosen=mode is estimate.mode)
            for mode in estimate.memory
        ],
        "bandwidths": estimate.speed.bandwidths._asdict(),
        "after": _after(estimate),
        "disk": {"film_bytes": estimate.film_bytes, "download_bytes": estimate.model.download_bytes},
        "time": {**seconds, "measured": duration.rates.measured, "basis": duration.rates.basis},
        "cost": cost,
        "fingerprint": estimate.fingerprint,
    }


def settings_of(estimate: Estimate) -> dict[str, dict]:
    """Every value that the film is planned with, and where it came from."""
    plan = estimate.plan
    first, origins = plan.chunks[0], dict(plan.origins)
    if estimate.film.recipe.shots[0].seed is not None:
        origins["seed"] = "recipe"
    values = {
        "model": estimate.model.name,
        "num_frames": plan.num_frames,
        "fps": plan.fps,
        "size": list(plan.size),
        "seed": first.seed,
        "steps": list(plan.steps),
        "guidance": plan.guidance,
        "negative": plan.negative,
        "image": first.image,
        "video": first.video,
    }
    if plan.reuse_history:
        values["reuse_history"] = True
    if plan.reuse_steps > 1:
        values["reuse_steps"] = plan.reuse_steps
    if adapters := _adapters(estimate.model):
        values["lora"] = [f"{adapter.path.name}:{adapter.weight:g}" for adapter in adapters]
    if estimate.track:
        sound = estimate.track.sound
        values |= dict(zip(SOUND_KEYS, (sound.path, sound.fit, sound.fade), strict=True))
    return {key: {"value": value, "from": origins[key]} for key, value in values.items()}


def _audio(track: Track) -> dict:
    sound = track.sound
    return {
        "path": sound.path,
        "sha256": track.digest,
        "seconds": track.seconds,
        "fit": sound.fit,
        "fade": sound.fade,
    }


def _model(model: Model) -> dict:
    path: Path | None = model.checkpoint.path if model.checkpoint else None
    return {
        "name": model.name,
        "kind": model.kind,
        "repo": model.source.repo or None,
        "revision": model.source.revision or None,
        "path": path,
        "trained": model.trained,
        "downloaded": model.checkpoint is not None,
        "download_bytes": model.download_bytes,
        "parameters": dict(model.parameters),
        "lora": [
            {
                "path": adapter.path,
                "weight": adapter.weight,
                "sha256": adapter.digest,
                "bytes": adapter.bytes,
                "family": adapter.family,
                "ranks": list(adapter.ranks),
                "matched": adapter.matched,
                "modules": adapter.modules,
            }
            for adapter in _adapters(model)
        ],
    }


def _preview(estimate: Estimate) -> dict | None:
    if (preview := estimate.preview) is None:
        return None
    facts = {"path": preview.path, "sha256": preview.digest, "parameters": preview.parameters}
    return {**facts, "final": estimate.final}


def _after(estimate: Estimate) -> dict | None:
    after = estimate.after
    if after is None:
        return None
    return {
        "through": after.through,
        "filter": after.graph,
        "size": list(after.made.size),
        "fps": float(after.made.rate),
        "frames": after.num_frames(estimate.plan.num_frames),
        "seconds": estimate.after_seconds,
    }


def _adapters(model: Model) -> tuple[Adapter, ...]:
    return model.checkpoint.adapters if model.checkpoint else ()


def _device(device: Device, origin: str) -> dict:
    facts = {key: getattr(device, key) for key in ("kind", "name", "total_bytes", "free_bytes")}
    return {**facts, "from": origin}


def _shots(plan: Plan) -> list[dict]:
    seeds = {chunk.start_frame: chunk.seed for chunk in plan.chunks if chunk.fresh}
    return [
        {
            "index": shot.index,
            "start_frame": shot.start_frame,
            "frames": shot.num_frames,
            "start_seconds": shot.start_frame / plan.fps,
            "seconds": shot.num_frames / plan.fps,
            "transition": shot.transition,
            "seed": seeds.get(shot.start_frame) if shot.transition == "cut" else None,
            "prompt": shot.prompt,
            "blend_frames": shot.blend_frames,
        }
        for shot in plan.shots
    ]


def _chunks(estimate: Estimate, places: dict[str, int]) -> list[dict]:
    chunks = estimate.plan.chunks
    return [
        {
            "index": chunk.index,
            "shot": chunk.shot,
            "start_frame": chunk.start_frame,
            "frames": chunk.num_frames,
            "fresh": chunk.fresh,
            "seed": chunk.seed,
            "prompts": [[places[text], weight] for text, weight in chunk.prompts],
            "calls": estimate.work.chunk_calls(chunk),
            "fingerprint": fingerprint,
            "kept": chunk.index in estimate.kept,
        }
        for chunk, fingerprint in zip(chunks, estimate.fingerprints or [None] * len(chunks), strict=True)
    ]


def _segments(plan: Plan, seconds: Sequence[float] | None) -> list[dict]:
    firsts = [chunk.index for chunk in plan.chunks if chunk.fresh]
    return [
        {
            "index": index,
            "first_chunk": first,
            "chunks": after - first,
            "frames": sum(chunk.num_frames for chunk in plan.chunks[first:after]),
            "seconds": seconds and seconds[index],
        }
        for index, (first, after) in enumerate(pairwise([*firsts, len(plan.chunks)]))
    ]


def _stage(stage: StageWork) -> dict:
    return {
        "stage": stage.index,
        "grid": list(stage.grid),
        "noisy_tokens": stage.noisy,
        "tokens": stage.noisy + stage.history,
        "calls_first_chunk": stage.first_calls,
        "calls_chunk": stage.calls,
        "calls": stage.film_calls,
        "call_flops": {**stage.call._asdict(), "total": stage.call.total},
        "flops": {**stage.film._asdict(), "total": stage.film.total},
    }
