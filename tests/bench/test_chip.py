"""`helios bench quant` and `helios bench all` without a GPU: that they run, and what they say where they cannot."""

from __future__ import annotations

import json
import shutil
import warnings
from dataclasses import asdict

import pytest
import torch

from helios_cli.bench import everything
from helios_cli.bench.chip import PARTS, waits
from helios_cli.bench.everything import CPU, Probe, measure_all
from helios_cli.bench.fidelity import EQUAL_DB, psnr_db
from helios_cli.bench.specs import SPECS
from helios_cli.child import ChildError
from helios_cli.cli import main
from helios_cli.commands.bench import IN_8_BITS
from helios_cli.errors import MachineError
from helios_kernels.bench import Timing
from helios_kernels.tuning import Config, Tuning

DEVICE = torch.device("cpu")
USUAL = "bfloat16", "float32"


@pytest.mark.slow
def test_the_quality_of_fp8_by_chunk(tmp_path, capsys):
    out = tmp_path / "quant.json"
    size = ["--synthetic", "tiny", "--size", "64x64", "--steps", "1,1,1", "--chunks", "2", "--device", "cpu"]
    assert main(["bench", "quant", *size, "--float32", "--json", "--out", str(out)]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data == json.loads(out.read_text())
    found = {(row["film"], row["against"], row["chunk"]): row for row in data["distances"]}
    assert set(found) == {
        (film, against, chunk)
        for film, against in (*((film, exact) for film in IN_8_BITS for exact in ("bfloat16", "float32")), USUAL)
        for chunk in (1, 2)
    }
    for chunk in (1, 2):  # 3 bits of mantissa are worse than 7, and neither changes the picture beyond recognition
        usual = found[*USUAL, chunk]
        for film in IN_8_BITS:
            rounded = found[film, "bfloat16", chunk]
            assert 35 < rounded["latents_db"] < usual["latents_db"]
            assert 30 < rounded["frames_db"] < usual["frames_db"]


@pytest.mark.parametrize(("error", "expected"), [(0.0, EQUAL_DB), (1.0, 40.0), (10.0, 20.0)])
def test_psnr(error, expected):
    assert psnr_db(torch.full((5,), error), torch.zeros(5), peak=100) == pytest.approx(expected)


def outcomes(device: torch.device) -> dict[str, dict]:
    """Return what came of each part."""
    *_, (_, data) = measure_all(device)
    return data["parts"]


def test_a_part_that_fails_leaves_the_others(monkeypatch):
    def broken(seconds, earlier):
        raise ValueError("no such shape")

    def lost(seconds, earlier):
        raise ChildError("the process died", hint="none", answers=[{"row": 1}])

    made = [
        Probe("a", 9, lambda seconds, earlier: 1),
        Probe("b", 9, broken),
        Probe("lost", 9, lost),
        Probe("gpu", 9, lambda seconds, earlier: 2, needs_gpu=True),
        Probe("c", 9, lambda seconds, earlier: earlier["a"]["result"] + 2),
    ]
    monkeypatch.setattr(everything, "probes", lambda *_: made)
    said = outcomes(DEVICE)
    assert (said["a"]["result"], said["c"]["result"]) == (1, 3)
    assert said["b"]["failed"] == "ValueError: no such shape" and "broken" in said["b"]["where"]
    assert said["lost"]["failed"] == "ChildError: the process died" and said["lost"]["result"] == [{"row": 1}]
    assert said["gpu"]["left_out"] == "timed on a GPU"


def test_a_part_that_failed_half_way_is_not_called_done(monkeypatch, capsys):
    def lost(seconds, earlier):
        raise ChildError("the process died", hint="none", answers=[{"row": 1}])

    monkeypatch.setattr(
        everything, "probes", lambda *_: [Probe("lost", 9, lost), Probe("whole", 9, lambda seconds, earlier: 1)]
    )
    assert main(["bench", "all", "--device", "cpu"]) == 0
    said = capsys.readouterr().err
    assert "lost: ChildError: the process died" in said and "whole: done" in said


def test_what_a_chip_has_no_fp8_for_is_left_out(monkeypatch):
    made = [Probe("a", 9, lambda seconds, earlier: 1), Probe("b", 9, lambda seconds, earlier: 2, needs_fp8=True)]
    monkeypatch.setattr(everything, "probes", lambda device, folder: made)
    monkeypatch.setattr(everything, "heading", lambda device: {})
    for capability, told in (((8, 6), {"left_out": "this GPU has no fp8"}), ((8, 9), {"result": 2})):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device, of=capability: of)
        found = outcomes(torch.device("cuda"))
        assert found["a"]["result"] == 1 and told.items() <= found["b"].items()
    assert outcomes(DEVICE)["b"]["result"] == 2


