"""The boundary: every way a command can end, seen through `main` and through real processes."""

from __future__ import annotations

import errno
import itertools
import json
import os
import pty
import shlex
import signal
import subprocess
import sys

import pytest
import typer
from typer.main import get_command

from helios_cli import __version__, cli, doctor_view, errors, machine
from helios_cli.commands import COMMANDS, doctor
from support.waiting import LONGEST

HELIOS = [sys.executable, "-m", "helios_cli"]

APP_THAT = """
import sys, time, typer
from helios_cli import cli
from helios_cli.console import console
cli.app = typer.Typer(pretty_exceptions_enable=False)
@cli.app.command()
def command():
    {body}
sys.exit(cli.main([]))
"""


def run(*arguments: str, **environment: str) -> subprocess.CompletedProcess:
    env = {**os.environ, **environment}
    return subprocess.run([*HELIOS, *arguments], capture_output=True, text=True, env=env, timeout=LONGEST)


@pytest.fixture
def ending_with(monkeypatch):
    """`ending_with(error)` makes the app a command that raises it."""

    def replace(error: BaseException) -> None:
        app = typer.Typer(pretty_exceptions_enable=False)

        @app.command()
        def command() -> None:
            raise error

        monkeypatch.setattr(cli, "app", app)

    monkeypatch.delenv("HELIOS_DEBUG", raising=False)
    return replace


@pytest.mark.parametrize(
    ("kind", "code"),
    [
        (errors.HeliosError, 1),
        (errors.InputError, 2),
        (errors.MachineError, 3),
        (errors.OutOfMemory, 3),
        (errors.CheckpointError, 4),
        (errors.PictureError, 5),
        (errors.ReaderGone, 0),
        (errors.Interrupted, 130),
    ],
)
def test_an_error_is_one_line_a_hint_and_its_code(kind, code, ending_with, capsys):
    ending_with(kind("two_shots.toml, shot 3: `seconds` is -1", hint="write 1.4 or more"))
    assert cli.main([]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: two_shots.toml, shot 3: `seconds` is -1\nhint: write 1.4 or more\n"


def test_every_error_class_is_tested():
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Exception)}
    mark = next(mark for mark in test_an_error_is_one_line_a_hint_and_its_code.pytestmark if mark.name == "parametrize")
    assert kinds == {kind for kind, _ in mark.args[1]}


def test_an_error_without_a_hint(ending_with, capsys):
    ending_with(errors.MachineError("the disk is full"))
    assert cli.main([]) == 3
    assert capsys.readouterr().err == "error: the disk is full\n"


def test_a_bug_is_one_line_and_how_to_see_more(ending_with, capsys):
    ending_with(ZeroDivisionError("division by zero"))
    assert cli.main([]) == 1
    assert capsys.readouterr().err == (
        "bug: ZeroDivisionError: division by zero\nhint: HELIOS_DEBUG=1 prints the traceback\n"
    )


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.EMFILE, "Too many open files"),
        OSError(errno.EMFILE, "Too many open files", "film.mp4"),
        BlockingIOError(errno.EAGAIN, "Resource temporarily unavailable"),
        RuntimeError("can't start new thread"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
        MemoryError(),
    ],
    ids=repr,
)
def test_a_limit_of_the_shell_is_no_bug(error, ending_with, capsys):
    ending_with(error)
    assert cli.main([]) == 3
    assert "ulimit -a" in capsys.readouterr().err


@pytest.mark.parametrize("error", [ZeroDivisionError("x"), errors.InputError("x")], ids=repr)
def test_debug_prints_the_traceback(error, ending_with, capsys, monkeypatch):
    monkeypatch.setenv("HELIOS_DEBUG", "1")
    ending_with(error)
    assert cli.main([]) == getattr(error, "exit_code", 1)
    err = capsys.readouterr().err
    assert "Traceback (most recent call last)" in err and "raise error" in err


def test_success_is_zero(monkeypatch):
    app = typer.Typer()
    app.command()(lambda: None)
    monkeypatch.setattr(cli, "app", app)
    assert cli.main([]) == 0


