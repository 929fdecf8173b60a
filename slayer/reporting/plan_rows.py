"""A layer plan as rows a person reads from the first layer to the last; terminal, figure and page all draw these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from slayer.surgery.plan import Keep, LayerPlan, New

Kind = Literal["kept", "new", "pruned", "tail"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRow:
    """One or more consecutive layers that share a fate. `index` counts the expanded model, `base_index` the base."""

    kind: Kind
    index: int | None
    base_index: int | None
    trains: bool
    note: str
    layers: int = 1

    @property
    def index_label(self) -> str:
        """4, 14–25, or nothing for a pruned layer."""
        return _range_label(self.index, self.layers)

    @property
    def base_label(self) -> str:
        """The same in base numbering; nothing for a new block."""
        return _range_label(self.base_index, self.layers)


def _range_label(first: int | None, layers: int) -> str:
    if first is None:
        return ""
    return str(first) if layers == 1 else f"{first}–{first + layers - 1}"


def plan_rows(plan: LayerPlan) -> list[PlanRow]:
    """One row per layer of the expanded model, and one for each pruned base layer where it was."""
    rows: list[PlanRow] = []
    waiting = list(plan.pruned)
    for index, entry in enumerate(plan.entries):
        before = entry.base_index if isinstance(entry, Keep) else entry.after + 1
        while waiting and waiting[0] < before:
            rows.append(_pruned_row(plan, waiting.pop(0)))
        rows.append(_row(plan, index, entry))
    return rows + [_pruned_row(plan, base_index) for base_index in waiting]


def _row(plan: LayerPlan, index: int, entry: Keep | New) -> PlanRow:
    trains = index in plan.trainable
    if isinstance(entry, New):
        return PlanRow(kind="new", index=index, base_index=None, trains=trains, note=_origin(entry))
    if index == plan.tail_index:
        note = f"mean of {_listed(entry.averaged)}" if entry.averaged else "last layer"
        return PlanRow(kind="tail", index=index, base_index=entry.base_index, trains=trains, note=note)
    return PlanRow(kind="kept", index=index, base_index=entry.base_index, trains=trains, note="")


def _origin(entry: New) -> str:
    match entry.init:
        case "random":
            return "random"
        case "average" | "slerp" if len(entry.sources) > 1:
            return f"{'mean' if entry.init == 'average' else 'slerp'} of {_listed(entry.sources)}"
    return f"copy of {_listed(entry.sources)}"


def _pruned_row(plan: LayerPlan, base_index: int) -> PlanRow:
    scores = plan.prune_scores
    value = scores.values[base_index] if scores is not None else None
    note = ""
    if scores is not None and value is not None:
        note = (f"{value:+.2f} nats" if scores.score == "removal" else f"{scores.score} {value:.3g}").replace("-", "−")
    return PlanRow(kind="pruned", index=None, base_index=base_index, trains=False, note=note)


def _listed(layers: Sequence[int]) -> str:
    return f"{', '.join(map(str, layers[:-1]))} and {layers[-1]}" if len(layers) > 1 else str(layers[0])


def collapse(rows: Sequence[PlanRow], *, shortest: int = 3) -> list[PlanRow]:
    """Runs of at least `shortest` kept layers that all train or are all frozen become one row."""
    result: list[PlanRow] = []
    position = 0
    while position < len(rows):
        first = rows[position]
        end = position + 1
        while first.kind == "kept" and end < len(rows) and rows[end].kind == "kept" and rows[end].trains == first.trains:
            end += 1
        if end - position >= shortest:
            run = PlanRow(kind="kept", index=first.index, base_index=first.base_index, trains=first.trains, note="", layers=end - position)
            result.append(run)
        else:
            result += rows[position:end]
        position = end
    return result


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanTotals:
    """Parameters of the expanded model. `other` is everything outside the decoder layers: embeddings, norm, head."""

    layers: int
    parameters: int
    trained_layers: int
    trained_parameters: int
    removed_parameters: int


def plan_totals(plan: LayerPlan, *, block_parameters: int, other_parameters: int) -> PlanTotals:
    """Totals from the parameters of one decoder layer and of everything else."""
    everything = plan.n_layers * block_parameters + other_parameters
    trained = everything if plan.trains_everything else len(plan.trainable) * block_parameters
    return PlanTotals(
        layers=plan.n_layers, parameters=everything, trained_layers=len(plan.trainable), trained_parameters=trained,
        removed_parameters=len(plan.pruned) * block_parameters,
    )  # fmt: skip


def new_blocks_sentence(plan: LayerPlan) -> str:
    """How the new blocks start, empty when there are none."""
    if not plan.new_indices:
        return ""
    return "start as an exact identity (zero outputs)" if plan.starts_as_base else "start active (outputs not zeroed)"


SIGNS: dict[Kind, str] = {"kept": "░", "new": "█", "pruned": "×", "tail": "▓"}
