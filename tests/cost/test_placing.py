"""The memory mode that is chosen, the reason that is printed, and the message where nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_cli import machine
from helios_cli.cost.auto import auto_model, survey, usual_film
from helios_cli.cost.memory import MemoryBudget, plan_memory
from helios_cli.cost.model import find_model
from helios_cli.cost.placing import (
    Bandwidths,
    ChunkSpeed,
    allocator_share,
    bandwidths_of,
    budget_notices,
    budget_of,
    cache_warning,
    choose,
    choose_deeper,
    memory_plans,
    reason,
    speed_of,
    transfer_seconds,
)
from helios_cli.cost.speeds import record_bandwidths
from helios_cli.device import Device
from helios_cli.errors import InputError, MachineError
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.values import parse_bytes
from helios_cli.units import format_seconds
from helios_cli.weights.placement import Placement

GB = 10**9
GPU = Device("cuda", "GPU", 80 * GB, 80 * GB)
CPU = Device("cpu", "CPU", 64 * GB, 64 * GB)
RATES = Bandwidths(disk=1e9, cache=4e9, upload=20e9, basis="stated")
UNKNOWN = ChunkSpeed(RATES, None, None)
DEFAULT = RenderOptions()


def film(device=GPU, name="distilled", dtype="bfloat16", quant="none", vram=None):
    return usual_film(find_model(name), device, dtype, quant=quant, vram=vram)


def chosen(vram, ram=64 * GB, options=DEFAULT, name="distilled", speed=UNKNOWN):
    load, budget = film(name=name, vram=vram), MemoryBudget(vram, ram)
    modes = memory_plans(load, budget, speed)
    return choose(modes, options, budget, GPU, speed), modes, budget, load


def test_what_fits_whole_is_not_offloaded():
    mode, *_ = chosen(48 * GB)
    assert mode.name == "none" and mode.moved_bytes == 0


def test_a_small_gpu_streams_and_says_why():
    mode, modes, budget, load = chosen(12 * GB)
    assert mode.name == "stream" and 0 < mode.placement.resident < 40
    line = reason(mode, modes, DEFAULT, budget, load)
    assert f"stream, {mode.placement.resident} of 40 blocks stay" in line and "12 GB may be used" in line


@pytest.mark.parametrize("speed", [UNKNOWN, ChunkSpeed(RATES, 1.0, 0.2), ChunkSpeed(RATES, 600.0, 30.0)], ids=str)
@pytest.mark.parametrize("name", ["distilled", "base"])
def test_the_fastest_wins(name, speed):
    """Where the computing is not known, the one that waits least for its weights, as if it computed in no time."""
    for vram in (9, 24, 27, 31, 34):
        mode, modes, budget, _ = chosen(vram * GB, name=name, speed=speed)
        assert speed.least_seconds(mode, budget) == min(speed.least_seconds(m, budget) for m in modes if m.fits)


def test_a_slow_gpu_hides_what_a_fast_one_waits_for():
    """A minute of computing hides all of ten blocks that stream six times a chunk, and a second hides next to
    nothing; a transformer that is loaded once is always waited for."""
    slow, *_ = chosen(27 * GB, speed=ChunkSpeed(RATES, 60.0, 5.0))
    fast, *_ = chosen(27 * GB, speed=ChunkSpeed(RATES, 1.0, 0.2))
    assert (slow.name, fast.name) == ("stream", "model")
    assert slow.moved_bytes > fast.moved_bytes


def test_seconds_of_a_chunk():
    """Streaming overlaps with computing, and with decoding where that overlaps too; parts that take turns are
    waited for."""
    load, budget, speed = film(), MemoryBudget(), ChunkSpeed(RATES, 50.0, 7.0)

    def told(placement):
        mode = plan_memory(load, budget, placement)
        return speed.transfer(mode, budget), speed.seconds(mode, budget), mode

    transfer, seconds, _ = told(Placement("model"))
    assert seconds == pytest.approx(transfer + 57)
    ahead = MemoryBudget(80 * GB, 64 * GB)  # room to read either part while the other works
    mode = plan_memory(load, ahead, Placement("model"))
    assert (
        mode.ahead_bytes[0] - 40 * load.prompt_block_bytes
        == (plan_memory(load, ahead, Placement("model", prompt_matrices=False)).ahead_bytes[0])
    )
    vae = speed.transfer(mode, ahead) * mode.ahead_bytes[1] / mode.moved_bytes
    assert mode.ahead_bytes == (load.transformer_bytes, 2 * load.model.parameters["vae"])
    assert speed.seconds(mode, ahead) == pytest.approx(57 + speed.transfer(mode, ahead) - 7 - vae)
    assert told(Placement())[:2] == (0, 57)
    transfer, seconds, _ = told(Placement("stream"))
    assert transfer > 57 and seconds == pytest.approx(transfer)
    assert told(Placement("stream", decode_beside=False))[1] == pytest.approx(transfer + 7)
    transfer, seconds, mode = told(Placement("stream", resident=30))
    prompts = transfer * mode.waited_bytes / mode.moved_bytes
    assert transfer < 57 and seconds == pytest.approx(57 + prompts) and 0 < prompts < 2
    assert told(Placement(prompt_matrices=False))[:2] == pytest.approx((prompts, 57 + prompts))
    transfer, seconds, mode = told(Placement("stream", resident=30, turns=True))
    waited = transfer * mode.waited_bytes / mode.moved_bytes
    assert seconds == pytest.approx(waited + max(50, transfer - waited) + 7) and waited > 10
    assert UNKNOWN.seconds(mode, budget) is None and UNKNOWN.least_seconds(mode, budget) == pytest.approx(transfer)


def test_lanes_compute_for_all_of_them():
    load = film(Device("cuda", "NVIDIA H100", 80 * GB, 80 * GB))
    one, three = speed_of(load), speed_of(replace(load, lanes=3))
    assert (three.denoise, three.decode) == pytest.approx((3 * one.denoise, 3 * one.decode))


@settings(deadline=None, max_examples=30)
@given(vram=st.integers(1, 60), ram=st.integers(1, 90), name=st.sampled_from(["distilled", "base"]))
def test_what_is_chosen_keeps_to_both_budgets(vram, ram, name):
    try:
        mode, *_ = chosen(vram * GB, ram * GB, name=name)
    except MachineError as error:
        assert error.exit_code == 3 and error.hint
        return
    assert mode.device_bytes <= vram * GB and mode.host_bytes <= ram * GB


def test_nothing_fits():
    with pytest.raises(
        MachineError,
        match=r"--offload \w+ takes .* of the device's memory, of which 2 GB may be used; its largest phase is",
    ):
        chosen(2 * GB)
    with pytest.raises(MachineError, match="of host memory, of which 500 MB may be used"):
        chosen(12 * GB, 500 * 10**6)
    with pytest.raises(MachineError, match="--offload none takes") as caught:
        chosen(12 * GB, options=RenderOptions(offload="none"))
    assert "--offload stream" in caught.value.hint


def test_a_budget_of_what_is_not_there():
    with pytest.raises(InputError, match="--vram limits the memory of a GPU"):
        budget_of(RenderOptions(vram=GB), CPU)
    assert budget_of(RenderOptions(vram=3 * GB, ram=2 * GB), GPU) == MemoryBudget(3 * GB, 2 * GB)
    assert budget_of(DEFAULT, GPU).device_bytes == 80 * GB
    assert budget_of(DEFAULT, CPU).host_bytes <= machine.host_memory().total_bytes
    assert budget_of(DEFAULT, GPU, here=False).host_bytes is None


def test_a_wish_for_more_than_there_is():
    """A budget above what is free means all that is free, with a notice."""
    free = machine.host_memory().available_bytes
    options = RenderOptions(vram=100 * GB, ram=10**14)
    budget = budget_of(options, GPU)
    assert budget.device_bytes == 80 * GB and budget.host_bytes == pytest.approx(free, rel=0.2)
    vram, ram = budget_notices(options, budget)
    assert vram == "--vram 100 GB: only 80 GB is free, so that is the budget" and ram.startswith("--ram 100 TB")
    assert budget_notices(RenderOptions(vram=GB), budget_of(RenderOptions(vram=GB), GPU)) == []
    assert budget_of(options, GPU, here=False).host_bytes == 10**14  # of a machine that is not this one
    unseen = replace(GPU, free_bytes=None)
    assert budget_of(options, unseen).device_bytes == 100 * GB


def test_an_allocator_that_is_held_to_the_budget():
    assert allocator_share(None, 80 * GB) is None
    assert allocator_share(8 * GB, 80 * GB) == pytest.approx(7.5 / 80)


def test_the_disk_sets_the_speed():
    """54.9 GB of float32 blocks, read six times a chunk on average over a film that begins twice as slow."""
    mode, _, budget, load = chosen(7 * GB, ram=16 * GB)
    said = cache_warning(mode, budget, UNKNOWN)
    room = 16 * GB - mode.host_bytes
    seconds = mode.read_bytes * ((room / mode.pass_bytes) / 4e9 + (1 - room / mode.pass_bytes) / 1e9)
    assert (
        f"may set the speed: {room / 1e9:.3g} GB" in said
        and f"up to {format_seconds(seconds)}" in said
        and "1 GB/s" in said
    )
    assert cache_warning(mode, MemoryBudget(7 * GB, 200 * GB), UNKNOWN) is None
    assert transfer_seconds(mode, None, RATES) == pytest.approx(max(mode.read_bytes / 4e9, mode.moved_bytes / 20e9))
    assert "the disk sets the speed" in cache_warning(mode, budget, ChunkSpeed(RATES, 20.0, 2.0))
    streamed = plan_memory(load, budget, Placement("stream"))
    assert cache_warning(streamed, budget, ChunkSpeed(RATES, 4000.0, 2.0)) is None  # it computes for longer
    assert cache_warning(streamed, budget, ChunkSpeed(RATES, 100.0, 2.0)) is not None


def test_a_copy_is_advised_where_it_would_be_smaller():
    mode, _, budget, _ = chosen(7 * GB, ram=16 * GB)
    assert "helios models convert" in cache_warning(mode, budget, UNKNOWN)
    converted = mode._replace(read_bytes=mode.moved_bytes)
    assert "convert" not in cache_warning(converted, budget, UNKNOWN)


def test_measured_bandwidths_take_the_place_of_stated_ones():
    assert "stated" in bandwidths_of("cuda", "GPU").basis
    record_bandwidths("GPU", {"disk": 3e9, "upload": 5e10})
    record_bandwidths("GPU", {"disk": 2e9})
    found = bandwidths_of("cuda", "GPU")
    assert (found.disk, found.upload) == (2e9, 5e10) and "measured here: disk, upload" in found.basis
    assert bandwidths_of("cpu", "GPU").upload is None


def test_deeper_is_less_and_ends():
    mode, _, budget, load = chosen(48 * GB)
    sizes = []
    while mode is not None:
        sizes.append(mode.device_bytes)
        mode = choose_deeper(load, mode, budget)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes) > 3


def test_fp8_needs_a_file_of_it_to_stream():
    names = [mode.name for mode in memory_plans(film(quant="fp8"), MemoryBudget(30 * GB, 64 * GB))]
    assert names == ["none", "model"]  # as it is published; `helios models convert` writes another
    whole, rounded = (memory_plans(film(quant=quant), MemoryBudget())[0] for quant in ("none", "fp8"))
    saved = 40 * film().model.dit.fp8_block_parameters
    assert whole.phases[1].weights - rounded.phases[1].weights == saved


def test_apple_s_devices_do_not_stream():
    load = film(replace(CPU, kind="mps"))
    modes = memory_plans(load, MemoryBudget(20 * GB, 64 * GB))
    assert [mode.name for mode in modes] == ["none", "model"]
    with pytest.raises(MachineError, match="--offload stream does not work on mps"):
        choose(modes, RenderOptions(offload="stream"), MemoryBudget(20 * GB, 64 * GB), load.device, UNKNOWN)


def test_auto_takes_the_small_one_until_the_other_is_here():
    assert auto_model(GPU, "bfloat16", DEFAULT)[0] == "tiny"


def test_a_survey_is_plain_values(monkeypatch):
    free = [GB // 2, 8 * GB]
    monkeypatch.setattr(machine, "host_memory", lambda: machine.HostMemory(64 * GB, free[-1], ()))
    found = survey(CPU, "bfloat16")
    assert found["models"]["distilled"]["runs"] == "stream"
    assert [mode["fits"] for mode in found["models"]["base"]["modes"]] == [False, False, True]
    free.pop()
    assert survey(CPU, "bfloat16")["models"]["mid"]["runs"] is None


@pytest.mark.parametrize(
    ("text", "count"),
    [("6G", 6 * GB), ("6.5gb", 6_500_000_000), ("512M", 512_000_000), ("6GiB", 6 * 2**30), ("1 TB", 10**12)],
)
def test_amounts_of_memory(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["6", "lots", "-1G", "0G", "6X", "", "6 G B", "9" * 400 + "G"])
def test_words_that_are_no_amount(text):
    with pytest.raises(InputError, match="not an amount of memory"):
        parse_bytes(text)


# The VAE and the text encoder on a second device


def two_gpus(vram, second, options=DEFAULT, speed=UNKNOWN, second_kind=GPU):
    least = min(vram, second or vram)
    load = usual_film(find_model("distilled"), GPU, "bfloat16", vae_device=second_kind, vram=least)
    budget = MemoryBudget(vram, 64 * GB, second)
    modes = memory_plans(load, budget, speed)
    return choose(modes, options, budget, GPU, speed), modes, budget, load


def test_a_second_gpu_takes_what_has_no_room_next_to_the_transformer():
    """Alone a GPU with 31 GB would give up graphs for decoding; the second one has 16 GB for the text encoder."""
    alone, *_ = chosen(31 * GB)
    two, modes, *_ = two_gpus(31 * GB, 16 * GB)
    assert alone.name == "none" and not alone.placement.graphs and two.placement.graphs
    assert two.name == "none" and two.fits and [mode.name for mode in modes] == ["none", "stream"]
    text, denoise, decode = two.phases
    assert text.on_vae_device and decode.on_vae_device and not denoise.on_vae_device
    assert (
        denoise.weights == film().transformer_bytes - 40 * film().prompt_block_bytes
        and decode.weights == film().vae_bytes
    )
    assert two.device_bytes == denoise.total + 500_000_000
    assert two.vae_device_bytes == max(text.total, decode.total) + 500_000_000
    assert decode.kept < 0.01 * denoise.kept


def test_a_small_second_gpu_streams_the_text_encoder_and_nothing_else():
    two, modes, budget, load = two_gpus(48 * GB, 6 * GB)
    assert two.name == "stream" and two.placement.resident == 40 and two.moved_bytes == two.waited_bytes
    assert two.vae_device_bytes <= 6 * GB
    line = reason(two, modes, DEFAULT, budget, load)
    assert "of the VAE's device and 6 GB may be used" in line and "40 of 40 blocks stay" in line


def test_a_second_gpu_that_is_too_small_is_named():
    with pytest.raises(MachineError, match="of the VAE device's memory, of which 1 GB may be used"):
        two_gpus(48 * GB, GB)
    with pytest.raises(MachineError, match="--offload model: with --vae-device the parts of the model do not"):
        two_gpus(48 * GB, 16 * GB, RenderOptions(offload="model"))


def test_two_gpus_take_the_longer_of_denoising_and_decoding():
    speed = ChunkSpeed(RATES, 9.0, 3.0)
    mode, _, budget, _ = two_gpus(48 * GB, 16 * GB, speed=speed)
    assert speed.seconds(mode, budget) == 9 and speed.seconds(chosen(48 * GB)[0], budget) == 12
    lanes = replace(usual_film(find_model("distilled"), GPU, "bfloat16", vae_device=GPU), lanes=2)
    mode = memory_plans(lanes, budget, speed)[0]
    assert not mode.chunks_beside and speed.seconds(mode, budget) == 12


def test_a_vae_on_the_cpu_takes_host_memory():
    mode, *_ = two_gpus(48 * GB, None, second_kind=CPU)
    alone, *_ = chosen(48 * GB)
    assert mode.host_bytes == alone.host_bytes + mode.vae_device_bytes and mode.fits
    assert mode.phases[2].working > 1.9 * 0.1 * alone.phases[2].working  # smaller pieces of float32


def test_vram_holds_for_each_gpu():
    options = RenderOptions(vram=20 * GB)
    budget = budget_of(options, GPU, replace(GPU, free_bytes=8 * GB))
    assert (budget.device_bytes, budget.vae_device_bytes) == (20 * GB, 8 * GB)
    assert budget_notices(options, budget) == [
        "--vram 20 GB: only 8 GB is free on the VAE's device, so that is the budget"
    ]
    assert budget_of(DEFAULT, GPU, CPU).vae_device_bytes is None


def test_less_memory_on_two_gpus_ends():
    mode, _, budget, load = two_gpus(48 * GB, 16 * GB)
    sizes = []
    while mode is not None:
        sizes.append(mode.device_bytes)
        mode = choose_deeper(load, mode, budget)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes) > 3
