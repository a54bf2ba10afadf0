"""The form in which a page sends a prompt, perhaps with a picture; whatever is in it is bounded."""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from aiohttp import BodyPartReader, MultipartReader

from helios_cli.errors import InputError
from helios_cli.recipe.pictures import opened
from helios_cli.recipe.schema import MAX_PROMPT, Shot
from helios_cli.units import format_bytes

MAX_FIELDS = 8
MAX_TEXT_BYTES = 4 * MAX_PROMPT
MAX_PICTURE_BYTES = 32 << 20
MAX_PICTURES_BYTES = 512 << 20
"""Size of all pictures that pages have given to one film."""

BLOCK_BYTES = 1 << 16


@dataclass
class Form:
    """The texts of a form, and its picture, a file without a name."""

    texts: dict[str, str] = field(default_factory=dict)
    picture: IO[bytes] | None = None

    @property
    def line(self) -> bytes:
        """The line that the prompt and its choices would be on standard input; b"" without a prompt."""
        prompt = " ".join(self.texts.get("prompt", "").split())
        seconds = self.texts.get("seconds", "").strip()
        if re.fullmatch(r"[\d.]+", seconds):
            seconds += "s"
        choices = " ".join(filter(None, [self.texts.get("transition", "").strip(), seconds]))
        if prompt and choices and not prompt.startswith("["):
            prompt = f"[{choices}] {prompt}"
        return prompt.encode()

    def close(self) -> None:
        """Remove the picture, which `keep` may have copied."""
        if self.picture:
            self.picture.close()


async def fill(form: Form, reader: MultipartReader) -> None:
    """Read the fields of a request into the form. InputError for more of them, or larger ones, than a page sends."""
    for _ in range(MAX_FIELDS):
        part = await reader.next()
        if part is None:
            return
        if not isinstance(part, BodyPartReader):
            break
        if part.name == "picture" and form.picture is None:
            form.picture = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the form)
            await _copy(part, form.picture, MAX_PICTURE_BYTES)
        else:
            with tempfile.SpooledTemporaryFile(MAX_TEXT_BYTES) as text:
                await _copy(part, text, MAX_TEXT_BYTES)
                text.seek(0)
                form.texts[part.name or ""] = text.read().decode()
    raise InputError(f"the form has more than {MAX_FIELDS} fields")


async def _copy(part: BodyPartReader, file: IO[bytes], most: int) -> None:
    while block := await part.read_chunk(BLOCK_BYTES):
        file.write(block)
        if file.tell() > most:
            raise InputError(f"the {part.name or 'field'} is larger than {format_bytes(most)}")


def starting_from(picture: Path, shot: Shot) -> Shot:
    """Return the shot as one that begins with the picture, which takes a cut."""
    return Shot.model_validate(shot.model_dump(exclude_unset=True) | {"image": str(picture), "transition": "cut"})


def keep(picture: IO[bytes], folder: Path) -> Path:
    """Keep a picture in `folder`, under a name that follows from its content. InputError if it cannot be read."""
    picture.seek(0)
    data = picture.read()
    folder.mkdir(exist_ok=True)
    taken = sum(entry.stat(follow_symlinks=False).st_size for entry in os.scandir(folder))
    if taken + len(data) > MAX_PICTURES_BYTES:
        raise InputError(f"the film has {format_bytes(taken)} of pictures already", hint="go on without another one")
    descriptor, name = tempfile.mkstemp(prefix=".", dir=folder)
    new = Path(name)
    try:
        with open(descriptor, "wb") as file:
            file.write(data)
        try:
            with opened(new) as image:
                suffix = (image.format or "").lower()
        except InputError as error:
            raise InputError(error.message.replace(name, "that was sent"), hint=error.hint) from error
        return new.rename(folder / f"{hashlib.sha256(data).hexdigest()[:16]}.{suffix}")
    finally:
        new.unlink(missing_ok=True)
