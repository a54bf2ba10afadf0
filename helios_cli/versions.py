"""Versions of other packages. Nothing here imports them where they are installed."""

from __future__ import annotations

import importlib
from importlib import metadata


def version_of(package: str, module: str = "") -> str:
    """The version of an installed package; of one that only lies in a folder of PYTHONPATH, what its module says.

    ImportError if there is neither.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return importlib.import_module(module or package).__version__
