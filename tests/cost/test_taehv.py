"""Operations and memory of the preview decoder against the module itself, and what a plan makes of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

from helios_cli.cost import taehv
from helios_cli.cost.memory import MemoryBudget, plan_memory
from helios_cli.cost.model import find_model
from helios_cli.cost.speeds import duration_of
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.model.taehv import TAEHV
from helios_cli.weights.placement import Placement
from helios_cli.weights.preview import PreviewFile
from support import previews
from support.live_bytes import peak_bytes
from support.meta_networks import on_meta
from support.recipes import plan_of


@pytest.mark.parametrize("size", [(128, 64), (640, 384)])
def test_operations_are_those_of_the_module(size):
    network = on_meta(TAEHV)
    z = torch.zeros(1, 16, 9, size[1] // 8, size[0] // 8, device="meta")
    with FlopCounterMode(display=False) as counter:
        for _ in network.decode(z):
            pass
    assert counter.get_total_flops() == taehv.decode_flops(size)
    assert taehv.decode_flops(size, 5) < taehv.decode_flops(size) / 4


@pytest.mark.parametrize("size", [(64, 64), (128, 64), (320, 192), (640, 384)])
def test_memory_is_that_of_the_module(size):
    network = on_meta(TAEHV)
    z = torch.zeros(1, 16, 9, size[1] // 8, size[0] // 8, device="meta")

    def decode() -> None:
        for frames in network.decode(z):
            del frames

    assert peak_bytes(decode) == pytest.approx(4 * taehv.decode_elements(size, "cuda"), rel=0.05)


GPU = Device("cuda", "NVIDIA H200", 150 * 10**9, 150 * 10**9)


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    return PreviewFile.open(previews.write(tmp_path_factory.mktemp("preview") / "taew2_1.safetensors"))


@pytest.fixture(scope="module")
def film():
    return Workload(
        plan_of({"shot": [{"prompt": "a red ball"}]}, size=(640, 384), frames=99),
        find_model("distilled"),
        GPU,
        "bfloat16",
    )


def with_preview(load: Workload, file: PreviewFile, *, final: bool = False) -> Workload:
    return Workload(load.plan, load.model, GPU, "bfloat16", preview=file, final=final)


def phases(load: Workload, placement: Placement) -> dict:
    return {phase.phase: phase for phase in plan_memory(load, MemoryBudget(), placement).phases}


@pytest.mark.parametrize("mode", ["none", "model"])
def test_a_preview_needs_no_vae_and_less_memory(mode, film, file):
    placement, shown = Placement(mode), with_preview(film, file)
    whole, small = (phases(load, placement) for load in (film, shown))
    assert small["decode"].working < whole["decode"].working / 2
    assert (
        small["denoise"].weights - file.parameters * 2
        == film.transformer_bytes
        == small["decode"].weights - 2 * file.parameters
    )
    plans = [plan_memory(load, MemoryBudget(), placement) for load in (film, shown)]
    assert plans[1].moved_bytes == 0  # nothing takes turns with the transformer
    assert plans[1].device_bytes < plans[0].device_bytes or mode == "model"


def test_what_follows_a_preview_takes_what_the_vae_takes(film, file):
    both = with_preview(film, file, final=True)
    whole, small = phases(film, Placement()), phases(both, Placement())
    assert small["final"].working == whole["decode"].working
    assert small["final"].weights == whole["decode"].weights + 2 * file.parameters
    assert both.work.final == film.work.decode > 20 * both.work.decode
    assert both.work.total == film.work.total + both.work.decode
    alone = with_preview(film, file)
    assert alone.work.final == 0 and alone.work.total < film.work.total
    times = [duration_of(load) for load in (film, both, alone)]
    assert times[2].total < times[0].total < times[1].total


def test_a_picture_to_start_from_needs_the_vae(film, file, tmp_path):
    Image.new("RGB", (64, 64)).save(tmp_path / "start.png")
    plan = replace(
        film.plan, chunks=(replace(film.plan.chunks[0], image=tmp_path / "start.png"), *film.plan.chunks[1:])
    )
    load = with_preview(replace(film, plan=plan), file)
    assert phases(load, Placement())["decode"].weights == film.transformer_bytes + film.vae_bytes + 2 * file.parameters
