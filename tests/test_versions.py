"""Versions of packages, installed or lying in a folder of PYTHONPATH."""

from __future__ import annotations

import sys
from importlib import metadata

import pytest

from helios_cli.versions import version_of


def test_where_nothing_is_installed_the_module_says_it(tmp_path, monkeypatch):
    (tmp_path / "lying_about.py").write_text("__version__ = '1.2'\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert version_of("lying-about", "lying_about") == version_of("lying_about") == "1.2"


def test_an_installed_package_is_not_imported(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)  # importing it would fail
    assert version_of("torch") == metadata.version("torch")


def test_what_is_not_there_has_no_version():
    with pytest.raises(ImportError):
        version_of("no-such-package", "no_such_package")
