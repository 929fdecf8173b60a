"""The scores there are: what each measures, where it comes from, what a high value means, and what it needs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Needs = Literal["pass", "weights", "values", "gradients", "update", "questions"]
"""pass: one forward pass over text; weights: the weights alone; values: many forward passes with layers left out, of which a value
function (loss or accuracy) is read; gradients: backward passes; update: a base and what training made of it; questions: labelled sentences."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """`high_is_important` is None where a score does not order layers by importance (a profile, or a curve)."""

    name: str
    needs: Needs
    unit: str
    high_means: str
    source: str
    high_is_important: bool | None = True


CATALOGUE = {
    score.name: score
    for score in (
        Score(name="block_influence", needs="pass", unit="1 − cosine", source="ShortGPT, arXiv 2403.03853",
              high_means="the layer turns the residual stream a lot: important"),
        Score(name="relative_magnitude", needs="pass", unit="ratio", source="a rival in ShortGPT, arXiv 2403.03853",
              high_means="what the layer adds is large beside what leaves it: important"),
        Score(name="norm", needs="pass", unit="L2 norm", source="a rival in ShortGPT, arXiv 2403.03853", high_is_important=False,
              high_means="states leave the layer long; they grow with depth, and this rule removes the longest first"),
        Score(name="angular_distance", needs="pass", unit="share of π", source="arXiv 2403.17887",
              high_means="the layer turns the last token's state a lot: important"),
        Score(name="outlier_distribution", needs="pass", unit="% of weights", source="OWL, arXiv 2310.05175",
              high_means="many weights whose effect stands out: important, to be pruned less"),
        Score(name="dola_divergence", needs="pass", unit="nats", source="DoLa, arXiv 2309.03883", high_is_important=None,
              high_means="what the model would say after this layer is far from what it says in the end"),
        Score(name="weight_snr", needs="weights", unit="ratio", source="Spectrum, arXiv 2406.06623",
              high_means="the matrices hold much that is no noise: worth training"),
        Score(name="removal", needs="values", unit="lost", source="arXiv 2410.02330, 2409.14381",
              high_means="much is lost without the layer: important"),
        Score(name="window_removal", needs="values", unit="lost", source="arXiv 2403.17887, 2409.14381",
              high_means="much is lost on average without the windows around the layer: important"),
        Score(name="expansion_probe", needs="values", unit="lost", source="Llama SLayer, arXiv 2410.02330",
              high_means="much is lost when the layer runs twice: the place does not bear an active block"),
        Score(name="layer_drop", needs="values", unit="lost", source="Why Lift so Heavy, arXiv 2402.11700", high_is_important=None,
              high_means="much is lost when this layer and all above it are left out"),
        Score(name="shapley_window", needs="values", unit="value", source="arXiv 2409.14381",
              high_means="the part adds much to what the model can do, whichever neighbours are there: important"),
        Score(name="shapley", needs="values", unit="value", source="arXiv 2409.14381, Shapley by sampled permutations",
              high_means="the part adds much, on average over all orders of removal: important"),
        Score(name="taylor", needs="gradients", unit="share", source="ADEPT, arXiv 2510.10071",
              high_means="the loss would change much if the layer's weights went to zero: important"),
        Score(name="learned_mask", needs="update", unit="mask", source="ILA, arXiv 2410.17875",
              high_means="the layer's change in training is what the text needs: it mattered"),
        Score(name="probe", needs="questions", unit="accuracy", source="Concept Depth, arXiv 2404.07066", high_is_important=None,
              high_means="the label can be read off the layer's output by a straight line"),
    )
}  # fmt: skip
"""By name, cheap ones first."""

ONE_PASS = tuple(name for name, score in CATALOGUE.items() if score.needs == "pass")
"""All of these cost one forward pass together."""
