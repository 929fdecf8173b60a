"""`train.py --help`, and docs/configuration.md: both are made from the schema and the files of conf/."""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from slayer.config import RunConfig
from slayer.launching.compose import CONF, groups

EXAMPLES = (
    ("python train.py expansion=shallow_half prune=2", "the demo: French through seven new shallow blocks, two layers pruned"),
    ("python train.py expansion=even prune=2 dry_run=true", "only show the plan"),
    ("python train.py model=local model.path=DIR data=local data.path=TEXT", "your model, your text"),
    ("python train.py -m expansion=shallow_half,even,deep_half prune=0,2", "a sweep: one run per combination, one page"),
    ("python train.py engine=zero3 launcher.processes=2", "two ranks on this machine"),
    ("python train.py run=NAME …", "name the run folder yourself; the same command goes on where it stopped"),
)


def first_comment(path: Path) -> str:
    """The first comment of a YAML file, without Hydra's package line."""
    comments = [line[1:].strip() for line in path.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    return next((comment for comment in comments if not comment.startswith("@package")), "")


def key_rows(section: type[BaseModel] = RunConfig, prefix: str = "") -> list[tuple[str, str, str]]:
    """(key, default or choices, help) of every key of the schema."""
    rows: list[tuple[str, str, str]] = []
    for name, field in section.model_fields.items():
        inner: Any = field.annotation
        nested = next((kind for kind in (inner, *get_args(inner)) if isinstance(kind, type) and issubclass(kind, BaseModel)), None)
        if nested is not None:
            key = f"{prefix}{name}.NAME." if "dict" in str(inner) else f"{prefix}{name}."
            rows += key_rows(nested, key)
            continue
        choices = [str(choice) for choice in get_args(inner) if isinstance(choice, str)]
        default = field.get_default(call_default_factory=True)
        value = "" if default is PydanticUndefined else "null" if default is None else str(default)
        rows.append((prefix + name, " | ".join(choices) or value, field.description or ""))
    return rows


def print_help() -> None:
    """Print the help page."""
    from rich.table import Table

    from slayer.reporting.console import open_console

    console = open_console()
    console.print("[bold]slayer[/] teaches a language model a new domain through new blocks, and measures what it forgot.\n")
    console.print("[bold]Usage[/]  python train.py \\[-m] \\[KEY=VALUE …]\n")
    for command, purpose in EXAMPLES:
        console.print(f"  [cyan]{command}[/]\n      {purpose}", highlight=False, soft_wrap=True)
    console.print("\n[bold]Choices[/]  (GROUP=CHOICE; files of conf/)")
    for group, options in groups().items():
        table = Table.grid(padding=(0, 2))
        for option in options:
            table.add_row(f"  {group}={option}", first_comment(CONF / group / f"{option}.yaml"))
        console.print(table)
    console.print("\n[bold]Keys[/]  (KEY=VALUE; choices or default in the middle)")
    table = Table.grid(padding=(0, 2))
    for key, value, purpose in key_rows():
        table.add_row(f"  {key}", value, purpose)
    console.print(table)


def configuration_reference() -> str:
    """docs/configuration.md."""
    lines = ["# Configuration", "", "Made by `python -m slayer.launching.help > docs/configuration.md`; a test keeps it true.", "", "## Choices", ""]
    for group, options in groups().items():
        lines += [f"### `{group}=`", "", "| choice | what |", "| --- | --- |"]
        lines += [f"| `{option}` | {first_comment(CONF / group / f'{option}.yaml')} |" for option in options] + [""]
    lines += ["## Keys", "", "| key | choices or default | what |", "| --- | --- | --- |"]
    for key, value, purpose in key_rows():
        shown = value.replace(" | ", ", ")
        lines.append(f"| `{key}` | {shown} | {purpose} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(configuration_reference(), end="")
