import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from helios_cli.cost.auto import usual_film
from helios_cli.cost.gpus import other_device
from helios_cli.cost.model import find_model
from helios_cli.cost.speeds import (
    MeasuredSpeed,
    after_seconds,
    duration_of,
    find_speed,
    keep_after,
    keep_speed,
    rates_of,
    read_after,
    read_speeds,
    record_after,
    record_speed,
    rendered_speed,
    speeds_file,
)
from helios_cli.cost.work import work_of
from helios_cli.cost.workload import Workload
from helios_cli.device import Device
from helios_cli.film.after import After
from helios_cli.recipe.options import RenderOptions

SIZE = 14_312_427_584
FAST = MeasuredSpeed("NVIDIA H200", "bfloat16", SIZE, 4e14, 1e14, 2e7, "2026-11-20")
GPU = Device("cuda", "NVIDIA H200", None, None)

PLAN_WIDTH = 80 - 13
"""Columns that `helios plan` has for the basis of its times."""


def test_what_was_measured_is_found_again():
    assert read_speeds() == []
    record_speed(FAST)
    record_speed(MeasuredSpeed("NVIDIA H200", "float32", SIZE, dit_flops=5e13))
    assert find_speed("NVIDIA H200", "bfloat16", SIZE) == FAST
    assert find_speed("NVIDIA H200", "float32", SIZE).vae_flops is None
    assert find_speed("NVIDIA H100", "bfloat16", SIZE) is None
    assert [file.name for file in speeds_file().parent.iterdir()] == ["speeds.json"]


def test_a_new_measurement_keeps_what_it_leaves_out():
    record_speed(FAST)
    record_speed(MeasuredSpeed("NVIDIA H200", "bfloat16", SIZE, vae_flops=2e14, measured="2026-12-01"))
    merged = MeasuredSpeed("NVIDIA H200", "bfloat16", SIZE, 4e14, 2e14, 2e7, "2026-12-01")
    assert read_speeds() == [merged]


@pytest.mark.parametrize(
    ("parameters", "found"),
    [(249, None), (250, 1000), (1990, 1000), (2010, 4000), (3999, 4000), (4001, 4000), (16_000, 4000), (16_001, None)],
)
def test_a_speed_is_that_of_the_nearest_size(parameters, found):
    """Nearest by ratio, and at most four times larger or smaller; other dtypes and devices are not looked at."""
    for measured in (4000, 1000):
        record_speed(MeasuredSpeed("a CPU", "float32", measured, dit_flops=1e9))
    for other in (MeasuredSpeed("a CPU", "bfloat16", parameters), MeasuredSpeed("another CPU", "float32", parameters)):
        record_speed(other)
    speed = find_speed("a CPU", "float32", parameters)
    assert found == (speed and speed.parameters)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["version", "speeds", "device", "dtype"]), inner),
)


def write(content: bytes) -> None:
    speeds_file().parent.mkdir(parents=True, exist_ok=True)
    speeds_file().write_bytes(content)


@given(st.binary() | json_values.map(lambda value: json.dumps(value).encode()))
def test_a_damaged_file_is_no_measurement(data):
    write(data)
    assert read_speeds() == [] and read_after() == {}


def test_what_comes_behind_is_remembered_by_itself():
    """The fastest film counts; the last 50 programs and graphs are kept, next to other speeds."""
    record_speed(FAST)
    cat = After.of(RenderOptions(through="cat"), (64, 32), 24.0, "mkv")
    assert cat is not None and after_seconds(cat, 10) is None
    for seconds in (4.0, 2.0, 8.0):
        keep_after(cat, 100, seconds)
    assert after_seconds(cat, 300) == pytest.approx(6.0)
    larger = After.of(RenderOptions(through="cat"), (128, 32), 24.0, "mkv")
    assert larger is not None and after_seconds(larger, 300) == pytest.approx(12.0)
    other = After.of(RenderOptions(through="cat", filter="hflip"), (64, 32), 24.0, "mkv")
    assert other is not None and after_seconds(other, 300) is None
    for number in range(50):
        record_after(f"{number}", 1.0)
    assert after_seconds(cat, 300) is None and len(read_after()) == 50
    assert FAST in read_speeds()


@pytest.mark.parametrize("rate", [0, -1, "fast", True, float("inf"), float("nan"), 10**400, None])
def test_a_rate_that_cannot_be_is_not_used(rate):
    entry = {"device": "d", "dtype": "bfloat16", "parameters": SIZE, "dit_flops": rate, "vae_flops": 1e12}
    write(json.dumps({"version": 1, "speeds": [entry, "nonsense", {}]}).encode())
    assert read_speeds() == [MeasuredSpeed("d", "bfloat16", SIZE, vae_flops=1e12)]


@pytest.mark.parametrize("parameters", [0, -1, 1.5, "14b", True, 10**400, None])
def test_a_speed_of_no_size_is_not_used(parameters):
    entry = {"device": "d", "dtype": "bfloat16", "parameters": parameters, "dit_flops": 1e12}
    write(json.dumps({"version": 1, "speeds": [entry]}).encode())
    assert read_speeds() == []


