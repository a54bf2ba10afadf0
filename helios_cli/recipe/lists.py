"""Shot lists of other tools: the official interactive CSV, HeliosBench's CSV, LongLive's JSONL, vLLM-Omni's prompt
updates, SRT subtitles.

Each reader gives `Draft`s: recipe values with their lines. A CSV or JSONL file may hold several films.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from helios_cli.recipe.cues import Cue, shots_from
from helios_cli.recipe.problems import Lines, Place, Problems, nearest
from helios_cli.recipe.prompts import unescaped
from helios_cli.recipe.values import MAX_SECONDS
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK, counted
from helios_cli.visible import printable


@dataclass
class Draft:
    """One film before validation. `name` is "" if its file has only one; `suffix` is that of a recipe. `stem` is the
    output's whole name if the list sets it."""

    tree: Any
    lines: Lines
    notices: list[str] = field(default_factory=list)
    name: str = ""
    suffix: str = ""
    stem: str = ""


MAX_COLUMNS = 100
CSV_COLUMNS = ("id", "prompt_index", "prompt", "refined_prompt", "seconds", "transition")
BENCH_COLUMNS = ("id", "prompt", "refined_prompt", "duration")
_HEADER = "the first line must be id,prompt_index,prompt, or prompt alone"


def read_csv(text: str, problems: Problems) -> list[Draft]:
    """Read the official interactive list: a film for each `id`, its shots in the order of `prompt_index`.

    Without these two columns it is one film, in the order of its lines. With `id` and `duration` it is HeliosBench's.
    """
    rows = list(_csv_rows(text, problems))
    if rows and _is_bench(rows[0][1]):
        return _bench_films(rows, problems)
    films: dict[str, dict[int, tuple[int, dict]]] = {}
    for number, (line, row) in enumerate(rows):
        written = row.get("prompt_index", str(number))
        if not re.fullmatch("[0-9]{1,9}", written):
            problems.add(f'"{printable(written)}" is not a whole number', line=line, key="prompt_index")
            continue
        index, shots = int(written), films.setdefault(row.get("id", ""), {})
        if index in shots:
            message = f"line {shots[index][0]} already has index {index} of film {printable(row['id'])}"
            problems.add(message, line=line, key="prompt_index")
        optional = {key: row[key] for key in ("seconds", "transition") if row.get(key)}
        shots[index] = (line, {"prompt": row.get("refined_prompt") or row["prompt"], **optional})
    drafts = []
    for name, shots in films.items():
        ordered = [shots[index] for index in sorted(shots)]
        lines: dict[Place, int] = {("shot", i): line for i, (line, _) in enumerate(ordered)}
        drafts.append(Draft({"shot": [shot for _, shot in ordered]}, lines, name=name if len(films) > 1 else ""))
    return drafts


def _is_bench(columns: Collection[str]) -> bool:
    return {"id", "duration"} <= set(columns) and "prompt_index" not in columns


def _bench_films(rows: list[tuple[int, dict[str, str]]], problems: Problems) -> list[Draft]:
    """Read HeliosBench's list: a film of one shot in each line, as many frames long as `duration` says.

    The films are named as its scripts look for them: by `id`, the frames to be made, and those that were made.
    """
    drafts: list[Draft] = []
    lines: dict[str, int] = {}
    for line, row in rows:
        name, written = row["id"], row["duration"]
        if not re.fullmatch("[0-9]{1,9}", name):
            problems.add(f'"{printable(name)}" is not a whole number', line=line, key="id")
        elif name in lines:
            problems.add(f"line {lines[name]} already has film {name}", line=line, key="id")
        if not re.fullmatch("[0-9]{1,8}", written) or not int(written):
            message, suggestion = f'"{printable(written)}" is not a number of frames', "write 240 for 10 s at 24 fps"
            problems.add(message, line=line, key="duration", suggestion=suggestion)
            continue
        lines.setdefault(name, line)
        tree = {"frames": int(written), "shot": [{"prompt": row.get("refined_prompt") or row["prompt"]}]}
        places: dict[Place, int] = {(): line, ("shot", 0): line}
        drafts.append(Draft(tree, places, name=name, stem=f"{name}_{int(written)}_ori{int(written)}"))
    if drafts:
        drafts[0].notices.append("durations are counted in frames, as in HeliosBench")
    return drafts


def _csv_rows(text: str, problems: Problems) -> Iterator[tuple[int, dict[str, str]]]:
    """Yield line and cells of each row that has no more cells than the header."""
    skipped = bool(re.match("sep=.\n", text))  # Excel's
    lines = text.split("\n")[skipped:]
    names = next((line for line in lines if line.strip()), "")
    delimiter = max(",;\t", key=lambda sign: (names.count(sign), -",;\t".index(sign)))
    reader = csv.reader(io.StringIO("\n".join(lines), newline=""), delimiter=delimiter, strict=True)
    header: list[str] = []
    line = 1 + skipped
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if any(cells) and not header:
                header = [re.sub(r"[\s-]+", "_", cell.lower()) for cell in cells]
                _check_header(header, line, problems)
            elif len(cells) > len(header) and any(cells):
                name = {"\t": "tab", ";": "semicolon"}.get(delimiter, "comma")
                suggestion = f'put a prompt with a {name} in straight quotes: "A boat, at dawn"'
                problems.add(
                    f"has {counted(len(cells), 'cell')}, but the header has {counted(len(header), 'column')}",
                    line=line,
                    suggestion=suggestion,
                )
            elif any(cells):
                row = dict.fromkeys(header, "") | dict(zip(header, cells, strict=False))
                if re.fullmatch("[0-9]+,[0-9]{1,2}", row.get("seconds", "")):  # a decimal comma
                    row["seconds"] = row["seconds"].replace(",", ".")
                yield line, row
            line = 1 + skipped + reader.line_num
    except csv.Error as error:
        problems.add(f"not valid CSV: {error}", line=line)


