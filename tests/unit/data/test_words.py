from __future__ import annotations

import subprocess
import sys
from hashlib import blake2b

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from slayer.data.words import FACTOR, ngrams_of, words_in, words_of

SOME_TEXT = st.text(alphabet="ab é語カ한.! \n_1", max_size=60)


def test_words() -> None:
    assert words_in("The Cat's snake_case, 2.5 ÉTÉ\n") == ["the", "cat", "s", "snake_case", "2", "5", "été"]
    assert words_in("e\u0301te\u0301 ＡＢＣ ﬁn") == ["été", "abc", "fin"]
    assert words_in("我喜歡 Python3 很好 カタ한국") == ["我", "喜", "歡", "python3", "很", "好", "カ", "タ", "한", "국"]
    assert words_in("… !") == []


@given(st.lists(SOME_TEXT, max_size=6), st.integers(1, 6), st.booleans())
def test_runs_of_words_are_those_of_each_text_alone(texts: list[str], n: int, short: bool) -> None:
    """Equal hashes exactly where the runs of words are equal, over all texts together."""
    found = ngrams_of(words_of(texts), n, short=short)
    runs = []
    for text in texts:
        words = words_in(text) or [text.strip()]
        runs.append([tuple(words[start : start + n]) for start in range(len(words) - n + 1)] or ([tuple(words)] if short else []))
    assert np.diff(found.offsets).tolist() == [len(one) for one in runs]
    flat = [run for one in runs for run in one]
    by_run: dict[tuple[str, ...], int] = {}
    for run, value in zip(flat, found.hashes.tolist(), strict=True):
        assert by_run.setdefault(run, value) == value
    assert len(set(by_run.values())) == len(by_run)


def test_hashes_are_the_same_in_every_process() -> None:
    """And those that plain integers give."""
    program = "from slayer.data.words import *; print(ngrams_of(words_of(['one two three', 'été']), 2, short=True).hashes.tolist())"
    said = {subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout for _ in range(2)}
    one, two, three, summer = (int.from_bytes(blake2b(word.encode(), digest_size=8).digest(), "little") for word in ("one", "two", "three", "été"))
    assert said == {f"{[(one + two * FACTOR) % 2**64, (two + three * FACTOR) % 2**64, summer]}\n"}


def test_the_memory_of_words_is_bounded() -> None:
    from slayer.data import words

    before = words_of(["some words here"]).hashes.tolist()
    words_of([" ".join(f"w{number}" for number in range(words.KEPT_WORDS + 10)), "x" * 100_000])
    assert len(words._HASHES) <= words.KEPT_WORDS and max(map(len, words._HASHES)) <= words.KEPT_CHARACTERS
    assert words_of(["some words here"]).hashes.tolist() == before
