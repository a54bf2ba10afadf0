"""Shot lists in plain text: paragraphs, with times in brackets.

    [12s] A boat leaves the harbour.            a shot of 12 seconds
    [0:12-0:20] It meets the sea.               from ... to ...; [0:12-] from 0:12 on
    [20s: A storm rises.] [25s-30s: It calms.]  from 20 s on; from 25 s to 30 s
    [cut] A desert.  [switch 8s] A city.        a transition, also with a length
    [/duration=5s,/new_shot] A desert.          Wan2GP's commands; new_shot is a cut

Lines that begin with `#` are comments. A blank line, a time at the start of a line, or a `[3s: …]` anywhere begins a
shot.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Callable, Iterator
from itertools import accumulate

from helios_cli.errors import InputError
from helios_cli.recipe.cues import Cue
from helios_cli.recipe.habits import SHOT
from helios_cli.recipe.problems import Problems, nearest
from helios_cli.recipe.values import TRANSITIONS, parse_duration, parse_time
from helios_cli.units import DEFAULT_FPS
from helios_cli.visible import printable

_UNITS = r"[0-9]+(?:\.[0-9]+)?\s*[hms]"
_TIME = rf"(?:(?:[0-9]+:){{1,2}}[0-9]{{1,2}}(?:\.[0-9]+)?(?![0-9])|{_UNITS}(?:\s*{_UNITS})*|[0-9]+(?:\.[0-9]+)?)"
_MARK = re.compile(rf"\[\s*({_TIME})(\s*(?:[-–—−~]|to\b)(?:\s*({_TIME}))?)?\s*(?:(\])|:(?=\s))")
_TRANSITION = re.compile(rf"\[\s*({'|'.join(TRANSITIONS)})(?:\s+({_TIME}))?\s*\]", re.IGNORECASE)
_COMMANDS = re.compile(r"\[\s*(/[^\]\n]*)\]")
_MEANT_AS_TIME = re.compile(r"\[\s*[-+]?[0-9][0-9:.,;\s–-]*(?:(?:[hms]|secs?|seconds?|mins?|minutes?)\s*)?\]")


def read_cues(text: str, problems: Problems) -> list[Cue]:
    """Return the shots of a plain text, in order; malformed parts go to `problems`. A prompt may be empty."""
    return [cue for lines in _paragraphs(text) for cue in _Paragraph(lines, problems).read()]


def begins_with_time(text: str) -> bool:
    return bool(_MARK.match(text.lstrip()))


def _paragraphs(text: str) -> Iterator[list[tuple[int, str]]]:
    """Yield the numbered lines between blank lines, without comments."""
    lines: list[tuple[int, str]] = []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.lstrip().startswith("#"):
            continue
        if lines and (not line.strip() or line.startswith(SHOT)):
            yield lines
            lines = []
        if line.strip():
            lines.append((number, line.removeprefix(SHOT)))


class _Paragraph:
    """Cuts one paragraph into cues."""

    def __init__(self, lines: list[tuple[int, str]], problems: Problems) -> None:
        self.text = "\n".join(line for _, line in lines)
        self.numbers = [number for number, _ in lines]
        self.starts = list(accumulate((len(line) + 1 for _, line in lines), initial=0))
        self.problems = problems
        self.cues: list[Cue] = []
        self.cue: Cue | None = None  # gets the text that follows
        self.after_block = False

    def line(self, offset: int) -> int:
        return self.numbers[bisect_right(self.starts, offset) - 1]

    def read(self) -> list[Cue]:
        offset = plain_from = 0
        while (offset := self.text.find("[", offset)) >= 0:
            mark = _MARK.match(self.text, offset)
            if mark and not mark[4]:
                self._plain(plain_from, offset)
                offset = plain_from = self._block(mark)
                continue
            begins_shot = self._begins_shot(offset, plain_from)
            prefix = mark or _TRANSITION.match(self.text, offset) or _COMMANDS.match(self.text, offset)
            if begins_shot and prefix:
                self._plain(plain_from, offset)
                self._prefix(prefix)
                offset = plain_from = prefix.end()
                continue
            if begins_shot and (wrong := _MEANT_AS_TIME.match(self.text, offset)):
                suggestion = "write [12s], [0:05-0:12] or [3s: …]"
                self.problems.add(f"{printable(wrong[0])} is not a time", line=self.line(offset), suggestion=suggestion)
            offset += 1
        self._plain(plain_from, len(self.text))
        return self.cues

    def _begins_shot(self, offset: int, plain_from: int) -> bool:
        """Tell whether a `[` is at the start of a line, or behind the prefix that ends at `plain_from`."""
        while offset > plain_from and self.text[offset - 1] != "\n" and self.text[offset - 1].isspace():
            offset -= 1
        return offset == 0 or self.text[offset - 1] == "\n" or (offset == plain_from and self.cue is not None)

    def _plain(self, start: int, end: int) -> None:
        """Give text outside brackets to the shot that a prefix began, or else to a shot of its own."""
        words = self.text[start:end].strip()
        if self.cue is not None and not self.cue.prompt:
            words = re.sub(r"^(?::|[–—-]\s)\s*", "", words)  # [12s]: A boat
        if not words:
            return
        line = self.line(self.text.index(words, start))
        if self.after_block:
            suggestion = "put it into brackets of its own, or leave a blank line before it"
            self.problems.add("there is text after a `[time: …]`", line=line, suggestion=suggestion)
        elif self.cue is None:
            self.cues.append(Cue(words, line))
        else:
            self.cue.prompt = words

    def _prefix(self, prefix: re.Match) -> None:
        """Read `[12s]`, `[0:05-0:12]`, `[cut]` or `[/…]`: several in a row belong to one shot."""
        if self.cue is None or self.cue.prompt:
            self.cue = Cue("", self.line(prefix.start()))
            self.cues.append(self.cue)
        self.after_block = False
        cue = self.cue
        if prefix.re is _COMMANDS:
            for command in prefix[1].split(","):
                self._run(command, cue)
        elif prefix.re is _TRANSITION:
            cue.transition = prefix[1].lower()
            cue.seconds = self._time(prefix[2], cue.line, parse_duration) if prefix[2] else cue.seconds
        elif prefix[2] is None:
            cue.seconds = self._time(prefix[1], cue.line, parse_duration)
        else:
            cue.start, cue.end = self._time(prefix[1], cue.line), self._time(prefix[3], cue.line)

    def _block(self, mark: re.Match) -> int:
        """Read `[3s: …]` or `[3s-5s: …]`; return its end."""
        text, line = self.text, self.line(mark.start())
        depth, end = 1, mark.end()
        while depth and end < len(text):
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            end += 1
        if depth:
            self.problems.add("a `[` is not closed", line=line, suggestion="end the prompt with ]")
        prompt = text[mark.end() : end if depth else end - 1].strip()
        cue = Cue(prompt, line, start=self._time(mark[1], line), end=self._time(mark[3], line))
        if self.cue is not None and not self.cue.prompt and self.cue.start is self.cue.seconds is None:
            cue.transition = self.cue.transition  # a [/new_shot] before it
            self.cues.remove(self.cue)
        self.cues.append(cue)
        self.cue, self.after_block = None, True
        return end

    def _run(self, command: str, cue: Cue) -> None:
        """Apply one of Wan2GP's window commands."""
        name, _, value = command.strip().removeprefix("/").partition("=")
        name = name.strip()
        if name == "new_shot" and not value:
            cue.transition = "cut"
        elif name == "duration" and re.fullmatch(r"\s*[0-9]+\s*", value):
            seconds = f"{int(value[:9]) / DEFAULT_FPS:.3g}"
            suggestion = f"a number alone counts frames in Wan2GP; write seconds: [/duration={seconds}s]"
            self.problems.add(f"/{printable(command.strip('/ '))} has no unit", line=cue.line, suggestion=suggestion)
        elif name == "duration":
            cue.seconds = self._time(value, cue.line, parse_duration)
        else:
            near = nearest(name, ("duration", "new_shot"))
            suggestion = f"write /{near}" if near else "the commands are /duration=5s and /new_shot"
            self.problems.add(f"unknown command /{printable(name)}", line=cue.line, suggestion=suggestion)

    def _time(self, written: str | None, line: int, parse: Callable[[object], float] = parse_time) -> float | None:
        try:
            return None if written is None else parse(written)
        except InputError as error:
            self.problems.add(error.message, line=line, suggestion=error.hint)
            return None
