"""Which attention computes: forced, by the rule, or the fastest that is right."""

from __future__ import annotations

import copy
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import helios_kernels
from helios_cli import machine
from helios_cli.architecture import DiTConfig
from helios_cli.bench.specs import SPECS
from helios_cli.errors import InputError, MachineError
from helios_cli.measured import ATTENTION, Measured, Measurements
from helios_cli.model import attention
from helios_cli.model.backends import measure, shape_key
from helios_cli.model.block import Rows
from helios_cli.model.dit import HeliosDiT
from helios_kernels import devices
from helios_kernels.tuning import LocalConfigs, keep_local

CPU = torch.device("cpu")


def tensors(queries: int = 40, keys: int = 40) -> tuple[torch.Tensor, ...]:
    torch.manual_seed(0)
    return torch.randn(1, queries, 2, 32), torch.randn(1, keys, 2, 32), torch.randn(1, keys, 2, 32)


@torch.no_grad()
@pytest.mark.parametrize("name", ["sdpa", "flash", "math", "blocked"])
@pytest.mark.parametrize("bias", [None, torch.linspace(-1, 2, 40)])
def test_every_attention_of_a_cpu_is_the_same_function(name, bias):
    q, k, v = tensors()
    logits = torch.einsum("bqnd,bknd->bnqk", q.double(), k.double()) / 32**0.5
    weights = (logits if bias is None else logits + bias.double()).softmax(-1)
    exact = torch.einsum("bnqk,bknd->bqnd", weights, v.double()).flatten(2)
    choice = attention.choose(name, CPU, torch.float32, 2, 32)
    torch.testing.assert_close(attention.attention(q, k, v, bias, choice).double(), exact, rtol=1e-5, atol=1e-5)


def test_a_forced_choice_is_taken_for_every_shape():
    choice = attention.choose("math", CPU, torch.float32, 2, 32)
    with torch.no_grad():
        assert {choice.of(*tensors(n), None) for n in (1, 40, 300)} == {"math"}


def test_flash_leaves_the_prompt_to_what_takes_a_bias():
    choice = attention.choose("flash", CPU, torch.float32, 2, 32)
    assert choice.of(*tensors(), None) == "flash"
    assert choice.of(*tensors(), torch.zeros(40)) == "sdpa"


@pytest.mark.skipif(torch.cuda.is_available(), reason="asserts what happens without a GPU")
@pytest.mark.parametrize("name", ["triton", "cudnn", "efficient"])
def test_a_choice_that_does_not_run_here_is_refused_with_the_reason(name):
    with pytest.raises(MachineError, match=f"--attention {name}.*(sees no GPU|No viable backend)"):
        attention.choose(name, CPU, torch.float32, 2, 32)


class OnGpu(torch.Tensor):
    """A tensor that says it is on a GPU, of which only the shape is looked at."""

    is_cuda = True


def test_what_another_film_took_is_taken_where_it_runs_and_is_right(monkeypatch):
    monkeypatch.setattr(helios_kernels, "runs", lambda *_: False)
    q, k, v = (x.as_subclass(OnGpu) for x in tensors())
    memory = Measurements()
    shape = shape_key(q, k, None)
    memory.known[shape] = Measured("cudnn", {"cudnn": 1.0, "flash": 2.0}, {"efficient": "no"})
    taken = {}
    for wanted in (None, "flash", "cudnn", "efficient", "triton", "nonsense"):
        choice = attention.Choice("auto", memory, wanted and {shape: wanted})
        taken[wanted] = choice.of(q, k, v, None)
        assert choice.taken == {shape: taken[wanted]}
    assert {wanted for wanted, name in taken.items() if name == "flash"} == {"flash"}
    assert set(taken.values()) == {"flash", "cudnn"}


