"""From a model folder to the object that lm-eval asks for scores."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from slayer.evaluation.dola import Dola, dola_of
from slayer.evaluation.harness.scores import OpenModel, Scoring
from slayer.forward import load_model
from slayer.models import load_tokenizer
from slayer.surgery.families import read_model_config
from slayer.surgery.plan import LayerPlan


def open_lm(folder: Path, plan: LayerPlan | None, scoring: Scoring, on_note: Callable[[str], None] | None = None) -> OpenModel:
    """How the model of a folder is opened, once it is needed. `on_note` is told what a person should know: a batch that had to be halved."""

    def opened(on_progress: Callable[[int, int], None]) -> Any:
        from slayer.evaluation.harness.lm import SharedPrefixLM, plain_lm

        def halved(batch_tokens: int) -> None:
            if on_note is not None:
                on_note(f"out of memory: going on with batch_tokens={batch_tokens}; type that to start there")

        model, tokenizer = load_model(folder, scoring.precision, scoring.device), load_tokenizer(folder)
        dola = decoder_of(folder, plan, scoring)
        if scoring.backend == "harness":
            return plain_lm(model, tokenizer, dola=dola, on_progress=on_progress)
        return SharedPrefixLM(model, tokenizer, batch_tokens=scoring.batch_tokens, dola=dola, on_progress=on_progress, on_halved=halved)

    return opened


def decoder_of(folder: Path, plan: LayerPlan | None, scoring: Scoring) -> Dola | None:
    """DoLa's candidate layers in this very model, or None where decoding is not DoLa. ConfigError for layers that it does not have."""
    if scoring.decoding.name != "dola":
        return None
    n_base = plan.n_base if plan is not None else read_model_config(folder)["num_hidden_layers"]
    return dola_of(scoring.decoding, n_base, plan)
