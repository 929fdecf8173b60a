"""What cleaning finds of what was planted: python benchmarks/cleaning.py [--documents 10000] [--questions 2000] [--seed 0]

Into English Wikipedia leads (built-in, clean under default settings) are planted
  near-duplicates: copies with some words changed, so that the true Jaccard similarity of their runs of five words lies in a stated band above
      data.cleaning.near_duplicates (to be found) or below it (to be kept);
  benchmark questions, drawn evenly from all sixteen sets, each between two sentences of an article that is not in the mixture:
      verbatim; with other case, punctuation and line breaks; with one word in ten changed (harder than the stated settings promise).
Everything goes through corpus, screen and selection as in a run. Printed: recall of each kind, what is removed of the unplanted text, and
the speed of screening in one process.
"""

from __future__ import annotations

import argparse
import os
import random
import re
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from slayer.config import CleaningConfig, DataConfig, SourceConfig
from slayer.data.benchmarks import Item, benchmark_items
from slayer.data.builtin import wikipedia
from slayer.data.cleaning.screening import KEPT, REASONS, build_screen
from slayer.data.cleaning.selection import select
from slayer.data.document import Document
from slayer.data.storing.corpus import corpus_of
from slayer.data.storing.parts import Workers

SIMILAR = {
    "near-duplicates, 0.82 to 0.90": (0.82, 0.90),
    "near-duplicates, 0.90 to 1": (0.90, 1.0),
    "below the threshold, 0.60 to 0.75": (0.60, 0.75),
}
"""Bands of true Jaccard similarity; the threshold is 0.8."""

