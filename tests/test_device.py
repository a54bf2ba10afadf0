"""The device found without torch against the one found with torch; nvidia-smi is a script that answers as it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helios_cli import device as device_module
from helios_cli import machine
from helios_cli.cost.gpus import other_device
from helios_cli.device import (
    ITEMSIZE,
    Device,
    device_of,
    find_device,
    find_gpus,
    find_vae_device,
    gpus,
    latent_dtype,
    pick_device,
    pick_dtype,
    pick_vae_device,
    torch_dtype,
)
from helios_cli.errors import InputError, MachineError
from support.programs import program

ASK_BOTH = """
import json
from helios_cli.device import device_of, find_device, pick_device, pick_dtype
both = device_of(pick_device()), find_device()
print(json.dumps([[one.kind, one.name, one.capability, pick_dtype("auto", one)] for one in both]))
"""

no_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="about a machine without a GPU")


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("threads", [None, "3"])
def test_it_is_the_device_that_torch_takes(threads):
    variables = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")
    environment = {key: value for key, value in os.environ.items() if key not in variables}
    environment |= {"OMP_NUM_THREADS": threads} if threads else {}
    command = [sys.executable, "-c", ASK_BOTH]
    theirs, ours = json.loads(subprocess.run(command, env=environment, capture_output=True, check=True).stdout)
    assert ours == theirs


@pytest.fixture
def driver(tmp_path, monkeypatch):
    """`driver(script)` puts an nvidia-smi on the path, and makes this PyTorch one that has CUDA."""

    def install(script: str) -> None:
        program(tmp_path / "nvidia-smi", script)
        monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(device_module, "_torch_has", lambda library: True)
    return install


def test_a_gpu_is_named_by_its_driver(driver):
    driver('echo "NVIDIA H200, 9.0, 143771, 143000"')
    found = find_device()
    assert found == Device("cuda", "NVIDIA H200", 143771 * 2**20, 143000 * 2**20, (9, 0))
    assert pick_dtype("auto", found)[0] == "bfloat16" and pick_dtype("float32", found)[0] == "float32"


def test_an_old_gpu_takes_float16(driver):
    driver('echo "Tesla V100-SXM2-16GB, 7.0, 16384, 16000"')
    assert pick_dtype("auto", find_device("cuda"))[0] == "float16"


def test_visible_devices_are_counted(driver, monkeypatch):
    driver('for last; do :; done; echo "GPU $last, 9.0, 100, 90"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5ab")
    assert find_device("cuda:0").name == "GPU 3" and find_device("cuda:1").name == "GPU GPU-5ab"
    assert [gpu.name for gpu in find_gpus()] == ["GPU 3", "GPU GPU-5ab"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,-1,4")
    assert [gpu.name for gpu in find_gpus()] == ["GPU 3"]  # CUDA stops there, too
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device().kind == "cpu" and find_gpus() == ()


def test_all_gpus_are_found(driver, monkeypatch):
    driver('printf "NVIDIA H200, 9.0, 143771, 143000\\nNVIDIA L4, 8.9, 23034, 20000\\n"')
    assert find_gpus() == (
        Device("cuda", "NVIDIA H200", 143771 * 2**20, 143000 * 2**20, (9, 0)),
        Device("cuda", "NVIDIA L4", 23034 * 2**20, 20000 * 2**20, (8, 9)),
    )
    monkeypatch.setattr(device_module, "_torch_has", lambda library: False)
    assert find_gpus() == ()


@pytest.mark.parametrize("script", ["exit 9", "echo", "echo 'No devices were found'"])
def test_a_driver_that_does_not_answer_is_none(driver, script):
    driver(script)
    assert find_device().kind == "cpu" and find_gpus() == ()
    unseen = find_device("cuda")
    assert unseen.kind == "cuda" and unseen.free_bytes is None and pick_dtype("auto", unseen)[0] == "bfloat16"


def test_a_pytorch_without_cuda_runs_on_the_cpu(driver, monkeypatch):
    driver('echo "NVIDIA H200, 9.0, 143771, 143000"')
    monkeypatch.setattr(device_module, "_torch_has", lambda library: False)
    assert find_device().kind == "cpu"


def test_the_libraries_of_this_pytorch():
    assert device_module._torch_has("torch_cpu") and not device_module._torch_has("no_such_library")
    assert device_module._torch_has("torch_cuda") == (torch.version.cuda is not None)


def test_words_that_are_no_device():
    for ask, name in ((find_device, "gpu"), (find_device, "cuda:x"), (other_device, "8088")):
        with pytest.raises(InputError, match=name):
            ask(name)


def test_the_host_has_the_memory_that_is_free():
    host = find_device("cpu")
    assert host.total_bytes == machine.host_memory().total_bytes and 0 < host.free_bytes <= host.total_bytes
    assert Path("/proc/cpuinfo").exists() and machine.cpu().model in host.name


def test_devices_that_are_always_there():
    assert pick_device("cpu") == torch.device("cpu")
    assert pick_device().type in ("cuda", "mps", "cpu")


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:x", "cpu:0", "", "cuda:-1"])
def test_a_device_that_is_none(name):
    with pytest.raises(InputError, match="no such kind of device"):
        pick_device(name)


@no_gpu
@pytest.mark.parametrize("name", ["cuda", "cuda:1"])
def test_a_gpu_that_is_not_there(name):
    with pytest.raises(MachineError, match=f"--device {name}: PyTorch .*(without GPU support|finds no GPU)") as caught:
        pick_device(name)
    assert "--device cpu" in caught.value.hint


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_gpus_of_this_machine():
    first = gpus()["cuda:0"]
    assert (first.kind, first.capability) == ("cuda", torch.cuda.get_device_capability(0))
    assert 0 < first.free_bytes <= first.total_bytes
    assert pick_device() == pick_device("cuda") == torch.device("cuda", 0)
    with pytest.raises(MachineError, match="this machine has"):
        pick_device("cuda:99")


@pytest.mark.parametrize("name", ITEMSIZE)
def test_a_dtype_that_was_asked_for(name):
    assert pick_dtype(name, find_device("cpu")) == (name, "requested")
    assert torch_dtype(name, torch.device("cpu")) == getattr(torch, name)


def test_a_dtype_that_is_none():
    with pytest.raises(InputError, match="--dtype int8"):
        pick_dtype("int8", find_device("cpu"))


@pytest.mark.parametrize(
    ("features", "dtype"),
    [
        (("avx2",), "float32"),
        (("avx512f",), "float32"),
        (("avx512_bf16",), "bfloat16"),
        (("avx512_bf16", "amx_bf16"), "bfloat16"),
    ],
    ids=str,
)
def test_auto_dtype_of_a_cpu(features, dtype, monkeypatch):
    monkeypatch.setattr(machine, "cpu", lambda: machine.Cpu("test", 1, 1, features))
    picked, reason = pick_dtype("auto", find_device("cpu"))
    assert picked == dtype
    assert "bfloat16" in reason and (dtype == "float32" or features[-1] in reason)


@pytest.mark.parametrize(
    ("capability", "dtype"), [((7, 5), "float16"), ((8, 0), "bfloat16"), ((12, 0), "bfloat16")], ids=str
)
def test_auto_dtype_of_a_gpu(capability, dtype):
    picked, reason = pick_dtype("auto", Device("cuda", "a GPU", None, None, capability))
    assert picked == dtype and "{}.{}".format(*capability) in reason


def test_free_memory_is_asked_of_one_gpu(monkeypatch):
    """Asking opens a context, which takes memory of a GPU that may be somebody else's."""
    asked = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: asked.append(device) or (5, 9))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (9, 0))
    assert device_of(torch.device("cuda:3")) == Device("cuda", "a GPU", 9, 5, (9, 0))
    assert asked == [torch.device("cuda:3")]


