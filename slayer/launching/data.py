"""What `python -m slayer.data` does: the text of a run is prepared and shown, and nothing is trained.

It takes the very words of train.py. What it prepares stays in the cache, so that the run finds it there.
"""

from __future__ import annotations

import shlex
import sys
from typing import Any

import hydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from slayer.config import RunConfig
from slayer.errors import ConfigError, Problem, SlayerError
from slayer.launching.commandline import CONF, is_sweep, only_prints, tolerant
from slayer.launching.compose import validate
from slayer.launching.help import Page, print_help
from slayer.launching.local import INTERRUPTED_EXIT_CODE, REFUSED_EXIT_CODE, as_message
from slayer.launching.naming import split_override
from slayer.launching.versions import installation_problem

PAGE = Page(
    command="-m slayer.data",
    purpose="reads, cleans, tokenises and packs the text of a run and shows it, without training. It takes the words of train.py.",
    config="config",
    schema=RunConfig,
    examples=(
        ("data=demo", "the embedded text"),
        ("data=local data.path=TEXT model=local model.path=DIR", "your text, cut into the tokens of your model"),
        ("data=demo data.packing=concat data.sequence_length=512", "the same text, packed in another way"),
    ),
    sections=(
        ("The text", ("data",)),
        ("The model whose tokens it is cut into", ("model",)),
        ("How much of it a run reads", ("train",)),
        ("Where the report goes", ("run", "runs_dir", "seed")),
    ),
)

refused: list[Problem] = []
exit_codes: list[int] = []


def run(composed: Any) -> None:
    """Prepare and show the text of one configuration."""
    from slayer.reporting.console import print_error

    words: Any = OmegaConf.to_container(HydraConfig.get().overrides.task)
    overrides = ["=".join(split_override(word)) for word in words]
    try:
        show_text(validate(composed, overrides, refused), overrides)
        exit_codes.append(0)
    except (SlayerError, OSError) as error:
        print_error(as_message(error))
        exit_codes.append(REFUSED_EXIT_CODE)


def show_text(config: RunConfig, overrides: list[str]) -> None:
    """Prepare the text, print it, write the data report into the run's folder, and say what to type next.

    Raises any SlayerError of the text or the model; CheckpointError when the folder holds a trained run of another configuration or text.
    """
    from transformers import AutoTokenizer

    from slayer.models import resolve_model
    from slayer.phases.text import has_work, open_text, require_same_text
    from slayer.pipeline import check_run_folder
    from slayer.reporting.console import open_console, print_next
    from slayer.reporting.data_report import write_data_report
    from slayer.reporting.data_table import print_data, print_inspection

    if has_work(config.folder):  # its report tells what it was trained on
        check_run_folder(config)
    console = open_console()
    tokenizer = AutoTokenizer.from_pretrained(resolve_model(config.model), local_files_only=True)
    opened = open_text(config, tokenizer, console)
    facts = opened.facts(tokenizer)
    require_same_text(config.folder, opened.loader.identity())
    report = write_data_report(config.folder, facts)
    print_data(facts, report=report, console=console)
    print_inspection(facts, console=console)
    print_next(
        [
            (f"xdg-open {shlex.quote(str(report))}", "look at the report"),
            (shlex.join(["python", "train.py", *overrides]), "train on this text"),
        ],
        console=console,
    )


def main() -> int:
    """Exit code: 0 shown, 2 something to mend, 130 interrupted."""
    from slayer.reporting.console import print_error

    problem = installation_problem()
    if problem is not None:
        print_error(problem)
        return REFUSED_EXIT_CODE
    typed = sys.argv[1:]
    if {"--help", "-h"} & set(typed):
        print_help(PAGE)
        return 0
    arguments, refused[:] = tolerant(typed, RunConfig)
    exit_codes.clear()
    if is_sweep(typed):
        why = "a sweep is many runs, and one text is shown at a time"
        print_error(ConfigError([Problem(key="-m", value=shlex.join(typed), why=why, fix="leave out -m")]))
        return REFUSED_EXIT_CODE
    if refused and only_prints(typed):
        print_error(ConfigError(refused))
        return REFUSED_EXIT_CODE
    sys.argv[1:] = arguments
    try:
        hydra.main(config_path=str(CONF), config_name="config", version_base="1.3")(run)()
    except KeyboardInterrupt:
        print("interrupted; what was prepared stays in the cache, and the same command goes on", file=sys.stderr)
        return INTERRUPTED_EXIT_CODE
    return max(exit_codes, default=0)
