"""The tiers of the tests: markers are on what they stand for, and `pytest` alone runs the quick tests."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
PYPROJECT = TESTS.parent / "pyproject.toml"

EXAMPLES = """
import subprocess, sys
import pytest

def test_starts_a_process():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.mark.process
def test_starts_a_process_and_says_so():
    subprocess.run([sys.executable, "-c", ""], check=True)

@pytest.mark.oracle
def test_imports_an_oracle_and_says_so():
    import transformers

def test_imports_an_oracle():
    import diffusers

def test_does_neither():
    pass
"""

pytestmark = pytest.mark.process


def run(folder: Path, *arguments: str, examples: str = EXAMPLES) -> str:
    """The output of pytest for `examples`, with this folder's conftest.py and stand-ins for the oracles."""
    folder.mkdir()
    for name in ("diffusers", "transformers"):
        (folder / f"{name}.py").touch()
    (folder / "test_examples.py").write_text(examples)
    options = re.search(r"\[tool.pytest.ini_options\].*?(?=^\[)", PYPROJECT.read_text(), re.DOTALL | re.MULTILINE)[0]
    options = options.replace('testpaths = ["tests"]', 'testpaths = ["."]').replace('pythonpath = ["tests"]', "")
    (folder / "pyproject.toml").write_text(options)
    environment = {**os.environ, "PYTHONPATH": f"{TESTS}{os.pathsep}{folder}"}
    command = [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-rA", *arguments]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True).stdout


def test_what_needs_a_marker_has_it(tmp_path):
    said = run(tmp_path / "a", "test_examples.py")
    assert "test_starts_a_process started python" in said and "is not marked `process`" in said
    assert "test_imports_an_oracle imported diffusers, and is not marked `oracle`" in said
    assert "5 passed, 2 errors" in said


def test_collecting_does_nothing_that_takes_long(tmp_path):
    said = run(tmp_path / "a", "test_examples.py", examples="import diffusers\ndef test_nothing():\n    pass\n")
    assert "imported diffusers: do so inside of the test" in said


@pytest.mark.parametrize(
    ("arguments", "ran"),
    [
        ([], ["quick"]),
        (["-m", ""], ["quick", "slow"]),
        (["-m", "slow"], ["slow"]),
        (["test_examples.py"], ["quick", "slow"]),
        (["-m", "slow", "test_examples.py"], ["slow"]),
    ],
    ids=str,
)
def test_only_a_run_of_everything_stops_at_the_quick_tests(arguments, ran, tmp_path):
    examples = "import pytest\n@pytest.mark.slow\ndef test_slow():\n    pass\ndef test_quick():\n    pass\n"
    said = run(tmp_path / "a", *arguments, examples=examples)
    assert sorted(re.findall(r"^PASSED test_examples.py::test_(\w+)", said, re.MULTILINE)) == ran
