"""The `helios` command: all commands, and the one place where errors become messages and exit codes."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from typing import Annotated, Any

import typer

from helios_cli import __version__
from helios_cli.commands import LazyGroup
from helios_cli.console import console
from helios_cli.errors import HeliosError, InputError, Interrupted, MachineError, in_our_words
from helios_cli.stop import stop_at_once

NAMES = {errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EISDIR}
REFUSALS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.EDQUOT, errno.EIO, errno.ESTALE}
"""Errors of the operating system that are not bugs of helios."""

LIMITS = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.EAGAIN}
"""Errors of a process that reached its limit of files, memory, processes or threads."""

LIMIT_MESSAGES = ("can't start new thread", "failed to map segment", "cannot allocate memory")
"""Parts of the messages of Python and the library loader at such limits."""

COMPUTING = {"render", "live", "train", "doctor", "bench"}
"""Commands that load torch, whose libraries abort the process if the current folder does not exist."""

app = typer.Typer(
    name="helios",
    cls=LazyGroup,
    help="Long video from a prompt, on one machine.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(wanted: bool) -> None:
    if wanted:
        console.line(f"helios {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Handle the options before the command."""
    if context.invoked_subcommand in COMPUTING and not _has_current_folder():
        raise _no_current_folder()


def main(argv: list[str] | None = None) -> int:
    """Run `helios` with `argv` (default: the process's arguments) and return its exit code; nothing is raised."""
    _open_closed_streams()
    console.json = False
    if hasattr(sys.stdout, "reconfigure"):  # print a path or prompt that the locale cannot encode
        sys.stdout.reconfigure(errors="backslashreplace")
    with stop_at_once():
        code = _run(argv)
    try:
        console.flush()
    except OSError as error:
        # The rest of the buffer must not fail again when Python exits.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        if isinstance(error, BrokenPipeError):  # the reader stopped early: `helios models list | head -1`
            return code or 1
        return code or _show_error(error)
    return code


def _open_closed_streams() -> None:
    """Open the null device in place of closed standard streams.

    Otherwise the next file that is opened would take their number and receive what libraries and ffmpeg print; and
    print() would write to no stream as if it were stdout."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # an open takes the lowest number
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 (as long as the process)


def _run(argv: list[str] | None) -> int:
    try:
        code = app(
            argv, prog_name="helios", standalone_mode=False
        )  # Typer must not print errors: they can hold any text
    except SystemExit as stop:
        return stop.code if isinstance(stop.code, int) else 0 if stop.code is None else 1
    except KeyboardInterrupt:
        return Interrupted.exit_code
    except Exception as error:
        return _show_usage_error(error) if hasattr(error, "format_message") else _show_error(error)
    return code or 0  # the code of typer.Exit; a command itself returns nothing


def _show_usage_error(error: Any) -> int:
    """Print what is wrong with the command line; Typer has printed the help of a command without arguments."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ != "NoArgsIsHelpError":
        if context:
            console.status(context.get_usage())
        hint = f"{context.command_path} --help" if context else "helios --help"
        console.error(InputError(in_our_words(error.format_message()).rstrip("."), hint=hint))
    return error.exit_code


def _show_error(error: Exception) -> int:
    """Print what failed, with the traceback if HELIOS_DEBUG is set, and return the exit code."""
    debug = os.environ.get("HELIOS_DEBUG", "") not in ("", "0")
    if debug:
        console.status("".join(traceback.format_exception(error)).rstrip())
    if isinstance(error, OSError):
        error = _of_the_machine(error)
    elif not isinstance(error, HeliosError) and _names_a_limit(error):
        error = _at_a_limit(str(error) or "no memory is left")
    if isinstance(error, HeliosError):
        console.error(error)
        return error.exit_code
    console.bug(error)
    if not debug:
        console.hint("HELIOS_DEBUG=1 prints the traceback")
    return 1


def _of_the_machine(error: OSError) -> Exception:
    """Return the error of a machine at fault: a full disk, an impossible file name, a folder without permission."""
    if not _has_current_folder():
        return _no_current_folder()
    if error.errno in LIMITS:
        return _at_a_limit(error.strerror or str(error))
    where = f": {error.filename}" if error.filename else ""
    if error.errno == errno.ENOSPC:
        return MachineError(f"no space is left on the disk{where}", hint="free some space and run it again")
    if error.filename and error.errno in NAMES:
        return InputError(f"{error.filename}: {error.strerror}")
    if error.filename and error.errno in REFUSALS:
        return MachineError(f"{error.filename}: {error.strerror}")
    return error


def _names_a_limit(error: Exception) -> bool:
    return isinstance(error, MemoryError) or any(words in str(error).lower() for words in LIMIT_MESSAGES)


def _at_a_limit(what: str) -> MachineError:
    return MachineError(
        f"a limit of this machine or this shell was reached: {what}",
        hint="`ulimit -a` shows the limits: -n of files, -u of processes, -v of memory",
    )


def _no_current_folder() -> MachineError:
    return MachineError("the current folder is gone, or may not be entered", hint="cd to another one")


def _has_current_folder() -> bool:
    try:
        os.getcwd()
    except OSError:
        return False
    return True
