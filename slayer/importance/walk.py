"""Many coalitions of a model's layers at once, each piece of work done once.

Coalitions that agree up to some layer share everything up to there, so they form a tree: a node is the state of some rows behind layer i
under what the first i letters say. The tree is walked layer by layer, breadth first: a layer is applied once to each distinct state that
needs it, several states in one batch (its weights are read once for them), and a half of it that two coalitions need is computed once.
Where the states would not fit, the walk goes on with some of them and comes back for the others; no state is computed twice for that.

Running a coalition this way gives the bits of running it alone, as long as the device's matrix products do not depend on the size of the
batch (true on the CPUs we tried; tests hold it).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from slayer.importance.decoder import Decoder, Layer, Part
from slayer.importance.values import ATTENTION, GONE, MLP, TWICE, WHOLE, Array, ValueFunction, Values

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str, int, int], None]

BLOCKS = {WHOLE: 1.0, GONE: 0.0, ATTENTION: 0.5, MLP: 0.5, TWICE: 2.0}
"""Block-forwards of a layer by what is left of it; a half counts half."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Forwards:
    """Block-forwards per part of the sample: for each coalition alone, and in this walk."""

    naive: float
    run: float


@dataclass(slots=True, eq=False)
class _Node:
    """A state of part number `place`, and the coalitions that come by here."""

    place: int
    hidden_BLD: Tensor
    coalitions: list[str]


def run_coalitions(
    decoder: Decoder,
    value: ValueFunction,
    coalitions: Sequence[str],
    *,
    batch_tokens: int = 4096,
    state_bytes: int = 2 << 30,
    store: Path | None = None,
    on_progress: Progress | None = None,
) -> tuple[Values, Forwards]:
    """v of every coalition, and what it took. A coalition that cannot be run is in `failed` with the reason; the others go on.

    States take at most about `state_bytes`. With `store` every reading is written to that file when it is made, and those found there are
    not made again: the same call goes on where it was interrupted.
    """
    import torch

    wanted = list(dict.fromkeys(coalitions))
    readings = Readings(store)
    missing = [[one for one in wanted if (one, place) not in readings.known] for place in range(len(value.parts))]
    walk = _Walk(decoder, value, readings, batch_tokens, state_bytes, on_progress, sum(planned_forwards(some) for some in missing))
    with torch.inference_mode():
        if decoder.streamed:  # each layer is read once for all parts
            walk.run([_Node(place, torch.empty(0), some) for place, some in enumerate(missing) if some])
        else:
            for place, some in enumerate(missing):
                if some:
                    walk.run([_Node(place, torch.empty(0), some)])
    readings.close()
    gains, failed = {}, dict(walk.failed)
    for one in wanted:
        if one not in failed:
            found = [readings.known[one, place] for place in range(len(value.parts))]
            if all(np.isfinite(reading).all() for reading in found):
                gains[one] = value.gains(found)
            else:
                failed[one] = "what comes out is not finite"
    forwards = Forwards(naive=sum(BLOCKS[letter] for one in wanted for letter in one), run=walk.blocks / max(len(value.parts), 1))
    return Values(gains=gains, weights_U=value.weights_U, unit=value.unit, source=value.source, failed=failed, floor=value.floor), forwards


def planned_forwards(coalitions: Sequence[str]) -> float:
    """Block-forwards of these coalitions when nothing is computed twice: halves counted over distinct beginnings."""
    halves = set()
    for one in coalitions:
        for index, letter in enumerate(one):
            prefix = one[:index]
            if letter in (WHOLE, ATTENTION, TWICE):
                halves.add((prefix, "attention"))
            if letter in (WHOLE, TWICE):
                halves.add((prefix, "mlp"))
            if letter == MLP:
                halves.add((prefix, "mlp alone"))
            if letter == TWICE:
                halves |= {(prefix, "attention again"), (prefix, "mlp again")}
    return len(halves) / 2


class Readings:
    """What was read so far, by coalition and part; in a file too, one JSON line each, if there is one."""

    def __init__(self, store: Path | None) -> None:
        self.known: dict[tuple[str, int], Array] = {}
        self._file: Any = None
        if store is None:
            return
        if store.exists():
            for line in store.read_text(encoding="utf-8", errors="replace").splitlines():
                try:
                    one = json.loads(line)
                    self.known[one["coalition"], one["part"]] = np.array(one["reading"], np.float64)
                except (ValueError, KeyError, TypeError):  # a line that a killed process did not finish
                    continue
        store.parent.mkdir(parents=True, exist_ok=True)
        self._file = store.open("a", encoding="utf-8")
        if store.stat().st_size:
            self._file.write("\n")  # behind a torn line

    def add(self, coalition: str, place: int, reading: Array) -> None:
        """Keep one; what is not finite is not written, so that it is tried again."""
        self.known[coalition, place] = reading
        if self._file is not None and np.isfinite(reading).all():
            self._file.write(json.dumps({"coalition": coalition, "part": place, "reading": reading.tolist()}) + "\n")
            self._file.flush()

    def close(self) -> None:
        """Nothing more will come."""
        if self._file is not None:
            self._file.close()


