from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from support.fakes import COMMIT, Hub, write_checkpoint
from support.waiting import LONGEST


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return write_checkpoint(tmp_path / "model")


def serve(root: Path) -> Hub:
    """A Hub with one repository, acme/helios, which also holds what must not be downloaded."""
    write_checkpoint(root)
    for extra in ("transformer_init/diffusion_pytorch_model.safetensors", "transformer/model.bin", "README.md"):
        (root / extra).parent.mkdir(exist_ok=True)
        (root / extra).write_bytes(b"not needed" * 100)
    return Hub("acme/helios", root)


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[Hub]:
    hub = serve(tmp_path / "remote")
    yield hub
    hub.close()


@pytest.fixture(scope="session")
def downloaded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hub cache into which acme/helios was downloaded from its main branch."""
    folder = tmp_path_factory.mktemp("downloaded")
    hub = serve(folder / "remote")
    arguments = ["-m", "helios_cli", "models", "pull", "acme/helios"]
    run_python(*arguments, HF_HOME=str(folder / "hf"), HF_ENDPOINT=hub.url).check_returncode()
    hub.close()
    return folder / "hf"


@pytest.fixture
def snapshot(tmp_path: Path, downloaded: Path) -> Path:
    """The snapshot folder of acme/helios, which is in the Hub cache of `helios`."""
    shutil.copytree(downloaded, tmp_path / "hf", symlinks=True)
    return tmp_path / "hf/hub/models--acme--helios/snapshots" / COMMIT


def run_python(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    clean = {key: value for key, value in os.environ.items() if not key.startswith("HF_")}
    environment = {**clean, "HF_ENDPOINT": "http://127.0.0.1:1", "NO_COLOR": "1", **environment}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=LONGEST
    )


@pytest.fixture
def python(tmp_path: Path):
    """Run Python in a process of its own, with a Hub cache of its own and no network unless HF_ENDPOINT names one."""
    return partial(run_python, HF_HOME=str(tmp_path / "hf"))


@pytest.fixture
def helios(python):
    """Run `helios ...` as `python` does."""
    return partial(python, "-m", "helios_cli")
