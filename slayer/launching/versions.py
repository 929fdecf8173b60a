"""Whether what is installed is what slayer needs. Asks the metadata of packages, with slayer's own as the list; imports none of them."""

from __future__ import annotations

import re
import shlex
from importlib.metadata import PackageNotFoundError, distribution, requires

from slayer.errors import InstallationError

WHY = {
    "torch": "older ones let a hostile weights file write to memory although only weights are read (CVE-2026-24747)",
    "transformers": "older ones run code from the hub when a model folder asks for it, trusted or not (CVE-2026-4372)",
    "hydra-core": "older ones run functions that a configuration names (GHSA-37p2-j732-x8pj)",
}
"""Floors that are there for safety."""


def installation_problem(package: str = "slayer") -> InstallationError | None:
    """What is missing, too old or too new, with the command that mends it; None where all is as the package's metadata asks."""
    try:
        needed = requires(package) or []
    except PackageNotFoundError:
        said = f"{package} is not installed, so the versions of what it needs cannot be checked"
        return InstallationError(f"{said}\n     type: pip install -e . -c constraints.txt   (in the folder with pyproject.toml)")
    found = [(requirement, wrong) for requirement in needed if (wrong := _wrong(requirement)) is not None]
    if not found:
        return None
    lines = [f"  {number}. {wrong[1]}" for number, (_, wrong) in enumerate(found, 1)]
    command = shlex.join(["pip", "install", *(wrong[0] for _, wrong in found)])
    head = f"{len(found)} {'package is' if len(found) == 1 else 'packages are'} not as {package} needs"
    return InstallationError("\n".join([f"{head} {'it' if len(found) == 1 else 'them'}", *lines, f"     type: {command}"]))


def _wrong(line: str) -> tuple[str, str] | None:
    """(what pip is asked for, what is wrong) of one line of requirements; None where it is met or belongs to an extra."""
    from packaging.requirements import Requirement
    from packaging.version import InvalidVersion, Version

    requirement = Requirement(line)
    if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
        return None
    name, asked = requirement.name, str(requirement.specifier)
    try:
        installed = _version(name)
        # A preview of a later release has its fixes; a preview of the floor itself is older than the floor.
        if requirement.specifier.contains(Version(installed), prereleases=True):
            return None
    except PackageNotFoundError:
        return f"{name}{asked}", f"{name} is not installed; {asked or 'any version'} is needed"
    except InvalidVersion:
        return f"{name}{asked}", f"{name} is installed, but its version cannot be read; {asked} is needed"
    why = f": {WHY[name]}" if name in WHY else ""
    return f"{name}{asked}", f"{name} {installed} is installed, {asked} is needed{why}"


def _version(name: str) -> str:
    """The version of an installed package, "" where its metadata are damaged. The line is looked up: parsing them all costs a start 15 ms."""
    found = distribution(name)
    metadata = found.read_text("METADATA") or found.read_text("PKG-INFO") or ""
    line = re.search(r"^Version:[ \t]*(\S+)", metadata.partition("\n\n")[0], re.MULTILINE)  # the description follows
    return line[1] if line else ""
