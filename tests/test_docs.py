"""The README against the code: commands, file tree, exit codes, variables, the recipe it shows."""

from __future__ import annotations

import pydoc
import re
from dataclasses import fields
from pathlib import Path

import pytest
from typer.main import get_command

from helios_cli import errors
from helios_cli.cli import app
from helios_cli.engine.events import Event
from helios_cli.recipe.options import FLAGS, RenderOptions
from helios_cli.recipe.sources import read_films

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
CONTRIBUTING = (ROOT / "CONTRIBUTING.md").read_text()


def leaves(command, name: str = "helios"):
    children = getattr(command, "commands", {})
    if not children:
        yield name
    for child_name, child in children.items():
        yield from leaves(child, f"{name} {child_name}")


def test_commands_are_those_of_the_code():
    listed = re.findall(r"^\| `(helios(?: [a-z]+)+)", README, re.MULTILINE)
    assert sorted(listed) == sorted(leaves(get_command(app)))


def tree() -> list[Path]:
    """Return the paths of the file tree in CONTRIBUTING.md."""
    block = re.search(r"## Layout\n\n```\n(.*?)```", CONTRIBUTING, re.DOTALL)[1]
    paths, parents = [], {}
    for line in block.splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        path = parents.get(depth - 1, Path()) / line.split()[0]
        parents[depth] = path
        paths.append(path)
    return paths


def test_file_tree_is_the_repository_s():
    listed = set(tree())
    for path in listed:
        assert (ROOT / path).exists(), path
    package = {
        path.relative_to(ROOT)
        for path in (ROOT / "helios_cli").iterdir()
        if not path.name.startswith("__") and path.suffix != ".typed"
    }
    assert package - listed == set()


def test_exit_codes_are_those_of_the_errors():
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    used = {kind.exit_code for kind in errors.KINDS.values()}
    assert listed == used | {0}


def test_variables_are_those_that_are_read():
    folders = (ROOT / "helios_cli", ROOT / "kernels")
    source = "\n".join(path.read_text() for folder in folders for path in folder.rglob("*.py"))
    read = set(re.findall(r"\"(HELIOS_[A-Z]+)\"", source))
    assert set(re.findall(r"`(HELIOS_[A-Z]+)`", README)) == read


def test_the_recipe_shown_is_one(tmp_path):
    recipe = tmp_path / "shown.toml"
    recipe.write_text(re.search(r"```toml\n(.*?)```", README, re.DOTALL)[1])
    assert len(read_films([str(recipe)])[0].recipe.shots) == 2


@pytest.mark.parametrize("line", re.findall(r"^(?:.*&& \S*bin/)?helios (.*)$", README, re.MULTILINE))
def test_flags_shown_exist(line):
    """Every flag in a command line of the README belongs to that command."""
    command, words = get_command(app), line.split("#")[0].split("|")[0].split()
    while words and words[0] in getattr(command, "commands", {}):
        command = command.commands[words.pop(0)]
    known = {flag for parameter in command.params for flag in parameter.opts + parameter.secondary_opts}
    assert {word for word in words if word.startswith("-") and len(word) > 1} <= known


def test_links_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README + CONTRIBUTING):
        assert target.startswith("https://") or (ROOT / target).exists(), target


def test_events_are_documented_field_by_field():
    """The document helios_cli/engine/events.md has a section for each event, with its fields and their types."""
    plain = "str", "int", "float"
    kinds = {kind: kind for kind in plain} | {f"{kind} | None": f"{kind} or null" for kind in plain}
    text = (ROOT / "helios_cli/engine/events.md").read_text()
    sections = dict(re.findall(r"^## `(\w+)`\n(.*?)(?=^## |\Z)", text, re.MULTILINE | re.DOTALL))
    known = {re.sub(r"(?<!^)(?=[A-Z])", "_", event.__name__).lower(): event for event in Event.__subclasses__()}
    assert sections.keys() == known.keys()
    common = {field.name for field in fields(Event)}
    assert all(f"`{name}`" in text.split("## ")[0] for name in common)
    for name, event in known.items():
        listed = dict(re.findall(r"^\| `(\w+)` \| (.+) \|$", sections[name], re.MULTILINE))
        assert listed == {
            field.name: kinds.get(field.type, "object of numbers")
            for field in fields(event)
            if field.name not in common
        }


def test_the_help_of_the_options_names_each():
    """A user of the library finds in `help(helios.RenderOptions)` what the help of the command says."""
    shown = pydoc.render_doc(RenderOptions, renderer=pydoc.plaintext)
    for key, flag in FLAGS.items():
        assert re.search(rf"^ \|      {key}(=False)?: {re.escape(flag.help)}$", shown, re.MULTILINE), key


def test_the_files_that_contributing_names_exist():
    """Names of files are relative to the repository, to helios_cli/ or to kernels/."""
    homes = (ROOT, ROOT / "helios_cli", ROOT / "kernels")
    for name in re.findall(r"(?:[\w.]+/)+(?:\w+\.(?:py|md))?", CONTRIBUTING.split("## Tests")[0]):
        assert any((home / name).exists() for home in homes), name
