"""What is refused before Hydra sees it: names of code, settings of Hydra that can hold such names, and secrets.

Nothing of ours is made from names in a configuration. Hydra makes its own parts that way (callbacks, loggers, sweepers), and it does so before
any schema is asked; so its settings are let through one by one, and folders of configurations that a person names are read first.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from slayer.errors import Problem
from slayer.launching.naming import split_override
from slayer.leaks import secret_problem
from slayer.secrets import REDACTED, find_secret, is_secret_variable, redacted

HYDRA_KEYS = (
    "hydra.verbose", "hydra.mode", "hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir", "hydra.output_subdir", "hydra/launcher", "hydra/sweeper",
)  # fmt: skip
HYDRA_PARTS = ("hydra.launcher.", "hydra.sweeper.")
"""Settings of Hydra that cannot name code: folders, which of its installed plugins run a sweep, and those plugins' own."""
NAMES_CODE = ("_target_", "custom_search_space")
CONFIG_OPTIONS = ("--config-dir", "--config-path", "--config-name")
FOLDER_OPTIONS = ("--config-path", "-cp", "--config-dir", "-cd")
MOST_FILES = 10_000
"""More entries than that, and a folder is no folder of configurations."""


def is_hydras(word: str) -> bool:
    """True for a word about Hydra itself."""
    return re.match(r"hydra(?![A-Za-z0-9_])", word.lstrip("+~")) is not None


def word_problem(word: str) -> Problem | None:
    """Why a word `key=value` is refused whatever its key takes: it names code, holds a secret or reads one."""
    key, value = split_override(word)
    # Hydra takes a backslash away in front of some signs.
    if any(name in word.replace("\\", "") for name in NAMES_CODE):
        return _names_code(key, value)
    problem = secret_problem(key, word) or _reads_secret(key, value)
    if problem is None and is_hydras(word) and key not in HYDRA_KEYS and not key.startswith(HYDRA_PARTS):
        why = f"is a setting of Hydra that can name code to run; allowed are {', '.join(HYDRA_KEYS)} and those of launcher and sweeper"
        return Problem(key=key, value=value, why=why, fix=f"leave out {key}")
    return problem


def option_problem(option: str, value: str | None) -> Problem | None:
    """Why an option of Hydra is refused."""
    if option.startswith("--e"):  # Hydra takes options that are cut short
        why = "reads a pickle, which can run anything"
        return Problem(key=option, value=value, why=why, fix=f"leave out {option}   (config.yaml in the run folder says what was run)")
    if option.startswith("--co") and option not in CONFIG_OPTIONS:
        return Problem(key=option, value=value, why=f"is no option; there are {', '.join(CONFIG_OPTIONS)}", fix=CONFIG_OPTIONS[0])
    problem = secret_problem(option, option if value is None else f"{option}={value}")
    if problem is not None or value is None:
        return problem
    if option in ("--config-name", "-cn") and not re.fullmatch(r"[\w-]+(/[\w-]+)*(\.yaml)?", value):
        why = "is not the plain name of a configuration"
        return Problem(key=option, value=value, why=why, fix=f"{option} config")
    return _folder_problem(option, value) if option in FOLDER_OPTIONS else None


def _names_code(key: str, value: object) -> Problem:
    why = "names code to run, and nothing here is made from names in a configuration"
    return Problem(key=key, value=value, why=why, fix=f"leave out {key}")


def _reads_secret(key: str, value: str) -> Problem | None:
    for name in re.findall(r"oc\.env\s*:\s*([A-Za-z_]\w*)", value):
        held = os.environ.get(name, "")
        if is_secret_variable(name, held) or find_secret(held):
            why = f"would write what the environment variable {name} holds, which is secret, into the run folder"
            return Problem(key=redacted(key), value=value, why=why, fix=f"leave out {redacted(key)}")
    return None


def _folder_problem(option: str, value: str) -> Problem | None:
    """Why the configurations of a folder cannot be handed to Hydra; a folder that is not there is left to it."""
    if "://" in value:
        return Problem(key=option, value=value, why="is no folder, and a package would be imported to be read", fix=f"{option} DIR")
    count = 0
    for folder in {Path(value).resolve(), (Path(__file__).parents[2] / value).resolve()}:
        for path in _files(folder):
            count += 1
            if count > MOST_FILES:
                return Problem(key=option, value=value, why="holds too many files for a folder of configurations", fix=f"{option} DIR")
            why = _file_fault(path.relative_to(folder), path) if path.suffix in (".yaml", ".yml") else None
            if why is not None:
                return Problem(key=option, value=value, why=f"{path.relative_to(folder)} {why}", fix=f"leave out {option}, or mend that file")
    return None


def _files(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for place, folders, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        yield from (Path(place) / name for name in (*names, *folders))


def _file_fault(place: Path, path: Path) -> str | None:
    """What is wrong with a file of configurations, read without making anything of it."""
    import yaml

    if any(part in ("hydra", "hydra.yaml", "hydra.yml") for part in place.parts):
        return "configures Hydra itself, which can name code to run"
    try:
        text = path.read_text(encoding="utf-8")
        root: Any = yaml.compose(text, Loader=yaml.SafeLoader)
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        return f"cannot be read ({str(error).splitlines()[0]})"
    if find_secret(text) or _reads_secret("", text):
        return f"holds or reads a secret ({REDACTED}); keep it in the environment"
    if re.search(r"@package\s+\S*hydra|@[\w.]*hydra", text):
        return "is put into Hydra's own configuration, which can name code to run"
    for names in _keys(root):
        if any(name in NAMES_CODE or name == "()" for name in names):
            return f"names code to run ({'.'.join(names)}), and nothing here is made from names in a configuration"
        dotted = ".".join(names)
        if names[0] == "hydra" and not any(allowed == dotted or allowed.startswith(f"{dotted}.") for allowed in HYDRA_KEYS):
            return f"has {dotted}, a setting of Hydra that can name code to run"
    return None


def _keys(root: Any) -> Iterator[tuple[str, ...]]:
    """The path of every key of a YAML tree, each anchored part once: a tree of aliases may be endless when it is spelled out."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((), root)]
    seen: set[int] = set()
    while waiting:
        names, node = waiting.pop()
        children = getattr(node, "value", None)
        if not isinstance(children, list) or id(node) in seen:
            continue
        seen.add(id(node))
        for child in children:
            key, inner = child if isinstance(child, tuple) else (None, child)
            path = names if key is None else (*names, str(getattr(key, "value", "")))
            if key is not None:
                yield path
            waiting.append((path, inner))
