"""Filter graphs that a user, or the record of a stranger's film, gives: what they may contain, and what they make.

ffmpeg's filters can read and write files, open devices and connections, and take commands. So there is a list of those
that only compute pictures, and a graph is taken apart here, checked, and written anew: ffmpeg gets nothing that was
not understood. Two levels of ffmpeg's syntax are read as ffmpeg reads them: quotes go at the first, and the options of
a filter are divided by `:` at the second, even those in quotes. Backslashes are refused, without which there is no
third reading.
"""

from __future__ import annotations

import difflib
import re
import subprocess
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

from helios_cli.errors import InputError
from helios_cli.film import ffmpeg
from helios_cli.film.reading import MAX_PIXELS, MAX_SIDE, UNUSED_BYTES
from helios_cli.visible import printable

MAX_GRAPH = 4000
"""Characters of a graph."""

MAX_FILTERS = 50

TRIAL_FRAMES = 6
TRIAL_BYTES = 4 * 2**30
"""Most memory of a trial on a few frames, except for what ffmpeg reserves and does not touch."""

MAX_RATE = 1000

GROUPS = {
    "noise and blocks": (
        "atadenoise bilateral chromanr dctdnoiz deband deblock dedot deflicker fftdnoiz fspp gradfun hqdn3d median "
        "nlmeans owdenoise photosensitivity pp7 removegrain spp tmedian tmix vaguedenoiser"
    ),
    "sharpness and blur": "avgblur boxblur cas convolution dblur gblur guided sab smartblur unsharp yaepblur",
    "light and colour": (
        "amplify chromahold chromashift colorbalance colorchannelmixer colorcontrast colorcorrect colorhold colorize "
        "colorlevels colortemperature curves despill eq exposure fade grayworld greyedge histeq hsvhold hue "
        "huesaturation limiter lut lutrgb lutyuv monochrome negate normalize pseudocolor rgbashift selectivecolor "
        "vibrance vignette"
    ),
    "size and place": (
        "crop deshake epx fillborders hflip hqx lenscorrection pad perspective pixelize rotate scale scroll setdar "
        "setsar shear super2xsai transpose vflip xbr zscale"
    ),
    "rate": "fps framerate framestep minterpolate",
    "effects": (
        "deflate delogo dilation drawbox drawgrid drawtext edgedetect erosion geq inflate kirsch lagfun noise prewitt "
        "roberts scharr sobel swaprect tblend"
    ),
    "several pictures": (
        "blend copy format hstack limitdiff lut2 maskedmax maskedmerge maskedmin mix null overlay split vstack xmedian "
        "xstack"
    ),
}
"""The filters that compute pictures from pictures, in their order, and nothing else: see `REFUSED_OPTIONS`."""

ALLOWED = frozenset(name for names in GROUPS.values() for name in names.split())

REFUSED_OPTIONS = {
    "curves": {"psfile", "plot"},
    "deshake": {"filename"},
    "fps": {"start_time"},
    "selectivecolor": {"psfile"},
}
"""Options that name a file or move the film in time. Of these filters, only the first value may be without a name."""

_TEXT_OPTIONS = (
    "text fontsize fontcolor alpha x y box boxcolor boxborderw borderw bordercolor shadowx shadowy shadowcolor "
    "line_spacing fix_bounds enable"
)
ALLOWED_OPTIONS = {"drawtext": frozenset(_TEXT_OPTIONS.split())}
"""Filters of which only these options are taken, by name: the others name files, fonts, or sources of text."""

FOLLOWS = re.compile(
    r"Error (opening|reinit|while filt)|Task |Terminat|Nothing was written|Could not open encoder|Conversion"
)
"""Messages of ffmpeg that only follow from others."""

NO_MEMORY = re.compile(r"[Cc]annot allocate memory|[Ff]ailed to allocate")
"""Messages of ffmpeg that memory has run out; which of its threads says so first differs."""

ENDLESS = re.compile(r"\bwhile\s*\(")
"""A function of ffmpeg's expressions that need not end."""


@dataclass(frozen=True)
class Filter:
    """A filter of a graph with its `options`, such as ("fps=48", "mi_mode=mci"), and the labels around it."""

    name: str
    options: tuple[str, ...]
    inputs: tuple[str, ...] = ()
    outputs: tuple[str, ...] = ()

    def __str__(self) -> str:
        """Return it as ffmpeg reads it; no option has a quote or a backslash in it."""
        options = f"='{':'.join(self.options)}'" if self.options else ""
        labels = ["".join(f"[{label}]" for label in some) for some in (self.inputs, self.outputs)]
        return f"{labels[0]}{self.name}{options}{labels[1]}"


