"""One model, measured by any number of scores on any number of samples. What was found is remembered, so the same call goes on where it stopped."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from slayer.config import AnalysisConfig
from slayer.data.cache import cache_dir, one_at_a_time, write_file
from slayer.errors import ConfigError, Problem
from slayer.importance.agreement import agreement
from slayer.importance.catalogue import CATALOGUE, ONE_PASS
from slayer.importance.coalition_scores import coalition_score
from slayer.importance.decoder import Decoder, LoadedDecoder, open_decoder
from slayer.importance.sample import Sample
from slayer.importance.table import LayerTable, Measurement, layer_names, measurement_as_json, measurement_from_json
from slayer.importance.values import ValueFunction, Values
from slayer.importance.walk import Forwards, run_coalitions
from slayer.models import load_tokenizer, model_hash_cached
from slayer.surgery.families import read_model_config
from slayer.surgery.plan import LayerPlan

FORMAT = 1
"""Raised when the same score on the same sample is worked out by another rule."""

READS = {
    "outlier_distribution": ("outlier_multiple", "outlier_lambda", "sparsity", "outlier_check"), "window_removal": ("longest_window",),
    "shapley_window": ("shapley_window",), "shapley": ("players", "permutation_pairs", "truncation"), "learned_mask": ("mask_steps",),
    "probe": ("probe_items",),
}  # fmt: skip
"""What of the configuration a score depends on, besides the sample."""

Progress = Callable[[str, int, int], None]
MakeValue = Callable[[Decoder], ValueFunction]


class LayerAnalysis:
    """The measurements of one model folder. `start` gives the folder of the same shapes from which it was trained (learned_mask)."""

    def __init__(
        self, folder: Path, plan: LayerPlan | None, config: AnalysisConfig, *, precision: str, device: Any, micro_batch_rows: int, seed: int,
        start: Callable[[], Path] | None = None, on_progress: Progress | None = None,
    ) -> None:  # fmt: skip
        self.folder, self.config, self.precision, self.device = folder, config, precision, device
        self.micro_batch_rows, self.seed, self.start, self.on_progress = micro_batch_rows, seed, start, on_progress
        self.n_layers: int = read_model_config(folder)["num_hidden_layers"]
        self.layers = layer_names(self.n_layers, plan)
        self.streamed = config.streamed if config.streamed is not None else not _fits(folder, precision, device)
        self.seconds: dict[str, float] = {}
        self.forwards: dict[str, Forwards] = {}
        self._hash = model_hash_cached(folder)

    @cached_property
    def decoder(self) -> Decoder:
        """The model, opened when it is first needed."""
        return open_decoder(self.folder, self.precision, self.device, streamed=self.streamed)

    def measure(self, scores: Sequence[str], samples: Sequence[Sample], *, suites: Mapping[str, MakeValue] | None = None) -> tuple[Measurement, ...]:
        """All scores on all samples. With `suites` the scores that need values are measured by accuracy on those instead of by loss.

        ConfigError for a score that this model cannot be asked for; DataError for too small a sample.
        """
        self._require_possible(scores)
        needing = {need: [score for score in scores if CATALOGUE[score].needs == need] for need in ("values", "gradients", "update", "questions")}
        found: list[Measurement] = []
        if "weight_snr" in scores:
            found += self._remembered(["weight_snr"], source=None, fingerprint="", compute=self._weight_snr)
        for sample in samples:
            read = partial(self._remembered, source=sample.source)
            one_pass = [score for score in scores if score in ONE_PASS]
            found += read(one_pass, fingerprint=sample.fingerprint, compute=partial(self._one_pass, sample))
            if suites is None and needing["values"]:
                found += self._by_value(needing["values"], sample.source, partial(self._text_value, sample))
            found += read(needing["gradients"], fingerprint=sample.fingerprint, compute=partial(self._taylor, sample))
            if needing["update"]:
                found += read(needing["update"], fingerprint=sample.fingerprint + self._start_hash, compute=partial(self._learned_mask, sample))
        for suite, make in (suites or {}).items():
            found += self._by_value(needing["values"], suite, make)
        if needing["questions"]:
            found.append(self._probe())
        return tuple(sorted(found, key=lambda one: list(CATALOGUE).index(one.score)))

    def losses(self, sample: Sample, coalitions: Sequence[str]) -> Values:
        """v of these coalitions on a text (minus nats per token), each remembered by itself."""
        return self._values(partial(self._text_value, sample), coalitions)[0]

    def table(self, name: str, measurements: Sequence[Measurement], facts: Mapping[str, Any]) -> LayerTable:
        """The result object: what was measured, how long it took, how the scores agree, and what the caller knows of it (`facts`)."""
        found = {
            "hash": self._hash, "precision": self.precision, "seed": self.seed, "streamed": self.streamed, "seconds": dict(self.seconds),
            "forwards": {source: {"naive": one.naive, "run": one.run} for source, one in self.forwards.items()},
        }  # fmt: skip
        return LayerTable(
            model=name, layers=self.layers, measurements=tuple(measurements), facts={**found, **facts},
            agreement=agreement(measurements, self.layers),
        )  # fmt: skip

    def _require_possible(self, scores: Sequence[str]) -> None:
        whole_model = [score for score in scores if CATALOGUE[score].needs in ("gradients", "update")]
        if whole_model and self.streamed:
            why = f"{' and '.join(whole_model)} need gradients of the whole model, which is read layer by layer because it does not fit into memory"
            others = [score for score in scores if score not in whole_model] or ["removal"]
            raise ConfigError([Problem(key="scores", value=list(scores), why=why, fix=f"scores=[{','.join(others)}], or analysis.streamed=false")])
        if "learned_mask" in scores and self.start is None:
            why = "learned_mask asks which changes of training matter, and nothing says what this model was trained from"
            raise ConfigError([Problem(key="scores", value=list(scores), why=why, fix="checkpoint=runs/NAME, or base=DIR of the same shapes")])

    def _remembered(
        self, scores: Sequence[str], *, source: str | None, fingerprint: str, compute: Callable[[list[str]], Iterable[Measurement]]
    ) -> list[Measurement]:
        """Measurements from the cache; those that are not there are computed together and written."""
        files = {score: self._file(score, f"{source} {fingerprint}") for score in scores}
        known = {score: found for score, file in files.items() if (found := _read(file)) is not None}
        if len(known) < len(files):
            with one_at_a_time(self._lock(f"{source} {fingerprint}"), partial(self._waiting, source)):
                known = {score: found for score, file in files.items() if (found := _read(file)) is not None}
                missing = [score for score in scores if score not in known]
                started = time.perf_counter()
                for one in compute(missing) if missing else []:
                    write_file(files[one.score], json.dumps(measurement_as_json(one)).encode(), durable=True)
                    known[one.score] = one
            if missing:
                self.seconds[" · ".join(filter(None, (", ".join(missing), source)))] = time.perf_counter() - started
        return [known[score] for score in scores]

    def _lock(self, sample: str) -> Path:
        """What a process holds that measures this model on this sample: others wait for what it finds."""
        return cache_dir() / "importance" / "locks" / f"{hashlib.sha256(f'{self._hash} {self.device} {sample}'.encode()).hexdigest()}.lock"

    def _waiting(self, source: str | None) -> None:
        if self.on_progress is not None:
            self.on_progress(f"layers, {source or 'weights'}: another process is at it", 0, 1)

    def _file(self, score: str, sample: str) -> Path:
        settings = {name: getattr(self.config, name) for name in READS.get(score, ())}
        key = [FORMAT, self._hash, self.precision, str(self.device), self.micro_batch_rows, self.seed, score, settings, sample]
        return cache_dir() / "importance" / "measured" / f"{hashlib.sha256(json.dumps(key).encode()).hexdigest()}.json"

    def _by_value(self, scores: Sequence[str], source: str, make: MakeValue) -> list[Measurement]:
        """Scores that are read from values of coalitions: all coalitions run together, each remembered by itself."""
        kinds = [coalition_score(score, self.layers, self.config, self.seed) for score in scores]
        started = time.perf_counter()
        values, self.forwards[source] = self._values(make, [one for kind in kinds for one in kind.coalitions])
        found = [kind.measured(values) for kind in kinds]
        self.seconds[f"{', '.join(scores)} · {source}"] = time.perf_counter() - started
        return found

    def _values(self, make: MakeValue, coalitions: Sequence[str]) -> tuple[Values, Forwards]:
        value = make(self.decoder)
        key = hashlib.sha256(f"{FORMAT} {self._hash} {self.precision} {self.device} {value.fingerprint}".encode()).hexdigest()
        store = cache_dir() / "importance" / "values" / f"{key}.jsonl"
        with one_at_a_time(store.with_suffix(".lock"), partial(self._waiting, value.source)):  # its lines are written by one process at a time
            return run_coalitions(
                self.decoder, value, coalitions, state_bytes=int(self.config.state_gib * (1 << 30)), store=store, on_progress=self.on_progress,
            )  # fmt: skip

    def _text_value(self, sample: Sample, decoder: Decoder) -> ValueFunction:
        from slayer.importance.text_value import TextValue

        return TextValue(decoder, sample.rows, source=sample.source, micro_batch_rows=self.micro_batch_rows)

    def _one_pass(self, sample: Sample, scores: list[str]) -> list[Measurement]:
        from slayer.importance.one_pass import measure_pass
        from slayer.importance.outliers import OutlierSettings

        config = self.config
        outliers = OutlierSettings(
            multiple=config.outlier_multiple, lam=config.outlier_lambda, sparsity=config.sparsity, check=config.outlier_check
        )  # fmt: skip
        return measure_pass(
            self.decoder, sample.rows, scores, source=sample.source, micro_batch_rows=self.micro_batch_rows, outliers=outliers, seed=self.seed,
            on_progress=self.on_progress,
        )  # fmt: skip

    def _weight_snr(self, _: list[str]) -> list[Measurement]:
        from slayer.importance.weight_snr import measure_snr

        return [measure_snr(self.decoder, on_progress=self.on_progress)]

    def _taylor(self, sample: Sample, _: list[str]) -> list[Measurement]:
        from slayer.importance.taylor import measure_taylor

        return [measure_taylor(self._model, sample.rows, source=sample.source, micro_batch_rows=1, on_progress=self.on_progress)]

    def _learned_mask(self, sample: Sample, _: list[str]) -> list[Measurement]:
        from slayer.importance.learned_mask import measure_mask
        from slayer.surgery.weights import Weights

        assert self.start is not None  # required before anything is measured
        found = measure_mask(
            self._model, Weights(self.start()), sample.rows, source=sample.source, steps=self.config.mask_steps, seed=self.seed,
            micro_batch_rows=self.micro_batch_rows, on_progress=self.on_progress,
        )  # fmt: skip
        return [found]

    def _probe(self) -> Measurement:
        from slayer.importance.probes import load_probe_set, measure_probes

        path = self.config.probe_path
        questions = load_probe_set(None if path else self.config.probe_set, path)
        tokenizer = load_tokenizer(self.folder)

        def compute(_: list[str]) -> list[Measurement]:
            return [measure_probes(self.decoder, tokenizer, questions, items=self.config.probe_items, on_progress=self.on_progress)]

        return self._remembered(["probe"], source=questions.name, fingerprint=questions.fingerprint, compute=compute)[0]

    @property
    def _model(self) -> Any:
        assert isinstance(self.decoder, LoadedDecoder)  # required before anything is measured
        return self.decoder.model

    @cached_property
    def _start_hash(self) -> str:
        return model_hash_cached(self.start()) if self.start is not None else ""


def _read(file: Path) -> Measurement | None:
    """What was remembered; None when there is nothing or it cannot be read."""
    try:
        return measurement_from_json(json.loads(file.read_bytes()))
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _fits(folder: Path, precision: str, device: Any) -> bool:
    """True when the weights take at most half of what memory is free."""
    from math import prod

    import psutil
    import torch

    from slayer.surgery.weights import Weights

    weights = Weights(folder)
    needed = sum(prod(info.shape) for info in weights.infos.values()) * {"bf16": 2, "fp32": 4}[precision]
    free = torch.cuda.mem_get_info(device)[0] if torch.device(device).type == "cuda" else psutil.virtual_memory().available
    return needed <= free / 2
