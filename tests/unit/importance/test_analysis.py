"""A model measured by many scores: remembered piece by piece, refused where it cannot be, the same read layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from slayer.config import AnalysisConfig
from slayer.errors import ConfigError, DataError
from slayer.importance.analysis import LayerAnalysis
from slayer.importance.catalogue import CATALOGUE
from slayer.importance.sample import Sample, sample_of
from slayer.importance.table import LayerTable, load_table

EVERYWHERE = [name for name, score in CATALOGUE.items() if score.needs not in ("update", "questions")]


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLAYER_CACHE", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def sample(pack: Any, random_documents: Any) -> Sample:
    documents = random_documents([7, 8, 15, 6, 9, 14, 5, 5, 12, 9, 7, 16], seed=1)
    return sample_of(
        pack([documents[:2], documents[2:3], documents[3:5], documents[5:6], documents[6:8], documents[8:9], documents[9:11]], 16), "text"
    )


Analyse = Callable[..., LayerAnalysis]


@pytest.fixture
def analyse(make_model: Any) -> Analyse:
    def make(folder: Path | None = None, on_progress: Any = None, start: Any = None, **config: Any) -> LayerAnalysis:
        return LayerAnalysis(
            folder or make_model(layers=5), None, AnalysisConfig(name="layers", permutation_pairs=2, **config), precision="fp32", device="cpu",
            micro_batch_rows=2, seed=0, start=start, on_progress=on_progress,
        )  # fmt: skip

    return make


def test_every_score_gives_a_number_for_every_layer_and_is_remembered(analyse: Analyse, sample: Sample, tmp_path: Path) -> None:
    first = analyse()
    measured = first.measure(EVERYWHERE, [sample])
    assert [one.score for one in measured] == [name for name in CATALOGUE if name in EVERYWHERE]
    for one in measured:
        assert len(one.values) == (10 if one.players == "halves" else 5) and all(map(math.isfinite, one.values)) and not one.failed, one.score
        assert one.source == (None if one.score == "weight_snr" else "text")
    again = analyse(on_progress=lambda label, *_: pytest.fail(f"{label} was computed twice"))
    assert again.measure(EVERYWHERE, [sample]) == measured
    table = first.table("model", measured, {"sources": {"text": sample.facts}, "value": "loss"})
    table.save(tmp_path / "out")
    assert load_table(tmp_path / "out") == table
    assert table.facts["forwards"]["text"]["run"] < table.facts["forwards"]["text"]["naive"]


def test_other_settings_are_measured_anew(analyse: Analyse, sample: Sample) -> None:
    first, again, other = (analyse(outlier_multiple=multiple).measure(["outlier_distribution", "norm"], [sample]) for multiple in (5.0, 5.0, 2.0))
    assert first == again and first[0] == other[0] and first[1].values != other[1].values, "only outliers depend on their threshold"


def test_a_long_table_for_other_programs(analyse: Analyse, sample: Sample, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    analysis = analyse()
    table = analysis.table("model", analysis.measure(["removal", "shapley_window"], [sample]), {})
    table.save(tmp_path)
    rows = pq.read_table(tmp_path / "layers.parquet").to_pylist()
    assert len(rows) == 5 + 10 and {row["part"] for row in rows} == {"layer", "attention", "mlp"}
    removal = table.find("removal")
    assert removal is not None and removal.errors is not None
    third = next(row for row in rows if row["score"] == "removal" and row["label"] == "2")
    assert third["value"] == removal.values[2] and third["low"] == pytest.approx(removal.values[2] - 1.959964 * removal.errors[2])


def test_an_interrupted_analysis_goes_on_where_it_was(analyse: Analyse, sample: Sample, tmp_path: Path) -> None:
    """Ctrl-C in the second half of the sample: what was read before is not computed again, and the numbers are those of one go."""
    expected = analyse().measure(["removal", "window_removal"], [sample])
    seen: list[tuple[int, int]] = []

    def stop(label: str, done: int, total: int) -> None:
        seen.append((done, total))
        if done > 0.7 * total:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLAYER_CACHE", str(tmp_path / "interrupted"))
        with pytest.raises(KeyboardInterrupt):
            analyse(on_progress=stop).measure(["removal", "window_removal"], [sample])
        whole = seen[-1][1]
        seen.clear()
        found = analyse(on_progress=lambda label, done, total: seen.append((done, total))).measure(["removal", "window_removal"], [sample])
    assert found == expected and 0 < seen[-1][1] <= whole / 2


def test_read_layer_by_layer_the_numbers_are_the_same(analyse: Analyse, sample: Sample, tmp_path: Path) -> None:
    names = [name for name in EVERYWHERE if CATALOGUE[name].needs != "gradients"]
    whole = analyse(streamed=False).measure(names, [sample])
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SLAYER_CACHE", str(tmp_path / "streamed"))
        assert analyse(streamed=True).measure(names, [sample]) == whole


def test_gradients_need_the_whole_model(analyse: Analyse, sample: Sample) -> None:
    with pytest.raises(ConfigError) as refused:
        analyse(streamed=True).measure(["removal", "taylor"], [sample])
    assert refused.value.problems[0].fix == "scores=[removal], or analysis.streamed=false"
    with pytest.raises(ConfigError, match="trained from"):
        analyse().measure(["learned_mask"], [sample])


def test_a_broken_layer_is_marked_and_the_others_are_measured(
    make_model: Any, load_plain: Any, analyse: Analyse, sample: Sample, tmp_path: Path
) -> None:
    import torch

    model = load_plain(make_model(layers=5))
    with torch.no_grad():
        model.model.layers[3].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    by_score = {one.score: one for one in analyse(tmp_path / "broken").measure(["block_influence", "removal", "layer_drop"], [sample])}
    assert set(by_score["block_influence"].failed) == {3, 4} and all(map(math.isfinite, by_score["block_influence"].values[:3]))
    assert set(by_score["removal"].failed) == set(range(5)), "without the whole model nothing is lost"


def test_too_small_a_text_is_refused_with_the_size_needed(tmp_path: Path, tiny_folder: Any) -> None:
    from slayer.config import DataConfig, SourceConfig
    from slayer.data.preparation import prepare_text
    from slayer.data.storing.parts import Workers
    from slayer.importance.sample import heldout_samples
    from slayer.models import load_tokenizer

    (tmp_path / "text").mkdir()
    for number in range(12):
        (tmp_path / "text" / f"{number}.txt").write_text(f"Document {number} says a few words about the number {number} and no more than that.\n" * 3)
    sources = {"few": SourceConfig(role="domain", path=str(tmp_path / "text"), heldout_share=0.1)}
    cleaning: Any = {"decontaminate": [], "near_duplicates": None, "min_compressed_share": 0.0}
    data = DataConfig.model_validate({"name": "small", "sources": sources, "replay": 0.0, "sequence_length": 64, "cleaning": cleaning})
    with Workers(1) as workers:
        text = prepare_text(data, workers)
    tokenizer = load_tokenizer(tiny_folder())
    with pytest.raises(DataError, match=r"holds out \d+ tokens .* needs 1000; type data\.sources\.few\.heldout_share=0\.\d+"):
        heldout_samples(text, [], tokenizer, 5000)
    with pytest.raises(ConfigError) as refused:
        heldout_samples(text, ["other"], tokenizer, 5000)
    assert refused.value.problems[0].fix == "analysis.sources=[few]"


def test_tables_of_other_versions_are_refused(tmp_path: Path) -> None:
    (tmp_path / "layers.json").write_text('{"format": 99}')
    with pytest.raises(DataError, match="format 99"):
        load_table(tmp_path)
    table = LayerTable(model="m", layers=(), measurements=(), facts={})
    table.save(tmp_path)
    assert load_table(tmp_path) == table
