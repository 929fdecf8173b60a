"""`train.py --help`, `evaluate.py --help` and docs/configuration.md: all made from the schema and the files of conf/."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel

from slayer.config import EvaluationConfig, RunConfig
from slayer.launching.commandline import CONF, groups
from slayer.schema import choices, field_at, schema_keys, value_text

if TYPE_CHECKING:
    from rich.console import Console

LEFT, WIDEST = 32, 110
"""Columns of what is typed, and of the whole page at most."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Page:
    """A help page. `sections` give the top-level keys and groups under each heading, in the order of the page."""

    command: str
    purpose: str
    config: str
    schema: type[BaseModel]
    examples: Sequence[tuple[str, str]]
    sections: Sequence[tuple[str, Sequence[str]]]


TRAIN = Page(
    command="train.py",
    purpose="teaches a language model a new domain through new blocks, and measures what it learnt and what it forgot.",
    config="config",
    schema=RunConfig,
    examples=(
        ("expansion=shallow_half prune=2", "the demo: French through new shallow blocks, two layers pruned"),
        ("expansion=even prune=2 dry_run=true", "only show the plan and what it will cost"),
        ("model=local model.path=DIR data=local data.path=TEXT", "your model, your text"),
        ("-m expansion=shallow_half,even,deep_half prune=0,2", "a sweep: one run per combination, one page that compares them"),
        ("engine=zero3 launcher.processes=2 engine.micro_batch_rows=1", "two ranks on this machine"),
        ("launcher=slurm launcher.nodes=2 launcher.processes=8 launcher.time=12:00:00", "a job of a cluster (docs/slurm.md)"),
        ("--cfg job expansion=even", "show the configuration and stop"),
    ),
    sections=(
        ("The model to start from", ("model", "warm_start")),
        ("What is changed in it", ("expansion", "prune", "prune_by", "prune_layers", "score_tokens", "tail")),
        ("What trains", ("freeze",)),
        ("The text", ("data",)),
        ("Training", ("train",)),
        ("What keeps it safe", ("guard", "watchdog")),
        ("The engine and its processes", ("engine", "launcher")),
        ("What it will cost", ("estimate",)),
        ("What is measured and where it is shown", ("heldout", "suite", "objective", "tracker")),
        ("The run as a whole", ("run", "runs_dir", "dry_run", "seed", "experiment")),
    ),
)

