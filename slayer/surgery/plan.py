"""The layer plan: what the expanded model consists of. Pure data, made from a layer count and the configuration.

Two numberings, never mixed: `base_index` counts layers of the base model, `index` layers of the expanded one. Every later
part asks the plan which layers are new; nothing is ever guessed from weights.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from slayer.config import ExpansionConfig, FreezeConfig, Init
from slayer.errors import PlanError, Problem
from slayer.stages import layers_problem, originals
from slayer.surgery.placement import place, placement_problems

Tail = Literal["average", "train", "frozen"]

BY_PLACE = ("last", "last_but_final", "explicit")
"""Values of prune_by that need no score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    """A layer of the base. `averaged` lists the base layers whose mean replaces its weights (an average tail), else empty."""

    base_index: int
    averaged: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class New:
    """An inserted block behind base layer `after`, made from base layers `sources` by `init`."""

    after: int
    sources: tuple[int, ...]
    init: Init
    zero_outputs: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerScores:
    """The measurement that ordered the base's layers: one number per layer (None where it failed), on which text, drawn with which seed.

    `cheapest_block` is the first layer of the block that prune_by=angular_distance removes: a block is measured as a whole.
    """

    score: str
    values: tuple[float | None, ...]
    high_is_important: bool
    tokens: int
    sample: str
    seed: int
    cheapest_block: int | None = None

    @property
    def ranked(self) -> tuple[int, ...]:
        """Base layers that have a number, the least important first; of equal ones the lower."""
        sign = 1 if self.high_is_important else -1
        return tuple(layer for _, layer in sorted((sign * value, layer) for layer, value in enumerate(self.values) if value is not None))


@dataclass(frozen=True, slots=True, kw_only=True)
class FreezeStage:
    """What trains until so many tokens are trained (None: to the end): names of parts, each with a factor of the learning rate."""

    parts: tuple[tuple[str, float], ...]
    until_tokens: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerPlan:
    """The ordered layers of the expanded model, what was pruned, and which of them train."""

    n_base: int
    strategy: str
    entries: tuple[Keep | New, ...]
    pruned: tuple[int, ...]
    prune_by: str
    tail: Tail
    freeze: str
    trainable: tuple[int, ...]
    prune_scores: LayerScores | None = None
    """What chose the pruned layers, where a score did."""
    expansion_scores: LayerScores | None = None
    """What chose the places of the new blocks, where a score did."""
    stages: tuple[FreezeStage, ...] = ()
    """freeze=staged only. `trainable` are then the layers in which anything trains in any of them."""

    @property
    def n_layers(self) -> int:
        """Layers of the expanded model."""
        return len(self.entries)

    @property
    def new_indices(self) -> tuple[int, ...]:
        """Expanded-model indices of the inserted blocks."""
        return tuple(index for index, entry in enumerate(self.entries) if isinstance(entry, New))

    @property
    def tail_index(self) -> int | None:
        """Index of the last kept base layer if it is an averaged or trained tail, else None."""
        return max(self.index_of_base.values()) if self.tail != "frozen" else None

    @property
    def index_of_base(self) -> dict[int, int]:
        """base_index → index, for the base layers that are kept."""
        return {entry.base_index: index for index, entry in enumerate(self.entries) if isinstance(entry, Keep)}

    @property
    def trains_everything(self) -> bool:
        """True for full fine-tuning: embeddings, head and final norm train too."""
        return self.freeze == "none"

    @property
    def n_stages(self) -> int:
        """Stages of training: 1 where what trains never changes."""
        return max(len(self.stages), 1)

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that train in any stage; none where the plan is not staged."""
        return tuple(dict.fromkeys(part for stage in self.stages for part, _ in stage.parts))

    @property
    def whole_layers(self) -> tuple[int, ...]:
        """Those of `trainable` whose matrices train too, not only their norms."""
        if not self.stages:
            return self.trainable
        return tuple(sorted({index for part in self.parts if part != "norms" for index in self.layers_of(part)}))

    def layers_of(self, part: str) -> tuple[int, ...]:
        """Indices of the layers in which a part of a stage trains something; none for head and embeddings."""
        match part:
            case "new":
                return self.new_indices
            case "tail":
                return (max(self.index_of_base.values()),)
            case "norms":
                return tuple(self.index_of_base.values())
        named, kept = originals(part), self.index_of_base
        return tuple(kept[base_index] for base_index in range(self.n_base)[named] if base_index in kept) if named is not None else ()

    def at_stage(self, stage: int) -> LayerPlan:
        """The same layers as if this stage (0-based) were the only one."""
        return self.with_stages(self.stages[stage : stage + 1]) if self.stages else self

    def with_stages(self, stages: tuple[FreezeStage, ...]) -> LayerPlan:
        """The same layers, trained in these stages."""
        trained = {index for stage in stages for part, _ in stage.parts for index in self.layers_of(part)}
        return replace(self, stages=stages, trainable=tuple(sorted(trained)))

    def stage_at(self, tokens_trained: int) -> int:
        """The 0-based stage that trains when so many tokens have been trained."""
        ends = (stage.until_tokens for stage in self.stages)
        return next((number for number, end in enumerate(ends) if end is None or tokens_trained < end), self.n_stages - 1)

    @property
    def starts_as_base(self) -> bool:
        """True when every new block is an exact identity, so insertion alone cannot change a logit."""
        return all(entry.zero_outputs for entry in self.entries if isinstance(entry, New))

    def without_pruning(self) -> LayerPlan:
        """The same insertions into the whole base: the model whose logits must equal the base's."""
        placement: dict[int, list[New]] = {}
        for entry in self.entries:
            if isinstance(entry, New):
                placement.setdefault(entry.after, []).append(entry)
        entries: list[Keep | New] = list(placement.get(-1, []))
        for base_index in range(self.n_base):
            entries += [Keep(base_index=base_index), *placement.get(base_index, [])]
        trainable = tuple(index for index, entry in enumerate(entries) if isinstance(entry, New))
        return LayerPlan(
            n_base=self.n_base, strategy=self.strategy, entries=tuple(entries), pruned=(), prune_by=self.prune_by,
            tail="frozen", freeze="originals", trainable=trainable,
        )  # fmt: skip

    def to_dict(self) -> dict[str, Any]:
        """Plain data for plan.json."""
        entries = []
        for index, entry in enumerate(self.entries):
            kind = "keep" if isinstance(entry, Keep) else "new"
            entries.append({"index": index, "kind": kind, "trains": index in self.trainable, **asdict(entry)})
        values = {name: getattr(self, name) for name in ("n_base", "n_layers", "strategy", "pruned", "prune_by", "tail", "freeze", "trainable")}
        for name in ("prune_scores", "expansion_scores"):
            scores = getattr(self, name)
            values[name] = asdict(scores) if scores is not None else None
        values["stages"] = [{"until_tokens": stage.until_tokens, "parts": dict(stage.parts)} for stage in self.stages]
        return {**values, "entries": entries, "index_of_base": self.index_of_base}

    def save(self, path: Path) -> None:
        """Write plan.json."""
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.name}")  # a kill leaves no half plan, which the next start would refuse
        aside.write_text(json.dumps(self.to_dict(), indent=1) + "\n", encoding="utf-8")
        aside.replace(path)


