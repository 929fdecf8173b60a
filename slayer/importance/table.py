"""What was measured about the layers of a model: one object for every score, saved as layers.json and as a long table in Parquet."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from slayer.data.cache import write_file
from slayer.errors import DataError
from slayer.surgery.plan import Keep, LayerPlan

FORMAT = 1
NORMAL_95 = 1.959964

Players = Literal["layers", "halves"]


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerName:
    """A layer of the model at hand. `base_index` is its number in the base model; of a new block the layer behind which it stands."""

    index: int
    base_index: int
    new: bool = False

    @property
    def label(self) -> str:
        """7, or `+7` for a new block behind base layer 7."""
        return f"+{self.base_index}" if self.new else str(self.base_index)


def layer_names(n_layers: int, plan: LayerPlan | None) -> tuple[LayerName, ...]:
    """The layers of a model in original-layer coordinates: by its plan, or simply numbered."""
    if plan is None:
        return tuple(LayerName(index=index, base_index=index) for index in range(n_layers))
    return tuple(
        LayerName(index=index, base_index=entry.base_index) if isinstance(entry, Keep) else LayerName(index=index, base_index=entry.after, new=True)
        for index, entry in enumerate(plan.entries)
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One score on one text, suite or question set (`source`; None: of the weights alone).

    `values` has one number per player in the model's order: a layer each, or its attention and its MLP one after the other (`halves`); NaN
    where there is none. `errors` are standard errors in the same order, NaN where unknown, with `freedom` degrees of freedom
    (None: many). `failed` says why a player has no number.
    `details` holds what is not one number per layer (matrices, curves, settings), as plain JSON; NaN there is None.
    """

    score: str
    source: str | None
    values: tuple[float, ...]
    errors: tuple[float, ...] | None = None
    players: Players = "layers"
    freedom: int | None = None
    failed: Mapping[int, str] = field(default_factory=dict)
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> str:
        """removal · wikipedia_fr, or the score alone where it is of the weights: how facts and agreement name it."""
        return f"{self.score} · {self.source}" if self.source else self.score

    @property
    def margins(self) -> tuple[float, ...]:
        """Half widths of the 95 % intervals, NaN where unknown: Student's t where the errors come from few observations."""
        from scipy.stats import t

        width = NORMAL_95 if self.freedom is None else float(t.ppf(0.975, self.freedom))
        return tuple(width * error for error in self.errors) if self.errors is not None else (math.nan,) * len(self.values)

    @property
    def by_layer(self) -> tuple[float, ...]:
        """One number per layer: the two halves of a layer added up."""
        if self.players == "layers":
            return self.values
        return tuple(first + second for first, second in zip(self.values[::2], self.values[1::2], strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerTable:
    """All measurements of one model. `facts` says of what: model, hash, precision, seed, and per source its tokens, documents and hash."""

    model: str
    layers: tuple[LayerName, ...]
    measurements: tuple[Measurement, ...]
    facts: Mapping[str, Any]
    agreement: Mapping[str, Any] = field(default_factory=dict)

    def find(self, score: str, source: str | None = None) -> Measurement | None:
        """The first measurement of this score (on this source, if one is named)."""
        return next((one for one in self.measurements if one.score == score and source in (None, one.source)), None)

    def rows(self) -> list[dict[str, Any]]:
        """The long table: one row per number, with its 95 % interval where the standard error is known."""
        rows = []
        for one in self.measurements:
            for player, (value, margin) in enumerate(zip(one.values, one.margins, strict=True)):
                layer = self.layers[player // 2 if one.players == "halves" else player]
                part = "layer" if one.players == "layers" else ("attention", "mlp")[player % 2]
                error = one.errors[player] if one.errors is not None else math.nan
                rows.append({
                    "score": one.score, "source": one.source, "index": layer.index, "base_index": layer.base_index, "new": layer.new,
                    "label": layer.label, "part": part, "value": value, "standard_error": error, "low": value - margin,
                    "high": value + margin, "failed": one.failed.get(player),
                })  # fmt: skip
        return rows

    def save(self, folder: Path) -> None:
        """Write layers.json and layers.parquet."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        folder.mkdir(parents=True, exist_ok=True)
        values = {
            "format": FORMAT, "model": self.model, "facts": dict(self.facts), "agreement": dict(self.agreement),
            "layers": [{**asdict(layer), "label": layer.label} for layer in self.layers],
            "measurements": [measurement_as_json(one) for one in self.measurements],
        }  # fmt: skip
        write_file(folder / "layers.json", (json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode())
        kinds = {"index": pa.int32(), "base_index": pa.int32(), "new": pa.bool_()}
        kinds |= dict.fromkeys(("value", "standard_error", "low", "high"), pa.float64())
        names = ("score", "source", "index", "base_index", "new", "label", "part", "value", "standard_error", "low", "high", "failed")
        schema = pa.schema([(name, kinds.get(name, pa.string())) for name in names])
        temporary = folder / ".layers.parquet"
        pq.write_table(pa.Table.from_pylist(self.rows(), schema), temporary)
        temporary.replace(folder / "layers.parquet")


def load_table(folder: Path) -> LayerTable:
    """Read layers.json; DataError when it is none of ours."""
    path = folder / "layers.json"
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        if values["format"] != FORMAT:
            raise ValueError(f"format {values['format']}, not {FORMAT}")
        layers = tuple(LayerName(index=one["index"], base_index=one["base_index"], new=one["new"]) for one in values["layers"])
        measurements = tuple(measurement_from_json(one) for one in values["measurements"])
        return LayerTable(model=values["model"], layers=layers, measurements=measurements, facts=values["facts"], agreement=values["agreement"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error}); measure again: python evaluate.py analysis=layers") from error


def measurement_as_json(one: Measurement) -> dict[str, Any]:
    """Plain JSON: null where there is no number."""
    return {
        "score": one.score, "source": one.source, "players": one.players, "values": _plain(one.values),
        "errors": _plain(one.errors) if one.errors is not None else None, "freedom": one.freedom,
        "failed": {str(player): why for player, why in one.failed.items()}, "details": dict(one.details),
    }  # fmt: skip


def measurement_from_json(one: Mapping[str, Any]) -> Measurement:
    """What `measurement_as_json` gave."""
    return Measurement(
        score=one["score"], source=one["source"], players=one["players"], values=_numbers(one["values"]),
        errors=_numbers(one["errors"]) if one["errors"] is not None else None, freedom=one["freedom"],
        failed={int(player): why for player, why in one["failed"].items()}, details=one["details"],
    )  # fmt: skip


def _plain(values: Sequence[float]) -> list[float | None]:
    """JSON has no NaN."""
    return [value if math.isfinite(value) else None for value in map(float, values)]


def _numbers(values: Sequence[float | None]) -> tuple[float, ...]:
    return tuple(math.nan if value is None else float(value) for value in values)
