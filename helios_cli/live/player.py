"""Shows a live film in a video player, which gets the pieces of the growing film through a pipe."""

from __future__ import annotations

import shutil
import subprocess
import threading
from collections.abc import Callable

from helios_cli.errors import MachineError
from helios_cli.film.feed import Feed

PLAYERS = {
    "mpv": (
        "--no-terminal",
        "--force-window=immediate",
        "--title=helios",
        "--cache=yes",
        "--cache-pause-wait=0.2",
        "-",
    ),
    "ffplay": ("-loglevel", "quiet", "-autoexit", "-window_title", "helios", "-i", "pipe:0"),
}
"""Players and their arguments, the better one first."""


def find_player() -> list[str]:
    """Return the command of the player to use. MachineError if there is none."""
    for name, arguments in PLAYERS.items():
        if path := shutil.which(name):
            return [path, *arguments]
    raise MachineError(
        "--play needs mpv or ffplay, and neither is installed",
        hint="apt install mpv, brew install mpv, or https://mpv.io; or leave out --play",
    )


class Player:
    """A player that follows a feed. Use it as a context manager: leaving the block lets it play to the end.

    `show` is called with the number of the film's frames that the player has; once it was closed, with all that are
    out, and `warn` with a message.
    """

    def __init__(
        self, command: list[str], feed: Feed, show: Callable[[int], None], warn: Callable[[str], None]
    ) -> None:
        self._feed, self._show, self._warn = feed, show, warn
        quiet = subprocess.DEVNULL
        self._popen = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, bufsize=0, start_new_session=True
        )
        self._thread = threading.Thread(target=self._follow, name="player", daemon=True)
        self._thread.start()

    def __enter__(self) -> Player:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._feed.end()
        try:
            if kind is None:
                self._thread.join()
                self._popen.wait()
        finally:
            self._popen.terminate()

    def _follow(self) -> None:
        assert self._popen.stdin is not None, "it is a pipe"
        self._feed.wait(0)
        index = first = self._feed.num_kept
        with self._popen.stdin as pipe:
            while self._feed.wait(index):
                piece = self._feed.piece(index)
                rest = memoryview(self._feed.init + piece.data if index == first else piece.data)
                try:
                    while rest:
                        rest = rest[pipe.write(rest) :]
                except BrokenPipeError:
                    self._warn("the player was closed; the film goes on")
                    self._feed.listen(lambda: self._show(self._feed.num_frames))
                    self._show(self._feed.num_frames)
                    return
                index += 1
                self._show(piece.start_frame + piece.num_frames)
