"""Every command and flag of `helios`, frozen: adding, renaming or dropping one is a deliberate edit here."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from typer.main import get_command

from helios_cli.cli import app

FLAGS = {
    "helios": "--install-completion --show-completion --version",
    "helios bench": "",
    "helios bench checkpoint": "--dtype --kind --seed",
    "helios bench all": "--device --json --out --seconds --table",
    "helios bench farm": "--chunk-seconds --chunks --films --json --out --seconds --segments --state --workers",
    "helios bench kernels": "--json --out --tune",
    "helios bench quant": (
        "--chunks --device --float32 --guidance --json --model --out --reuse-history --reuse-steps --seed --size "
        "--steps --synthetic -m"
    ),
    "helios bench offload": (
        "--budgets --chunks --device --dtype --folder --json --model --out --size --steps --synthetic -m"
    ),
    "helios bench render": (
        "--against --attention --chunks --device --dtype --json --memory --minutes --model --out --quant --size "
        "--steps --synthetic --threads -m"
    ),
    "helios bench quality": (
        "--changes --chunks --device --dtype --films --guidance --json --minutes --model --out --prompts "
        "--reuse-history --reuse-steps --seed --sheet --steps --without -m"
    ),
    "helios bench train": "--batch --device --dtype --json --size",
    "helios cache": "",
    "helios cache clear": "--json",
    "helios cache list": "--json",
    "helios check": "--against --chunk-frames --json --psnr --report --ssim --strict",
    "helios doctor": "--json --test",
    "helios live": (
        "--ahead --attention --audio --audio-fade --audio-fit --codec --container --crf --device --dtype --filter "
        "--final --force --fps --frames --gpus-per-film --guidance --hold --image --json --keep --lora --minutes "
        "--model --negative --no-cache --no-reuse-history --offload --output --play --preset --preview-decoder "
        "--progress --quant --quiet --ram --reuse-history --reuse-steps --revision --seconds --seed --serve --size "
        "--speed --steps --through --through-fps --through-size --transition --vae-device --video --vram -m -o -q"
    ),
    "helios models": "",
    "helios models convert": "--dtype --json --lora --out --revision",
    "helios models info": "--json --revision",
    "helios models list": "--json",
    "helios models pull": "--json --revision",
    "helios models verify": "--json --revision",
    "helios plan": (
        "--attention --audio --audio-fade --audio-fit --cluster --codec --crf --device --dtype --filter --final --fps "
        "--frames --gpus-per-film --guidance --image --json --lanes --lora --minutes --mixed --model --negative "
        "--no-reuse-history --offload --on --output --preview-decoder --price --quant --ram --reanchor "
        "--reuse-history --reuse-steps --revision --seconds --seed --share --size --speed --steps --strict --through "
        "--through-fps --through-size --vae-device --video --vram --workers -m -o"
    ),
    "helios recipe": "",
    "helios recipe check": "--json",
    "helios recipe convert": "--film --force --to",
    "helios recipe schema": "--json",
    "helios render": (
        "--attention --audio --audio-fade --audio-fit --check --cluster --codec --container --crf --device --dry-run "
        "--dtype --export --filter --final --force --fps --frames --from --gpus-per-film --guidance --image --json "
        "--keep --lanes --lora --minutes --mixed --model --negative --no-cache --no-metadata --no-reuse-history "
        "--offload --on-error --output --preset --preview-decoder --progress --quant --quiet --ram --reanchor "
        "--reuse-history --reuse-steps --revision --seconds --seed --share --shot --size --speed --steps --strict "
        "--takes --through --through-fps --through-size --vae-device --video --vram --worker-timeout --workers -m -o "
        "-q"
    ),
    "helios train": "--check --device --json --max-minutes --output --progress --quiet --set --steps --threads -o -q",
}


def commands(command=None, name: str = "helios") -> Iterator[tuple[str, object]]:
    command = command or get_command(app)
    yield name, command
    for child_name, child in getattr(command, "commands", {}).items():
        yield from commands(child, f"{name} {child_name}")


def options(command) -> list:
    return [parameter for parameter in command.params if parameter.opts[0].startswith("-")]


def test_commands_and_flags_are_the_frozen_ones():
    found = {
        name: " ".join(sorted(flag for option in options(command) for flag in option.opts + option.secondary_opts))
        for name, command in commands()
    }
    assert found == FLAGS


@pytest.mark.parametrize(("name", "command"), [pytest.param(*pair, id=pair[0]) for pair in commands()])
def test_help_is_there_and_short(name, command):
    """One sentence for a command in the list of commands, one for each flag."""
    summary = command.get_short_help_str(limit=1000)
    assert summary and len(summary) <= 120, f"{name}: {summary}"
    for option in options(command):
        assert option.help and len(option.help) <= 160, f"{name} {option.opts[0]}: {option.help}"


@pytest.mark.parametrize(("name", "command"), [pytest.param(*pair, id=pair[0]) for pair in commands()])
def test_lines_of_a_longer_help_fit_the_page(name, command):
    """Typer keeps the lines of a paragraph: a longer one would be broken on a page of 80, and its rest stand alone."""
    paragraphs = [paragraph.splitlines() for paragraph in (command.help or "").replace("\\[", "[").split("\n\n")[1:]]
    assert not [line for lines in paragraphs if len(lines) > 1 for line in lines if len(line) > 78]


def test_arguments_are_named_without_dots():
    """Typer adds them where there may be several: `SOURCE...` would be `{SOURCE...}...`."""
    arguments = [parameter for _, command in commands() for parameter in command.params]
    assert not [parameter.name for parameter in arguments if "." in (parameter.metavar or "")]


def test_a_flag_means_the_same_everywhere():
    """One short form for one long form, over all commands."""
    meanings: dict[str, set[str]] = {}
    for _, command in commands():
        for option in options(command):
            long = [flag for flag in option.opts if flag.startswith("--")]
            for short in set(option.opts) - set(long):
                meanings.setdefault(short, set()).update(long)
    assert all(len(long) == 1 for long in meanings.values()), meanings
