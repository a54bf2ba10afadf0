"""Writes a recipe as TOML, YAML or JSON, with its pictures, sound and LoRA files relative to the folder of the file."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

import yaml

from helios_cli.errors import InputError
from helios_cli.recipe.files import WIDTHLESS
from helios_cli.recipe.film import Film
from helios_cli.recipe.lora import Lora, located
from helios_cli.recipe.yaml_tree import YAML_SCALARS
from helios_cli.visible import has_unseen

FORMS = {".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".json": "json"}


def form_of(path: Path) -> str:
    """Return the form that belongs to the suffix of a file name."""
    form = FORMS.get(path.suffix.lower())
    if form is None:
        raise InputError(f"{path}: a recipe ends in {', '.join(FORMS)}", hint=f"write {path.stem}.toml")
    return form


def write_recipe(film: Film, form: str, folder: Path) -> str:
    """Return the text of a recipe file of `film` in `folder`, as "toml", "yaml" or "json"."""
    keys = film.recipe.to_dict()
    for shot in keys["shot"]:
        for key in ("image", "video"):
            if key in shot:
                shot[key] = _relative(film.picture(shot[key]), folder)
    if "audio" in keys:
        keys["audio"] = _relative(film.picture(keys["audio"]), folder)
    for entry in keys.get("lora", ()):
        lora = located(Lora(entry["path"]), film.folder)
        if not lora.is_on_hub:
            entry["path"] = _relative(Path(lora.path), folder)
    is_visible = not has_unseen(json.dumps(keys, ensure_ascii=False))  # the console escapes the rest as TOML does
    if form == "json":
        return json.dumps(keys, indent=2, ensure_ascii=not is_visible) + "\n"
    if form == "yaml":
        return yaml.dump(keys, Dumper=_Dumper, sort_keys=False, allow_unicode=is_visible, width=1000)
    return _toml(keys)


class _Dumper(yaml.SafeDumper):
    """Quotes text that YAML 1.1 (PyYAML) or 1.2 (helios) would read as something else."""


for _kind, (_form, _) in YAML_SCALARS.items():
    _Dumper.add_implicit_resolver(f"tag:yaml.org,2002:{_kind}", re.compile(f"(?:{_form.pattern})$"), None)


def _relative(path: Path, folder: Path) -> str:
    try:
        return Path(os.path.relpath(path, folder)).as_posix()
    except ValueError:  # another drive
        return path.as_posix()


def _toml(keys: dict) -> str:
    tables = [{key: value for key, value in keys.items() if key != "shot"}, *keys["shot"]]
    blocks = ["".join(f"{key} = {_toml_value(value)}\n" for key, value in table.items()) for table in tables]
    return "\n[[shot]]\n".join(blocks)


def _toml_value(value: object) -> str:
    """Return a value in the syntax that TOML and JSON share; only floats differ, such as 1e22."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml_value, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml_value(item)}" for key, item in value.items()) + " }"
    if isinstance(value, float):
        return repr(value)
    return WIDTHLESS.sub(lambda character: f"\\u{ord(character[0]):04x}", json.dumps(value, ensure_ascii=False))