def test_a_film_that_kernels_take_down_is_made_without_them(monkeypatch):
    asked = []

    def run(side, task, *, timeout):
        asked.append(task.kernels)
        if task.kernels == "triton":
            raise ChildError("an illegal memory access", hint="none", answers=[])
        return "a film"

    monkeypatch.setattr(everything, "run", run)
    monkeypatch.setattr(everything, "side", lambda result: {"side": result})
    monkeypatch.setattr(everything, "gates", lambda task, result: {"dit_teraflops": 1.0})
    (part,) = (part for part in everything.probes(DEVICE, "") if part.name == "render tiny 1,1,1")
    made = {"side": "a film", "gates": {"dit_teraflops": 1.0}}
    assert part.measure(60.0, {}) == made and asked == [""]
    monkeypatch.setattr(everything, "_wanted_kernels", lambda device: "triton")
    (part,) = (part for part in everything.probes(DEVICE, "") if part.name == "render tiny 1,1,1")
    assert part.measure(60.0, {}) == {**made, "kernels_failed": "an illegal memory access"}
    assert asked == ["", "triton", "reference"]
    with pytest.raises(ChildError):
        part.measure(1.0, {})


def test_an_operation_that_takes_its_process_down_costs_its_own_rows(monkeypatch):
    def child(device, part, seconds, *, names, compiled, ceiling, seconds_each):
        assert ceiling == {"copy": 1e12}  # not measured once more
        said = []
        for name in names:
            said.append({"begun": name})
            if name == "second":
                raise ChildError("an illegal memory access", hint="none", answers=said)
            said.append({"op": name, "case": "one", "fault": None})
        return said

    monkeypatch.setattr(everything, "OPS", dict.fromkeys(["first", "second", "third"]))
    monkeypatch.setattr(everything, "_child", child)
    rows = everything._kernels(DEVICE, 60.0, {"ceiling": {"result": {"copy": 1e12}}}, compiled=False)
    assert [(row["op"], row["fault"]) for row in rows] == [
        ("first", None),
        ("second", "an illegal memory access"),
        ("third", None),
    ]


def test_tuning_has_the_time_that_is_left_and_keeps_what_a_lost_process_found(monkeypatch):
    asked = []

    def child(device, part, seconds, *, names, kernels):
        assert kernels == "triton"  # on a chip that none are shipped for as well
        asked.append((part, seconds > 100, names))
        if len(asked) == 1:
            said = [{"begun": names[0]}, {"kernel": "found"}, {"begun": names[1]}]
            raise ChildError("an illegal memory access", hint="none", answers=said)
        return []

    monkeypatch.setattr(everything, "_child", child)
    (part,) = (part for part in everything.probes(DEVICE, "") if part.name == "tuning")
    rows = part.measure(min(400.0, part.seconds), {})
    assert [row.get("kernel", row.get("op")) for row in rows] == ["found", asked[0][2][1]]
    assert asked == [("tuning", True, asked[0][2]), ("tuning", True, asked[0][2][2:])]


@pytest.mark.process
@pytest.mark.slow
@pytest.mark.parametrize("name", ["ceiling", "attention", "fp8 products", "sustained products", "decoding"])
def test_the_parts_of_a_chip_run_at_small_shapes(name, tmp_path):
    part = next(part for part in everything.probes(DEVICE, str(tmp_path)) if part.name == name)
    result = part.measure(300.0, {})
    assert json.loads(json.dumps(result)) == result
    if name == "attention":
        assert len(result) == len(CPU.attention) + 1  # self-attention in 8 bits as well
        assert all(shape["name"] in shape["ms"] and not shape["refused"].keys() - {"fa3-e4m3"} for shape in result)
    if name == "decoding":
        assert [row["piece"] for row in result if "piece" in row] == [f"2^{one}" for one in CPU.pieces]
        assert len([row for row in result if "convolution" in row]) == len(CPU.convolutions)
        assert all(row.get("teraflops", 1) > 0 for row in result) and "adding a bias, GB/s" in result[-1]
    if name == "fp8 products":
        assert all(0.02 < product["relative_error"]["fp8"] < 0.05 for product in result)  # 2^-4 / sqrt(3), twice
        assert all(not product["refused"] and "fp8 with fast sums" in product["milliseconds"] for product in result)


