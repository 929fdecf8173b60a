from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from slayer.config import DataConfig
from slayer.data.builtin import BUILTINS
from slayer.data.order.mixture import stage_shares

ROOT = Path(__file__).parents[3]
FOLDER = Path(__file__).parents[3] / "conf" / "data"


@pytest.mark.parametrize("name", sorted(file.stem for file in FOLDER.glob("*.yaml")))
def test_every_file_is_a_valid_data_section(name: str) -> None:
    values: Any = OmegaConf.to_container(OmegaConf.merge({"data": OmegaConf.load(FOLDER / f"{name}.yaml")}, {"data": {"name": name}}), resolve=True)
    data = DataConfig(**values["data"])
    assert {source.role for source in data.sources.values()} == {"domain", "replay"}
    for source in data.sources.values():
        assert source.builtin in BUILTINS or (name == "local" and source.builtin is None)


def test_the_example_of_the_manual_is_a_valid_data_section() -> None:
    example = (ROOT / "docs" / "data.md").read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    values: Any = OmegaConf.to_container(OmegaConf.create(example))
    data = DataConfig(**values)
    assert data.sources["web"].stream and data.stages[0].weights == {"papers": 1, "books": 4}
    assert [stage.from_tokens for stage in stage_shares(data)] == [0, 800_000_000]