GPU = Device("cuda", "a GPU", 80, 80)


@pytest.mark.parametrize(
    ("name", "device_name", "is_second"),
    [
        (None, "auto", False),
        ("cuda", "auto", False),
        ("cuda:0", "cuda", False),
        ("cuda:1", "cuda:1", False),
        ("cuda:1", "auto", True),
        ("cuda:0", "cuda:1", True),
        ("cpu", "cuda", True),
    ],
)
def test_the_vae_has_a_device_of_its_own_where_that_is_another_one(name, device_name, is_second):
    assert (find_vae_device(name, device_name, GPU) is not None) == is_second


def test_next_to_a_cpu_the_vae_has_no_other_device(monkeypatch):
    """--vae-device cpu says what is so already."""
    here, cpu = find_device("cpu"), torch.device("cpu")
    assert find_vae_device("cpu", "auto", here) is None and pick_vae_device("cpu", cpu) == cpu
    assert pick_vae_device(None, cpu) == cpu
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    for find in (lambda: find_vae_device("mps", "cpu", here), lambda: pick_vae_device("mps", cpu)):
        with pytest.raises(InputError, match="--vae-device mps: the transformer computes on the CPU"):
            find()


def test_a_vae_device_that_is_none():
    for find in (lambda: find_vae_device("auto", "cuda", GPU), lambda: pick_vae_device("auto", torch.device("cpu"))):
        with pytest.raises(InputError, match="--vae-device auto: no such kind of device"):
            find()


def test_looking_for_the_vae_s_gpu_leaves_the_current_one(monkeypatch):
    current = []
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    first = pick_device("cuda:0")
    assert pick_vae_device("cuda:1", first) == torch.device("cuda", 1) and current == [first]
    with pytest.raises(MachineError, match="--vae-device cuda:2: this machine has cuda:0 to cuda:1"):
        pick_vae_device("cuda:2", first)


@pytest.mark.parametrize(
    ("film", "latents"),
    [
        (("bfloat16", "cpu", 10**7), "float32"),
        (("bfloat16", "cpu", 2**28 + 1), "bfloat16"),  # no longer small
        (("bfloat16", "cuda", 10**7), "bfloat16"),
        (("float16", "cpu", 10**7), "float16"),
        (("float32", "cpu", 10**7), "float32"),
    ],
)
def test_a_small_model_on_a_cpu_has_latents_in_float32(film, latents):
    dtype, kind, parameters = film
    counted = {"transformer": parameters - 10, "text_encoder": 10, "vae": 10**9}
    assert latent_dtype(dtype, kind, counted) == latents
    assert latent_dtype(dtype, kind, counted, quant="fp8") == dtype
