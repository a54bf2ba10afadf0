"""The device as seen without torch, against torch; the driver's program is a script that answers as it does."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from helios_cli import machine
from helios_cli.cost import device as device_module
from helios_cli.cost.device import Device, find_device, other_device, pick_dtype
from helios_cli.errors import InputError
from support.programs import program

ASK_BOTH = """
import json, torch
from helios_cli import machine
from helios_cli.cost.device import cpu_name, find_device, pick_dtype
theirs, ours = machine.pick_device("auto"), find_device("auto")
dtype = str(machine.pick_dtype("auto", theirs)[0]).removeprefix("torch.")
name = cpu_name(torch.get_num_threads()) if theirs.type == "cpu" else torch.cuda.get_device_name(theirs)
print(json.dumps([[theirs.type, dtype, name], [ours.kind, pick_dtype("auto", ours), ours.name]]))
"""


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
    assert pick_dtype("auto", found) == "bfloat16" and pick_dtype("float32", found) == "float32"


def test_an_old_gpu_takes_float16(driver):
    driver('echo "Tesla V100-SXM2-16GB, 7.0, 16384, 16000"')
    assert pick_dtype("auto", find_device("cuda")) == "float16"


def test_visible_devices_are_counted(driver, monkeypatch):
    driver('for last; do :; done; echo "GPU $last, 9.0, 100, 90"')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,GPU-5ab")
    assert find_device("cuda:0").name == "GPU 3" and find_device("cuda:1").name == "GPU GPU-5ab"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert find_device().kind == "cpu"


@pytest.mark.parametrize("script", ["exit 9", "echo", "echo 'No devices were found'"])
def test_a_driver_that_does_not_answer_is_none(driver, script):
    driver(script)
    assert find_device().kind == "cpu"
    unseen = find_device("cuda")
    assert unseen.kind == "cuda" and unseen.free_bytes is None and pick_dtype("auto", unseen) == "bfloat16"


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
