"""Makes takes: one chunk under several seeds, each a short film, side by side on a contact sheet.

A take is the very chunk that the film has there if it is given that seed. It has the same fingerprint, so the film with
the chosen seed finds it in the cache. Nothing here imports torch.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from helios_cli.errors import InputError
from helios_cli.files import replacing
from helios_cli.film import ffmpeg, reading
from helios_cli.film.disk import disk_errors
from helios_cli.film.target import OTHER_NAME, check_target, film_exists
from helios_cli.recipe.film import Film
from helios_cli.recipe.plan import Plan
from helios_cli.recipe.values import MAX_SEED
from helios_cli.units import counted

FRAMES_IN_ROW = 6
THUMBNAIL_SIDE = 240
"""Longest side in pixels of a frame on the sheet; smaller frames keep their size."""

GAP = 8
FONT_SIZE = 18
PAPER, INK = (24, 24, 24), (235, 235, 235)


@dataclass(frozen=True)
class Take:
    """A chunk under `seed`, as a film of its own."""

    seed: int
    plan: Plan


@dataclass(frozen=True)
class TakesFiles:
    """The files of a film's takes: the contact sheet, and the folder of clips."""

    sheet: Path
    folder: Path

    @classmethod
    def of(cls, output: str | os.PathLike, *, force: bool) -> TakesFiles:
        """Return the files of takes of the film at `output`, which may not exist. InputError if they cannot be written.

        Without `force` a finished sheet is not replaced, nor a file under a clip's name whose title is not a take's.
        Takes without a sheet were left by an interrupted run, and are replaced.
        """
        target = check_target(output, force=True)
        files = cls(target.named(".takes.png"), target.named(".takes"))
        if os.path.lexists(files.folder) and not files.folder.is_dir():
            raise InputError(f"{files.folder} is not a folder", hint=OTHER_NAME)
        if files.sheet.is_dir():
            raise InputError(f"{files.sheet} is a folder", hint=OTHER_NAME)
        if not force and os.path.lexists(files.sheet):
            raise film_exists(files.sheet.name)
        for clip in [] if force else sorted(files.folder.glob("seed-*.mp4")):
            if (reading.metadata(clip) or {}).get("title") != clip.stem:
                raise film_exists(f"{clip}, whose title is not that of a take,")
        return files

    def clip(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.mp4"

    def make_folder(self) -> None:
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)


def check_shot(film: Film, shot: int) -> None:
    """Raise InputError unless takes can be made of `shot` (from 1): it must be the first, or begin with a cut."""
    shots = film.recipe.shots
    if shot > len(shots):
        raise InputError(f"--shot {shot}: {film.source} has {counted(len(shots), 'shot')}")
    transition = shots[shot - 1].transition
    if shot > 1 and transition != "cut":
        line = film.line("shot", shot - 1)
        place = film.source if line is None else f"{film.source}:{line}"
        raise InputError(
            f"{place}: shot {shot} continues the one before it ({transition}), so it has no seed of its own",
            hint=f'give shot {shot} the transition "cut", or choose another one with --shot',
        )


def takes_of(plan: Plan, count: int, shot: int = 1) -> list[Take]:
    """Return `count` takes of the first chunk of `shot` (from 1): with its seed in the film, and the next seeds.

    InputError if the shot is not in the film, or the seeds leave their range.
    """
    start = plan.shots[shot - 1].start_frame if shot <= len(plan.shots) else plan.num_frames
    # By its place: a short shot may have left its chunk to the next one.
    chunk = next((chunk for chunk in plan.chunks if chunk.fresh and chunk.start_frame == start), None)
    if chunk is None or chunk.seed is None:
        raise InputError(
            f"shot {shot} begins after the film's end", hint="make the film longer, or choose another shot"
        )
    if chunk.seed + count - 1 > MAX_SEED:
        raise InputError(
            f"{count} takes starting at seed {chunk.seed} are too many", hint=f"the last seed is {MAX_SEED}"
        )
    takes = []
    for seed in range(chunk.seed, chunk.seed + count):
        alone = (replace(chunk, index=0, start_frame=0, seed=seed),)
        title = f"{plan.title}, seed {seed}"
        takes.append(Take(seed, replace(plan, title=title, chunks=alone, num_frames=chunk.num_frames)))
    return takes


def write_sheet(files: TakesFiles, takes: Sequence[Take]) -> None:
    """Draw the contact sheet of finished clips: a row for each take, its seed before frames from first to last."""
    rows = [(f"seed {take.seed}", _thumbnails(files.clip(take.seed), take.plan)) for take in takes]
    with disk_errors(files.sheet), replacing(files.sheet, durable=True) as new:
        _drawn(rows).save(new, "PNG")


def _thumbnails(clip: Path, plan: Plan) -> list[Image.Image]:
    """Return frames of the clip, evenly spread, as a player shows them."""
    last = plan.num_frames - 1
    numbers = sorted({round(place * last / (FRAMES_IN_ROW - 1)) for place in range(FRAMES_IN_ROW)})
    scale = min(1.0, THUMBNAIL_SIDE / max(plan.size))
    width, height = (max(1, round(side * scale)) for side in plan.size)
    chosen = "+".join(f"eq(n,{number})" for number in numbers)
    filters = f"select='{chosen}',scale={width}:{height}:flags=area+accurate_rnd+full_chroma_int,format=rgb24"
    with reading.decoder(clip, "-vf", filters, *ffmpeg.every_frame(), "-f", "rawvideo") as decoder:
        pictures = [decoder.stdout.read(width * height * 3) for _ in numbers]
        if status := decoder.wait():
            raise decoder.failure(status)
    if len(pictures[-1]) < width * height * 3:
        message = f"{clip} has fewer than the {counted(plan.num_frames, 'frame')} of its take"
        raise InputError(message, hint="run the same command again, which makes the clips anew")
    return [Image.frombytes("RGB", (width, height), picture) for picture in pictures]


def _drawn(rows: Sequence[tuple[str, list[Image.Image]]]) -> Image.Image:
    font = ImageFont.load_default(FONT_SIZE)
    labels = max(int(font.getlength(label)) + 1 for label, _ in rows)
    width, height = rows[0][1][0].size
    columns, pitch = len(rows[0][1]), max(height, 2 * FONT_SIZE) + GAP
    sheet = Image.new("RGB", (GAP + labels + columns * (GAP + width) + GAP, GAP + len(rows) * pitch), PAPER)
    draw = ImageDraw.Draw(sheet)
    for row, (label, pictures) in enumerate(rows):
        top = GAP + row * pitch
        draw.text((GAP, top + height / 2), label, INK, font, anchor="lm")
        for column, picture in enumerate(pictures):
            sheet.paste(picture, (GAP + labels + GAP + column * (width + GAP), top))
    return sheet
