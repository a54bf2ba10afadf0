"""A bare machine with a GPU: PyTorch, Triton and NumPy, the tree on PYTHONPATH, and nothing installed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib
from dataclasses import asdict
from pathlib import Path

import pytest

from helios_cli.bench.everything import probes
from helios_cli.bench.task import Task
from helios_cli.child import ask
from support.waiting import LONGEST

pytestmark = pytest.mark.process

ROOT = Path(__file__).resolve().parents[2]
MODULES = {"imageio-ffmpeg": "imageio_ffmpeg", "huggingface-hub": "huggingface_hub", "pillow": "PIL", "pyyaml": "yaml"}
THERE = {"torch", "triton", "numpy", "tokenizers"}

BARE = """
import sys
from importlib import metadata

class NotThere:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)

sys.meta_path[:] = [NotThere(), *(finder for finder in sys.meta_path if "editable" not in str(finder))]
metadata.MetadataPathFinder.find_distributions = lambda *of: iter(())
"""
"""A sitecustomize.py, so that it is in force in children as well."""


@pytest.fixture
def bare(tmp_path) -> dict[str, str]:
    """The environment of processes there."""
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    packages = {re.match(r"[\w-]+", one)[0] for one in needed} - THERE
    missing = {MODULES.get(package, package) for package in packages} | {"pydantic_core", "wcwidth"}
    assert {"typer", "pydantic", "ftfy", "imageio_ffmpeg", "safetensors"} <= missing
    (tmp_path / "bare").mkdir()
    (tmp_path / "bare" / "sitecustomize.py").write_text(BARE.format(missing=missing))
    return {"PYTHONPATH": os.pathsep.join(map(str, (tmp_path / "bare", ROOT, ROOT / "kernels")))}


def test_all_there_is_to_measure_begins(bare, tmp_path):
    out = tmp_path / "all.json"
    command = [sys.executable, "-P", "-m", "helios_cli.bench.everything", str(out), "0"]
    run = subprocess.run(
        command, env={**os.environ, **bare}, cwd=tmp_path, capture_output=True, text=True, timeout=LONGEST
    )
    assert run.returncode == 0, run.stderr
    found = json.loads(out.read_text())
    assert list(found["parts"]) == [probe.name for probe in probes(_device(found["device"]), "")]
    assert found["versions"]["torch"] and "0 seconds were over" in run.stderr


def _device(name: str):
    import torch

    return torch.device("cpu" if name == "cpu" else "cuda")


def test_a_film_is_rendered_and_not_encoded(bare):
    """By the process that times renders; those of other parts import no more."""
    task = Task((64, 64), 33, (1, 1, 1), "float32", "cpu", synthetic="tiny", threads=1)
    (result,) = ask("helios_cli.bench.ours", asdict(task), environment=bare)
    assert result["num_frames"] == 33 and result["phases"]["decode"] > 0
    (rates,) = ask("helios_cli.bench.chip", {"part": "ceiling", "device": "cpu"}, environment=bare)
    assert rates["product"] > 0


def test_the_process_is_bare(bare):
    """Otherwise the other tests would show nothing."""
    tries = "import helios_cli, helios_cli.versions as v\n"
    for line in ("import pydantic", "import yaml", "from importlib import metadata; metadata.version('helios-render')"):
        run = subprocess.run([sys.executable, "-c", tries + line], env={**os.environ, **bare}, capture_output=True)
        assert run.returncode == 1 and b"NotFound" in run.stderr
