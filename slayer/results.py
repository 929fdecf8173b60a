"""results.json: what a run has found out so far. Written whole after each finding, so an interrupted run keeps what it knows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from slayer.errors import CheckpointError

FORMAT = 1


class Results:
    """The findings of one run folder, by section."""

    def __init__(self, folder: Path) -> None:
        """Read what is there; CheckpointError when it is no results file of ours."""
        self.path = folder / "results.json"
        self.values: dict[str, Any] = {"format": FORMAT}
        if self.path.exists():
            try:
                self.values = json.loads(self.path.read_text(encoding="utf-8"))
                known = self.values["format"] == FORMAT
            except (OSError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{self.path} cannot be read ({error}); move it away, or type run=NAME to start a new run") from error
            if not known:
                raise CheckpointError(f"{self.path} has format {self.values['format']}, not {FORMAT}; type run=NAME to start a new run")

    def __contains__(self, section: str) -> bool:
        return section in self.values

    def __getitem__(self, section: str) -> Any:
        return self.values[section]

    def update(self, **sections: Any) -> None:
        """Set sections and write the file, aside and renamed."""
        self.values |= sections
        self.path.parent.mkdir(parents=True, exist_ok=True)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
        temporary.replace(self.path)
