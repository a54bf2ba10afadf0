"""Which mode is taken, what is said of it, and what is said where nothing fits."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from helios_cli import machine
from helios_cli.cost.auto import auto_model, survey, usual_film
from helios_cli.cost.device import Device
from helios_cli.cost.memory import Budget, memory_modes
from helios_cli.cost.model import find_model
from helios_cli.cost.placing import allocator_share, budget_of, cache_warning, choose, choose_deeper, reason
from helios_cli.cost.speeds import record_bandwidths
from helios_cli.cost.transfer import Bandwidths, bandwidths_of, transfer_seconds
from helios_cli.errors import InputError, MachineError
from helios_cli.recipe.values import parse_bytes
from helios_cli.weights.placement import NO_WISH, Wish

GB = 10**9
GPU = Device("cuda", "GPU", 80 * GB, 80 * GB)
CPU = Device("cpu", "CPU", 64 * GB, 64 * GB)
RATES = Bandwidths(disk=1e9, cache=4e9, upload=20e9, basis="stated")


def film(device=GPU, name="distilled", dtype="bfloat16", quant="none"):
    return usual_film(find_model(name), device, dtype, quant=quant)


def chosen(vram, ram=64 * GB, wish=NO_WISH, name="distilled"):
    subject, budget = film(name=name), Budget(vram, ram)
    modes = memory_modes(subject, budget)
    return choose(modes, wish, budget, GPU), modes, budget, subject


def test_what_fits_whole_is_not_offloaded():
    mode, *_ = chosen(48 * GB)
    assert mode.name == "none" and mode.moved_bytes == 0


def test_a_small_gpu_streams_and_says_why():
    mode, modes, budget, subject = chosen(12 * GB)
    assert mode.name == "stream" and 0 < mode.placement.resident < 40
    line = reason(mode, modes, NO_WISH, budget, subject)
    assert f"stream, {mode.placement.resident} of 40 blocks stay" in line and "12 GB may be taken" in line


def test_the_least_bytes_win():
    """Of a film with a hundred calls a chunk even a few streamed blocks move more than all of them once."""
    few, *_ = chosen(31 * GB, name="distilled")
    many, *_ = chosen(31 * GB, name="base")
    assert few.moved_bytes <= min(mode.moved_bytes for mode in chosen(31 * GB)[1] if mode.fits)
    assert many.moved_bytes <= min(mode.moved_bytes for mode in chosen(31 * GB, name="base")[1] if mode.fits)


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
        MachineError, match=r"--offload \w+ takes .* of the device's memory.* 2 GB; its widest phase is"
    ):
        chosen(2 * GB)
    with pytest.raises(MachineError, match="of host memory, of which it may take 500 MB"):
        chosen(12 * GB, 500 * 10**6)
    with pytest.raises(MachineError, match="--offload none takes") as caught:
        chosen(12 * GB, wish=Wish("none"))
    assert "--offload stream" in caught.value.hint


def test_a_budget_of_what_is_not_there():
    with pytest.raises(InputError, match="--vram is of a GPU"):
        budget_of(Wish(vram=GB), CPU)
    assert budget_of(Wish(vram=3 * GB, ram=2 * GB), GPU) == Budget(3 * GB, 2 * GB)
    assert budget_of(NO_WISH, GPU).device_bytes == 80 * GB
    assert budget_of(NO_WISH, CPU).host_bytes <= machine.host_memory().total_bytes
    assert budget_of(NO_WISH, GPU, here=False).host_bytes is None


def test_an_allocator_that_is_held_to_the_budget():
    assert allocator_share(NO_WISH, 80 * GB) is None
    assert allocator_share(Wish(vram=8 * GB), 80 * GB) == pytest.approx(7.5 / 80)


def test_the_disk_sets_the_speed():
    """54.9 GB of float32 blocks, read six times a chunk on average over a film that begins twice as slow."""
    mode, _, budget, _ = chosen(7 * GB, ram=16 * GB)
    said = cache_warning(mode, budget, RATES)
    room = 16 * GB - mode.host_bytes
    seconds = mode.read_bytes * ((room / mode.pass_bytes) / 4e9 + (1 - room / mode.pass_bytes) / 1e9)
    assert f"about {seconds:.3g} s" in said and "1 GB/s" in said
    assert cache_warning(mode, Budget(7 * GB, 200 * GB), RATES) is None
    assert transfer_seconds(mode, None, RATES) == pytest.approx(max(mode.read_bytes / 4e9, mode.moved_bytes / 20e9))


def test_measured_bandwidths_take_the_place_of_stated_ones():
    assert "stated" in bandwidths_of("cuda", "GPU").basis
    record_bandwidths("GPU", {"disk": 3e9, "upload": 5e10})
    record_bandwidths("GPU", {"disk": 2e9})
    found = bandwidths_of("cuda", "GPU")
    assert (found.disk, found.upload) == (2e9, 5e10) and "measured here: disk, upload" in found.basis
    assert bandwidths_of("cpu", "GPU").upload is None


def test_deeper_is_less_and_ends():
    mode, _, budget, subject = chosen(48 * GB)
    sizes = []
    while mode is not None:
        sizes.append(mode.device_bytes)
        mode = choose_deeper(subject, mode, budget)
    assert sizes == sorted(sizes, reverse=True) and len(set(sizes)) == len(sizes) > 3


def test_fp8_needs_a_file_of_it_to_stream():
    names = [mode.name for mode in memory_modes(film(quant="fp8"), Budget(30 * GB, 64 * GB))]
    assert names == ["none", "model"]  # as it is published; `helios models convert` writes another
    whole, rounded = (memory_modes(film(quant=quant), Budget(None, None))[0] for quant in ("none", "fp8"))
    saved = 40 * film().model.dit.fp8_block_parameters
    assert whole.phases[1].weights - rounded.phases[1].weights == saved


def test_apple_s_devices_do_not_stream():
    subject = film(replace(CPU, kind="mps"))
    modes = memory_modes(subject, Budget(20 * GB, 64 * GB))
    assert [mode.name for mode in modes] == ["none", "model"]
    with pytest.raises(MachineError, match="--offload stream does not go on mps"):
        choose(modes, Wish("stream"), Budget(20 * GB, 64 * GB), subject.device)


def test_auto_takes_the_small_one_until_the_other_is_here():
    assert auto_model(GPU, "bfloat16", NO_WISH)[0] == "tiny"


def test_a_survey_is_plain_values():
    found = survey(CPU, "bfloat16", Wish(ram=8 * GB))
    assert found["models"]["distilled"]["runs"] == "stream"
    assert [mode["fits"] for mode in found["models"]["base"]["modes"]] == [False, False, True]
    assert survey(CPU, "bfloat16", Wish(ram=GB // 2))["models"]["mid"]["runs"] is None


@pytest.mark.parametrize(
    ("text", "count"),
    [("6G", 6 * GB), ("6.5gb", 6_500_000_000), ("512M", 512_000_000), ("6GiB", 6 * 2**30), ("1 TB", 10**12)],
)
def test_amounts_of_memory(text, count):
    assert parse_bytes(text) == count


@pytest.mark.parametrize("text", ["6", "lots", "-1G", "0G", "6X", "", "6 G B"])
def test_words_that_are_no_amount(text):
    with pytest.raises(InputError, match="not an amount of memory"):
        parse_bytes(text)
