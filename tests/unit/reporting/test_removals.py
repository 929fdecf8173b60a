"""What cleaning removed, in words."""

from __future__ import annotations

import pytest
from sample_run import sample_facts

from slayer.config import CleaningConfig
from slayer.reporting.removals import REASONS, by_reason, reason_name, reason_why, removed_documents, removed_sentence

SETTINGS = CleaningConfig(near_duplicates=0.75, min_characters=42, min_compressed_share=0.08, max_overlap=0.5, max_control_share=0.02).model_dump()


@pytest.mark.parametrize(
    ("reason", "number"), [("too_short", "42 characters"), ("repetitive", "8 %"), ("near_duplicate", "75 %"), ("not_text", "2 %")]
)
def test_a_reason_is_explained_with_the_settings_of_the_run(reason, number):
    assert number in reason_why(reason, SETTINGS)


def test_every_reason_can_be_told_without_settings():
    for reason in REASONS:
        assert "{" not in reason_why(reason, {}) and reason_why(reason, {}).endswith(".")
    assert reason_why("something_new", SETTINGS) == "" and reason_name("something_new", 2) == "something new"


def test_counts_are_summed_over_sources_in_the_order_of_the_reasons():
    removed = [
        {"source": "b", "reason": "near_duplicate", "documents": 2}, {"source": "a", "reason": "near_duplicate", "documents": 1},
        {"source": "a", "reason": "too_short", "documents": 5}, {"source": "a", "reason": "not_text", "documents": 0},
    ]  # fmt: skip
    assert list(by_reason(removed).items()) == [("too_short", 5), ("near_duplicate", 3)]
    assert removed_documents({"removed": removed}) == 8 and removed_documents({"removed": removed}, "a") == 6
    assert removed_documents({}) is None and removed_sentence({}) == ""


def test_the_sentence_names_benchmarks_that_the_examples_name():
    facts = sample_facts()
    assert removed_sentence(facts) == "removed 103 of 10,075 documents (1.02 %): 100 near-duplicates, 3 contaminated (arc_easy)"
    facts["removed"] = facts["removed"][1:2]
    facts["removed"][0]["documents"] = 1
    assert removed_sentence(facts) == "removed 1 of 10,075 documents (0.01 %): 1 contaminated (arc_easy)"
