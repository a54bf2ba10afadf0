"""Shot lists of other tools: the official interactive CSV, LongLive's JSONL, vLLM-Omni's prompt updates, SRT subtitles.

Each reader gives `Draft`s: recipe values with their lines. A CSV or JSONL file may hold several films.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise

from helios_cli.recipe.cues import Cue, close_gaps, shots_from
from helios_cli.recipe.film import Place
from helios_cli.recipe.problems import Problems, nearest
from helios_cli.recipe.prompts import unescaped
from helios_cli.recipe.values import parse_time
from helios_cli.units import DEFAULT_FPS, FRAMES_PER_CHUNK
from helios_cli.visible import printable


@dataclass
class Draft:
    """One film before validation. `name` tells it from the others of its file; "" if there are no others."""

    name: str
    tree: dict
    lines: dict[Place, int]
    notices: list[str] = field(default_factory=list)


MAX_COLUMNS = 100
CSV_COLUMNS = ("id", "prompt_index", "prompt", "refined_prompt", "seconds", "transition")


def read_csv(text: str, problems: Problems) -> list[Draft]:
    """The official interactive list: a film for each `id`, its shots in the order of `prompt_index`. Without these two
    columns it is one film, in the order of its lines."""
    films: dict[str, dict[int, tuple[int, dict]]] = {}
    for number, (line, row) in enumerate(_csv_rows(text, problems)):
        index = row.get("prompt_index", str(number))
        if not re.fullmatch("[0-9]{1,9}", index):
            problems.add(f'"{printable(index)}" is not a whole number', line=line, key="prompt_index")
            continue
        shots = films.setdefault(row.get("id", ""), {})
        if int(index) in shots:
            message = f"index {int(index)} of film {printable(row['id'])} stands in line {shots[int(index)][0]} already"
            problems.add(message, line=line, key="prompt_index")
        shot = {"prompt": row.get("refined_prompt") or row["prompt"]}
        shot.update((key, row[key]) for key in ("seconds", "transition") if row.get(key))
        shots[int(index)] = (line, shot)
    drafts = []
    for name, shots in films.items():
        ordered = [shots[index] for index in sorted(shots)]
        lines: dict[Place, int] = {("shot", i): line for i, (line, _) in enumerate(ordered)}
        drafts.append(Draft(name if len(films) > 1 else "", {"shot": [shot for _, shot in ordered]}, lines))
    return drafts


def _csv_rows(text: str, problems: Problems) -> list[tuple[int, dict[str, str]]]:
    """(line, row) of each row that has no more cells than the header, which is checked."""
    rows, header, line = [], None, 1
    if said := re.match("sep=.\n", text):  # Excel's
        text, line = text[said.end() :], 2
    delimiter = _delimiter(text)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    first = line
    try:
        for cells in reader:
            cells = [cell.strip() for cell in cells]
            if not any(cells):
                pass
            elif header is None:
                header = [re.sub(r"[\s-]+", "_", cell.lower()) for cell in cells]
                _check_header(header, line, problems)
            elif len(cells) > len(header):
                sign = {"\t": "tab", ";": "semicolon"}.get(delimiter, "comma")
                suggestion = f'put a prompt with a {sign} in straight quotes: "A boat, at dawn"'
                problems.add(f"{len(cells)} cells under {len(header)} columns", line=line, suggestion=suggestion)
            else:
                row = dict(zip(header, [*cells, *[""] * (len(header) - len(cells))], strict=True))
                if re.fullmatch("[0-9]+,[0-9]{1,2}", seconds := row.get("seconds", "")):
                    row["seconds"] = seconds.replace(",", ".")  # as half of the world writes it
                rows.append((line, row))
            line = first + reader.line_num
    except csv.Error as error:
        problems.add(f"not valid CSV: {error}", line=line)
    return rows


def _delimiter(text: str) -> str:
    """What parts the names of the columns."""
    header = next((line for line in text.split("\n") if line.strip()), "")
    return max(",;\t", key=lambda sign: (header.count(sign), -",;\t".index(sign)))


def _check_header(header: list[str], line: int, problems: Problems) -> None:
    example = "the first line must be id,prompt_index,prompt, or prompt alone"
    known = len(header) <= MAX_COLUMNS and any(nearest(column, CSV_COLUMNS) for column in header)
    if not known:
        problems.add("the first line names no columns", line=line, suggestion=example)
        problems.stop()
    unknown = [column for column in header if column not in CSV_COLUMNS or header.count(column) > 1]
    for column in dict.fromkeys(unknown):
        near = nearest(column, CSV_COLUMNS)
        suggestion = f"write `{near}`" if near else "known are " + ", ".join(CSV_COLUMNS)
        problems.add("unknown or repeated column", line=line, key=column, suggestion=suggestion)
    needed = {"prompt"} if not {"id", "prompt_index"} & set(header) else {"id", "prompt_index", "prompt"}
    meant = {nearest(column, CSV_COLUMNS) for column in unknown}
    for column in ("id", "prompt_index", "prompt"):
        if column in needed - set(header) - meant:
            problems.add("the column is missing", line=line, key=column, suggestion=example)
    problems.stop()


def read_jsonl(text: str, problems: Problems) -> list[Draft]:
    """LongLive's list: a film in each line, `{"prompts": […]}` perhaps `"switch_frames": […]` (at 24 a second)."""
    drafts = []
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip() and (draft := _jsonl_film(line, number, problems)):
            drafts.append(draft)
    for number, draft in enumerate(drafts, 1):
        draft.name = str(number) if len(drafts) > 1 else ""
    return drafts