def test_networks_keep_their_attention_whatever_is_chosen_for_others():
    config = DiTConfig.from_json(SPECS["tiny"].transformer)
    torch.manual_seed(0)
    dit = HeliosDiT(config).requires_grad_(False)
    other = copy.deepcopy(dit)
    heads = config.num_attention_heads, config.attention_head_dim
    rows, rope = torch.randn(1, 60, config.width), torch.rand(60, config.attention_head_dim // 2, 2)

    def attended(network: HeliosDiT) -> torch.Tensor:
        with torch.no_grad():
            return network.blocks[0]._attend(Rows(rows, rows), rope, 9, noisy_only=False)

    dit.use_attention(attention.choose("math", CPU, torch.float32, *heads))
    before = attended(dit)
    other.use_attention(attention.choose("blocked", CPU, torch.float32, *heads))
    assert torch.equal(attended(dit), before)
    assert not torch.equal(attended(other), before)
    torch.testing.assert_close(attended(other), before, rtol=1e-4, atol=1e-5)


def test_a_name_that_is_none_is_refused():
    with pytest.raises(InputError, match="--attention fast: no such attention"):
        attention.choose("fast", CPU, torch.float32, 2, 32)


def right(q, k, v, bias):
    return attention.RUN["math"](q, k, v, bias)


def wrong(q, k, v, bias):
    return right(q, k, v, bias) * 1.1


def broken(q, k, v, bias):
    raise RuntimeError("no kernel image\nfor this device")


@torch.no_grad()
def test_the_fastest_that_is_right_wins_and_the_others_have_a_reason():
    times = iter([0.003, 0.002])
    found = measure({"a": right, "b": wrong, "c": right, "d": broken}, *tensors(), None, lambda call: next(times))
    refused = {"b": "differs from a by 0.1", "d": "no kernel image"}
    assert found == Measured("c", {"a": 3.0, "c": 2.0}, refused, {"c": 0.0})


@torch.no_grad()
def test_nothing_that_runs_leaves_it_to_pytorch():
    assert measure({"d": broken}, *tensors(), None, lambda call: 1.0).name == "sdpa"


def test_an_attention_that_found_no_memory_is_not_judged():
    def full(q, k, v, bias):
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(torch.OutOfMemoryError):
        measure({"a": right, "b": full}, *tensors(), None, lambda call: 1.0)


def test_what_was_timed_with_kernels_serves_without_them_and_not_the_other_way():
    with_kernels = Measured("triton", {"cudnn": 2.0, "triton": 1.0, "flash": 3.0}, {"efficient": "no"})
    assert with_kernels.covers(["efficient", "flash", "cudnn"])
    assert with_kernels.fastest(["efficient", "flash", "cudnn"]) == "cudnn"
    assert with_kernels.fastest(["efficient"]) == "sdpa"
    assert not Measured("cudnn", {"cudnn": 2.0}, {"flash": "no"}).covers(["cudnn", "flash", "triton"])


def test_what_was_measured_is_remembered_by_device_and_shape(tmp_path):
    file, one = tmp_path / "home" / "attention.json", Measured("cudnn", {"cudnn": 1.0}, {"triton": "x"})
    Measurements(file, "A").keep("64x64 2x32 bfloat16", one)
    Measurements(file, "B").keep("64x64 2x32 bfloat16", Measured("flash", {"flash": 1.0}, {}))
    assert Measurements(file, "A").known == {"64x64 2x32 bfloat16": one}
    assert Measurements(file, "B").known["64x64 2x32 bfloat16"].name == "flash"


def test_those_who_measure_at_the_same_time_lose_nothing_of_each_other(tmp_path):
    file, one = tmp_path / "attention.json", Measured("cudnn", {"cudnn": 1.0}, {})
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda number: Measurements(file, "A").keep(f"{number}", one), range(40)))
    assert Measurements(file, "A").known.keys() == {f"{number}" for number in range(40)}
    assert [entry.name for entry in tmp_path.iterdir()] == ["attention.json"]


def test_what_cannot_be_written_leaves_the_file_and_nothing_beside_it(tmp_path):
    file = tmp_path / "attention.json"
    devices.write("A", {"known": 1}, file)
    with pytest.raises(TypeError):
        devices.write("B", {"known": object()}, file)
    assert devices.read(file) == {"A": {"known": 1}}
    assert [entry.name for entry in tmp_path.iterdir()] == ["attention.json"]


def test_what_was_timed_before_attention_was_tuned_is_not_known_after(tmp_path, monkeypatch):
    monkeypatch.setenv("HELIOS_HOME", str(tmp_path))
    file, plain = machine.home() / machine.TUNED, ATTENTION.key("a GPU")
    keep_local("a GPU", LocalConfigs("sm_89", "3.7.1", {"renoise": {"num_warps": 4, "tile": 512}}), file)
    assert ATTENTION.key("a GPU") == plain
    keys = set()
    for warps in (4, 8):
        keep_local("a GPU", LocalConfigs("sm_89", "3.7.1", {"attention 128": {"num_warps": warps}}), file)
        keys.add(ATTENTION.key("a GPU"))
    assert len(keys) == 2 and all(key.startswith(f"{plain}, tuned ") for key in keys)
    assert plain.startswith("a GPU, torch ")
    file.write_text("{")
    assert ATTENTION.key("a GPU") == plain


@pytest.mark.parametrize("text", ["", "[]", '{"version": 2}', '{"version": 1, "devices": {"A": {"s": 1}}}', "{" * 5000])
def test_a_damaged_file_is_an_empty_one(text, tmp_path):
    file = tmp_path / "attention.json"
    file.write_text(text)
    assert Measurements(file, "A").known == {}
    Measurements(file, "A").keep("s", Measured("flash", {}, {}))
    assert json.loads(file.read_text())["devices"]["A"]["s"]["name"] == "flash"


def test_shapes_that_differ_little_take_one_choice():
    keys = {shape_key(*tensors(queries, 122)[:2], None) for queries in (2100, 2940, 4096)}
    assert keys == {"4096x128 2x32 float32"}
    assert shape_key(*tensors(4097, 122)[:2], torch.zeros(122)) == "8192x128 2x32 float32 bias"
    assert shape_key(*tensors(40, 9)[:2], None) == "64x64 2x32 float32"