def load_plan(path: Path) -> LayerPlan:
    """Read a plan.json; PlanError when it is not one."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        entries: list[Keep | New] = []
        for entry in values["entries"]:
            if entry["kind"] == "keep":
                entries.append(Keep(base_index=entry["base_index"], averaged=tuple(entry["averaged"])))
            else:
                entries.append(New(after=entry["after"], sources=tuple(entry["sources"]), init=entry["init"], zero_outputs=entry["zero_outputs"]))
        return LayerPlan(
            n_base=values["n_base"], strategy=values["strategy"], entries=tuple(entries), pruned=tuple(values["pruned"]),
            prune_by=values["prune_by"], tail=values["tail"], freeze=values["freeze"], trainable=tuple(values["trainable"]),
            prune_scores=_load_scores(values.get("prune_scores")), expansion_scores=_load_scores(values.get("expansion_scores")),
            stages=tuple(FreezeStage(parts=tuple(stage["parts"].items()), until_tokens=stage["until_tokens"]) for stage in values.get("stages", ())),
        )  # fmt: skip
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise PlanError(f"{path} is not a plan of this program ({error}); start a new run with run=NAME") from error


def _load_scores(values: dict[str, Any] | None) -> LayerScores | None:
    return LayerScores(**{**values, "values": tuple(values["values"])}) if values is not None else None


def choose_pruned(n_base: int, prune: int, prune_by: str, prune_layers: Sequence[int], scores: LayerScores | None) -> tuple[int, ...]:
    """The base layers to remove: by place, or by `scores` the least important ones (of angular_distance the block that it found)."""
    if prune == 0:
        return ()
    match prune_by:
        case "last":
            return tuple(range(n_base - prune, n_base))
        case "last_but_final":
            return tuple(range(n_base - 1 - prune, n_base - 1))
        case "explicit":
            return tuple(sorted(set(prune_layers)))
    if scores is None or len(scores.values) != n_base or len(scores.ranked) < prune:
        raise PlanError(f"prune_by={prune_by} needs a score for each of the {n_base} layers")
    if scores.cheapest_block is not None:
        return tuple(range(scores.cheapest_block, scores.cheapest_block + prune))
    return tuple(sorted(scores.ranked[:prune]))


def build_plan(
    n_base: int,
    expansion: ExpansionConfig,
    freeze: FreezeConfig,
    *,
    prune: int = 0,
    prune_by: str = "last",
    prune_layers: Sequence[int] = (),
    tail: str = "auto",
    prune_scores: LayerScores | None = None,
    expansion_scores: LayerScores | None = None,
) -> LayerPlan:
    """Make the plan. Call `plan_problems` first: impossible requests are refused there, all at once.

    The scores are needed where a score is to choose: `prune_scores` by prune_by, `expansion_scores` by expansion=least_important.
    """
    pruned = choose_pruned(n_base, prune, prune_by, prune_layers, prune_scores)
    resolved: Tail = resolve_tail(tail, prune, prune_by)
    behind: dict[int, list[New]] = {}
    for after, source in place(expansion, n_base, expansion_scores.ranked if expansion_scores is not None else ()):
        sources = (source, source + 1) if expansion.init in ("average", "slerp") and source + 1 < n_base else (source,)
        behind.setdefault(after, []).append(New(after=after, sources=sources, init=expansion.init, zero_outputs=expansion.zero_outputs))
    entries: list[Keep | New] = list(behind.get(-1, []))
    last_kept = max(set(range(n_base)) - set(pruned))
    for base_index in range(n_base):
        if base_index not in pruned:
            averaged = tuple(sorted({last_kept, *pruned})) if resolved == "average" and base_index == last_kept else ()
            entries.append(Keep(base_index=base_index, averaged=averaged))
        entries += behind.get(base_index, [])
    trainable = _trainable(entries, freeze, resolved, last_kept)
    plan = LayerPlan(
        n_base=n_base, strategy=expansion.strategy, entries=tuple(entries), pruned=pruned, prune_by=prune_by, tail=resolved,
        freeze=freeze.schedule, trainable=trainable, prune_scores=prune_scores, expansion_scores=expansion_scores,
    )  # fmt: skip
    if freeze.schedule != "staged":
        return plan
    return plan.with_stages(tuple(FreezeStage(parts=tuple(stage.parts.items()), until_tokens=stage.until_tokens) for stage in freeze.stages))


def resolve_tail(tail: str, prune: int, prune_by: str) -> Tail:
    """auto means the paper's updated last layer where the last layers go, and an untouched last layer elsewhere."""
    if tail == "auto":
        return "average" if prune > 0 and prune_by == "last" else "frozen"
    if tail in ("average", "train", "frozen"):
        return tail  # type: ignore[return-value]
    raise PlanError(f"unknown tail={tail}; type tail=auto")