def _jsonl_film(line: str, number: int, problems: Problems) -> Draft | None:
    entry = _json_value(line, number, problems)
    if entry is None:
        return None
    if not isinstance(entry, dict) or not isinstance(entry.get("prompts"), list):
        problems.add('a line must hold {"prompts": [...]}', line=number)
        return None
    _check_keys(entry, ("prompts", "switch_frames"), number, problems)
    prompts, frames = entry["prompts"], entry.get("switch_frames")
    shots = [{"prompt": prompt, "transition": "switch"} for prompt in prompts]
    notices = []
    if frames is not None:
        if not _increasing(frames) or len(frames) != len(prompts) - 1:
            message = f"must be {len(prompts) - 1} increasing frame numbers, one for each prompt after the first"
            problems.add(message, line=number, key="switch_frames")
            return None
        for shot, start, end in zip(shots, [0, *frames], frames, strict=False):
            shot["seconds"] = (end - start) / DEFAULT_FPS
        notices.append(f"switch_frames count frames of the film at {DEFAULT_FPS} a second")
    lines: dict[Place, int] = {(): number} | {("shot", index): number for index in range(len(shots))}
    return Draft("", {"shot": shots}, lines, notices)


def _increasing(frames: object) -> bool:
    whole = isinstance(frames, list) and all(isinstance(f, int) and not isinstance(f, bool) for f in frames)
    return whole and all(0 < b - a < 1e9 for a, b in zip([0, *frames], frames, strict=False))


def _json_value(text: str, line: int, problems: Problems) -> object:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        problems.add(f"not valid JSON: {error.msg}, column {error.colno}", line=line)
    except (ValueError, RecursionError) as error:
        problems.add(f"not valid JSON: {error}", line=line)
    return None


def _check_keys(entry: dict, known: tuple[str, ...], line: int | None, problems: Problems) -> None:
    for key in entry:
        if key in known:
            continue
        if key == "switch_frame_indices":
            suggestion = "it counts latent frames; write `switch_frames`, which counts frames, four to one"
        else:
            near = nearest(key, known)
            suggestion = f"write `{near}`" if near else "known are " + ", ".join(known)
        problems.add("unknown key", line=line, key=key, suggestion=suggestion)


def read_updates(entries: list, lines: Mapping[Place, int], problems: Problems) -> list[Draft]:
    """vLLM-Omni's prompt updates: `[{"at": seconds, "prompt": "…", "transition_chunks": 2}]`."""
    cues = []
    for index, entry in enumerate(entries):
        line = lines.get((index,), 1)
        if not isinstance(entry, dict):
            problems.add('each entry must be {"at": seconds, "prompt": "..."}', line=line, shot=index + 1)
            continue
        _check_keys(entry, ("at", "prompt", "transition_chunks"), line, problems)
        cue = Cue(entry.get("prompt"), line, start=_update_start(entry, line, index, problems))
        chunks = entry.get("transition_chunks")
        if chunks is not None and (isinstance(chunks, bool) or not isinstance(chunks, int) or not 0 <= chunks <= 1000):
            message = "must be a whole number of chunks, 0 to 1000"
            problems.add(message, line=line, shot=index + 1, key="transition_chunks")
        elif chunks == 0:
            cue.transition = "switch"
        elif chunks:
            cue.blend_seconds = chunks * FRAMES_PER_CHUNK / DEFAULT_FPS
        cues.append(cue)
    problems.stop()
    if cues and cues[0].start:
        message = f"nothing is said before {cues[0].start:g} s"
        problems.add(message, line=cues[0].line, suggestion='add {"at": 0, "prompt": "..."} at the front')
        problems.stop()
    tree, shot_lines = shots_from(cues, problems)
    notices = ["`at` is taken as seconds of the film, not of the clock on the wall"]
    return [Draft("", tree, shot_lines, notices)]


