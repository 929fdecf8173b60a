"""A small corpus of invented sentences, and the overrides of a run on it that takes a second or two."""

from __future__ import annotations

import json
import random
from pathlib import Path

DOMAIN_WORDS = ("alpha", "block", "counsel", "delta", "early", "frozen", "grows", "harbour", "island", "just", "keep", "layer", "light", "meadow")
GENERAL_WORDS = ("island", "light", "narrow", "old", "patient", "quiet", "residual", "rivers", "shallow", "slow", "softly", "stream", "valley")


def write_text(folder: Path) -> Path:
    """domain.jsonl and general.jsonl: 60 and 40 documents of 5 to 60 words."""
    generator = random.Random(0)
    folder.mkdir(parents=True, exist_ok=True)
    for name, count, words in (("domain", 60, DOMAIN_WORDS), ("general", 40, GENERAL_WORDS)):
        texts = (" ".join(generator.choice(words) for _ in range(generator.randrange(5, 60))) for _ in range(count))
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return folder


def text_overrides(text: Path) -> list[str]:
    """data=local on the corpus of `write_text`."""
    shares = [f"data.sources.{name}.heldout_share=0.2" for name in ("domain", "general")]
    general = ["data.sources.general.builtin=null", f"data.sources.general.path={text / 'general.jsonl'}"]
    plain = ["data.sequence_length=64", "data.cleaning.decontaminate=[]"]
    return ["data=local", f"data.path={text / 'domain.jsonl'}", *general, *shares, *plain]


def run_overrides(text: Path, runs: Path) -> list[str]:
    """The tiny model on the corpus, two steps; later overrides of the same key win."""
    small = ["train.max_steps=2", "heldout.samples=1", "heldout.sample_tokens=8", "heldout.tokens_per_source=600"]
    return ["model=tiny", *text_overrides(text), *small, f"runs_dir={runs}"]