def test_json_of_one_run_does_not_reach_the_next(capsys):
    assert cli.main(["models", "list", "--json"]) == 0
    json.loads(capsys.readouterr().out)
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"helios {__version__}\n"


@pytest.mark.parametrize(
    "arguments", [["nonsense"], ["doctor", "--nonsense"], ["doctor", "surplus"], ["models", "info"]]
)
def test_usage_errors_are_2_on_stderr(arguments, capsys):
    assert cli.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and "Usage: helios" in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["n\x1b[31m"], r"No such command 'n\x1b[31m'"),
        (["plan", "--n\x1b[31m"], r"No such option: --n\x1b[31m"),
        (["plan", "x", "--codec", "\x1b[31m"], r"Invalid value for '--codec': '\x1b[31m' is not one of"),
        (["plan", "x", "--frames", "\x1b[31m"], "Invalid value for '--frames': must be a whole number"),
        (["plan", "x", "--device", "\x1b[31m"], r"--device \x1b[31m: no such kind of device"),
    ],
)
def test_no_word_of_the_command_line_reaches_the_terminal_raw(arguments, says, capsys):
    assert cli.main(arguments) == 2
    err = capsys.readouterr().err
    assert f"error: {says}" in err and "\x1b" not in err


@pytest.mark.process
def test_version_and_help_of_a_process():
    version, usage = run("--version"), run("--help")
    assert (version.returncode, version.stdout, version.stderr) == (0, f"helios {__version__}\n", "")
    assert (usage.returncode, usage.stderr) == (0, "")
    assert "doctor" in usage.stdout and "\x1b[" not in usage.stdout


@pytest.mark.process
def test_sigint_is_130_without_a_traceback():
    code = APP_THAT.format(body="print('ready', flush=True); [time.sleep(0.01) for _ in iter(int, 1)]")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=LONGEST)
    assert (process.returncode, out, err) == (130, "", "")


@pytest.mark.process
@pytest.mark.parametrize("lines", [1, 100_000], ids=["fails at exit", "fails while printing"])
def test_a_reader_that_has_gone_is_no_news(lines):
    reader, writer = os.pipe()
    os.close(reader)
    code = APP_THAT.format(body=f"[console.line('x' * 80) for _ in range({lines})]")
    process = subprocess.Popen([sys.executable, "-c", code], stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (process.communicate(timeout=LONGEST)[1], process.returncode) == ("", 1)


@pytest.mark.process
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_output_on_a_full_disk_is_an_error():
    with open("/dev/full", "w") as full:
        done = subprocess.run([*HELIOS, "--version"], stdout=full, stderr=subprocess.PIPE, text=True, timeout=LONGEST)
    assert done.returncode == 3
    assert done.stderr == "error: no space is left on the disk\nhint: free some space and run it again\n"


def test_a_closed_standard_output_is_no_error():
    done = subprocess.run(
        f"{sys.executable} -m helios_cli --version >&-", shell=True, stderr=subprocess.PIPE, timeout=LONGEST
    )
    assert (done.returncode, done.stderr) == (0, b"")


def test_nothing_that_is_told_goes_to_standard_output_in_place_of_a_closed_stream(tmp_path):
    """A file that is opened later does not become one of the streams, where it would get the output of libraries."""
    body = "os.write(1, str(os.open('.', 0)).encode()); console.warning('told'); console.line(sys.stdin.read() + 'end')"
    code = APP_THAT.format(body=body).replace("import sys", "import os, sys")
    command = f"exec {sys.executable} -c {shlex.quote(code)} <&- 2>&-"
    done = subprocess.run(command, shell=True, stdout=subprocess.PIPE, timeout=LONGEST)
    assert done.returncode == 0 and int(done.stdout[:1]) > 2 and done.stdout[1:] == b"end\n"


def test_a_current_folder_that_has_gone_is_named(ending_with, capsys, tmp_path, monkeypatch):
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(FileNotFoundError) as raised:
        os.path.abspath("film.mp4")
    assert cli.main(["doctor"]) == 3  # nothing is computed there: MKL, once it is loaded, ends the process
    assert "the current folder is gone" in capsys.readouterr().err
    assert cli.main(["models", "list"]) == 0
    ending_with(raised.value)
    capsys.readouterr()
    assert cli.main([]) == 3
    assert "the current folder is gone" in capsys.readouterr().err


@pytest.mark.process
def test_a_standard_error_that_takes_nothing_stops_no_work():
    code = APP_THAT.format(body="console.status('x'); console.warning('y'); console.warning('z'); console.line('done')")
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=full, timeout=LONGEST)
    assert (done.returncode, done.stdout) == (0, b"done\n")


