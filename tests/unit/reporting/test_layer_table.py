"""Layer scores in the terminal, and the sentences that terminal and page share."""

from __future__ import annotations

import io
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from sample_layers import CHOICE, FAILED, TEXTS, sample_expanded_table, sample_table
from scipy.stats import rankdata, t

from slayer.importance.catalogue import CATALOGUE
from slayer.importance.table import NORMAL_95, LayerTable, Measurement, layer_names
from slayer.reporting.console import open_console
from slayer.reporting.layer_scores import by_importance, layer_interval, ordering, ranks, three_figures
from slayer.reporting.layer_table import fitting, print_choice, print_layers
from slayer.reporting.layer_words import agreement_sentence, choice_sentences, failed_sentences, last_two_sentence, layer_sentences, shallow_sentence

TABLE = sample_table()
NEW = sample_expanded_table()


def table_of(*measurements: Measurement, **more: object) -> LayerTable:
    n_layers = len(measurements[0].by_layer) if measurements else 4
    return LayerTable(model="tiny", layers=layer_names(n_layers, None), measurements=measurements, facts={"value": "loss"}, **more)


def removal(*values: float, error: float | None = None, **more: object) -> Measurement:
    errors = (error,) * len(values) if error is not None else None
    return Measurement(score="removal", source="fr", values=values, errors=errors, **more)


def printed(table: LayerTable, width: int) -> str:
    stream = io.StringIO()
    print_layers(table, Console(file=stream, width=width, highlight=False))
    return stream.getvalue()


numbers = st.one_of(st.integers(-3, 3).map(float), st.just(math.nan))


@given(st.lists(numbers, min_size=2, max_size=12), st.sampled_from(["removal", "norm"]))
def test_ranks_are_scipys_turned_by_the_catalogue(values, score):
    found = ranks(Measurement(score=score, source=None, values=tuple(values)))
    known = np.isfinite(values)
    sign = 1 if score == "norm" else -1
    assert np.array_equal(np.isfinite(found), known)
    assert np.array_equal(np.asarray(found)[known], rankdata(sign * np.asarray(values)[known]))


@pytest.mark.parametrize(("value", "text"), [(412.3, "412"), (-8.123, "−8.12"), (0.25149, "0.251"), (0.02041, "0.0204"), (math.nan, "–")])
def test_numbers_have_about_three_figures(value, text):
    assert three_figures(value) == text


def test_intervals_of_few_observations_are_students_and_those_of_halves_bound_their_sum():
    one = removal(1.0, 2.0, error=0.1, freedom=3)
    assert layer_interval(one, 0) == pytest.approx((1 - 0.1 * t.ppf(0.975, 3), 1 + 0.1 * t.ppf(0.975, 3)))
    halves = Measurement(score="shapley", source="fr", players="halves", values=(1.0, 2.0, 3.0, 4.0), errors=(0.1, 0.2, 0.3, 0.4))
    assert layer_interval(halves, 1) == pytest.approx((7 - 0.7 * NORMAL_95, 7 + 0.7 * NORMAL_95))


def test_the_ends_are_named_with_their_numbers_and_doubt_where_intervals_overlap():
    values = (8.0, 3.0, 0.5, 0.03, 0.02, 0.04, 0.6, 2.0)
    sure, unsure = (layer_sentences(table_of(removal(*values, error=error)))[0] for error in (0.0001, 0.2))
    most = "; 0, 1 and 7 cost most (8.00, 3.00 and 2.00)."
    assert sure == "By removal on fr, layers 4, 3 and 5 are cheapest to lose (0.0200, 0.0300 and 0.0400 nats per token lost)" + most
    assert "lost; layers 2 and 6 may be as low, their 95 % intervals overlap)" + most in unsure