def _check_header(header: list[str], line: int, problems: Problems) -> None:
    if len(header) > MAX_COLUMNS or not any(nearest(column, CSV_COLUMNS) for column in header):
        problems.refuse("the first line has no column names", line=line, suggestion=_HEADER)
    columns = BENCH_COLUMNS if _is_bench(header) else CSV_COLUMNS
    unknown = dict.fromkeys(column for column in header if column not in columns or header.count(column) > 1)
    for column in unknown:
        message, suggestion = "unknown or repeated column", _advice(column, columns)
        problems.add(message, line=line, key=column, suggestion=suggestion)
    needed: tuple[str, ...] = ("prompt",)
    if {"id", "prompt_index"} & set(header) and not _is_bench(header):
        needed = ("id", "prompt_index", "prompt")
    present = {*header, *(nearest(column, columns) for column in unknown)}
    for column in needed:
        if column not in present:
            problems.add("the column is missing", line=line, key=column, suggestion=_HEADER)
    problems.stop()


def _advice(word: str, names: tuple[str, ...]) -> str:
    near = nearest(word, names)
    return f"write `{near}`" if near else "the names are " + ", ".join(names)


def read_jsonl(text: str, problems: Problems) -> list[Draft]:
    """Read LongLive's list: a film in each line, `{"prompts": […]}` perhaps `"switch_frames": […]` (at 24 fps)."""
    drafts = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and (draft := _jsonl_film(line, number, problems)):
            drafts.append(draft)
    for number, draft in enumerate(drafts, 1):
        draft.name = str(number) if len(drafts) > 1 else ""
    return drafts


def _jsonl_film(text: str, line: int, problems: Problems) -> Draft | None:
    try:
        entry = json.loads(text)
    except (ValueError, RecursionError) as error:
        at = f"{error.msg}, column {error.colno}" if isinstance(error, json.JSONDecodeError) else error
        problems.add(f"not valid JSON: {at}", line=line)
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompts"), list):
        problems.add('a line must hold {"prompts": [...]}', line=line)
        return None
    _check_keys(entry, ("prompts", "switch_frames"), line, problems)
    prompts, frames = entry["prompts"], entry.get("switch_frames")
    shots = [{"prompt": prompt, "transition": "switch"} for prompt in prompts]
    lines: dict[Place, int] = {(): line} | {("shot", index): line for index in range(len(shots))}
    if frames is None:
        return Draft({"shot": shots}, lines)
    is_whole = isinstance(frames, list) and all(type(frame) is int for frame in frames)
    if not is_whole or len(frames) != len(prompts) - 1 or not all(0 < b - a < 1e9 for a, b in pairwise([0, *frames])):
        message = f"must be {len(prompts) - 1} increasing frame numbers, one for each prompt after the first"
        if len(prompts) < 2:
            message = "needs at least two prompts, between which the film switches"
        problems.add(message, line=line, key="switch_frames")
        return None
    for shot, (start, end) in zip(shots, pairwise([0, *frames]), strict=False):
        shot["seconds"] = (end - start) / DEFAULT_FPS
    return Draft({"shot": shots}, lines, [f"switch_frames are frames of the film at {DEFAULT_FPS} fps"])


def _check_keys(entry: dict, names: tuple[str, ...], line: int, problems: Problems) -> None:
    for key in entry:
        if key == "switch_frame_indices" and "switch_frames" in names:
            suggestion = "it counts latent frames; write `switch_frames`, which counts frames, four times as many"
            problems.add("unknown key", line=line, key=key, suggestion=suggestion)
        elif key not in names:
            problems.add("unknown key", line=line, key=key, suggestion=_advice(key, names))


_UPDATE_KEYS = ("at", "prompt", "transition_chunks")


