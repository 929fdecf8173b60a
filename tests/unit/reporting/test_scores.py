"""Sentences about scores say what the numbers say."""

from __future__ import annotations

from sample_run import sample_results

from slayer.reporting.numbers import count, duration, interval, percent, share, short, size
from slayer.reporting.scores import proof_sentences, role_change, source_scores, verdict_sentence


def test_forgetting_is_called_worse_and_its_interval_is_a_size():
    english = source_scores(sample_results(replay=3.0))[1]
    sentence = "The model now predicts unseen wikipedia_en text worse than its base: it needs 3.0 % more bits per byte (95 % interval 2.1 to 3.8 %)."
    assert verdict_sentence(english) == sentence


def test_sources_without_a_result_are_not_judged():
    (score,) = source_scores({"heldout": {"x": {"role": "domain", "base": 1.5}}})
    assert verdict_sentence(score) == "x: the base model scores 1.500 bits per byte; the result was not scored."


def test_a_role_is_the_mean_of_its_sources_and_has_an_interval_only_alone():
    results = sample_results()
    alone = role_change(source_scores(results), "domain")
    assert alone is not None and alone.percent == -21.3 and alone.interval_percent == (-22.2, -20.5)
    results["heldout"]["more"] = {**results["heldout"]["wikipedia_fr"], "change_percent": -11.3}
    both = role_change(source_scores(results), "domain")
    assert both is not None and round(both.percent, 6) == -16.3 and both.interval_percent is None
    assert role_change([], "domain") is None


def test_a_proof_that_failed_does_not_claim_identity():
    (sentence,) = proof_sentences({"identity_max_difference": 0.5})
    assert "0.5" in sentence and "do not start as an identity" in sentence


def test_numbers_are_written_for_people():
    assert [short(value) for value in (950, 81_920, 999_700, 24_780_000, 152_000_000, 8_030_000_000)] == [
        "950", "81.9 k", "1.00 M", "24.8 M", "152 M", "8.03 B",
    ]  # fmt: skip
    assert (count(81_920), percent(-21.34), percent(-0.01), share(1, 4)) == ("81,920", "−21.3 %", "0.0 %", "25.0 %")
    assert (interval((-1.3, 0.4), signed=True), interval(None)) == ("−1.3 to +0.4", "–")
    assert [size(n_bytes) for n_bytes in (None, 7, 999.7, 3_484_000)] == ["–", "7 B", "1.00 kB", "3.48 MB"]
    assert [duration(seconds) for seconds in (47, 170, 11_100)] == ["47 s", "2 min 50 s", "3 h 05 min"]