def _update_start(entry: dict, line: int, index: int, problems: Problems) -> float | None:
    at = entry.get("at")
    if isinstance(at, int | float) and not isinstance(at, bool) and 0 <= at <= 86400:
        return parse_time(at)
    suggestion = 'write "at": 4' if at is None else None
    problems.add("must be a number of seconds, 0 to 86400", line=line, shot=index + 1, key="at", suggestion=suggestion)
    return None


_SRT_TIME = r"(?:([0-9]{1,3}):)?([0-9]{1,2}):([0-9]{1,2})(?:\s*[,.:]\s*([0-9]{1,6}))?"
_SRT_TIMES = re.compile(rf"\s*{_SRT_TIME}\s*-{{1,2}}>\s*{_SRT_TIME}(?:\s.*)?")
_SRT_MEANT = re.compile(r"\s*[0-9][0-9:.,\s]*-{1,2}>")
_SRT_TAG = re.compile(r"</?(?:[biuscv]|font|ruby|rt|lang)(?:[\s.][^<>]*)?>|\{\\[^{}]*\}", re.IGNORECASE)
_SRT_BREAK = re.compile(r"\\[Nnh]")

TIMECODE_HOUR = 3600.0


def read_srt(text: str, problems: Problems) -> list[Draft]:
    """Subtitles: each cue's text is a prompt, its times are the shot's.

    Read as players do: a cue's text goes on to the next one's times, over blank lines; tags and escapes of their
    formats are left out. A timeline that begins at an hour, as those of editors do, begins with the film.
    """
    cues: list[Cue] = []
    lines = text.split("\n")
    times_at = [i for i, line in enumerate(lines) if _SRT_MEANT.match(line)]
    for i, end in pairwise([*times_at, len(lines) + 1]):
        match = _SRT_TIMES.fullmatch(lines[i])
        if match is None:
            suggestion = "write 00:00:05,000 --> 00:00:12,500"
            problems.add(f"{printable(lines[i].strip())} are not two times", line=i + 1, suggestion=suggestion)
            continue
        start_s, end_s = _srt_seconds(match.groups()[:4]), _srt_seconds(match.groups()[4:])
        if end_s <= start_s:
            problems.add("the second time is not after the first", line=i + 1)
        cues.append(Cue(_srt_text(lines[i + 1 : end - 1], lines[end - 1 : end]), i + 1, start=start_s, end=end_s))
    if not times_at and text.strip():
        problems.add("holds no cue", line=1, suggestion="write 00:00:05,000 --> 00:00:12,500 above each text")
    problems.stop()
    notices = [*_in_order(cues), *_from_the_hour(cues), *close_gaps(cues)]
    tree, shot_lines = shots_from(cues, problems)
    return [Draft("", tree, shot_lines, notices)]


def _in_order(cues: list[Cue]) -> list[str]:
    """Sort cues by their times; a notice if they were not."""
    before = list(cues)
    cues.sort(key=lambda cue: cue.start)
    return ["the cues are taken in the order of their times"] if cues != before else []


def _from_the_hour(cues: list[Cue]) -> list[str]:
    """Count the times from the hour that the first one has."""
    hour = cues[0].start // TIMECODE_HOUR * TIMECODE_HOUR if cues else 0.0
    for cue in cues:
        cue.start, cue.end = cue.start - hour, cue.end - hour
    return [f"the times begin at {hour / TIMECODE_HOUR:g}:00:00, which is taken as the film's start"] if hour else []


def _srt_text(lines: list[str], last: list[str]) -> str:
    """A cue's words; `last` stands right before the times of the next cue, and is its number if it is one."""
    if last and not last[0].strip().isdigit():
        lines = [*lines, *last]
    words = _SRT_BREAK.sub(" ", _SRT_TAG.sub("", "\n".join(line.strip() for line in lines if line.strip())))
    return unescaped(words).strip()


def _srt_seconds(parts: tuple[str | None, ...]) -> float:
    hours, minutes, seconds, fraction = (part or "0" for part in parts)
    return int(hours) * 3600 + int(minutes) * 60 + int(seconds) + float(f"0.{fraction}")


READERS: dict[str, Callable[[str, Problems], list[Draft]]] = {".csv": read_csv, ".jsonl": read_jsonl, ".srt": read_srt}