def read_updates(entries: list[Any], lines: Lines, problems: Problems) -> list[Draft]:
    """Read vLLM-Omni's prompt updates: `[{"at": seconds, "prompt": "…", "transition_chunks": 2}]`."""
    cues = []
    for index, entry in enumerate(entries):
        place: dict[str, Any] = {"line": lines.get((index,), 1), "shot": index + 1}
        if not isinstance(entry, dict):
            problems.add('each entry must be {"at": seconds, "prompt": "..."}', **place)
            continue
        _check_keys(entry, _UPDATE_KEYS, place["line"], problems)
        values: list[Any] = [entry.get(key) for key in _UPDATE_KEYS]
        at, prompt, chunks = values
        if type(at) not in (int, float) or not 0 <= at <= MAX_SECONDS:
            advice = 'write "at": 4' if at is None else None
            problems.add(f"must be a number of seconds, 0 to {MAX_SECONDS:g}", **place, key="at", suggestion=advice)
            at = None
        cue = Cue(prompt, place["line"], at)
        if chunks is not None and (type(chunks) is not int or not 0 <= chunks <= 1000):
            problems.add("must be a whole number of chunks, 0 to 1000", **place, key="transition_chunks")
        elif chunks is not None:
            cue.transition = None if chunks else "switch"
            cue.blend_seconds = chunks * FRAMES_PER_CHUNK / DEFAULT_FPS or None
        cues.append(cue)
    problems.stop()
    if cues and cues[0].start:
        message, suggestion = f"no prompt before {cues[0].start:g} s", 'add {"at": 0, "prompt": "..."} at the front'
        problems.refuse(message, line=cues[0].line, suggestion=suggestion)
    return [Draft(*shots_from(cues, problems), ["`at` counts seconds of the film, not wall-clock time"])]


_SRT_TIME = r"(?:([0-9]{1,3}):)?([0-9]{1,2}):([0-9]{1,2})(?:\s*[,.:]\s*([0-9]{1,6}))?"
_SRT_TIMES = re.compile(rf"\s*{_SRT_TIME}\s*-{{1,2}}>\s*{_SRT_TIME}(?:\s.*)?")
_SRT_MEANT = re.compile(r"\s*[0-9][0-9:.,\s]*-{1,2}>")
_SRT_TAG = re.compile(r"</?(?:[biuscv]|font|ruby|rt|lang)(?:[\s.][^<>]*)?>|\{\\[^{}]*\}", re.IGNORECASE)
_SRT_BREAK = re.compile(r"\\[Nnh]")

TIMECODE_HOUR = 3600.0


def read_srt(text: str, problems: Problems) -> list[Draft]:
    """Read subtitles: each cue's text is a prompt, and its times are the shot's.

    As in players, a cue's text goes on to the next one's times, over blank lines; tags and escapes are removed. A
    timeline that begins at an hour, as those of editors do, begins with the film.
    """
    subtitles: list[tuple[float, float, int, str]] = []  # start, end, line and words
    lines = text.split("\n")
    times_at = [i for i, line in enumerate(lines) if _SRT_MEANT.match(line)]
    for i, after in pairwise([*times_at, len(lines) + 1]):
        match = _SRT_TIMES.fullmatch(lines[i])
        if match is None:
            suggestion = "write 00:00:05,000 --> 00:00:12,500"
            problems.add(
                f"{printable(lines[i].strip())} is not a start and an end time", line=i + 1, suggestion=suggestion
            )
            continue
        start, end = _srt_seconds(match.groups()[:4]), _srt_seconds(match.groups()[4:])
        if end <= start:
            problems.add("the end time is not after the start time", line=i + 1)
        subtitles.append((start, end, i + 1, _srt_text(lines[i + 1 : after - 1], lines[after - 1 : after])))
    if not times_at and text.strip():
        problems.add("contains no cues", line=1, suggestion="write 00:00:05,000 --> 00:00:12,500 above each text")
    problems.stop()
    cues, notices = _without_gaps(subtitles)
    return [Draft(*shots_from(cues, problems), notices)]


def _without_gaps(subtitles: list[tuple[float, float, int, str]]) -> tuple[list[Cue], list[str]]:
    """Return cues in order, from the hour of the first, each lasting until the next, and notices of the changes."""
    ordered = sorted(subtitles, key=lambda subtitle: subtitle[0])
    first = ordered[0][0] if ordered else 0.0
    hour = first // TIMECODE_HOUR * TIMECODE_HOUR
    cues: list[Cue] = []
    pauses = 0
    for (start, end, line, words), after in zip(ordered, [*ordered[1:], None], strict=False):
        until = end if after is None else max(end, after[0])
        pauses += until > end
        cues.append(Cue(words, line, start - hour if cues else 0.0, until - hour))
    notices = {
        "the cues are sorted by time": ordered != subtitles,
        f"the times begin at {hour / TIMECODE_HOUR:g}:00:00, which is taken as the film's start": hour,
        f"the first cue begins with the film, not at {first - hour:g} s": first - hour,
        f"{counted(pauses, 'pause')} between cues: the cue before lasts until the next one": pauses,
    }
    return cues, [notice for notice, applies in notices.items() if applies]


def _srt_text(lines: list[str], last: list[str]) -> str:
    """Return a cue's words; `last`, the line right before the next cue's times, is left out if it is a number."""
    if last and not last[0].strip().isdigit():
        lines = [*lines, *last]
    words = _SRT_BREAK.sub(" ", _SRT_TAG.sub("", "\n".join(line.strip() for line in lines if line.strip())))
    return unescaped(words).strip()


def _srt_seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


READERS: dict[str, Callable[[str, Problems], list[Draft]]] = {".csv": read_csv, ".jsonl": read_jsonl, ".srt": read_srt}
