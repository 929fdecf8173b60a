"""The sweep page: every point beside the others, the best marked, failures shown with their error."""

from __future__ import annotations

import io
import json
import re

from sample_run import write_sweep

from slayer.reporting.console import open_console
from slayer.reporting.sweep_page import best_point, print_sweep, read_points, swept_keys, write_sweep_page


def test_points_are_read_in_order_and_only_swept_keys_are_compared(tmp_path):
    points = read_points(write_sweep(tmp_path))
    assert [point.number for point in points] == [0, 1, 2, 3, 4]
    assert swept_keys(points) == ["expansion", "prune"]
    assert best_point(points) is points[1]
    learnt, forgotten = points[1].learnt, points[1].forgotten
    assert learnt is not None and forgotten is not None and (learnt.percent, forgotten.percent) == (-21.3, -0.4)


def test_the_page_links_reports_marks_the_best_and_shows_errors_escaped(tmp_path):
    sweep = write_sweep(tmp_path)
    page = write_sweep_page(sweep).read_text(encoding="utf-8")
    links = re.findall(r'<td><a href="([^"]+)">', page)
    assert len(links) == 4 and all((sweep / link).resolve().exists() for link in links)
    assert page.count('<tr class="strong">') == 1 and "4 of 5 runs finished, 1 failed." in page
    assert "&lt;b&gt;the model has 30 layers&lt;/b&gt;" in page and "<script" not in page
    assert (sweep / "figures" / "frontier.png").exists()
    markdown = (sweep / "report.md").read_text(encoding="utf-8")
    assert "**−21.3 %**" in markdown and "figures/frontier.png" in markdown


def test_a_sweep_that_has_just_begun_has_a_page_too(tmp_path):
    (tmp_path / "points").mkdir()
    (tmp_path / "points" / "0.json").write_text(
        json.dumps({"number": 0, "run": "a", "overrides": ["prune=0"], "status": "running"}), encoding="utf-8"
    )
    (tmp_path / "points" / "1.json").write_text('{"torn', encoding="utf-8")
    assert "0 of 1 runs finished, 1 still running." in write_sweep_page(tmp_path).read_text(encoding="utf-8")


def test_the_terminal_shows_the_same_points(tmp_path):
    stream = io.StringIO()
    print_sweep(write_sweep(tmp_path), console=open_console(stream))
    text = stream.getvalue()
    assert text.count("shallow_half") == 2 and "best" in text and "−21.3 %" in text
    assert max(map(len, text.splitlines())) <= 80
