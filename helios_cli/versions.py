"""Finds versions of other packages, without importing those that are installed."""

from __future__ import annotations

import importlib
from functools import cache
from importlib import metadata


@cache
def version_of(package: str, module: str = "") -> str:
    """Return the version of an installed package, or `__version__` of one that is only in a folder of PYTHONPATH.

    Raises ImportError if there is neither. Each package is looked up once: its whole description is read for it.
    """
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return importlib.import_module(module or package).__version__
