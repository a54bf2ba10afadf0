"""The scripts of the README for clusters without an engine, as far as they run here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from support.waiting import LONGEST

README = (Path(__file__).resolve().parents[2] / "README.md").read_text()


def block(name: str) -> str:
    """The code after a comment `<!-- name -->`."""
    return re.search(rf"<!-- {name} -->\n```\w+\n(.*?)```", README, re.DOTALL)[1]


def kubernetes_command() -> str:
    job = yaml.safe_load(block("kubernetes"))
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert job["spec"]["completions"] == job["spec"]["parallelism"]
    (container,) = job["spec"]["template"]["spec"]["containers"]
    volumes = {volume["name"] for volume in job["spec"]["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == volumes
    assert container["command"][:2] == ["sh", "-c"]
    return container["command"][2]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("script", [block("slurm"), kubernetes_command()], ids=["slurm", "kubernetes"])
def test_two_tasks_of_a_cluster_render_each_film_once(script, tmp_path):
    """Run as the cluster would run each of its tasks, by a shell that finds helios on its path."""
    (tmp_path / "films").mkdir()
    (tmp_path / "out").mkdir()
    for name in ("one", "two"):
        text = 'version = 1\nsize = "64x64"\nsteps = [1, 1, 1]\nseconds = 1\n[[shot]]\nprompt = "a red ball"\n'
        (tmp_path / "films" / f"{name}.toml").write_text(text)
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "helios"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m helios_cli "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{program.parent}:{os.environ['PATH']}",
        "HELIOS_MODEL": "tiny",
        "OMP_NUM_THREADS": "1",
    }
    tasks = [
        subprocess.Popen(
            ["bash", "-c", script],
            cwd=tmp_path,
            env={**environment, "SLURM_ARRAY_TASK_ID": str(index), "JOB_COMPLETION_INDEX": str(index)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for index in range(2)
    ]
    outputs = [task.communicate(timeout=LONGEST) for task in tasks]
    assert [task.returncode for task in tasks] == [0, 0], outputs
    assert sorted(os.listdir(tmp_path / "out")) == ["one.json", "one.mp4", "two.json", "two.mp4"]
