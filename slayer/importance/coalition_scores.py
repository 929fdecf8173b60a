"""Which coalitions each score needs, and what it makes of their values."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from slayer.config import AnalysisConfig
from slayer.importance import removal, shapley
from slayer.importance.table import LayerName, Measurement
from slayer.importance.values import Values


@dataclass(frozen=True, slots=True, kw_only=True)
class CoalitionScore:
    """`measured` turns the values of `coalitions` into numbers per layer."""

    coalitions: Sequence[str]
    measured: Callable[[Values], Measurement]


def coalition_score(score: str, layers: Sequence[LayerName], config: AnalysisConfig, seed: int) -> CoalitionScore:
    """A score of the catalogue that needs values, for a model of these layers."""
    n_layers, window = len(layers), config.longest_window
    match score:
        case "removal":
            return CoalitionScore(coalitions=removal.removal_coalitions(n_layers), measured=lambda values: removal.removal(values, n_layers))
        case "window_removal":
            return CoalitionScore(
                coalitions=removal.window_removal_coalitions(n_layers, window),
                measured=lambda values: removal.window_removal(values, n_layers, window),
            )
        case "expansion_probe":
            return CoalitionScore(
                coalitions=removal.expansion_probe_coalitions(n_layers), measured=lambda values: removal.expansion_probe(values, n_layers)
            )
        case "layer_drop":
            return CoalitionScore(coalitions=removal.layer_drop_coalitions(n_layers), measured=lambda values: removal.layer_drop(values, n_layers))
        case "shapley_window":
            longest = config.shapley_window
            return CoalitionScore(
                coalitions=shapley.window_coalitions(n_layers, longest), measured=lambda values: shapley.window_shapley(values, layers, longest)
            )
        case "shapley":
            return _shapley(layers, config, seed)
    raise KeyError(score)


def _shapley(layers: Sequence[LayerName], config: AnalysisConfig, seed: int) -> CoalitionScore:
    """By all subsets where those are no more than the sampled ones. Loss counts down to guessing: without any layer SmolLM2 loses 111 nats a token,
    and whoever shares those out learns nothing of what layers do."""
    players = config.players
    sampled = shapley.permutation_coalitions(
        len(layers), players=players, pairs=config.permutation_pairs, seed=seed, truncation=config.truncation
    )  # fmt: skip
    if 2 ** shapley.n_players(len(layers), players) <= len(sampled.coalitions):
        return CoalitionScore(
            coalitions=shapley.subset_coalitions(len(layers), players), measured=lambda values: shapley.exact(values.floored(), layers, players)
        )
    return CoalitionScore(coalitions=sampled.coalitions, measured=lambda values: shapley.permutation_shapley(values.floored(), sampled, layers))
