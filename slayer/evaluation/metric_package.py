"""The package `evaluate`, which task files of lm-eval import, although this project has a script of that name."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import sys
from importlib.machinery import PathFinder
from typing import Any


def evaluate_package() -> Any:
    """Hugging Face's `evaluate`, and from now on what `import evaluate` gives everywhere in this process.

    `python evaluate.py` puts its own folder first on the import path, so a plain `import evaluate` would run that script again.
    Call it before anything imports task files. The package itself is loaded when something of it is first used, for that takes
    seconds. ModuleNotFoundError where it is not installed.
    """
    present = sys.modules.get("evaluate")
    if present is not None and "__path__" in object.__getattribute__(present, "__dict__"):  # the plain way would load it
        return present
    try:
        folder = importlib.metadata.distribution("evaluate").locate_file("")
    except importlib.metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError("the package `evaluate`, which lm-eval needs, is not installed", name="evaluate") from error
    spec = PathFinder.find_spec("evaluate", [str(folder)])
    if spec is None or spec.loader is None:
        raise ModuleNotFoundError(f"the package `evaluate` is not in {folder}", name="evaluate")
    spec.loader = importlib.util.LazyLoader(spec.loader)
    package = importlib.util.module_from_spec(spec)
    sys.modules["evaluate"] = package  # before it runs: its own parts import it
    spec.loader.exec_module(package)
    return package
