"""Numbers the way people read them: the same in the terminal, the report and the model card."""

from __future__ import annotations

import math
from collections.abc import Sequence

MISSING = "–"


def count(value: float | None) -> str:
    """A whole number with thousands separators: 81,920."""
    return MISSING if value is None else f"{round(value):,}"


def short(value: float | None) -> str:
    """A large number in three figures: 24.8 M, 152 M, 1.05 B."""
    if value is None:
        return MISSING
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size * 0.9995:
            scaled = value / size
            return f"{scaled:.{max(0, 2 - int(math.log10(abs(scaled) * 1.0005)))}f} {letter}"
    return f"{value:.0f}"


def size(n_bytes: float | None) -> str:
    """Bytes in three figures: 612 B, 3.48 MB, 43.1 GB."""
    return MISSING if n_bytes is None else f"{short(n_bytes)} B" if n_bytes < 999.5 else f"{short(n_bytes).replace(' B', ' G')}B"


def fixed(value: float | None, digits: int = 3) -> str:
    """A score with a fixed number of decimals."""
    return MISSING if value is None or not math.isfinite(value) else f"{value:.{digits}f}".replace("-", "−")


def percent(value: float | None, *, signed: bool = True, digits: int = 1) -> str:
    """A value that already is in percent: −21.3 %."""
    if value is None or not math.isfinite(value):
        return MISSING
    text = f"{value:{'+' if signed else ''}.{digits}f} %"
    return text.replace("-", "−") if float(f"{value:.{digits}f}") else f"{0:.{digits}f} %"


def share(part: float | None, whole: float | None) -> str:
    """`part` as a percentage of `whole`."""
    return MISSING if part is None or not whole else percent(100 * part / whole, signed=False)


def interval(bounds: Sequence[float] | None, *, digits: int = 1, unit: str = "", signed: bool = False) -> str:
    """Two bounds: 1.219 to 1.299, or signed: −1.3 to +0.4 %."""
    if bounds is None or len(bounds) != 2:
        return MISSING
    low, high = (f"{bound:{'+' if signed else ''}.{digits}f}".replace("-", "−") for bound in bounds)
    return f"{low} to {high}{unit}"


def duration(seconds: float | None) -> str:
    """Seconds as 47 s, 2 min 50 s, 3 h 05 min."""
    if seconds is None or not math.isfinite(seconds):
        return MISSING
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clock(seconds: float | None) -> str:
    """Seconds as 2:50 or 3:05:00, for progress lines."""
    if seconds is None or not math.isfinite(seconds):
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