TO_KEEP = "below the threshold, 0.60 to 0.75"
FEWEST_WORDS = 60
REQUIRED = {"near-duplicates, 0.82 to 0.90": 0.99, "near-duplicates, 0.90 to 1": 0.99, "questions verbatim": 0.95, "questions retyped": 0.95}


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of the planted documents of one kind: how many, and how many were removed for the reason of their kind.

    A question stands in an article that may be like another planted one: removed as a near-duplicate it does not count as found.
    """

    kind: str
    planted: int
    removed: int

    @property
    def recall(self) -> float:
        """Share removed."""
        return self.removed / max(1, self.planted)


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """All outcomes; `false_positives` are unplanted documents that were removed, of `unplanted`."""

    outcomes: list[Outcome]
    unplanted: int
    false_positives: list[str]
    megabytes: float
    screening_seconds: float
    selecting_seconds: float


def similarity(one: Sequence[str], two: Sequence[str]) -> float:
    """Jaccard similarity of the runs of five words, by the definition."""
    first, second = ({tuple(words[start : start + 5]) for start in range(len(words) - 4)} for words in (one, two))
    return len(first & second) / len(first | second)


def edited(text: str, band: tuple[float, float], generator: random.Random) -> str | None:
    """The text with one word after the other replaced until its similarity to the original lies in the band; None if it leaps over it."""
    original = [word.lower() for word in re.findall(r"\w+", text)]
    pieces = re.split(r"(\w+)", text)
    places = list(range(1, len(pieces), 2))
    generator.shuffle(places)
    for place in places:
        pieces[place] = "".join(generator.choices("abcdefghijklmnopqrstuvwxyz", k=len(pieces[place]) + 1))
        now = similarity(original, [word.lower() for word in re.findall(r"\w+", "".join(pieces))])
        if now < band[1]:
            return "".join(pieces) if now >= band[0] else None
    return None


def retyped(question: str, generator: random.Random) -> str:
    """The same words in other case, with other signs and white space between them."""
    words = [generator.choice([str.upper, str.lower, str.title])(word) for word in re.findall(r"\w+", question)]
    return "".join(word + generator.choice([" ", "  ", "\n", ", ", " — ", "… "]) for word in words)


def one_in_ten_changed(question: str, generator: random.Random) -> str:
    """The question with every tenth word, on average, replaced."""
    return re.sub(r"\w+", lambda word: "something" if generator.random() < 0.1 else word.group(), question)


def hidden(question: str, article: str) -> str:
    """The question between two sentences of an article."""
    cut = article.find(". ", len(article) // 3) + 2
    return f"{article[:cut]}{question} {article[cut:]}" if cut > 1 else f"{article}\n{question}"


def planted(
    articles: Sequence[Document], hosts: Sequence[Document], items: Sequence[Item], n_questions: int, generator: random.Random
) -> dict[str, list[str]]:
    """Texts by kind: near-duplicates of articles in the mixture, questions within others that are not in it."""
    long = [article.text for article in articles if len(article.text.split()) >= FEWEST_WORDS]
    texts = {kind: [made for text in long if (made := edited(text, band, generator)) is not None] for kind, band in SIMILAR.items()}
    by_benchmark: dict[str, list[Item]] = {}
    for item in items:
        by_benchmark.setdefault(item.benchmark, []).append(item)
    each = max(1, n_questions // len(by_benchmark))
    chosen = [item.text for several in by_benchmark.values() for item in generator.sample(several, min(each, len(several)))]
    kinds: dict[str, Callable[[str], str]] = {
        "questions verbatim": str, "questions retyped": lambda text: retyped(text, generator),
        "questions, one word in ten changed": lambda text: one_in_ten_changed(text, generator),
    }  # fmt: skip
    for kind, change in kinds.items():
        texts[kind] = [hidden(change(text), generator.choice(hosts).text) for text in chosen]
    return texts


def measure(articles: Sequence[Document], texts: dict[str, list[str]], items: Sequence[Item]) -> Findings:
    """Clean the articles and then each kind of planted texts behind them, all in one mixture."""
    data = DataConfig(name="planted", sources={"articles": SourceConfig(role="domain", builtin="wikipedia_en")}, cleaning=CleaningConfig())
    documents = list(articles)
    ranges = {}
    for kind, several in texts.items():
        ranges[kind] = range(len(documents), len(documents) + len(several))
        documents += [Document(id=f"{kind} {number}", text=text) for number, text in enumerate(several)]
    with Workers(1) as workers:
        corpus = corpus_of(documents, "planted")
        started = time.perf_counter()
        screen = build_screen(corpus, data.cleaning, items, label="planted", workers=workers)
        screened = time.perf_counter()
        selection = select(data, {"articles": corpus}, {"articles": screen})["articles"]
        ended = time.perf_counter()
    reasons = [REASONS[code] for code in selection.reasons]
    outcomes = []
    for kind, places in ranges.items():
        wanted = "near_duplicate" if kind in SIMILAR else "contaminated"
        outcomes.append(Outcome(kind=kind, planted=len(places), removed=sum(reasons[place] == wanted for place in places)))
    return Findings(
        outcomes=outcomes, unplanted=len(articles),
        false_positives=[documents[place].id for place in range(len(articles)) if reasons[place] != REASONS[KEPT]],
        megabytes=corpus.n_bytes / 1e6, screening_seconds=screened - started, selecting_seconds=ended - screened,
    )  # fmt: skip


def main() -> int:
    """Plant, clean, print; exit code 1 when a required recall is missed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=int, default=10_000)
    parser.add_argument("--questions", type=int, default=2_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    everything, items = wikipedia("en-us")[: options.documents], benchmark_items(["all"])
    articles, hosts = everything[::2], everything[1::2]
    texts = planted(articles, hosts, items, options.questions, generator)
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SLAYER_CACHE"] = str(Path(folder))  # nothing is remembered from an earlier run
        found = measure(articles, texts, items)
    missed = 0
    for outcome in found.outcomes:
        required = REQUIRED.get(outcome.kind)
        verdict = "" if required is None else f"required {required:.2f}: {'PASS' if outcome.recall >= required else 'FAIL'}"
        missed += verdict.endswith("FAIL")
        says = "removed (to be kept)" if outcome.kind == TO_KEEP else "found"
        print(f"{outcome.kind:<36} {outcome.removed:>6,} of {outcome.planted:>6,} {says:<20} {outcome.recall:.4f}  {verdict}")
    print(
        f"{'unplanted text':<36} {len(found.false_positives):>6,} of {found.unplanted:>6,} removed: {', '.join(found.false_positives[:5]) or 'none'}"
    )
    print(
        f"screening {found.megabytes:.1f} MB: {found.megabytes / found.screening_seconds:.1f} MB/s in one process, index of questions included; "
        f"selection {found.selecting_seconds:.1f} s"
    )
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main())