def test_measured_goes_before_stated():
    stated = rates_of(GPU, "bfloat16", SIZE)
    assert not stated.measured and 3e14 < stated.dit_flops < 5e14 and stated.vae_flops < stated.dit_flops
    assert rates_of(GPU, "float32", SIZE).dit_flops < stated.dit_flops / 10
    record_speed(FAST)
    measured = rates_of(GPU, "bfloat16", SIZE)
    assert measured.measured and measured.dit_flops == 4e14 and "2026-11-20" in measured.basis
    assert rates_of(GPU, "bfloat16", SIZE // 10) == stated


def test_the_basis_names_the_model_that_was_measured():
    record_speed(FAST)
    basis = rates_of(GPU, "bfloat16", SIZE // 2).basis
    assert "14,312.4 M parameters" in basis and len(basis) <= PLAN_WIDTH


def test_what_is_not_known_is_not_guessed():
    rates = rates_of(Device("cpu", "a CPU", None, None), "float32", SIZE)
    assert rates.dit_flops is None and "helios bench" in rates.basis and len(rates.basis) <= PLAN_WIDTH
    record_speed(MeasuredSpeed("a CPU", "float32", SIZE, dit_flops=1e11))  # half is not enough
    assert rates_of(Device("cpu", "a CPU", None, None), "float32", SIZE).dit_flops is None


def test_the_embedded_model_is_never_without_a_time():
    basis = {dtype: rates_of(Device("cpu", "a CPU", None, None), dtype, 2_380_608) for dtype in ("bfloat16", "float32")}
    assert all(not one.measured and one.dit_flops and len(one.basis) <= PLAN_WIDTH for one in basis.values())
    assert rates_of(Device("cpu", "a CPU", None, None), "float32", 215_000_000).dit_flops is None


def test_products_in_fp8_have_a_speed_of_their_own():
    record_speed(FAST)
    assert not rates_of(GPU, "bfloat16", SIZE, fp8_share=0.7).measured
    record_speed(MeasuredSpeed("NVIDIA H200", "bfloat16, fp8", SIZE, dit_flops=6e14, vae_flops=1e14))
    assert rates_of(GPU, "bfloat16", SIZE, fp8_share=0.7).dit_flops == 6e14
    assert rates_of(GPU, "bfloat16", SIZE).dit_flops == 4e14


PHASES = {"text": 9.0, "load": 9.0, "stage 0": 1.0, "stage 1": 1.0, "stage 2": 2.0, "decode": 2.0, "write": 9.0}


def three_chunks(device: Device) -> Workload:
    usual = usual_film(find_model("distilled"), device, "bfloat16")
    return replace(usual, plan=replace(usual.plan, chunks=usual.plan.chunks + usual.plan.chunks[1:]))


def test_a_film_on_a_cpu_says_how_long_its_phases_took():
    film = three_chunks(Device("cpu", "a CPU", None, None))
    speed = rendered_speed(film, PHASES, [])
    assert speed.dit_flops == film.work.denoise / 4 and speed.vae_flops == film.work.decode / 2
    assert rendered_speed(film, {"text": 1.0, "decode": 1.0}, []) is None


def test_a_film_on_a_gpu_says_how_long_its_chunks_took():
    """The first, which compiles, left out; a plan for the same film comes to the seconds that its chunks had."""
    film = three_chunks(GPU)
    assert rendered_speed(film, PHASES, [70.0, 2.0]) is None
    speed = rendered_speed(film, PHASES, [70.0, 2.0, 4.0])
    rest = replace(film.plan, chunks=film.plan.chunks[1:])
    work = work_of(rest, film.model, film.dtype, film.work.prompts)
    assert work.denoise / speed.dit_flops + work.decode / speed.vae_flops == pytest.approx(6.0)


def test_the_fastest_film_counts(monkeypatch):
    """Other work on a machine makes a film slower; a home folder that cannot be written stores no speeds and stops
    no film."""
    film = three_chunks(Device("cpu", "a CPU", None, None))
    for seconds in (4.0, 2.0, 3.0):
        keep_speed(film, {"stage 0": seconds, "decode": 1.0}, [])
    assert read_speeds()[0].dit_flops == film.work.denoise / 2
    monkeypatch.setenv("HELIOS_HOME", "/proc/none")
    keep_speed(film, {"stage 0": 1.0, "decode": 1.0}, [])


def test_encoding_goes_on_beside_the_rendering():
    film = usual_film(find_model("distilled"), GPU, "bfloat16")
    work = film.work
    record_speed(FAST)
    duration = duration_of(film)
    parts = work.text / FAST.dit_flops, 0, work.denoise / FAST.dit_flops, work.decode / FAST.vae_flops
    assert (duration.text, duration.conditioning, duration.denoise, duration.decode) == parts
    assert duration.encode == 66 * 640 * 384 / FAST.encode_pixels < duration.total == sum(parts)
    long = duration_of(replace(film, plan=replace(film.plan, num_frames=20_000)))
    assert long.total == long.encode == 20_000 * 640 * 384 / FAST.encode_pixels


def test_other_gpus_are_known_by_name():
    assert other_device("h100").name == "H100" and other_device("4090").total_bytes == 24564 * 2**20
