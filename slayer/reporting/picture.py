"""A figure on disk and on a page: drawn once as SVG, once as PNG."""

from __future__ import annotations

import io
import re
from html import escape
from pathlib import Path

from slayer.data.cache import write_file
from slayer.reporting.document import Picture
from slayer.reporting.figures import DOMAIN_COLOURS, FILLS, GRID, INK, MUTED, REPLAY_COLOURS, Figure, figure_style

_PAGE_COLOURS = (
    (INK, "--ink"), (MUTED, "--muted"), (GRID, "--grid"), (FILLS["kept"], "--kept"), (FILLS["new"], "--new"),
    *zip(DOMAIN_COLOURS, ("--domain", "--domain-2", "--domain-3"), strict=True),
    *zip(REPLAY_COLOURS, ("--replay", "--replay-2", "--replay-3"), strict=True),
)  # fmt: skip

# Without these the same run would give other bytes each day.
_NO_METADATA = {"Date": None, "Creator": None, "Format": None, "Type": None}
_WHITE = '<rect width="100%" height="100%" fill="white"/>'


def picture(figure: Figure, folder: Path, name: str, description: str) -> Picture:
    """Save a figure in `folder`/figures and give the block that shows it."""
    svg = save_figure(figure, folder / "figures", name)
    return Picture(svg=inline_svg(svg, name, description), png=f"figures/{name}.png", description=description)


def save_figure(figure: Figure, folder: Path, name: str) -> str:
    """Write NAME.svg and NAME.png, on white, each whole at any moment: two points of a sweep may end at the same one.

    Returns the SVG without a background.
    """
    stream, pixels = io.StringIO(), io.BytesIO()
    with figure_style():
        # Laid out once: each form would do it again, which takes as long as drawing.
        figure.draw_without_rendering()
        figure.set_layout_engine("none")
        figure.savefig(stream, format="svg", transparent=True, metadata=_NO_METADATA)
        figure.savefig(pixels, format="png", dpi=160)
    svg = stream.getvalue()
    begun = svg.index(">", svg.index("<svg")) + 1
    write_file(folder / f"{name}.svg", (svg[:begun] + _WHITE + svg[begun:]).encode())
    write_file(folder / f"{name}.png", pixels.getvalue())
    return svg


def inline_svg(svg: str, name: str, description: str) -> str:
    """An SVG file as an <svg> element that takes its ink from the page, light or dark, and whose ids are its own."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(r"url\(#([^)]+)\)", rf"url(#{name}-\1)", svg)
    svg = re.sub(r'href="#([^"]+)"', rf'href="#{name}-\1"', svg)
    for colour, variable in _PAGE_COLOURS:
        svg = svg.replace(colour, f"var({variable})")
    size = re.search(r'<svg[^>]* width="([\d.]+)pt"', svg)
    width = f"{float(size.group(1)) * 1.25:.0f}px" if size else "100%"
    svg = re.sub(r'(<svg[^>]*?) width="[^"]*"', r"\1", svg, count=1)
    svg = re.sub(r'(<svg[^>]*?) height="[^"]*"', r"\1", svg, count=1)
    return svg.replace("<svg", f'<svg role="img" aria-label="{escape(description)}" style="max-width:{width}"', 1)