@pytest.mark.process
@pytest.mark.slow
def test_a_render_has_its_floors(tmp_path):
    (part,) = (part for part in everything.probes(DEVICE, str(tmp_path)) if part.name == "render tiny 1,1,1 fp8")
    result = part.measure(300.0, {"ceiling": {"result": {"product": 1e11, "fp8_product": None}}})
    assert set(result["floors"]) == {"stage 0", "stage 1", "stage 2", "decode"} == set(result["share_of_floor"])
    assert all(seconds > 0 for seconds in result["floors"].values())
    assert result["gates"]["dit_teraflops"] > 0 and result["gates"]["decode_hidden"] == 0  # a CPU hides nothing
    assert "TFLOP/s; 0% of decoding hidden" in everything.summary({"result": result})
    assert result["num_frames"] == CPU.chunks * 33 and SPECS[CPU.size].native_size == (128, 64)


@pytest.mark.slow
def test_kernels_are_judged_by_float32(tmp_path, monkeypatch):
    """Here both are PyTorch, and so equal; then one of them is lost."""
    (part,) = (part for part in everything.probes(DEVICE, str(tmp_path)) if part.name == "kernels on and off")
    made = {}

    def child(device, name, seconds, *, kernels, size, dtype, file):
        if dtype in made:
            shutil.copy(made[dtype], file)
        else:
            made[dtype] = file
            assert list(PARTS[name](device, size, dtype, file)) == [{"kernels": "reference"}]

    monkeypatch.setattr(everything, "_child", child)
    result = part.measure(900.0, {})
    assert result["on against off"] == {"latents_db": EQUAL_DB, "frames_db": EQUAL_DB}
    assert result["on against float32"] == result["off against float32"]
    assert 40 < result["on against float32"]["frames_db"] < EQUAL_DB
    assert result["verdict"].startswith("right: ")

    def lost(device, name, seconds, *, kernels, **arguments):
        if kernels == "reference":
            raise ChildError("no GPU answers", hint="none", answers=[])

    monkeypatch.setattr(everything, "_child", lost)
    result = part.measure(900.0, {})
    assert result["float32"] == {"failed": "no GPU answers"}
    assert result["verdict"].startswith("not compared, off: no GPU answers")


def test_what_does_not_fit_is_a_row_of_the_offloads(tmp_path, monkeypatch):
    """A written checkpoint with its real bandwidths and plans; the films are `bench offload`'s to test."""

    def films(checkpoint, subject, placed, rates, device, *, seconds):
        assert [(mode.name, budget) for mode, budget in placed] == [("none", None), ("model", None), ("stream", 10**9)]
        assert rates["cache"] > 0 and 0 < seconds < 90 and checkpoint.component("vae").bytes
        yield placed[0][0], {"mode": "none", "seconds": 1.0}
        yield placed[1][0], MachineError("took more than 3 s", hint="none")

    monkeypatch.setattr(everything, "measure_modes", films)
    monkeypatch.setattr(everything, "_child", lambda device, name, seconds, **given: list(PARTS[name](device, **given)))
    (part,) = (part for part in everything.probes(DEVICE, str(tmp_path)) if part.name == "offload")
    result = part.measure(part.seconds, {})
    assert result["modes"] == [{"mode": "none", "seconds": 1.0}, {"mode": "model", "failed": "took more than 3 s"}]
    assert result["nothing_streams_in"] == []


@pytest.mark.parametrize(("frames", "said"), [(41.0, "right"), (40.9, "WRONG")])
def test_noise_is_no_fault(frames, said):
    found = {"off against float32": {"latents_db": 50.0, "frames_db": 44.0}}
    found["on against float32"] = {"latents_db": 47.0, "frames_db": frames}
    assert everything.verdict(found).startswith(f"{said}: with kernels and without 47.0 and 50.0 dB (latents), ")


def test_waits_are_counted_by_their_place():
    def work():
        for _ in range(2):
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        warnings.warn("something else", stacklevel=1)

    found = waits(work)
    assert list(found.values()) == [2] and next(iter(found)).startswith("test_chip.py:")


