"""Run folders with plausible numbers around a real plan."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from slayer.config import (
    DataConfig,
    EngineConfig,
    ExpansionConfig,
    FreezeConfig,
    ModelConfig,
    RunConfig,
    SourceConfig,
    TrackerConfig,
    TrainConfig,
    save_config,
)
from slayer.surgery.plan import LayerPlan, LayerScores, build_plan


def removal_scores(values: Sequence[float]) -> LayerScores:
    return LayerScores(score="removal", values=tuple(values), high_is_important=True, tokens=4096, sample="abc", seed=0)


SCORES = removal_scores([1.0 + (0.5 * abs(layer - 16.5)) ** 1.3 for layer in range(30)])


def sample_plan(**changes: Any) -> LayerPlan:
    options: dict[str, Any] = {"prune": 2, "prune_by": "removal", "prune_scores": SCORES, **changes}
    n_base = options.pop("n_base", 30)
    expansion = options.pop("expansion", ExpansionConfig(strategy="shallow_half"))
    freeze = options.pop("freeze", FreezeConfig(schedule="originals"))
    return build_plan(n_base, expansion, freeze, **options)


def staged_plan(**changes: Any) -> LayerPlan:
    """Three stages: new blocks; the tail and all norms with them; layers 26 and 27 too (two of the last four are pruned)."""
    parts = {"new": 1.0, "tail": 0.5, "norms": 0.5}
    stages = [
        {"until_tokens": 20_480, "parts": {"new": 1.0}},
        {"until_tokens": 45_056, "parts": parts},
        {"parts": {**parts, "originals[-4:]": 0.1}},
    ]
    freeze = FreezeConfig.model_validate({"schedule": "staged", "stages": stages})
    return sample_plan(**{"prune_by": "last", "prune_scores": None, "freeze": freeze, **changes})


def write_staged_run(folder: Path) -> Path:
    """A run of that plan whose stages begin with steps 11 and 23, and that had its troubles."""
    results = {**sample_results(folder.name), "stages": [{"trained_parameters": number} for number in (24_780_000, 28_350_000, 31_890_000)]}
    run_dir = write_run(folder, results=results, plan=staged_plan())
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    for line in lines:
        if "loss" in line:
            line["stage"] = 1 if line["step"] <= 10 else 2 if line["step"] <= 22 else 3
    (run_dir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    (run_dir / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in sample_events()), encoding="utf-8")
    return run_dir


def sample_events() -> list[dict[str, Any]]:
    """One of each kind that a run records."""
    why = "the loss is not finite"
    events: list[dict[str, Any]] = [
        {"event": "resumed", "step": 10, "stage": 2, "ranks": 2, "zero_stage": 2},
        {"event": "damaged_checkpoint", "step": 12, "problem": "model.safetensors is truncated"},
        *({"event": "skipped", "step": step, "steps": [step], "why": why} for step in (14, 15, 16)),
        {"event": "skipped", "step": 18, "steps": [18], "why": "the gradient is 7.1 deviations above the mean"},
        {"event": "rewind", "step": 33, "to_step": 30, "jump": 3, "skipped": 3},
        {"event": "failed_save", "step": 34, "problem": "no space left on device"},
        {"event": "saved_again", "step": 35},
        {"event": "stopped", "step": 36},
        {"event": "hung", "step": 37, "kind": "silent", "culprits": [1]},
        {"event": "restarted", "step": 37, "code": 75},
        {"event": "gave_up", "step": 38, "first_bad_step": 36},
        {"event": "lost_its_way", "step": 39, "to": "<b>nowhere</b>"},
    ]
    return [{"time": 100.0 + number, **event} for number, event in enumerate(events)]


def sample_config(tracker: str = "jsonl", run: str = "shallow_half-prune_2") -> RunConfig:
    sources = {
        "wikipedia_fr": SourceConfig(role="domain", builtin="wikipedia_fr"),
        "wikipedia_en": SourceConfig(role="replay", builtin="wikipedia_en"),
    }
    return RunConfig(
        run=run, model=ModelConfig(name="smollm2_135m", asset="smollm2_135m"), expansion=ExpansionConfig(strategy="shallow_half"),
        prune=2, prune_by="removal", freeze=FreezeConfig(schedule="originals"), data=DataConfig(name="demo", sources=sources),
        engine=EngineConfig(zero_stage=2), train=TrainConfig(max_steps=40), tracker=TrackerConfig(name=tracker),  # type: ignore[arg-type]
    )  # fmt: skip


def sample_records(steps: int = 40) -> list[dict[str, Any]]:
    noise = random.Random(0)
    lines: list[dict[str, Any]] = [{"step": 0, "heldout/wikipedia_fr": 1.75, "heldout/wikipedia_en": 1.09, "time": 1.0}]
    for step in range(1, steps + 1):
        french = 2.0 + 1.3 * math.exp(-step / 12) + noise.gauss(0, 0.06)
        english = 2.75 + 0.2 * math.exp(-step / 8) + noise.gauss(0, 0.09)
        lines.append({
            "step": step, "steps": steps, "tokens": step * 2048, "loss": 0.75 * french + 0.25 * english, "loss/wikipedia_fr": french,
            "loss/wikipedia_en": english, "tokens/wikipedia_fr": 1536, "tokens/wikipedia_en": 512,
            "lr": 1e-3 * min(step / 3, 0.1 + 0.45 * (1 + math.cos(math.pi * step / steps))), "grad_norm": 0.8,
            "tokens_per_second": 512.3, "mfu": None, "memory_bytes": 1 << 30, "step_seconds": 3.9, "time": 1.0 + step,
        })  # fmt: skip
        if step % 10 == 0:
            scores = {"heldout/wikipedia_fr": 1.25 + 0.5 * math.exp(-step / 10), "heldout/wikipedia_en": 1.0 + 0.09 * math.exp(-step / 6)}
            lines.append({"step": step, **scores, "time": 1.0 + step})
    return lines


def sample_results(name: str = "shallow_half-prune_2", domain: float = -21.3, replay: float = -0.4) -> dict[str, Any]:
    def source(role: str, base: float, start: float, change: float, verdict: str) -> dict[str, Any]:
        result = base * (1 + change / 100)
        return {
            "role": role, "documents": 60, "bytes": 50_000, "tokens": 14_000, "base": base, "base_interval": [base - 0.05, base + 0.05],
            "start": start, "result": result, "result_interval": [result - 0.04, result + 0.04], "change_percent": change,
            "change_interval_percent": [change - 0.9, change + 0.8], "verdict": verdict,
        }  # fmt: skip

    return {
        "format": 1, "run": name, "model": "smollm2_135m", "command": f"python train.py expansion=shallow_half prune=2 run={name}",
        "heldout": {
            "wikipedia_en": source("replay", 1.02, 1.09, replay, "no change detected" if abs(replay) < 0.8 else "forgotten"),
            "wikipedia_fr": source("domain", 1.60, 1.75, domain, "learnt"),
        },
        "proof": {
            "identity_max_difference": 0.0, "base_loss": 2.79, "start_loss": 3.02, "loss_jump": 0.23, "sample_tokens": 2048,
        },
        "training": {
            "steps": 40, "tokens": 81_920, "seconds": 170.0, "tokens_per_second": 480.0, "trained_parameters": 24_780_000,
            "total_parameters": 152_000_000, "frozen_tensors_checked": 254, "device": "cpu", "ranks": 1,
        },
        "data": [
            {"name": "wikipedia_fr", "role": "domain", "train_documents": 1900, "heldout_documents": 100, "train_tokens": 610_000,
             "train_bytes": 1_900_000, "rows": 1200, "fill": 0.991, "share": 0.75, "planned_share": 0.75, "epochs": 0.1},
            {"name": "wikipedia_en", "role": "replay", "train_documents": 2100, "heldout_documents": 110, "train_tokens": 480_000,
             "train_bytes": 2_100_000, "rows": 940, "fill": 0.987, "share": 0.25, "planned_share": 0.25, "epochs": 0.04},
        ],
        "samples": [
            {"source": "wikipedia_fr", "prompt": "La Loire est un fleuve", "truth": " de France, le plus long du pays.",
             "base": " de la France, de la France, de la France et de la", "start": " of the the de de la",
             "result": " français qui prend sa source en Ardèche."},
            {"source": "wikipedia_en", "prompt": "The Thames is a river", "truth": " that flows through southern England.",
             "base": " in England that flows through London.", "start": " in the the river of",
             "result": " in southern England, which flows through London."},
        ],
        "objective": {"name": "domain_bits_per_byte", "value": 1.25}, "versions": {"torch": "2.13.0", "transformers": "5.3.0"},
    }  # fmt: skip


def sample_facts() -> dict[str, Any]:
    """Facts of a text in the shape that preparing it leaves: two stages, a streamed source, removals, bad records, a cut document."""

    def source(
        name: str, role: str, origin: str, documents: int, tokens: int, share: float, planned: float, epochs: float, **more: Any
    ) -> dict[str, Any]:
        middle = 5 + len(name) % 3
        histogram = [round(documents * math.exp(-((bin - middle) ** 2) / 5) / 4) for bin in range(14)]
        return {
            "name": name, "role": role, "origin": origin, "streamed": False, "read_documents": documents, "read_bytes": 4 * tokens,
            "train_documents": round(0.93 * documents), "heldout_documents": round(0.05 * documents), "train_tokens": tokens,
            "train_bytes": 4 * tokens, "rows": tokens // 255, "fill": 0.9996, "cut_documents": 41, "needless_cuts": 0, "share": share,
            "planned_share": planned, "epochs": epochs, "max_epochs": None, "cannot_promise": [],
            "lengths": {"edges_tokens": [2**edge for edge in range(15)], "documents": histogram}, **more,
        }  # fmt: skip

    promises = ["No global shuffle: the order is that of the shards, shuffled within a window of 2,000 documents.", "Duplicates are not looked for."]
    unknown = ("read_documents", "read_bytes", "train_documents", "heldout_documents", "train_tokens", "train_bytes", "rows", "cut_documents")
    web: dict[str, Any] = {**dict.fromkeys(unknown), "streamed": True, "cannot_promise": promises, "epochs": None, "lengths": {}}
    french = {"id": "Loire", "excerpt": "La Loire est le plus long fleuve de France.", "because": "91 % like wikipedia_fr: Loire (fleuve)"}
    exam = {
        "id": "Photosynthesis",
        "excerpt": "Which gas do plants take in?",
        "because": "83 % of arc_easy #12: Which gas do plants take in from the air?",
    }
    return {
        "name": "demo", "sequence_length": 256, "packing": "best_fit", "batch_rows": 2, "steps": 204, "tokens": 103_000, "fingerprint": "5f2a" * 16,
        "sources": [
            source("wikipedia_fr", "domain", "built-in wikipedia_fr", 9_955, 1_420_000, 0.75, 0.8, 0.06),
            source("best_of_it", "domain", "path text/*.jsonl.gz", 120, 9_800, 0.0, 0.0667, 5.4, max_epochs=8.0),
            source("web", "replay", "hub OWNER/web @ 1234567", 0, 0, 0.25, 0.1333, 0.0) | web,
        ],
        "stages": [
            {"from_tokens": 0, "from_step": 0, "shares": {"wikipedia_fr": 0.75, "best_of_it": 0.0, "web": 0.25}},
            {"from_tokens": 70_000, "from_step": 139, "shares": {"wikipedia_fr": 0.7, "best_of_it": 0.2, "web": 0.1}},
        ],
        "warn_epochs": 4.0, "warnings": ["best_of_it is read 5.4 times, and more than 4 epochs teach little: give it less weight, or more text."],
        "removed": [
            {"source": "wikipedia_fr", "reason": "near_duplicate", "documents": 100, "bytes": 51_000, "examples": [french]},
            {"source": "wikipedia_fr", "reason": "contaminated", "documents": 3, "bytes": 4_100, "examples": [exam]},
            {"source": "best_of_it", "reason": "too_short", "documents": 0, "bytes": 0, "examples": []},
        ],
        "cleaning": {"min_characters": 10, "max_control_share": 0.02, "near_duplicates": 0.8, "max_overlap": 0.5, "decontaminate": "all"},
        "benchmarks": ["arc_easy", "piqa"], "undecidable_items": 37,
        "quarantine": [
            {"source": "wikipedia_fr", "records": 9_955, "bad": 0, "limit": 0.01, "examples": []},
            {"source": "best_of_it", "records": 121, "bad": 1, "limit": 0.01, "examples": [
                {"file": "part-1.jsonl", "record": 17, "offset_bytes": 20_480, "reason": "is not JSON", "head": '{"text": "half a li'}]},
        ],
        "samples": [
            {"source": "wikipedia_fr", "row": 12, "pieces": [
                {"text": "La Loire est le plus long fleuve de France.\nElle prend sa source en Ardèche.", "document": "Loire", "starts": True,
                 "ends": True, "tokens": 120},
                {"text": "Le Rhône est un fleuve", "document": "Rhône", "starts": True, "ends": False, "tokens": 90},
                {"text": "se jette dans la Méditerranée.", "document": "Var", "starts": False, "ends": True, "tokens": 40}]},
        ],
    }  # fmt: skip


def write_run(folder: Path, *, results: dict[str, Any] | None = None, plan: LayerPlan | None = None) -> Path:
    folder.mkdir(parents=True)
    save_config(sample_config(run=folder.name), folder / "config.yaml")
    (plan or sample_plan()).save(folder / "plan.json")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in sample_records()), encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(results or sample_results(folder.name)), encoding="utf-8")
    return folder


def write_sweep(folder: Path) -> Path:
    sweep = folder / "sweep-1"
    (sweep / "points").mkdir(parents=True)
    changes = {("shallow_half", 0): (-18.2, 0.3), ("shallow_half", 2): (-21.3, -0.4), ("even", 0): (-17.0, 0.9), ("even", 2): (-19.0, 1.4)}
    for number, ((strategy, prune), (domain, replay)) in enumerate(changes.items()):
        name = f"{strategy}-prune_{prune}"
        run = write_run(folder / name, results=sample_results(name, domain, replay))
        (run / "report.html").write_text("a report", encoding="utf-8")
        point = {
            "number": number, "run": name, "run_dir": str(run), "overrides": [f"expansion={strategy}", f"prune={prune}", "train.max_steps=40"],
            "status": "finished", "error": None, "seconds": 170.0, "objective": 1.60 * (1 + domain / 100),
        }  # fmt: skip
        (sweep / "points" / f"{number}.json").write_text(json.dumps(point), encoding="utf-8")
    failed = {
        "number": 4, "run": "even-prune_40", "run_dir": str(folder / "even-prune_40"), "status": "failed", "objective": None, "seconds": 2.0,
        "overrides": ["expansion=even", "prune=40", "train.max_steps=40"], "error": "prune = 40: <b>the model has 30 layers</b>",
    }  # fmt: skip
    (sweep / "points" / "4.json").write_text(json.dumps(failed), encoding="utf-8")
    return sweep