@dataclass(frozen=True)
class FrameFormat:
    """The size (width, height) and the rate of frames."""

    size: tuple[int, int]
    rate: Fraction

    def __str__(self) -> str:
        return f"{self.size[0]}x{self.size[1]} at {float(self.rate):g} frames per second"


def check_graph(text: str) -> str:
    """Return the graph `text` as it is given to ffmpeg, from one open input to one open output, the last.

    InputError for everything that is not allowed, or cannot be read.
    """
    if len(text) > MAX_GRAPH:
        raise _fault(f"the graph has {len(text):,} characters", f"write at most {MAX_GRAPH:,}")
    if unseen := re.search(r"[^\t\n -~\u00a1-\U0010ffff]", text):
        raise _fault(f"the graph has the character {unseen[0]!r}", "write it without")
    if "\\" in text:
        hint = "put an option with commas in quotes: eq=contrast='1+0.2*sin(t)'; a colon cannot be part of a value"
        raise _fault("the graph has a backslash, which helios does not take in graphs", hint)
    chains = [list(chain) for chain in _Reader(text).chains()]
    filters = [one for chain in chains for one in chain]
    if len(filters) > MAX_FILTERS:
        raise _fault(f"the graph has {len(filters)} filters", f"write at most {MAX_FILTERS}")
    last = filters[-1]
    if last.outputs not in ((), ("out",)):
        hint = "end the graph with the filter whose output is the film, without a label behind it"
        raise _fault(f"the last filter, {last.name}, has the label [{last.outputs[0]}]", hint)
    chains[-1][-1] = Filter(last.name, last.options, last.inputs)
    return ";".join(",".join(map(str, chain)) for chain in chains)


class _Reader:
    """Reads a graph: chains divided by `;`, filters by `,`, labels in brackets."""

    def __init__(self, text: str) -> None:
        self._text, self._at = text, 0

    def chains(self) -> Iterator[Iterator[Filter]]:
        while True:
            yield iter(list(self._chain()))
            if not self._takes(";"):
                break
        if self._at < len(self._text):
            raise _fault(f"{self._here()} is not expected", "divide filters by , and chains by ;")

    def _chain(self) -> Iterator[Filter]:
        yield self._filter()
        while self._takes(","):
            yield self._filter()

    def _filter(self) -> Filter:
        inputs = self._labels()
        name = self._token("=,;[]")
        options = self._token(",;[]") if self._takes("=") else ""
        return _checked(name, options, inputs, self._labels())

    def _labels(self) -> tuple[str, ...]:
        found = []
        while self._takes("["):
            label = self._token("]")
            if not self._takes("]") or not re.fullmatch("[A-Za-z0-9_]{1,40}", label):
                raise _fault(f"the label [{printable(label, 40)}] is not one", "write labels as [name]")
            found.append(label)
        return tuple(found)

    def _takes(self, character: str) -> bool:
        """Skip space, and `character` if it is next; return whether it was."""
        rest = self._text[self._at :]
        self._at += len(rest) - len(rest.lstrip())
        if self._text[self._at : self._at + 1] != character:
            return False
        self._at += 1
        return True

    def _token(self, ends: str) -> str:
        """Read up to one of the characters `ends` outside of quotes; return it without quotes and space around it."""
        found = ""
        while self._at < len(self._text) and self._text[self._at] not in ends:
            character = self._text[self._at]
            self._at += 1
            if character == "'":
                end = self._text.find("'", self._at)
                if end < 0:
                    raise _fault("a quote is not closed", "write ' twice, before and behind a value")
                character, self._at = self._text[self._at : end], end + 1
            found += character
        return found.strip()

    def _here(self) -> str:
        return repr(self._text[self._at : self._at + 12])