def test_results_become_tables(tmp_path, capsys):
    """Kernels as their bench says them, other parts as they were, or why they are not there."""
    timed = Timing("renoise", "stage2", None, 0.5, 10, None, 0.8, "copy", {"eager": 1.0}, 2.0, None, "85% of a copy")
    film = {"frames_per_second": 33.25, "steady_frames_per_second": None, "phases": {"decode": 2.0}}
    film["gates"] = {"dit_teraflops": 500.0, "decode_hidden": 0.75}
    product = {"rows": 8, "inner": 16, "outer": 16, "milliseconds": {"bfloat16": 2.0, "fp8": 1.5}, "refused": {}}
    tuned = [
        Tuning("gelu", Config(8, tile=512), 1.5e-3, 2e-3, tried=9, refused=0),
        Tuning("rope", None, 3e-3, 3e-3, tried=9, refused=1),
    ]
    streamed = {"mode": "stream", "budget_bytes": 5 * 10**9, "peak_device_bytes": 45 * 10**8}
    streamed |= {"seconds": 2.5, "floor_seconds": 2.0, "ratio": 1.25}
    parts = {
        "ceiling": {"result": {"copy": 4e12, "product": 7.9e14, "fp8_product": None}},
        "render 14b 1,1,1": {"result": {**film, "floors": {"decode": 1.0}, "share_of_floor": {"decode": 0.5}}},
        "kernels": {"result": [asdict(timed), asdict(Timing("gelu", "x", fault="error 2, bound 1"))]},
        "attention": {"result": [{"shape": "8x8", "ms": {"flash": 2.0, "triton": 1.5}, "name": "triton"}]},
        "sustained products": {"result": [{"shape": "8x16x16", "teraflops": 700.0, "clock": 1980, "watts": 690}]},
        "decoding": {"result": [{"piece": "2^28", "benchmark": True, "ms": 120.0}, {"adding a bias, GB/s": 1500.0}]},
        "fp8 products": {"result": [{**product, "relative_error": {"fp8": 0.03}, "fast_sums": True}]},
        "kernels on and off": {"result": {"verdict": "right: near"}},
        "fp8 quality": {"result": [{"chunk": 0, "latents_db": 41.25, "frames_db": 38.0}]},
        "tuning": {"result": [*map(asdict, tuned), {"op": "norm", "case": "the one after", "fault": "it hung"}]},
        "offload": {"result": {"bandwidths": {"disk": 2e9}, "modes": [streamed, {"mode": "model", "failed": "late"}]}},
        "synchronisations": {"result": {"count": 3, "where": {"dit.py:7": 2, "vae.py:9": 1}}},
        "later": {"left_out": "480 seconds were over"},
    }
    file = tmp_path / "results.json"
    versions = {"commit": "abc", "torch": "2.13.0"}
    file.write_text(json.dumps({"device": "NVIDIA H200", "date": "2026-11-28T", "versions": versions, "parts": parts}))
    assert main(["bench", "all", "--table", str(file)]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "NVIDIA H200, 2026-11-28, commit abc, torch 2.13.0, 4000 GB/s copied, 790 TFLOP/s"
    assert {
        "| render 14b 1,1,1 | 33.2 | - | 500 | 0.75 | 2 (50%) |",
        "| 8x16x16 | 700 | 1980 | 690 |",
        "| 2^28 | True | 120 |",
        "adding a bias, GB/s: 1500",
        "| 8x16x16 | 2 | 1.5 (0.03) | taken |",
        "| `renoise` | stage2 | 0.5 | 80% of copy | 2x | 85% of a copy |",
        "| `gelu` | x | error 2, bound 1 | error 2, bound 1 | error 2, bound 1 | error 2, bound 1 |",
        "| 8x8 | 2 | 1.5 | triton |",
        "- kernels on and off: right: near",
        "| 1 | 41.2 | 38 |",
        "| `gelu` | 2 | 1.5 | num_warps 8, num_stages 1, tile 512, programs 1 |",
        "| `rope` | 3 | 3 | as before |",
        "| `norm` | it hung | it hung | it hung |",
        "| stream in 5 GB | 4.5 GB | 2.5 | 2 | 1.25 |",
        "| model | late | late | late | late |",
        "disk: 2 GB/s",
        "In a chunk the host waits for the GPU 3 times: dit.py:7 (2), vae.py:9 (1)",
        "- later: 480 seconds were over",
    } <= set(said)
    file.write_text('{"parts": 3}')
    assert main(["bench", "all", "--table", str(file)]) == 2
    assert "not a result of `helios bench all`" in capsys.readouterr().err


def test_without_time_every_part_says_so(tmp_path, capsys):
    out = tmp_path / "all.json"
    assert main(["bench", "all", "--device", "cpu", "--seconds", "0", "--json", "--out", str(out)]) == 0
    data = json.loads(out.read_text())
    assert data == json.loads(capsys.readouterr().out)
    assert data["device"] == "cpu" and data["note"].startswith("a CPU") and data["versions"]["commit"]
    assert {tuple(part) for part in data["parts"].values()} == {("seconds", "left_out")}
    assert {"kernels", "render tiny 1,1,1 fp8+attention", "fp8 quality", "kernels on and off"} <= set(data["parts"])
