"""Shot lists in plain text: paragraphs, with times in brackets.

    [12s] A boat leaves the harbour.            a shot of 12 seconds
    [0:12-0:20] It meets the sea.               from ... to ...; [0:12-] from 0:12 on
    [20s: A storm rises.] [25s-30s: It calms.]  from 20 s on; from 25 s to 30 s
    [cut] A desert.  [switch 8s] A city.        a transition, also with a length
    [/duration=5s,/new_shot] A desert.          Wan2GP's commands; new_shot is a cut

Lines that begin with `#` are comments. A blank line, a time at the start of a line, or a
`[3s: …]` anywhere begins a shot.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass

from helios_cli.errors import InputError
from helios_cli.recipe.cues import Cue
from helios_cli.recipe.habits import SHOT
from helios_cli.recipe.problems import Problems, nearest
from helios_cli.recipe.values import TRANSITIONS, parse_duration, parse_time
from helios_cli.visible import printable

_UNITS = r"[0-9]+(?:\.[0-9]+)?\s*[hms]"
_TIME = rf"(?:(?:[0-9]+:){{1,2}}[0-9]{{1,2}}(?:\.[0-9]+)?(?![0-9])|{_UNITS}(?:\s*{_UNITS})*|[0-9]+(?:\.[0-9]+)?)"
_MARK = re.compile(rf"\[\s*({_TIME})(\s*(?:[-–—−~]|to\b)(?:\s*({_TIME}))?)?\s*(?:(\])|:(?=\s))")
_TRANSITION = re.compile(rf"\[\s*({'|'.join(TRANSITIONS)})(?:\s+({_TIME}))?\s*\]", re.IGNORECASE)
_COMMANDS = re.compile(r"\[\s*(/[^\]\n]*)\]")
_MEANT_AS_TIME = re.compile(r"\[\s*[-+]?[0-9][0-9:.,;\s–-]*(?:(?:[hms]|secs?|seconds?|mins?|minutes?)\s*)?\]")

COMMANDS = ("duration", "new_shot")


@dataclass
class _Paragraph:
    """Text between blank lines without its comments; `starts` are the offsets of its lines, `numbers` theirs."""

    text: str
    starts: list[int]
    numbers: list[int]

    def line(self, offset: int) -> int:
        return self.numbers[bisect.bisect_right(self.starts, offset) - 1]


def read_cues(text: str, problems: Problems) -> list[Cue]:
    """The shots of a plain text, in order; what is malformed goes to `problems`. A prompt may be empty."""
    cues: list[Cue] = []
    for paragraph in _paragraphs(text):
        cues += _Reader(paragraph, problems).cues()
    return cues


def begins_with_time(text: str) -> bool:
    return bool(_MARK.match(text.lstrip()))


def _paragraphs(text: str) -> list[_Paragraph]:
    paragraphs, lines = [], []
    for number, line in enumerate([*text.split("\n"), ""], 1):
        if line.lstrip().startswith("#"):
            continue
        if lines and (not line.strip() or line.startswith(SHOT)):
            starts, offset = [], 0
            for _, kept in lines:
                starts.append(offset)
                offset += len(kept) + 1
            paragraphs.append(_Paragraph("\n".join(kept for _, kept in lines), starts, [n for n, _ in lines]))
            lines = []
        if line.strip():
            lines.append((number, line.removeprefix(SHOT)))
    return paragraphs


class _Reader:
    """Cuts one paragraph into cues."""

    def __init__(self, paragraph: _Paragraph, problems: Problems) -> None:
        self.paragraph = paragraph
        self.problems = problems
        self.found: list[Cue] = []
        self.cue: Cue | None = None  # the one that plain text is added to
        self.after_block = False

    def cues(self) -> list[Cue]:
        text, offset, plain_from = self.paragraph.text, 0, 0
        while (offset := text.find("[", offset)) >= 0:
            at_start = self._begins_shot(offset, plain_from)
            mark = _MARK.match(text, offset)
            block = mark is not None and mark[4] is None
            prefix = mark or _TRANSITION.match(text, offset) or _COMMANDS.match(text, offset) if at_start else None
            if not (block or prefix):
                if at_start and _MEANT_AS_TIME.match(text, offset):
                    self._not_a_time(offset)
                offset += 1
                continue
            self._plain(plain_from, offset)
            if block:
                offset = self._block(mark)
            else:
                self._prefix(prefix)
                offset = prefix.end()
            plain_from = offset
        self._plain(plain_from, len(text))
        return self.found

    def _begins_shot(self, offset: int, plain_from: int) -> bool:
        """Whether a `[` stands at the start of a line, or behind the prefix that ends at `plain_from`."""
        text = self.paragraph.text
        while offset > 0 and text[offset - 1] != "\n":
            if offset == plain_from:
                return self.cue is not None
            if not text[offset - 1].isspace():
                return False
            offset -= 1
        return True

    def _plain(self, start: int, end: int) -> None:
        """Text outside brackets: of the shot that a prefix began, or a shot of its own."""
        words = self.paragraph.text[start:end].strip()
        if self.cue is not None and not self.cue.prompt:
            words = re.sub(r"^(?::|[–—-]\s)\s*", "", words)  # [12s]: A boat
        if not words:
            return
        begin = self.paragraph.text.index(words, start)
        if self.after_block:
            suggestion = "put it into brackets of its own, or leave a blank line before it"
            self.problems.add("text after a `[time: …]`", line=self.paragraph.line(begin), suggestion=suggestion)
        elif self.cue is None:
            self.found.append(Cue(words, self.paragraph.line(begin)))
        else:
            self.cue.prompt = words

    def _prefix(self, prefix: re.Match) -> None:
        """`[12s]`, `[0:05-0:12]`, `[cut]` or `[/…]`: several in a row belong to one shot."""
        if self.cue is None or self.cue.prompt:
            self.cue = Cue("", self.paragraph.line(prefix.start()))
            self.found.append(self.cue)
        self.after_block = False
        if prefix.re is _COMMANDS:
            self._run(prefix[1], self.cue)
        elif prefix.re is _TRANSITION:
            self.cue.transition = prefix[1].lower()
            if prefix[2] is not None:
                self.cue.seconds = self._time(prefix[2], self.cue.line, parse_duration)
        elif prefix[2] is None:
            self.cue.seconds = self._time(prefix[1], self.cue.line, parse_duration)
        else:
            self.cue.start = self._time(prefix[1], self.cue.line)
            self.cue.end = self._time(prefix[3], self.cue.line) if prefix[3] else None

    def _block(self, mark: re.Match) -> int:
        """`[3s: …]` or `[3s-5s: …]`; returns where it ends."""
        text, line = self.paragraph.text, self.paragraph.line(mark.start())
        depth, end = 1, mark.end()
        while depth and end < len(text):
            depth += {"[": 1, "]": -1}.get(text[end], 0)
            end += 1
        if depth:
            self.problems.add("a `[` is not closed", line=line, suggestion="end the prompt with ]")
            end += 1
        cue = Cue(text[mark.end() : end - 1].strip(), line, start=self._time(mark[1], line))
        cue.end = self._time(mark[3], line) if mark[3] else None
        if self.cue is not None and not self.cue.prompt and self.cue.start is self.cue.seconds is None:
            cue.transition = self.cue.transition  # a [/new_shot] before it
            self.found.remove(self.cue)
        self.found.append(cue)
        self.cue, self.after_block = None, True
        return min(end, len(text))

    def _run(self, written: str, cue: Cue) -> None:
        """Wan2GP's window commands, as far as they mean something here."""
        for command in written.split(","):
            name, _, value = command.strip().removeprefix("/").partition("=")
            name = name.strip()
            if name == "new_shot" and not value:
                cue.transition = "cut"
            elif name == "duration" and re.fullmatch(r"\s*[0-9]+\s*", value):
                suggestion = (
                    f"a number alone counts frames in Wan2GP; write seconds: [/duration={int(value[:9]) / 24:.3g}s]"
                )
                self.problems.add(
                    f"/{printable(command.strip('/ '))} has no unit", line=cue.line, suggestion=suggestion
                )
            elif name == "duration":
                cue.seconds = self._time(value, cue.line, parse_duration)
            else:
                near = nearest(name, COMMANDS)
                suggestion = f"write /{near}" if near else "known are /duration=5s and /new_shot"
                self.problems.add(f"unknown command /{printable(name)}", line=cue.line, suggestion=suggestion)

    def _time(self, written: str, line: int, parse=parse_time) -> float | None:
        try:
            return parse(written)
        except InputError as error:
            self.problems.add(error.message, line=line, suggestion=error.hint)
            return None

    def _not_a_time(self, offset: int) -> None:
        written = self.paragraph.text[offset : self.paragraph.text.index("]", offset) + 1]
        suggestion = "write [12s], [0:05-0:12] or [3s: …]"
        self.problems.add(
            f"{printable(written)} is not a time", line=self.paragraph.line(offset), suggestion=suggestion
        )