def _checked(name: str, options: str, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Filter:
    """Return the filter if it may be in a graph. `name@instance` only serves commands to filters: the name counts."""
    name = re.sub("@[A-Za-z0-9_]*$", "", name)
    if not name:
        raise _fault("a filter has no name", "write filters divided by commas: hqdn3d,unsharp")
    if name not in ALLOWED:
        near = difflib.get_close_matches(name, ALLOWED, 3, 0.75)
        why = "is not among the filters that compute pictures and touch nothing else"
        hint = f"write {', or '.join(near)}" if near else "the README lists them, under --filter"
        raise _fault(f"{printable(name, 40)!r} {why}", hint)
    if ENDLESS.search(options):
        raise _fault(f"{name} has the function while(), which need not end", "write the expression without it")
    parts = tuple(part.strip() for part in options.split(":")) if options else ()
    return Filter(name, tuple(_option(name, *pair) for pair in enumerate(parts)), inputs, outputs)


def _option(name: str, index: int, part: str) -> str:
    """Check the option `part`, `key=value` or a value alone, at place `index` of the filter `name`."""
    key, equals, value = (word.strip() for word in part.partition("="))
    if equals and not re.fullmatch("[A-Za-z0-9_]+", key):
        raise _fault(f"{name}: {printable(key, 40)!r} is not the name of an option", "write options as name=value")
    named_only = ALLOWED_OPTIONS.get(name)
    if not equals and (named_only or (index and name in REFUSED_OPTIONS)):
        raise _fault(f"{name}: the value {printable(part, 40)!r} has no name", "write it as name=value")
    refused = key not in named_only if named_only else key in REFUSED_OPTIONS.get(name, ())
    if equals and refused:
        what = f"{name}: the option {key} is not one that helios takes"
        hint = f"write one of {', '.join(sorted(named_only))}" if named_only else "leave it out"
        raise _fault(what, hint)
    return f"{key}={value}" if equals else part


def _fault(message: str, hint: str) -> InputError:
    return InputError(f"--filter: {message}", hint=hint)


@lru_cache
def try_graph(graph: str, picture: FrameFormat) -> FrameFormat:
    """Run a checked graph on a few frames of that size and rate; return the size and rate of what comes out.

    InputError for what ffmpeg does not take, a size or rate that no film can have, or a graph that takes too long or
    too much memory.
    """
    width, height = picture.size
    source = f"testsrc2=s={width}x{height}:r={picture.rate}:d={float(TRIAL_FRAMES / picture.rate):.6f},format=bgr0"
    with ffmpeg.Process(
        [
            *("-f", "lavfi", "-i", source, "-vf", f"{graph},format=rgb24"),
            *(ffmpeg.program().rate_option, "cfr", "-c:v", "rawvideo", "-f", "framecrc", "pipe:1"),
        ],
        doing="trying --filter on a few frames",
        blame=InputError,
        stdout=subprocess.PIPE,
        memory=TRIAL_BYTES + UNUSED_BYTES,
    ) as trial:
        lines = trial.stdout.read().decode(errors="replace").splitlines()
        status = trial.wait()
    made = _described(lines)
    if status or made is None:
        messages = trial.messages(ffmpeg.TAIL_LINES)
        if NO_MEMORY.search(messages):
            limit = f"{TRIAL_BYTES / 2**30:.0f} GiB of memory"
            raise _fault(f"a few frames take more than {limit}", "scale the film less, or use fewer filters")
        said = _said(messages) or f"no frame came out of {TRIAL_FRAMES}"
        raise _fault(
            f"ffmpeg does not take it: {said}", "see `ffmpeg -h filter=NAME`, or ffmpeg.org/ffmpeg-filters.html"
        )
    if max(made.size) > MAX_SIDE or made.size[0] * made.size[1] > MAX_PIXELS or not 1 <= made.rate <= MAX_RATE:
        limits = f"{MAX_PIXELS // 10**6} megapixels, {MAX_SIDE} pixels a side, 1 to {MAX_RATE} frames per second"
        raise _fault(f"it makes {made}, but films have at most {limits}", "scale it down, or choose another rate")
    return made


def _described(lines: Sequence[str]) -> FrameFormat | None:
    """Read ffmpeg's list of frames: comments about the stream, then a line for each frame; None if it has none."""
    facts = dict(line[1:].split(" 0: ", 1) for line in lines if line.startswith("#") and " 0: " in line)
    size, tick = re.fullmatch(r"(\d+)x(\d+)", facts.get("dimensions", "")), facts.get("tb", "")
    if not size or not re.fullmatch(r"[1-9]\d*/[1-9]\d*", tick) or all(line.startswith("#") for line in lines):
        return None
    return FrameFormat((int(size[1]), int(size[2])), 1 / Fraction(tick))


def _said(messages: str) -> str:
    """Return the part of ffmpeg's messages that says what is wrong: not the addresses, and what follows from it."""
    said = [re.sub(r"^(\[[^\]]*\] ?)+", "", message) for message in messages.split("; ")]
    telling = [message for message in said if message and not FOLLOWS.match(message)]
    return "; ".join((telling or said)[:2])


def require_even(picture: FrameFormat, flag: str) -> None:
    """Raise InputError for a size that an .mp4 cannot have."""
    width, height = picture.size
    if width % 2 or height % 2:
        hint = f"add scale={width + width % 2}:{height + height % 2}, or end the name of the output in .mkv"
        raise InputError(f"{flag}: it makes {width}x{height}, but an .mp4 needs even sizes", hint=hint)
