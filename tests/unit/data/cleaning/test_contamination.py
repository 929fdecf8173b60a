from __future__ import annotations

import random
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from slayer.data.benchmarks import Item
from slayer.data.cleaning.contamination import COMMON_ITEMS, ContaminationIndex, index_file, open_index
from slayer.data.words import words_in, words_of


def index_of(*texts: str) -> ContaminationIndex:
    return ContaminationIndex.of([Item(benchmark="quiz", id=f"#{number}", text=text) for number, text in enumerate(texts)])


def overlap(index: ContaminationIndex, text: str) -> tuple[int, float]:
    found = index.find(words_of([text]))
    return int(found.items[0]), round(float(found.shares[0]), 4)


LONG = "Which gas do plants take in from the air when they make sugar out of sunlight and water?"  # 18 words, 11 runs of 8


def test_a_question_inside_other_text_is_found_whatever_its_case_and_signs() -> None:
    index = index_of("A question that stands nowhere else, not even here in part.", LONG)
    assert overlap(index, f"Exam of May.\n{LONG}\nCarbon dioxide.") == (1, 1.0)
    assert overlap(index, "exam: WHICH gas -- do plants\ntake in, from the   air (when they make sugar) out of sunlight and water") == (1, 1.0)
    assert overlap(index, "Plants make sugar out of sunlight and water.") == (-1, 0.0)
    half = " ".join(LONG.split()[:13])
    assert overlap(index, f"{half} something else") == (1, round(6 / 11, 4))
    assert index.names[1].startswith("quiz #1: Which gas")


def test_short_questions_are_found_whole_and_shorter_ones_not_at_all() -> None:
    index = index_of("Who wrote The Old Man?", "What is it?", "Name the largest moon of Saturn now")
    assert index.n_undecidable == 1
    assert overlap(index, "He asked: who wrote the old man? Nobody knew. What is it?") == (0, 1.0)
    assert overlap(index, "Who wrote the old story of a man?") == (-1, 0.0)
    assert overlap(index, "Please name the largest moon of Saturn now!") == (2, 1.0)


def test_phrases_of_many_questions_say_nothing() -> None:
    phrase = "which of the following statements about the given subject is true"
    questions = [f"{phrase} w{number}a w{number}b w{number}c" for number in range(COMMON_ITEMS + 1)]
    index = index_of(*questions, phrase)
    assert index.n_undecidable == 1
    assert overlap(index, f"Tell me {phrase} at all?") == (-1, 0.0)
    assert overlap(index, questions[3]) == (3, 1.0)


def test_the_same_words_twice_are_one_question() -> None:
    index = index_of(LONG, LONG.upper(), "Some other question of eight words or more.")
    assert len(index.names) == 2 and overlap(index, LONG) == (0, 1.0)


def test_a_saved_index_finds_the_same(own_cache: Path) -> None:
    items = [Item(benchmark="quiz", id="#0", text=LONG)]
    path = index_file(items)
    assert path == index_file(items) and path.is_relative_to(own_cache)
    assert overlap(open_index(path), LONG) == (0, 1.0)
    assert overlap(ContaminationIndex.of([]), LONG) == (-1, 0.0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32))
def test_overlaps_are_shares_of_the_distinct_runs(seed: int) -> None:
    """Against sets of tuples of words, on a tiny vocabulary where much is shared by chance."""
    generator = random.Random(seed)
    items = [" ".join(generator.choices("abc", k=generator.randint(3, 14))) for _ in range(8)]
    texts = [" ".join(generator.choices("abc", k=generator.randint(0, 60))) for _ in range(5)]
    index = index_of(*items)
    distinct = list(dict.fromkeys(items))
    runs = []
    for item in distinct:
        words = words_in(item)
        n = min(8, len(words))
        runs.append({tuple(words[start : start + n]) for start in range(len(words) - n + 1)} if n >= 5 else set())
    found = index.find(words_of(texts))
    for text, share in zip(texts, found.shares, strict=True):
        words = words_in(text)
        here = {tuple(words[start : start + n]) for n in range(5, 9) for start in range(len(words) - n + 1)}
        assert np.isclose(share, max((len(one & here) / len(one) for one in runs if one), default=0.0))
