"""The estimate for people: on the terminal within 80 columns, in the report as tables, in both the same numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from page_checker import checked
from published_shapes import config_of, plan_of, shape_in_conf
from sample_run import sample_results, write_run

from slayer.cost.estimate import estimate
from slayer.reporting.console import AsciiStream, open_console
from slayer.reporting.estimate_table import print_estimate
from slayer.reporting.estimate_words import gpu_hours, time
from slayer.reporting.report import write_report


def costs(*, gpus: int = 1, tokens: int | None = 10**9, model: str = "llama3_8b", freeze: str = "originals", **settings: Any) -> dict[str, Any]:
    shape = shape_in_conf(model)
    found = estimate(shape, plan_of(shape.n_layers, "shallow_half", freeze, prune=2), config_of(**settings), gpus=gpus, tokens=tokens)
    here = {"device": "CPU", "memory_bytes": 20_000_000_000, "needed_bytes": 82_000_000_000, "ranks": 1}
    return json.loads(json.dumps({**found.to_dict(), "here": here}))  # type: ignore[no-any-return]


def printed(values: dict[str, Any], stream: Any = None) -> str:
    stream = stream or io.StringIO()
    print_estimate(values, console=open_console(stream))
    return str(stream.getvalue())


def test_ten_lines_say_what_is_needed_and_what_to_type() -> None:
    text = printed(costs())
    plain = " ".join(text.split())
    assert max(map(len, text.splitlines())) <= 80 and len(text.splitlines()) <= 14 and "\x1b" not in text
    for piece in (
        "zero2 in bf16 on 1 GPU, 1 × 4,096 tokens a micro-batch", "42.0 GFLOP a token: forward 18.9, to inputs 19.2, to weights 3.93",
            "weights 18.7, gradients 3.9, master and moments 23.6",
        "CPU: 82.0 GB of memory needed, 20.0 GB free; a checkpoint 23.6 GB", "1.00 B tokens at 40 % MFU", "A100 80 GB", "H200 141 GB",
        "type: engine=zero",
    ):  # fmt: skip
        assert piece in plain, piece


def test_a_length_that_is_not_known_is_no_length() -> None:
    assert "each 1.00 B tokens at 40 % MFU" in printed(costs(tokens=None)) and "each" not in printed(costs())


def test_more_gpus_and_none_at_all_are_told() -> None:
    text = printed(costs(freeze="none"))
    assert "of them: zero" in text
    nowhere = printed(costs(freeze="none", sequence_length=1 << 20))
    assert nowhere.count("fits on no number of them") == 4 and "→" not in nowhere


def test_a_terminal_without_utf8_gets_ascii() -> None:
    stream = io.StringIO()
    print_estimate(costs(), console=open_console(AsciiStream(stream)))  # type: ignore[arg-type]
    assert stream.getvalue().isascii() and "?" not in stream.getvalue()


@pytest.mark.parametrize("gpus", [1, 8])
def test_the_report_holds_the_whole_tables_in_both_forms(gpus: int, tmp_path: Path) -> None:
    run_dir = write_run(tmp_path / "run", results={**sample_results("run"), "estimate": costs(gpus=gpus)})
    page = checked(write_report(run_dir).read_text(encoding="utf-8")).text
    for text in (page, (run_dir / "report.md").read_text(encoding="utf-8")):
        plain = "".join(text.replace("|", " ").replace("\\", "").replace("*", "").split())
        for piece in (
            "What it costs", "9.34 B parameters: 1.96 B train (1.74 B in new blocks, 218 M in the tail)", "GPUs and time", "Arithmetic of a token",
            "gradients of trained weights 3.93 GFLOP", "Memory of a GPU", "64 zero3", "master and moments",
        ):  # fmt: skip
            assert "".join(piece.split()) in plain, piece


def test_a_run_without_an_estimate_has_no_such_section(tmp_path: Path) -> None:
    assert "What it costs" not in write_report(write_run(tmp_path / "run")).read_text(encoding="utf-8")


def test_what_is_next_to_nothing_is_said_so() -> None:
    assert (time(0.3), time(1.0), gpu_hours(0.0004), gpu_hours(0.4), gpu_hours(2222.4)) == (
        "< 1 s",
        "1 s",
        "< 0.01 GPU h",
        "0.4 GPU h",
        "2,222 GPU h",
    )