@pytest.mark.process
def test_words_that_the_locale_cannot_spell_are_escaped():
    code = APP_THAT.format(body="console.line('caf\\u00e9 \\udcff')")
    env = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, timeout=LONGEST)
    assert (done.returncode, done.stdout) == (0, "caf\\xe9 \\udcff\n")


@pytest.mark.process
def test_no_color_holds_for_usage_errors_on_a_terminal():
    parent, child = pty.openpty()
    env = {**os.environ, "NO_COLOR": "1", "TERM": "xterm-256color"}
    process = subprocess.Popen([*HELIOS, "nonsense"], stdin=child, stdout=child, stderr=child, env=env)
    assert process.wait(timeout=LONGEST) == 2
    written = os.read(parent, 65536).decode()
    os.close(parent)
    os.close(child)
    assert "No such command" in written
    assert "\x1b[3" not in written and "\x1b[9" not in written  # no colour; Typer's bold is allowed


def test_doctor_reports_and_ends_well(capsys):
    assert cli.main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"helios       {__version__}" in out
    for label in (
        "processor",
        "GPU",
        "dtype",
        "memory",
        "disk",
        "ffmpeg",
        "Triton",
        "attention",
        "many GPUs",
        "models",
    ):
        assert f"\n{label} " in out
    assert "\nmodels       tiny fits; others on " in out
    rows = [line.split()[:2] for line in out.splitlines() if line.startswith(("distilled ", "mid ", "base "))]
    assert rows == [[name, mode] for name in ("distilled", "mid", "base") for mode in ("none", "model", "stream")]
    assert "transfer at " in (told := " ".join(out.split())) and "/s from the page cache (" in told
    assert "e+" not in out  # times of hours have the unit h


def test_triton_runs_on_a_gpu_or_interpreted(monkeypatch):
    version = machine.package_version("triton")
    for interpreted, has_gpu in itertools.product(("0", "1"), (False, True)):
        monkeypatch.setenv("TRITON_INTERPRET", interpreted)
        triton = doctor._triton(has_gpu)
        assert triton["version"] == version
        assert triton["runs"] == (version is not None and (has_gpu or interpreted == "1"))