class _Walk:
    def __init__(
        self, decoder: Decoder, value: ValueFunction, readings: Readings, batch_tokens: int, state_bytes: int, on_progress: Progress | None,
        total: float,
    ) -> None:  # fmt: skip
        self.decoder, self.value, self.readings = decoder, value, readings
        self.batch_tokens, self.on_progress, self.total = batch_tokens, on_progress, total
        width = decoder.config.hidden_size * decoder.dtype.itemsize
        self.most_states = max(2, state_bytes // max((part.n_tokens * width for part in value.parts), default=1))
        self.blocks, self.failed = 0.0, dict[str, str]()

    def run(self, roots: list[_Node]) -> None:
        """Walk the trees of some parts."""
        pending = [(0, chunk) for chunk in self._chunks(roots, 0)]
        while pending:
            index, nodes = pending.pop()
            if index == 0:
                for node in nodes:
                    node.hidden_BLD = self.decoder.embed(self.value.parts[node.place])
            if index == self.decoder.n_layers:
                self._read(nodes)
                continue
            with self.decoder.layer(index) as layer:
                nodes = self._children(layer, index, nodes)
            waiting = sum(len(others) for _, others in pending)
            pending += [(index + 1, chunk) for chunk in self._chunks(nodes, waiting)]

    def _chunks(self, nodes: list[_Node], waiting: int) -> list[list[_Node]]:
        """All at once while they fit, else in pieces that leave room for what they become."""
        room = max(1, (self.most_states - waiting) // 2)
        return [nodes[at : at + room] for at in range(0, len(nodes), room)] if len(nodes) > room else [nodes]

    def _children(self, layer: Layer, index: int, nodes: list[_Node]) -> list[_Node]:
        """The states behind a layer: one for each node and each letter among its coalitions."""
        by_letter: list[dict[str, list[str]]] = []
        for node in nodes:
            letters: dict[str, list[str]] = {}
            for one in node.coalitions:
                letters.setdefault(one[index], []).append(one)
            by_letter.append(letters)
        states: list[dict[str, Tensor]] = [{GONE: node.hidden_BLD} for node in nodes]

        def apply(half: Callable[[Tensor, Part], Tensor], source: str, target: str, letters: set[str]) -> None:
            """states[…][target] = states[…][source] + half of it, for the nodes that have one of these letters."""
            inputs = [(place, states[place][source]) for place in range(len(nodes)) if letters & by_letter[place].keys() and source in states[place]]
            for place, added in self._applied(half, nodes, inputs):
                if isinstance(added, str):
                    for one in [one for letter in letters for one in by_letter[place].pop(letter, [])]:
                        self.failed[one] = f"layer {index}: {added}"
                else:
                    states[place][target] = states[place][source] + added

        apply(layer.attention, GONE, ATTENTION, {WHOLE, ATTENTION, TWICE})
        apply(lambda hidden, _: layer.mlp(hidden), ATTENTION, WHOLE, {WHOLE, TWICE})
        apply(lambda hidden, _: layer.mlp(hidden), GONE, MLP, {MLP})
        apply(layer.attention, WHOLE, "again", {TWICE})
        apply(lambda hidden, _: layer.mlp(hidden), "again", TWICE, {TWICE})
        return [_Node(node.place, states[place][letter], some) for place, node in enumerate(nodes) for letter, some in by_letter[place].items()]

    def _applied(
        self, half: Callable[[Tensor, Part], Tensor], nodes: list[_Node], inputs: list[tuple[int, Tensor]]
    ) -> list[tuple[int, Tensor | str]]:
        """What a half adds to each state, states of the same part in common batches; a sentence where it could not be computed."""
        import torch

        found: list[tuple[int, Tensor | str]] = []
        by_part: dict[int, list[tuple[int, Tensor]]] = {}
        for place, hidden in inputs:
            by_part.setdefault(nodes[place].place, []).append((place, hidden))
        for number, some in by_part.items():
            part = self.value.parts[number]
            together = max(1, self.batch_tokens // part.n_tokens)
            for at in range(0, len(some), together):
                batch = some[at : at + together]
                try:
                    added = half(torch.cat([hidden for _, hidden in batch]), part.repeated(len(batch)))
                    found += [(place, one) for (place, _), one in zip(batch, added.chunk(len(batch)), strict=True)]
                except RuntimeError as error:  # out of memory, most likely: one by one
                    found += [(place, self._alone(half, hidden, part, error if len(batch) == 1 else None)) for place, hidden in batch]
                self.blocks += len(batch) / 2
                if self.on_progress is not None:
                    self.on_progress(f"with layers left out, {self.value.source}", round(self.blocks), round(self.total))
        return found

    def _alone(self, half: Callable[[Tensor, Part], Tensor], hidden: Tensor, part: Part, error: RuntimeError | None) -> Tensor | str:
        try:
            if error is not None:
                raise error
            return half(hidden, part)
        except RuntimeError as why:
            return str(why).splitlines()[0]

    def _read(self, nodes: list[_Node]) -> None:
        for node in nodes:
            reading = self.value.read(self.decoder, node.place, node.hidden_BLD)
            for one in node.coalitions:
                self.readings.add(one, node.place, reading)