EVALUATE = Page(
    command="evaluate.py",
    purpose="measures what a model learnt and what it forgot: on held-out text and on benchmarks, beside its base, with intervals.",
    config="evaluate",
    schema=EvaluationConfig,
    examples=(
        ("checkpoint=runs/NAME", "the result of a run beside its base, on the run's own held-out text"),
        ("checkpoint=runs/NAME suite=quick", "on benchmarks as well: what it forgot"),
        ("checkpoint=DIR base=smollm2_135m tasks=[arc_easy,piqa] limit=200", "any two models on any tasks of lm-eval"),
        ("checkpoint=DIR base=smollm2_135m data=demo", "any two models on any text"),
        ("analysis=layers scores=[removal,block_influence] checkpoint=DIR", "which layers of a model matter"),
        ("runs=[runs/A,runs/B] suite=quick", "several models side by side; a sweep folder stands for its runs"),
    ),
    sections=(
        ("The models", ("checkpoint", "base", "runs", "sequence", "factors")),
        ("The benchmarks", ("suite", "tasks", "num_fewshot", "limit", "seed", "include_path", "questions", "apply_chat_template")),
        ("How models answer", ("decoding", "confirm_run_unsafe_code", "backend", "batch_tokens", "precision")),
        ("The text", ("data", "heldout", "shift_tokens", "micro_batch_rows")),
        ("Its layers", ("analysis", "scores")),
        ("Where it goes", ("output", "tracker")),
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """One key: what stands behind = when nobody types it (None: nothing does), the words it may hold, and its line of help."""

    name: str
    default: str | None
    words: tuple[str, ...]
    purpose: str

    @property
    def explained(self) -> str:
        """The line of help, with the words a person may type where it does not name them itself."""
        told = set(re.findall(r"\w+", self.purpose)) >= set(self.words)
        return self.purpose if told else f"{self.purpose}: {', '.join(self.words)}"


def keys_of(top: str, page: Page = TRAIN) -> list[Key]:
    """All keys at and below a top-level key. Defaults are those of the root file of conf/, then those of the schema."""
    root = root_file(page.config)
    found = []
    for name in schema_keys(page.schema):
        field = field_at(name, page.schema)
        if field is not None and name.partition(".")[0] == top:
            default = None if field.is_required() else value_text(_written(root, name, field.get_default(call_default_factory=True)))
            found.append(Key(name=name, default=default, words=choices(field), purpose=field.description or ""))
    return found


def _written(values: Any, name: str, otherwise: object) -> object:
    for part in name.split("."):
        if not isinstance(values, dict) or part not in values:
            return otherwise
        values = values[part]
    return values


def root_file(config: str = "config") -> dict[str, Any]:
    """conf/config.yaml or conf/evaluate.yaml as plain values."""
    from omegaconf import OmegaConf

    values: Any = OmegaConf.to_container(OmegaConf.load(CONF / f"{config}.yaml"))
    return dict(values)


def first_comment(path: Path) -> str:
    """The first comment of a YAML file, without Hydra's package line."""
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def default_choices(config: str = "config") -> dict[str, str]:
    """The file of each group that is taken when nobody chooses, from the defaults list."""
    entries = [entry for entry in root_file(config)["defaults"] if isinstance(entry, dict)]
    return {group: str(choice or "") for entry in entries for group, choice in entry.items() if "/" not in group}


def options_of(group: str, defaults: Mapping[str, str]) -> list[str]:
    """The choices of a group, the default first; empty for a key that is no group."""
    return sorted(groups().get(group, []), key=lambda option: option != defaults.get(group))


def set_by_choice(key: Key) -> bool:
    """True for keys that the file of a group sets and nobody types: expansion.strategy, model.name."""
    group, _, rest = key.name.partition(".")
    return group in groups() and "." not in rest and (key.default is None or rest == "name")


def print_help(page: Page = TRAIN) -> None:
    """Print a help page, as wide as the terminal."""
    from rich.markup import escape

    from slayer.reporting.console import open_console

    console = open_console()
    console.width = min(console.width, WIDEST)
    console.print(f"[bold]{page.command.removeprefix('-m ')}[/] {page.purpose}\n")
    console.print(f"[bold]Usage[/]  python {page.command} {escape('[-m] ' if page is TRAIN else '')}GROUP=CHOICE … KEY=VALUE …\n")
    for words, purpose in page.examples:
        console.print(f"  [cyan]python {page.command} {escape(words)}[/]\n      {purpose}", highlight=False, soft_wrap=True)
    resumes = " The same command started again goes on where it stopped." if page is TRAIN else ""
    console.print(
        f"\nBehind = stand the defaults (a model that brings a recipe sets its own); * marks what is chosen when you choose nothing.{resumes}"
    )
    for title, tops in page.sections:
        console.print(f"\n[bold]{title}[/]")
        for left, right in section_rows(tops, page):
            _print_row(console, left, right)


def section_rows(tops: Sequence[str], page: Page = TRAIN) -> Iterator[tuple[str, str]]:
    """(what is typed, what it does) of every choice and key under these top-level keys."""
    defaults = default_choices(page.config)
    for top in tops:
        for option in options_of(top, defaults):
            yield f"{top}={option}{' *' if defaults.get(top) == option else ''}", first_comment(CONF / top / f"{option}.yaml")
        for key in keys_of(top, page):
            if not set_by_choice(key):
                yield key.name + ("" if key.default is None else f"={key.default}"), key.explained


def _print_row(console: Console, left: str, right: str) -> None:
    lines = textwrap.wrap(right, console.width - LEFT - 3) or [""]
    if len(left) > LEFT:
        console.print(f"  [cyan]{left}[/]", highlight=False, soft_wrap=True, markup=True)
    else:
        console.print(f"  [cyan]{left}[/]{' ' * (LEFT - len(left))} {lines.pop(0)}", highlight=False, soft_wrap=True)
    for line in lines:
        console.print(f"{' ' * (LEFT + 3)}{line}", highlight=False, soft_wrap=True)


def print_evaluation_help() -> None:
    """Print the help page of evaluate.py."""
    print_help(EVALUATE)


def configuration_reference() -> str:
    """docs/configuration.md."""
    lines = ["# Configuration", "", "Made by `python -m slayer.launching.help > docs/configuration.md`; a test keeps it true."]
    for page in (TRAIN, EVALUATE):
        lines += ["", f"## {page.command}", "", f"`python {page.command} GROUP=CHOICE … KEY=VALUE …` {page.purpose}", ""]
        lines += [f"- `python {page.command} {words}`: {purpose}" for words, purpose in page.examples]
        for title, tops in page.sections:
            lines += ["", f"### {title}", *_reference_tables(tops, page)]
    return "\n".join(lines) + "\n"


def _reference_tables(tops: Sequence[str], page: Page) -> list[str]:
    defaults, lines = default_choices(page.config), []
    for top in tops:
        options = options_of(top, defaults)
        if options:
            lines += ["", f"| `{top}=` | what |", "| --- | --- |"]
            lines += [f"| `{option}`{' (default)' if defaults.get(top) == option else ''} | {_comment(top, option)} |" for option in options]
    keys = [key for top in tops for key in keys_of(top, page)]
    if keys:
        lines += ["", "| key | default | what |", "| --- | --- | --- |"]
    for key in keys:
        default = "set by the choice" if set_by_choice(key) else f"`{key.default}`" if key.default is not None else "must be given"
        lines.append(f"| `{key.name}` | {default} | {key.explained} |".replace("`run` | must be given", "`run` | from the overrides"))
    return lines


def _comment(group: str, option: str) -> str:
    return first_comment(CONF / group / f"{option}.yaml").replace("|", "\\|")


if __name__ == "__main__":
    print(configuration_reference(), end="")