def test_a_score_without_errors_is_not_said_to_be_certain_or_uncertain():
    assert "overlap" not in layer_sentences(table_of(removal(1.0, 1.0001, 1.0002, 1.0003, 1.0004, 1.0005)))[0]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ((9, 1, 1, 1, 1, 1, 2, 3), "are not free: both matter more than the median layer (2.00 and 3.00, the median layer 1.00"),
        ((9, 1, 1, 1, 1, 1, 0.2, 0.3), "are cheap: both matter less"),
        ((9, 1, 1, 1, 1, 1, 1.01, 0.99), "cannot be told from the median layer"),
        ((9, 1, 1, 1, 1, 1, 0.2, 3), "differ: 6 matters less than it and 7 matters more than the median layer"),
    ],
)
def test_the_last_two_are_held_against_the_median_with_their_intervals(values, words):
    one = removal(*map(float, values), error=0.05)
    assert words in last_two_sentence(table_of(one), one)


def test_the_longest_states_are_the_cheap_ones_by_norm_and_pairs_are_told_where_measured():
    norm = Measurement(score="norm", source="fr", values=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert "are cheap" in last_two_sentence(table_of(norm), norm)
    windows = Measurement(score="window_removal", source="fr", values=(1.0,) * 6, details={"windows": {"2": [9.0, 9.0, 9.0, 9.0, 4.25]}})
    one = removal(9, 1, 1, 1, 2, 3)
    assert "without both 4.25 nats per token lost are lost" not in last_two_sentence(table_of(one, windows), one)
    assert "together they cost 4.25" in last_two_sentence(table_of(one, windows), one)


def test_depth_groups_are_counted_over_all_rankings_and_hedged_by_the_test():
    groups = {name: list(members) for name, members in TABLE.agreement["groups"].items()}
    firsts = []
    for one in ordering(TABLE):
        sign = -1 if CATALOGUE[one.score].high_is_important is False else 1
        means = {name: sign * np.nanmean([one.by_layer[layer] for layer in members]) for name, members in groups.items()}
        firsts.append(max(means, key=means.__getitem__))
    sentence = shallow_sentence(TABLE)
    assert f"by {firsts.count('shallow')} of {len(firsts)} rankings" in sentence and "layers within a group differ as much" in sentence
    effects = {**TABLE.agreement["effects"], f"removal · {TEXTS[0]}": {"anova": {"p_holm": 0.004}}}
    assert "the groups differ, p = 0.004" in shallow_sentence(replace(TABLE, agreement={**TABLE.agreement, "effects": effects}))


def test_agreement_is_told_of_different_scores_on_the_same_text():
    columns, matrix = TABLE.agreement["columns"], TABLE.agreement["spearman"]
    pairs = [
        matrix[a][b]
        for a, first in enumerate(columns)
        for b, second in enumerate(columns)
        if a < b and first["score"] != second["score"] and (None in (first["source"], second["source"]) or first["source"] == second["source"])
    ]
    sentence = agreement_sentence(TABLE)
    assert (
        f"from {min(pairs):.2f}".replace("-", "−") in sentence and f"to {max(pairs):.2f}" in sentence and f"median {np.median(pairs):.2f}" in sentence
    )
    assert "no relation that could be detected" in sentence
    unknown = {**TABLE.agreement, "spearman": [[None] * len(columns)] * len(columns)}
    assert agreement_sentence(replace(TABLE, agreement=unknown)) == "" == agreement_sentence(NEW)


def test_what_failed_is_told_but_not_what_training_left_alone():
    assert failed_sentences(TABLE) == [f"removal · wikipedia_en has no number for layer 21: {FAILED}."]
    assert failed_sentences(table_of(removal(math.nan, math.nan, failed={0: "why", 1: "why"}))) == ["removal · fr has no number for any layer: why."]
    half = Measurement(score="shapley", source="fr", players="halves", values=(1.0, math.nan, 1.0, 1.0), failed={1: "why"})
    assert failed_sentences(table_of(half)) == ["Shapley · fr has no number for layer 0: MLP: why."]


@pytest.mark.parametrize("width", [80, 120])
def test_the_terminal_gets_a_row_per_layer_and_the_ends_of_every_ranking(width):
    text = printed(TABLE, width)
    lines = text.splitlines()
    assert max(map(len, lines)) <= width
    for layer, value in enumerate(TABLE.find("removal", TEXTS[0]).by_layer):
        assert any(line.split()[:2] == [str(layer), three_figures(value)] for line in lines if line.strip())
    for one in ordering(TABLE):
        least = ", ".join(str(layer) for layer in by_importance(one)[:5])
        assert sum(least in line for line in lines) >= 1
    assert FAILED in " ".join(text.split())
    flat = " ".join(text.split())
    assert "The last two layers" in flat and "Scores agree by" in flat


def test_every_text_has_the_same_columns_and_no_more_than_fit():
    for width in (80, 120, 200):
        shown = fitting(ordering(TABLE), width)
        scores = {source: [one.score for one in shown if one.source == source] for source in TEXTS}
        assert scores[TEXTS[0]] == scores[TEXTS[1]] and scores[TEXTS[0]][0] == "removal"
        assert 5 + 12 * len(shown) <= width < 5 + 12 * (len(shown) + 2) or width == 200


def test_new_blocks_are_named_by_the_layer_they_stand_behind():
    text = printed(NEW, 80)
    assert "3 of them new" in text and all(f" {label} " in text for label in ("+1", "+3", "+5"))


def test_the_terminal_without_utf8():
    class Plain(io.StringIO):
        encoding = "ascii"

    stream = Plain()
    angular = Measurement(score="angular_distance", source="fr", values=(0.1, 0.2, 0.3))
    for table in (TABLE, NEW, table_of(angular)):
        print_layers(table, open_console(stream))
    print_choice(CHOICE, open_console(stream))
    assert stream.getvalue().isascii() and "?" not in stream.getvalue()


def test_what_does_not_order_layers_is_told_in_a_sentence():
    probe = Measurement(score="probe", source="sst2", values=(0.5, math.nan, 0.8, 0.7), details={"majority": 0.55})
    (sentence,) = layer_sentences(table_of(probe))
    told = "Probe · sst2 goes from 0.500 at layer 0 to 0.700 at layer 3, highest 0.800 at layer 2"
    told += " (accuracy; the larger class is 0.550 of the sentences)."
    assert sentence == told and " ".join(printed(table_of(probe), 400).split()) == f"· {told}"
    rising = Measurement(score="layer_drop", source="fr", values=(9.0, 5.0, 1.0, 0.5))
    assert layer_sentences(table_of(rising)) == ["Layer drop · fr goes from 9.00 at layer 0 to 0.500 at layer 3 (nats per token lost)."]
    assert layer_sentences(table_of(removal(1, 2, 3, 4), probe))[-1] == told
    assert printed(table_of(), 80).strip() == ""


def test_a_choice_is_told_beside_what_the_scores_would_choose():
    costs, places = choice_sentences(CHOICE)
    assert costs == (
        "prune_by=last (layers 28, 29, tail=average) costs +3.07 nats per token here; prune_by=removal (layers 16, 17) would cost +0.25; "
        "prune_by=block_influence (layers 17, 20) would cost +0.31."
    )
    assert places == (
        "The 7 new blocks stand behind layers that matter: mean rank 8.2 of 30 by removal on 4,096 tokens (1: most important); "
        "expansion=least_important would take 16, 17, 14, 12, 20, 13, 15."
    )


def test_a_choice_that_is_the_scores_own_says_so_and_unknown_parts_are_left_out():
    same = CHOICE | {"by": "explicit", "pruned": [17, 16], "tail": "frozen", "expanded_after": [12, 14, 16], "least_important": [16, 12, 14, 20]}
    costs, places = choice_sentences(same | {"expanded_mean_rank": 29.0})
    assert "(layers 17, 16) costs" in costs and costs.endswith("prune_by=removal would choose the same layers.")
    assert "layers that matter little" in places and places.endswith("expansion=least_important takes these.")
    assert choice_sentences(CHOICE | {"pruned": [], "expanded_mean_rank": None}) == [] == choice_sentences({})
    assert choice_sentences({"jump": math.nan, "pruned": [1]}) == []
