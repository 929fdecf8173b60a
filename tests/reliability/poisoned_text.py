"""A text of which a stretch breaks the model, as a bad crawl may: training on it gives no finite loss. And what must come of it.

The base has one row of its embedding that is not a number, that of the byte ~. A source of its own, whose every training document holds
that byte, makes up nearly all of a short stage of the mixture; outside of it it is not served.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from small_text import DOMAIN_WORDS, run_overrides, write_text
from transformers import AutoTokenizer

from slayer.config import RandomModelConfig, RunConfig
from slayer.data.cleaning.screening import place_of
from slayer.data.random_model import tiny_model
from slayer.phases.text import open_text
from slayer.reporting.console import open_console

POISON = "~"
HELDOUT_SHARE = 0.2
TOTAL_STEPS, SAVE_EVERY, PATIENCE = 24, 4, 3


def write_base(folder: Path) -> Path:
    """The tiny model with a broken row."""
    shutil.copytree(tiny_model(RandomModelConfig(tied_embeddings=False)), folder)
    token = AutoTokenizer.from_pretrained(folder).encode(POISON, add_special_tokens=False)
    tensors = load_file(folder / "model.safetensors")
    tensors["model.embed_tokens.weight"][token] = float("nan")
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def write_poison(path: Path) -> Path:
    """50 training documents, all poisoned, and 10 held-out ones without: those are scored before and after training."""
    generator, texts = random.Random(1), list[str]()
    while len(texts) < 60:
        text = " ".join(generator.choice(DOMAIN_WORDS) for _ in range(generator.randrange(20, 60)))
        text = text if len(texts) < 10 else text.replace(" ", POISON)
        is_heldout = place_of(hashlib.sha256(text.encode()).hexdigest()) / 2**64 < HELDOUT_SHARE
        texts += [text] if is_heldout == (len(texts) < 10) else []
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return path


def poisoned_overrides(folder: Path, *, from_tokens: int = 1_200, until_tokens: int = 2_150) -> list[str]:
    """A run of 24 steps of two rows; text and base are written into `folder`."""
    text = write_text(folder / "text")
    small = run_overrides(text, folder / "runs")
    poison = f"{{role:domain,path:{write_poison(folder / 'text' / 'poison.jsonl')},heldout_share:{HELDOUT_SHARE},weight:0.000001}}"
    stages = f"[{{from_tokens:{from_tokens},replay:0,weights:{{poison:50}}}},"
    stages += f"{{from_tokens:{until_tokens},replay:0.25,weights:{{poison:0}}}}]"
    return [
        *small, "model=local", f"model.path={write_base(folder / 'base')}", f"data.sources.poison={poison}", f"data.stages={stages}",
        f"train.max_steps={TOTAL_STEPS}", f"train.save_every={SAVE_EVERY}", "train.batch_rows=2", "engine.micro_batch_rows=1",
        "engine.precision=fp32", f"guard.patience={PATIENCE}",
    ]  # fmt: skip


def poisoned_steps(config: RunConfig, upto: int) -> set[int]:
    """The steps of the loader whose batch holds the byte."""
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    (token,) = tokenizer.encode(POISON, add_special_tokens=False)
    console = open_console()
    console.quiet = True
    loader = open_text(config, tokenizer, console).loader
    return {step for step in range(upto) if bool((loader.batch(step).input_ids_BL == token).any())}


@dataclass
class Foretold:
    """What a run does, step by step: data only ever moves on, whatever the steps are called."""

    rewinds: list[tuple[int, int]]
    skipped: list[int]
    served: dict[int, int]
    """Step (0-based) of the course that counts → step of the loader."""


def foretell(bad: set[int], *, total: int = TOTAL_STEPS, save_every: int = SAVE_EVERY, patience: int = PATIENCE) -> Foretold:
    """The course of a run that logs every step. `bad`: steps of the loader whose batch is poisoned."""
    told = Foretold(rewinds=[], skipped=[], served={})
    step = in_a_row = 0
    saved = [0]
    for data_step in range(10 * total):
        if step == total:
            break
        told.served[step] = data_step
        if data_step in bad:
            told.skipped.append(step + 1)
            in_a_row += 1
        else:
            in_a_row = 0
        step += 1
        if in_a_row == patience:
            to_step = max(one for one in saved if one <= step - in_a_row)
            told.rewinds.append((step, to_step))
            step, in_a_row = to_step, 0
        elif step % save_every == 0 and in_a_row == 0:
            saved.append(step)
    told.served = {one: data_step for one, data_step in told.served.items() if one < total}
    return told
