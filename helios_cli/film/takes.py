"""Takes: one chunk under several seeds, each a short film, side by side on a contact sheet.

A take is the very chunk that the film has there if it is given that seed. It has the same fingerprint, so the film with
the chosen seed finds it among the kept pieces. Nothing here imports torch.
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
from helios_cli.film.target import check_target
from helios_cli.recipe.film import Film
from helios_cli.recipe.plan import Chunk, Plan
from helios_cli.recipe.values import MAX_SEED
from helios_cli.units import counted

FRAMES_IN_ROW = 6
THUMBNAIL_SIDE = 240
"""Longest side in pixels of a frame on the sheet; smaller frames stay as they are."""

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
    """Where the takes of a film go: the contact sheet, and the folder of clips."""

    sheet: Path
    folder: Path

    @classmethod
    def of(cls, output: str | os.PathLike, *, force: bool) -> TakesFiles:
        """The files of takes of the film at `output`, which need not exist. InputError if they cannot be written.

        A finished sheet stays unless `force`, and so does a file under a clip's name that is no take by its title.
        Takes without a sheet are what an ended run left, and are replaced.
        """
        target = check_target(output, force=True)
        name = target.path.name if target.kind == "png" else target.path.stem
        files = cls(target.path.with_name(f"{name}.takes.png"), target.path.with_name(f"{name}.takes"))
        if os.path.lexists(files.folder) and not files.folder.is_dir():
            raise InputError(f"{files.folder} is not a folder", hint="choose another name with -o")
        if files.sheet.is_dir():
            raise InputError(f"{files.sheet} is a folder", hint="choose another name with -o")
        if not force:
            files._require_free()
        return files

    def _require_free(self) -> None:
        hint = "add --force to replace it, or choose another name with -o"
        if os.path.lexists(self.sheet):
            raise InputError(f"{self.sheet.name} exists", hint=hint)
        for clip in sorted(self.folder.glob("seed-*.mp4")):
            if (reading.metadata(clip) or {}).get("title") != clip.stem:
                raise InputError(f"{clip} exists, and is no take by its title", hint=hint)

    def clip(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.mp4"

    def make_folder(self) -> None:
        with disk_errors(self.folder):
            self.folder.mkdir(exist_ok=True)


def check_shot(film: Film, shot: int) -> None:
    """InputError unless `shot`, counted from 1, is one that takes can be made of: the first, or a cut."""
    shots = film.recipe.shots
    if shot > len(shots):
        raise InputError(f"--shot {shot}: {film.source} has {counted(len(shots), 'shot')}")
    transition = shots[shot - 1].transition
    if shot > 1 and transition != "cut":
        line = film.line("shot", shot - 1)
        place = film.source if line is None else f"{film.source}:{line}"
        raise InputError(
            f"{place}: shot {shot} goes on from the one before it ({transition}), so no seed is drawn there",
            hint=f'give shot {shot} the transition "cut", or take another one with --shot',
        )


def takes_of(plan: Plan, count: int, shot: int = 1) -> list[Take]:
    """`count` takes of the chunk that `shot` (from 1) begins with: its seed in the film, and those that follow.

    InputError if the shot is not in the film, or the seeds leave their range.
    """
    chunk = _beginning(plan, shot)
    if chunk.seed + count - 1 > MAX_SEED:
        raise InputError(f"{count} takes from seed {chunk.seed} on are too many", hint=f"the last seed is {MAX_SEED}")
    return [_take(plan, chunk, chunk.seed + number) for number in range(count)]


def _beginning(plan: Plan, shot: int) -> Chunk:
    """The fresh chunk at the shot's first frame; a short shot may have handed it over to the one that follows."""
    start = plan.shots[shot - 1].start_frame if shot <= len(plan.shots) else plan.num_frames
    found = next((chunk for chunk in plan.chunks if chunk.fresh and chunk.start_frame == start), None)
    if found is None:
        raise InputError(f"shot {shot} begins after the film's end", hint="make the film longer, or take another shot")
    return found


def _take(plan: Plan, chunk: Chunk, seed: int) -> Take:
    alone = replace(chunk, index=0, start_frame=0, seed=seed)
    return Take(seed, replace(plan, title=f"{plan.title}, seed {seed}", chunks=(alone,), num_frames=chunk.num_frames))


def write_sheet(files: TakesFiles, takes: Sequence[Take]) -> None:
    """Draw the contact sheet of finished clips: a row for each take, its seed before frames from first to last."""
    rows = [(f"seed {take.seed}", _thumbnails(files.clip(take.seed), take.plan)) for take in takes]
    with disk_errors(files.sheet), replacing(files.sheet, durable=True) as new:
        _drawn(rows).save(new, "PNG")


def _thumbnails(clip: Path, plan: Plan) -> list[Image.Image]:
    """Frames of the clip, evenly spread, as a player shows them."""
    last = plan.num_frames - 1
    numbers = sorted({round(place * last / (FRAMES_IN_ROW - 1)) for place in range(FRAMES_IN_ROW)})
    scale = min(1.0, THUMBNAIL_SIDE / max(plan.size))
    width, height = (max(1, round(side * scale)) for side in plan.size)
    chosen = "+".join(f"eq(n,{number})" for number in numbers)
    filters = f"select='{chosen}',scale={width}:{height}:flags=area+accurate_rnd+full_chroma_int,format=rgb24"
    with reading.decoder(clip, "-vf", filters, *ffmpeg.every_frame(), "-f", "rawvideo") as decoder:
        pictures = [decoder.stdout.read(width * height * 3) for _ in numbers]
        if (status := decoder.wait()) or len(pictures[-1]) < width * height * 3:
            raise decoder.failure(status)
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
