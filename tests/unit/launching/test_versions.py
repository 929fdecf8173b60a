"""What is installed against what slayer's own metadata ask for, with real metadata in folders of their own."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from importlib.metadata import requires
from pathlib import Path

import pytest

from slayer.launching.versions import WHY, installation_problem

ROOT = Path(__file__).parents[3]


def install(folder: Path, name: str, version: str, *needed: str) -> None:
    """What pip leaves of a package, without the package."""
    info = folder / f"{name.replace('-', '_')}-{version or '0'}.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.4", f"Name: {name}", *([f"Version: {version}"] if version else []), *(f"Requires-Dist: {one}" for one in needed)]
    (info / "METADATA").write_text("\n".join([*lines, "", "Version: 9 is only described here\n"]), encoding="utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that is looked at before the real ones."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def test_what_the_tests_run_with_is_as_it_should_be() -> None:
    assert installation_problem() is None


def test_an_old_package_is_named_with_the_reason_and_the_command(site: Path) -> None:
    install(site, "slayer", "9", "torch>=2.10", "transformers>=5.3", "hydra-core<1.4,>=1.3.6", "sound>=1")
    for name, version in {"torch": "2.6.0+cpu", "transformers": "5.2.9", "hydra-core": "1.4.0.dev9", "sound": "1.0"}.items():
        install(site, name, version)
    said = str(installation_problem())
    assert said.startswith("3 packages are not as slayer needs them\n") and "sound" not in said
    assert "1. torch 2.6.0+cpu is installed, >=2.10 is needed: " in said and "CVE-2026-24747" in said
    assert "2. transformers 5.2.9 is installed, >=5.3 is needed: " in said and "CVE-2026-4372" in said
    assert "hydra-core 1.4.0.dev9 is installed" not in said or "GHSA-37p2-j732-x8pj" in said
    command = shlex.split(said.splitlines()[-1].strip().removeprefix("type: "))
    assert command[:4] == ["pip", "install", "torch>=2.10", "transformers>=5.3"] and set(command[4]) == set("hydra-core<1.4,>=1.3.6")


@pytest.mark.parametrize(
    ("asked", "installed", "sound"),
    [
        (">=2.10", "2.10.0", True), (">=2.10", "2.10.0+cu128", True), (">=2.10", "2.13.0a0+nv25.01", True), (">=2.10", "2.9.1", False),
        (">=2.10", "2.10.0a0+nv", False), (">=2.10", "2.10.0.post1", True), ("<1.4,>=1.3.6", "1.3.6", True), ("<1.4,>=1.3.6", "1.3.5", False),
        ("<1.4,>=1.3.6", "1.4.0", False), ("", "0.1", True), (">=2.10", "3.0", True), (">=2.10", "mine", False),
    ],
)  # fmt: skip
def test_versions_are_compared_as_pip_compares_them(site: Path, asked: str, installed: str, sound: bool) -> None:
    install(site, "slayer", "9", f"sample{asked}")
    install(site, "sample", installed)
    assert (installation_problem() is None) == sound


def test_what_is_missing_or_damaged_is_named(site: Path) -> None:
    install(site, "slayer", "9", "no-such-package-here>=3", "damaged>=1", "plain-and-missing")
    install(site, "damaged", "")
    said = str(installation_problem())
    assert "no-such-package-here is not installed; >=3 is needed" in said and "plain-and-missing is not installed; any version is needed" in said
    assert "damaged is installed, but its version cannot be read" in said


def test_extras_and_other_machines_are_not_asked_for(site: Path) -> None:
    install(site, "slayer", "9", 'no-such-package-here>=3; extra == "dev"', 'nor-this; sys_platform == "nowhere"', 'slayer[trackers]; extra == "dev"')
    assert installation_problem() is None


def test_a_package_that_is_not_installed_says_how_to() -> None:
    said = str(installation_problem("slayer-that-nobody-installed"))
    assert "is not installed" in said and "pip install -e . -c constraints.txt" in said


def test_every_floor_for_safety_is_one_of_ours() -> None:
    assert set(WHY) <= {line.partition(">")[0].partition("<")[0].strip() for line in requires("slayer") or []}


def test_it_costs_a_start_nothing_and_imports_nothing() -> None:
    code = "import sys; from slayer.launching.versions import installation_problem as problem; problem(); "
    code += "print([name for name in ('torch', 'transformers', 'hydra') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout == "[]\n"

    def seconds() -> float:
        started = time.perf_counter()
        installation_problem()
        return time.perf_counter() - started

    assert min(seconds() for _ in range(10)) < 0.1


@pytest.mark.parametrize("command", [["train.py"], ["evaluate.py"], ["-m", "slayer.data"]])
def test_each_command_asks_before_it_does_anything(command: list[str], tmp_path: Path) -> None:
    install(tmp_path, "slayer", "9", "torch>=2.10")
    install(tmp_path, "torch", "2.6.0")
    code = f"import sys, runpy; sys.path.insert(0, {str(tmp_path)!r}); sys.argv = [{command[-1]!r}, '--cfg', 'job']; "
    started = "runpy.run_module('slayer.data', run_name='__main__')" if command[0] == "-m" else f"runpy.run_path({command[0]!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code + started], cwd=ROOT, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "torch 2.6.0 is installed, >=2.10 is needed" in done.stderr and "Traceback" not in done.stderr and not done.stdout
