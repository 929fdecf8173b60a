"""Many models from several sides at once (arXiv 2403.15250): size classes, score against size, how scores go together, and a map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from slayer.evaluation.effects import correct, one_way
from slayer.evaluation.statistics import holm

SIZE_CLASSES = (0.0, 1.5, 3.0, 7.0, 13.0, 35.0)
"""Lower bounds in billions of parameters, as in the paper."""
LEAST_MODELS, LEAST_SIZES, LEAST_ON_MAP = 8, 4, 5
PENALTIES = np.logspace(-3, 6, 19)
CURVE_POINTS = 41
MAP_SEED = 42

Values = Mapping[str, Sequence[float | None]]
Floats = NDArray[np.float64]


def multifaceted(models: Sequence[str], parameters: Sequence[int | None], scores: Values) -> dict[str, Any]:
    """The `multifaceted` part of study.json; `parameters` and each score's values are in the order of the models, None where unknown.

    sizes: ANOVA and Tukey HSD over the paper's size classes. gam: log(score) as a smooth function of log(parameters). correlation:
    Pearson's r between scores. map: t-SNE of the score vectors. Each is {"why_not": sentence} where there are too few models for it;
    the paper's random effect of architecture is left out.
    """
    if len(models) < 3 or not scores:
        return {"why_not": f"it compares three models or more on some score, and there are {len(models)} models and {len(scores)} scores"}
    gam = {score: size_curve(parameters, values) for score, values in scores.items()}
    fitted = [entry for entry in gam.values() if "p" in entry]
    for entry, p_holm in zip(fitted, holm([entry["p"] for entry in fitted]), strict=True):
        entry["p_holm"] = p_holm
    return {"sizes": size_effects(parameters, scores), "gam": gam, "correlation": correlation(scores), "map": score_map(models, scores)}


def size_class(parameters: int) -> str:
    """The paper's class of a model's size, in billions of parameters."""
    place = int(np.searchsorted(SIZE_CLASSES, parameters / 1e9, side="right")) - 1
    low = SIZE_CLASSES[place]
    return f"{low:g}B and more" if place == len(SIZE_CLASSES) - 1 else f"{low:g}B to {SIZE_CLASSES[place + 1]:g}B"


def size_effects(parameters: Sequence[int | None], scores: Values) -> dict[str, dict[str, Any]]:
    """One-way ANOVA and Tukey HSD of every score over size classes, in the shape of a factor of study.json."""
    effects = {}
    for score, values in scores.items():
        groups: dict[str, list[float]] = {}
        for size, value in sorted((size, value) for size, value in zip(parameters, values, strict=True) if size and value is not None):
            groups.setdefault(size_class(size), []).append(value)
        if sum(len(found) > 1 for found in groups.values()) < 2:
            there = ", ".join(f"{level} ({len(found)})" for level, found in groups.items()) or "none of known size"
            effects[score] = {"why_not": f"two size classes with two models each are needed; there are {there}"}
        else:
            effects[score] = one_way(groups, ["size"])
    correct(effects)
    return effects


def size_curve(parameters: Sequence[int | None], values: Sequence[float | None]) -> dict[str, Any]:
    """A generalised additive model, log(score) on a penalised cubic spline of log(parameters) (Wood 2017, ch. 4).

    The penalty is the one of least generalised cross-validation. `curve`: [parameters, score, low, high] with 95 % bounds of the
    mean; `edf`: effective degrees of freedom of the smooth (1 is a power law); `p`: F test of the smooth against a flat line.
    """
    known = [(size, value) for size, value in zip(parameters, values, strict=True) if size and value is not None]
    sizes = {size for size, _ in known}
    if len(known) < LEAST_MODELS or len(sizes) < LEAST_SIZES:
        there = f"there are {len(known)} models of {len(sizes)} sizes"
        return {"why_not": f"a curve takes {LEAST_MODELS} models or more of {LEAST_SIZES} sizes or more; {there} with this score"}
    if min(value for _, value in known) <= 0:
        return {"why_not": "a model scores 0 or less, which has no logarithm"}
    if len({value for _, value in known}) == 1:
        return {"why_not": f"all {len(known)} models score the same, {known[0][1]:.4g}"}
    from scipy.stats import f

    x_N, y_N = (np.log(np.array(column, np.float64)) for column in zip(*known, strict=True))
    result = _fit(x_N, y_N, n_splines=min(10, len(sizes) + 1))
    grid = np.linspace(x_N.min(), x_N.max(), CURVE_POINTS)
    bounds = result.get_prediction(exog=np.ones(len(grid)), exog_smooth=grid).summary_frame()
    curve = np.exp(np.stack([grid, bounds["mean"], bounds["mean_ci_lower"], bounds["mean_ci_upper"]], axis=1))
    edf, flat, left = float(np.sum(result.edf)) - 1, float(((y_N - y_N.mean()) ** 2).sum()), float(result.deviance)
    freedom = len(known) - edf - 1
    # The Wald test that comes with the fit takes the spread as known: far too sure with a dozen models.
    p = float(f.sf(max(flat - left, 0) / edf / (left / freedom), edf, freedom)) if left > 0 else 0.0
    return {
        "models": len(known), "sizes": len(sizes), "edf": edf, "p": p, "p_holm": p, "deviance_explained": 1 - left / flat, "curve": curve.tolist(),
    }  # fmt: skip


def _fit(x_N: Floats, y_N: Floats, n_splines: int) -> Any:
    from statsmodels.gam.api import BSplines, GLMGam

    fits = []
    for penalty in PENALTIES:
        smoother = BSplines(x_N, df=[n_splines], degree=[3])
        fit = GLMGam(y_N, exog=np.ones((len(x_N), 1)), smoother=smoother, alpha=penalty).fit()
        left = len(x_N) - float(np.sum(fit.edf))
        fits.append((len(x_N) * float(fit.deviance) / left**2 if left > 0 else np.inf, fit))
    return min(fits, key=lambda found: found[0])[1]


def correlation(scores: Values) -> dict[str, Any]:
    """Pearson's r between scores over the models that have both; null where fewer than three have, or where a score does not vary."""
    names = list(scores)
    if len(names) < 2:
        return {"why_not": "there is one score, and it takes two to go together"}
    matrix = [[_pearson(scores[first], scores[second]) for second in names] for first in names]
    return {"scores": names, "matrix": matrix}