def _trainable(entries: Sequence[Keep | New], freeze: FreezeConfig, tail: Tail, last_kept: int) -> tuple[int, ...]:
    chosen = []
    for index, entry in enumerate(entries):
        match freeze.schedule:
            case "none":
                trains = True
            case "existing_layers":
                trains = isinstance(entry, Keep) and entry.base_index in freeze.train_layers
            case "originals":
                trains = isinstance(entry, New) or (tail != "frozen" and entry.base_index == last_kept)
            case "staged":
                trains = False  # the stages say what does
        if trains:
            chosen.append(index)
    return tuple(chosen)


def plan_problems(
    n_base: int,
    expansion: ExpansionConfig | None,
    freeze: FreezeConfig | None,
    *,
    prune: int | None,
    prune_by: str | None,
    prune_layers: Sequence[int] | None,
) -> list[Problem]:
    """Everything about these keys that cannot be done to a model of `n_base` layers; a key that is None is not judged."""
    problems = placement_problems(expansion, n_base) if expansion is not None else []
    problems += _prune_problems(n_base, prune, prune_by, prune_layers)
    gone: set[int] = set()
    if prune and prune < n_base and prune_by in BY_PLACE:
        gone = set(choose_pruned(n_base, prune, prune_by, prune_layers or (), None))
    if freeze is not None and freeze.schedule == "staged":
        problems += filter(None, [layers_problem(freeze.stages, n_base, gone)])
    if freeze is not None and freeze.schedule == "existing_layers":
        left = [layer for layer in range(n_base) if layer not in gone]
        wrong = [layer for layer in freeze.train_layers if layer not in left]
        if wrong:
            good = [layer for layer in freeze.train_layers if layer in left] or left[:1] or [0]
            why = f"{wrong} match no layer of the model after pruning (layers 0 to {n_base - 1}" + (f" without {sorted(gone)})" if gone else ")")
            problems.append(
                Problem(key="freeze.train_layers", value=freeze.train_layers, why=why, fix=f"freeze.train_layers={good}".replace(" ", ""))
            )
    return problems


def _prune_problems(n_base: int, prune: int | None, prune_by: str | None, prune_layers: Sequence[int] | None) -> list[Problem]:
    named = sorted(set(prune_layers)) if prune_by == "explicit" and prune_layers is not None else None
    good = [layer for layer in named or () if 0 <= layer < n_base][: n_base - 1]
    if named and not good:
        good = [n_base - 1] if n_base > 1 else []
    listed = f"prune={len(good)} prune_layers={good}".replace(", ", ",")
    problems = []
    if prune is not None and prune >= n_base:
        why = f"the model has {n_base} layers and at least one must stay"
        problems.append(Problem(key="prune", value=prune, why=why, fix=listed if named else f"prune={min(2, n_base - 1)}"))
    wrong = [layer for layer in named or () if not 0 <= layer < n_base]
    if wrong:
        why = f"{wrong} out of range: the model has layers 0 to {n_base - 1}"
        problems.append(Problem(key="prune_layers", value=list(prune_layers or ()), why=why, fix=listed))
    return problems
