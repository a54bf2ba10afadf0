"""Versions of other packages. Nothing here imports them where they are installed."""

from __future__ import annotations

import importlib
from importlib import metadata


def version_of(package: str, module: str = "") -> str:
    """Of an installed package; where one lies in a folder of PYTHONPATH and is not installed, what its module says.

    ImportError if there is neither.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return importlib.import_module(module or package).__version__
