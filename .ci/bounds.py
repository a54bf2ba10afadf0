"""Fails where a lower bound of pyproject.toml is not what is installed: one that no resolver can reach says nothing."""

import sys
from importlib.metadata import requires, version

from packaging.requirements import Requirement
from packaging.version import Version

wrong = []
for requirement in map(Requirement, requires("helios-render")):
    if requirement.name == "torch" or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
        continue
    bound = next(part.version for part in requirement.specifier if part.operator == ">=")
    if Version(version(requirement.name)) != Version(bound):
        wrong.append(f"{requirement.name} {version(requirement.name)} is installed, its bound is {bound}")
sys.exit("\n".join(wrong) or None)
