"""A phase small enough to train in a test: two players, draws from the share alone. `python -m support.toy ARGUMENTS`
is `helios ARGUMENTS` with this phase next to the package's own."""

from __future__ import annotations

from pathlib import Path

from helios_cli.train import phases
from helios_cli.train.settings import SETTINGS
from support.toy.tables import ToySettings

HERE = Path(__file__).parent


SETTINGS["toy"] = ToySettings
if str(HERE / "phases") not in phases.__path__:
    phases.__path__.append(str(HERE / "phases"))