def test_doctor_as_json(capsys):
    assert cli.main(["doctor", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    models = report["models"]
    for model in models["models"].values():
        assert [mode["mode"] for mode in model["modes"]] == ["none", "model", "stream"]
        for mode in model["modes"]:
            assert mode["fits"] == (mode["host_bytes"] <= models["budget"]["host_bytes"])  # of a CPU
            assert mode["chosen"] == (mode["mode"] == model["runs"])
    assert models["models"].keys() == {"distilled", "mid", "base"}
    assert report["memory"]["available_bytes"] <= report["memory"]["total_bytes"]
    assert report["farm"].keys() == {"workers_auto", "gpus_per_film", "ray"}
    assert report["ffmpeg"]["version"]
    assert report["ffmpeg"]["encoders"] == ["h264", "hevc", "av1", "ffv1"]


@pytest.fixture(scope="module")
def facts():
    return doctor._facts()


def shown(facts, **changed) -> str:
    return "\n".join(line for lines in doctor_view._report({**facts, **changed}).values() for line in lines)


def gpu(index: int, name: str) -> dict:
    return {
        "device": f"cuda:{index}",
        "name": name,
        "total_bytes": 10**11,
        "free_bytes": 9 * 10**10,
        "capability": [9, 0],
    }


def test_doctor_shows_all_gpus_and_their_links(facts):
    alike = [gpu(index, "NVIDIA H200") for index in range(3)]
    links = [{"gpus": pair, "link": "NVLink"} for pair in ([0, 1], [0, 2], [1, 2])]
    farm = {**facts["farm"], "workers_auto": 3, "gpus_per_film": [1, 2]}
    out = shown(facts, device="cuda:0", accelerators=alike, links=links, farm=farm)
    assert all(f"cuda:{index}: NVIDIA H200, capability 9.0, 100 GB, 90 GB free" in out for index in range(3))
    assert "joined by NVLink" in out and "--workers auto: 3 workers, one a GPU" in out
    assert "--gpus-per-film: 1 or 2" in out and "the GPUs differ" not in out
    links[1]["link"] = "PCIe"
    out = shown(facts, device="cuda:0", accelerators=[*alike[:2], gpu(2, "NVIDIA L4")], links=links, farm=farm)
    assert "joined by NVLink: 0-1, 1-2; PCIe: 0-2" in out
    assert "the GPUs differ: a film is rendered by one kind of them, unless --mixed lets it use all" in out


def test_doctor_counts_what_flags_of_many_gpus_would_take():
    assert doctor._farm(0)["workers_auto"] == 1 and doctor._farm(0)["gpus_per_film"] == [1]
    assert doctor._farm(8)["workers_auto"] == 8 and doctor._farm(8)["gpus_per_film"] == [1, 2, 4, 5, 8]  # of 40 heads


def test_doctor_finds_ray_or_says_how_to_get_it(facts, monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "ray://head:10001")
    monkeypatch.setattr(machine, "package_version", lambda package: {"ray": "2.60.0"}.get(package))
    assert doctor._farm(0)["ray"] == {"version": "2.60.0", "address": "ray://head:10001"}
    assert "--cluster: Ray 2.60.0; RAY_ADDRESS is ray://head:10001" in shown(facts, farm=doctor._farm(0))
    monkeypatch.delenv("RAY_ADDRESS")
    monkeypatch.setattr(machine, "package_version", lambda package: None)
    out = shown(facts, farm=doctor._farm(0))
    assert "--cluster: needs Ray: pip install 'helios-render[ray]'; RAY_ADDRESS is not set" in out


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_doctor_without_ffmpeg_and_a_home_reports_and_exits_with_3(flags, capsys, monkeypatch):
    monkeypatch.setenv("IMAGEIO_FFMPEG_EXE", "/no/such/ffmpeg")
    monkeypatch.setenv("HELIOS_HOME", f"{os.devnull}/home")
    assert cli.main(["doctor", *flags]) == 3
    out, err = capsys.readouterr()
    if flags:
        assert json.loads(out)["disk"][0] == {"use": "HELIOS_HOME", "path": f"{os.devnull}/home", "free_bytes": None}
    else:
        assert f"nothing can be written for HELIOS_HOME, {os.devnull}/home" in " ".join(out.split())
    assert "/no/such/ffmpeg" in out and err.startswith("error: ffmpeg at /no/such/ffmpeg")
    assert not flags or json.loads(out)["ffmpeg"]["version"] is None


def test_the_help_lists_each_command_as_its_own_help_begins():
    """`helios --help` imports no command; what it says of one has to be what the command says of itself."""
    own = {name: command.help.partition("\n\n")[0] for name, command in get_command(cli.app).commands.items()}
    assert own == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_the_help_of_each_command_says_every_word(name, capsys, monkeypatch):
    """Rich reads help texts as markup, in which `[/FILE]` ends what never began and `[FILE]` is left out."""
    monkeypatch.setenv("COLUMNS", "200")
    command = get_command(cli.app).commands[name]
    for path, one in [
        ((name,), command),
        *(((name, sub), one) for sub, one in getattr(command, "commands", {}).items()),
    ]:
        assert cli.main([*path, "--help"]) == 0
        shown = set(capsys.readouterr().out.split())
        for parameter in one.params:
            missing = [word for word in (parameter.help or "").split() if word not in shown]
            assert not missing, (path, parameter.name, missing)
