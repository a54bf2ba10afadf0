"""Finds options that do not go together, before anything is read."""

from __future__ import annotations

import sys
from collections.abc import Mapping

from helios_cli.errors import InputError
from helios_cli.recipe.flags import flag_of
from helios_cli.recipe.options import RenderOptions
from helios_cli.recipe.sound import SOUND_KEYS

LEAVE_ONE = "leave one of them out"


def check_takes(options: RenderOptions, *, from_film: bool, dry_run: bool) -> None:
    """Raise InputError for options that --takes has no use for."""
    if not options.takes:
        if options.shot:
            what = "--shot needs --takes: it chooses the shot that is shown"
            raise InputError(what, hint="add --takes 4, or leave --shot out")
        return
    for_films: dict[str, object] = {flag_of(key): getattr(options, key) is not None for key in SOUND_KEYS}
    for_films |= {"--lanes": options.lanes > 1, "--export": options.export, "--check": options.check}
    if flag := _first({**for_films, "--dry-run": dry_run, "--from": from_film}):
        raise InputError(f"{flag} is for a film, but --takes makes none", hint=LEAVE_ONE)


def check_shared_out(options: RenderOptions) -> None:
    """Raise InputError for options that do not go with several workers. Does nothing for a render without them."""
    flag = _farm_flag(options)
    if flag is None:
        return
    if other := _first({"--takes": options.takes, "--lanes": options.lanes > 1}):
        raise InputError(f"{flag} shares films out among workers, but {other} is for one process", hint=LEAVE_ONE)
    if options.share and options.force:
        what = "--share --force would render films again that another process has just finished"
        raise InputError(what, hint="leave out --force, or remove the films first")
    if options.share and not options.metadata:
        what = "--share recognises finished films by their records, which --no-metadata leaves out"
        raise InputError(what, hint="leave out --no-metadata")
    if options.device.startswith("cuda:"):
        what = f"{flag} chooses the GPUs, but --device {options.device} names one"
        raise InputError(what, hint="write --device cuda, and set CUDA_VISIBLE_DEVICES to leave GPUs out")


def check_after(options: RenderOptions, kind: str | None = None) -> None:
    """Raise InputError for options that --through and --filter do not go with, in a film of that `Target.kind`; None
    while that is not known."""
    if options.through is None and (options.through_size is not None or options.through_fps is not None):
        flag = "--through-size" if options.through_size is not None else "--through-fps"
        raise InputError(f"{flag} describes what --through gives, but there is none", hint="add --through COMMAND")
    if not options.changes_frames:
        return
    flag = "--filter" if options.through is None else "--through"
    if kind == "png":
        raise InputError(
            f"{flag} works while a film file is encoded, but this one is a folder of pictures",
            hint="end the name of the output in .mkv, which is lossless, and make pictures of that with ffmpeg",
        )
    if options.takes:
        raise InputError(f"{flag} works on whole films, but --takes shows parts of one", hint=LEAVE_ONE)


def check_preview(options: RenderOptions) -> None:
    """Raise InputError for options that --preview-decoder and --final do not go with, CheckpointError for a file that
    is no preview decoder."""
    if options.preview_decoder is None:
        if options.final:
            what = "--final needs --preview-decoder: without it the VAE decodes the film at once"
            raise InputError(what, hint="leave out --final, or add --preview-decoder taew2_1.safetensors")
        return
    if flag := _farm_flag(options):
        what = f"--preview-decoder is for a render in this process, but {flag} shares films out"
        raise InputError(what, hint=f"leave out --preview-decoder or {flag}")
    reasons = {
        "--lanes": (options.lanes > 1, "renders films side by side, whose previews end at different times"),
        "--takes": (options.takes, "makes no film"),
        "--no-cache": (not options.cache, "keeps no chunks for it to decode"),
        "-o -": (options.is_stream, "writes a film that cannot be replaced"),
    }
    for other, (is_given, why) in reasons.items():
        if options.final and is_given:
            raise InputError(f"--final and {other}, which {why}", hint=f"leave out --final or {other}")
    from helios_cli.recipe.files import check_preview_file
    from helios_cli.weights.preview import read_preview

    check_preview_file(options.preview_decoder)
    read_preview(options.preview_decoder)


def check_stream(options: RenderOptions, num_films: int, *, has_sound: bool) -> None:
    """Raise InputError for options that do not go with a stream, or that only a stream has."""
    container = options.container
    if not options.is_stream:
        if container:
            what = f"--container {container} is for a stream, and the name of a film says what it is"
            raise InputError(what, hint="add -o -, or leave out --container")
        return
    if num_films > 1:
        raise InputError(f"-o - is one stream, but there are {num_films} films", hint="name one source")
    for_files = {
        "--takes": options.takes,
        "--export": options.export,
        "--check": options.check,
        "--keep": options.keep,
        "--filter or --through": options.changes_frames,
        "--workers, --cluster or --share": options.is_shared_out,
    }
    if flag := _first(for_files):
        raise InputError(f"{flag} needs a film in a file, and -o - is a stream", hint="write -o film.mp4")
    if container == "y4m" and has_sound:
        raise InputError("there is no sound in .y4m", hint="write --container mkv, mp4 or ts, or --audio none")
    if container == "ts" and options.codec == "av1":
        raise InputError("there is no AV1 in a .ts", hint="write --container mkv or mp4, or --codec h264")


def check_stdout(*, json: bool) -> None:
    """Raise InputError if standard output is no place for a stream, or is to have events (`json`) as well."""
    if json:
        what = "-o - and the events of --json would both be written to standard output"
        raise InputError(what, hint="leave out --json: progress is shown on standard error")
    if sys.stdout is None or sys.stdout.isatty():
        what = "-o - writes the film to standard output, which is a terminal here"
        raise InputError(what, hint="add | mpv -, | ffplay -, or > film.mkv")


def _farm_flag(options: RenderOptions) -> str | None:
    """Return the flag that shares films out among workers, or None."""
    return _first({"--cluster": options.cluster, "--share": options.share, "--workers": options.is_shared_out})


def _first(given: Mapping[str, object]) -> str | None:
    """Return the first flag that is given, or None."""
    return next((flag for flag, is_given in given.items() if is_given), None)
