"""Shared by all tests: an environment that is the same for everyone, one thread a process, so that tolerances do not
depend on the machine's cores, and for each test a HELIOS_HOME of its own, so that no film takes its chunks from another
test's."""

from __future__ import annotations

import atexit
import fcntl
import gc
import itertools
import json
import os
import signal
import site
import sys
import tempfile
from collections.abc import Callable
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from support import forks

# What a user has set for himself changes what programs say and where they look. What chooses a machine's parts stays:
# its processor's instructions, its GPUs, its ffmpeg (IMAGEIO_FFMPEG_EXE).
OURS_OR_SPEECH = ("HELIOS_", "HF_", "HUGGINGFACE_", "XDG_", "LC_", "TTY_", "TRITON_", "TYPER_", "SVT_", "AV_LOG_")
VARIABLES = (
    *("COLUMNS", "LINES", "TERMINAL_WIDTH", "NO_COLOR", "FORCE_COLOR", "PY_COLORS", "COLORTERM", "GITHUB_ACTIONS"),
    *("LANGUAGE", "PYTHONWARNINGS", "PYTHONIOENCODING", "PYTHONUTF8", "PYTHONSAFEPATH", "FFREPORT"),
    *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY", "RANK", "WORLD_SIZE", "LOCAL_RANK"),
)
for variable in list(os.environ):
    if variable.startswith(OURS_OR_SPEECH) or variable.upper() in VARIABLES:
        del os.environ[variable]

HOME = tempfile.TemporaryDirectory(prefix="helios-tests-")  # for what is no test's own; it goes with the process
atexit.register(HOME.cleanup)
os.environ.setdefault("PYTHONUSERBASE", site.getuserbase())  # packages that are installed for the user are found still
os.environ.update(HOME=HOME.name, LANG="C.UTF-8", TERM="xterm-256color", HF_HUB_OFFLINE="1")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
os.environ.update(ONE_THREAD)


# No stopwatch on a machine that does other things too; and what fails is due to a change, not to the dice.
# The quick tier draws a quarter of hypothesis' examples; `-m hypothesis` and a file that is named draw all.
settings.register_profile("helios", deadline=None, derandomize=True, max_examples=100)
settings.register_profile("quick", settings.get_profile("helios"), max_examples=25)
settings.load_profile("helios")


# A shell ignores Ctrl-C for what it starts in the background, and so would all that is started here.
signal.signal(signal.SIGINT, signal.default_int_handler)

forks.install()  # hundreds of processes do not import torch each


def pytest_configure(config):
    """A file or folder that is named runs whole: only a run of everything stops at the default tier."""
    named = config.args_source is config.ArgsSource.ARGS
    is_quick = config.option.markexpr == config.getini("addopts")[-1]
    if named and is_quick:
        config.option.markexpr = ""
    elif is_quick:
        settings.load_profile("quick")


ORACLES = {"diffusers", "transformers", "accelerate"}

unmarked: dict[str, str] = {}
"""The running test's actions that need a marker: marker -> action."""


def note_process(event: str, args: tuple) -> None:
    """Forks do not count: they take milliseconds."""
    if event == "subprocess.Popen":
        program = os.path.basename(os.fsdecode(args[0] or args[1][0]))
        if program.startswith(("python", "helios")):
            unmarked["process"] = f"started {program}"


class NoteOracle(MetaPathFinder):
    """Finds nothing: it sees the first import of each module in this process."""

    def find_spec(self, name, path, target=None):
        if name in ORACLES:
            unmarked["oracle"] = f"imported {name}"


sys.addaudithook(note_process)
sys.meta_path.insert(0, NoteOracle())


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_collection():
    """Keep the garbage collector from all that is imported and collected: it stays until the end."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()
        atexit.register(gc.unfreeze)  # or what is let go at the end would count as a leak


def pytest_collection_finish():
    assert not unmarked, f"collecting the tests {', '.join(unmarked.values())}: do so inside of the test"


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup():
    unmarked.clear()
    os.environ.update(ONE_THREAD)  # which an actor removes, of a test before


@pytest.hookimpl(wrapper=True)
def pytest_runtest_teardown(item):
    """The tiers are true: what starts processes or asks other libraries is marked so."""
    result = yield
    missing = [
        f"{what}, and is not marked `{mark}`" for mark, what in unmarked.items() if not item.get_closest_marker(mark)
    ]
    unmarked.clear()
    if missing:
        pytest.fail(f"{item.nodeid} {'; '.join(missing)}", pytrace=False)
    return result


@pytest.fixture(scope="session")
def homes(tmp_path_factory):
    """New folders, one after another, which do not exist yet."""
    folder = tmp_path_factory.mktemp("homes")
    return (folder / str(number) for number in itertools.count())


@pytest.fixture(scope="session")
def once(tmp_path_factory):
    """(name, make) -> the JSON value that `make` returns, made by one of the processes that test side by side."""
    folder = tmp_path_factory.getbasetemp()
    folder = folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder

    def get(name: str, make: Callable[[], Any]) -> Any:
        file = folder / f"{name}.json"
        with (folder / f"{name}.lock").open("w") as turn:
            fcntl.flock(turn, fcntl.LOCK_EX)
            if not file.exists():
                file.write_text(json.dumps(make()))
        return json.loads(file.read_text())

    return get


@pytest.fixture(autouse=True)
def helios_home(homes, monkeypatch):
    monkeypatch.setenv("HELIOS_HOME", str(next(homes)))


@pytest.fixture
def shared():
    """A folder that all users can reach and write to, of a group."""
    from support.users import GROUP  # with torch, before whose import the environment above is set

    with tempfile.TemporaryDirectory(prefix="shared-") as folder:
        os.chown(folder, -1, GROUP)
        os.chmod(folder, 0o2777)
        yield Path(folder)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory):
    """(kind, solver) -> the folder of a random checkpoint, made once a session, for tests that only read it."""
    from support import checkpoints  # with torch

    made = {}

    def get(kind: str, solver: str = "unipc", **dit) -> Path:
        key = (kind, solver, *sorted(dit.items()))
        if key not in made:
            made[key] = checkpoints.write(tmp_path_factory.mktemp(kind), kind, solver, **dit)
        return made[key]

    return get


@pytest.fixture
def large(monkeypatch):
    """Checkpoints of tests count as large: their bfloat16 films have latents in bfloat16 on a CPU, too."""
    monkeypatch.setattr("helios_cli.device.SMALL_BYTES", 0)


@pytest.fixture(scope="session")
def distilled(checkpoints) -> Path:
    return checkpoints("distilled")


@pytest.fixture(scope="session")
def pipelines(checkpoints):
    """(kind, solver) -> the same checkpoint, loaded by diffusers."""
    from support import oracle

    made = {}

    def get(*which, **dit):
        key = (*which, *sorted(dit.items()))
        if key not in made:
            made[key] = oracle.load(checkpoints(*which, **dit))
        return made[key]

    return get