def _pearson(first: Sequence[float | None], second: Sequence[float | None]) -> float | None:
    pairs = np.array([(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None], np.float64)
    if len(pairs) < 3 or (np.ptp(pairs, axis=0) == 0).any():
        return None
    return float(np.clip(np.corrcoef(pairs.T)[0, 1], -1, 1))


def score_map(models: Sequence[str], scores: Values) -> dict[str, Any]:
    """Models on a plane, near where their scores are alike: t-SNE of the standardised scores that all models have (seed 42 as in the paper).

    Perplexity is 30, or (models − 1) / 3 where there are fewer than 91.
    """
    whole = {score: np.array(values, np.float64) for score, values in scores.items() if None not in values}
    varying = {score: values for score, values in whole.items() if np.ptp(values) > 0}
    if len(models) < LEAST_ON_MAP or len(varying) < 2:
        return {
            "why_not": f"a map takes {LEAST_ON_MAP} models or more and two scores that all have and that differ; "
            f"there are {len(models)} and {len(varying)}"
        }
    from sklearn.manifold import TSNE

    table = np.stack([(values - values.mean()) / values.std() for values in varying.values()], axis=1)
    perplexity = min(30.0, (len(models) - 1) / 3)
    points = TSNE(n_components=2, perplexity=perplexity, random_state=MAP_SEED, init="pca").fit_transform(table)
    return {"models": list(models), "scores": list(varying), "perplexity": perplexity, "points": points.astype(float).tolist()}
