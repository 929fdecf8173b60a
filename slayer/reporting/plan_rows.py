"""A layer plan as rows a person reads from the first layer to the last; terminal, figure and page all draw these."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from slayer.reporting.numbers import count
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
    stages: tuple[int, ...] = ()
    norm_stages: tuple[int, ...] = ()
    """Of a staged plan: the stages (from 1) in which the layer trains, and those in which only its norms do."""

    @property
    def trains_whole(self) -> bool:
        """True where matrices train, at least in one stage."""
        return self.trains and (bool(self.stages) or not self.norm_stages)

    @property
    def stage_mark(self) -> str:
        """When it trains: ● 1–3, ◐ 2 ● 3; nothing where the plan is not staged, or it never trains."""
        return stage_mark(self.stages, self.norm_stages)

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


def stage_mark(stages: Sequence[int], norm_stages: Sequence[int] = ()) -> str:
    """● with the numbers of the stages in which something trains, ◐ with those in which only norms do; the earlier sign first."""
    parts = [(numbers, sign) for numbers, sign in ((stages, "●"), (norm_stages, "◐")) if numbers]
    return " ".join(f"{sign} {_numbers(numbers)}" for numbers, sign in sorted(parts))


def _numbers(stages: Sequence[int]) -> str:
    """1–3, 5 for 1, 2, 3 and 5."""
    runs: list[list[int]] = []
    for stage in stages:
        if runs and stage == runs[-1][-1] + 1:
            runs[-1].append(stage)
        else:
            runs.append([stage])
    return ", ".join(_range_label(run[0], len(run)) for run in runs)


def plan_rows(plan: LayerPlan) -> list[PlanRow]:
    """One row per layer of the expanded model, and one for each pruned base layer where it was."""
    rows: list[PlanRow] = []
    waiting = list(plan.pruned)
    at = [plan.at_stage(stage) for stage in range(len(plan.stages))]
    whole = [set(stage.whole_layers) for stage in at]
    normed = [set(stage.trainable) - set(stage.whole_layers) for stage in at]
    for index, entry in enumerate(plan.entries):
        before = entry.base_index if isinstance(entry, Keep) else entry.after + 1
        while waiting and waiting[0] < before:
            rows.append(_pruned_row(plan, waiting.pop(0)))
        stages, norm_stages = (tuple(number for number, layers in enumerate(kind, 1) if index in layers) for kind in (whole, normed))
        rows.append(replace(_row(plan, index, entry), stages=stages, norm_stages=norm_stages))
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
    """Runs of at least `shortest` kept layers that all train alike or are all frozen become one row."""
    result: list[PlanRow] = []
    position = 0
    while position < len(rows):
        first = rows[position]
        end = position + 1
        while first.kind == "kept" and end < len(rows) and rows[end].kind == "kept" and _fate(rows[end]) == _fate(first):
            end += 1
        if end - position >= shortest:
            result.append(replace(first, note="", layers=end - position))
        else:
            result += rows[position:end]
        position = end
    return result


def _fate(row: PlanRow) -> tuple[bool, tuple[int, ...], tuple[int, ...]]:
    return row.trains, row.stages, row.norm_stages


@dataclass(frozen=True, slots=True, kw_only=True)
class StageRow:
    """A freeze stage in words: 2, "until 500,000 tokens", "new, tail × 0.5", "7 of 35 layers", parameters that train if known."""

    number: int
    until: str
    parts: str
    layers: str
    trained_parameters: int | None


def stage_rows(plan: LayerPlan, stage_parameters: Sequence[int | None] = ()) -> list[StageRow]:
    """A row per stage of a staged plan, none for any other. A part's number is its factor of the learning rate."""
    rows = []
    for number, stage in enumerate(plan.stages, 1):
        at = plan.at_stage(number - 1)
        whole, normed = len(at.whole_layers), len(at.trainable) - len(at.whole_layers)
        layers = " and ".join(filter(None, [f"{whole} of {plan.n_layers} layers" if whole else "", f"the norms of {normed}" if normed else ""]))
        rows.append(
            StageRow(
                number=number, until="to the end" if stage.until_tokens is None else f"until {count(stage.until_tokens)} tokens",
                parts=", ".join(part if factor == 1 else f"{part} × {factor:g}" for part, factor in stage.parts),
                layers=layers or "no layer", trained_parameters=stage_parameters[number - 1] if number <= len(stage_parameters) else None,
            )
        )  # fmt: skip
    return rows


def outside_sentence(plan: LayerPlan) -> str:
    """What becomes of the tensors outside the layers."""
    if not plan.stages:
        return f"embeddings, norm and head {'● trained' if plan.trains_everything else '❄ frozen'}"
    names = {"embeddings": "embeddings", "norms": "final norm", "head": "head"}
    trained = []
    for part, name in names.items():
        stages = [number for number, stage in enumerate(plan.stages, 1) if part in dict(stage.parts)]
        trained += [f"{name} {stage_mark(stages)}"] if stages else []
    return f"{', '.join(trained)}; the rest ❄ frozen" if trained else "embeddings, norm and head ❄ frozen"


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


def new_blocks_sentence(plan: LayerPlan, warm_start: str | None = None) -> str:
    """How the new blocks start, empty when there are none. `warm_start`: the run that this one goes on from."""
    if not plan.new_indices:
        return ""
    if warm_start is not None:
        return f"start as the run {warm_start} has trained them"
    return "start as an exact identity (zero outputs)" if plan.starts_as_base else "start active (outputs not zeroed)"


STAGE_LEGEND = "● trains, ◐ only its norms; × 0.5: at half the learning rate"
SIGNS: dict[Kind, str] = {"kept": "░", "new": "█", "pruned": "×", "tail": "▓"}
