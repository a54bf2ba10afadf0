"""A phase small enough to train in a test: two players, draws from the share alone. `python -m support.toy ARGUMENTS`
is `helios ARGUMENTS` with this phase next to the package's own."""

from __future__ import annotations

from pathlib import Path

from helios_cli.train import phases, settings

HERE = Path(__file__).parent


def register() -> None:
    for package, name in ((settings, "settings"), (phases, "phases")):
        if str(HERE / name) not in package.__path__:
            package.__path__.append(str(HERE / name))


register()
