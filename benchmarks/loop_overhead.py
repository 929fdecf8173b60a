"""How much of a bare PyTorch loop's speed train.py's loop keeps: python benchmarks/loop_overhead.py [--rounds 7] [KEY=VALUE …]

Both arms train the same expanded model (smollm2_135m with seven new blocks unless overridden) on the same packed batches in one
process, alternating step by step. The bare arm is a plain loop with fp32 weights under bf16 autocast, torch's AdamW and clipping.
First the two losses of the first step are compared; then the ratio of the medians of tokens per second is printed.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import torch

from slayer.forward import load_model, logits_of, nll_BL
from slayer.launching.compose import compose
from slayer.models import resolve_model
from slayer.phases.text import open_text
from slayer.reporting.console import open_console
from slayer.surgery.build import build_expanded
from slayer.surgery.families import read_model_config
from slayer.surgery.freeze import trainable_names
from slayer.surgery.plan import build_plan
from slayer.training.engine import TrainingEngine
from slayer.training.loop import Callbacks, Course, Pace, train
from slayer.training.optim import TrainedGroup, parameter_groups
from slayer.training.ranks import open_ranks
from slayer.training.signals import StopRequest
from slayer.training.state import RunState

ALLOWED_LOSS_DIFFERENCE = 0.02
"""Nats per token between bf16 weights and bf16 autocast in the first step."""


class BareLoop:
    """The loop one writes by hand."""

    def __init__(self, folder: Path, trainable: list[str], config, device: torch.device) -> None:
        self.model = load_model(folder, "fp32", device).train()
        self.config = config
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in set(trainable))
        parameters = dict(self.model.named_parameters())
        self.trained = [parameters[name] for name in trainable]
        train = config.train
        groups = parameter_groups([TrainedGroup(names=tuple(trainable))], parameters, train.weight_decay)
        self.optimizer = torch.optim.AdamW(groups, lr=train.learning_rate, betas=(train.beta1, train.beta2), fused=True)

    def step(self, batches: list, valid_tokens: int, device: torch.device) -> float:
        """One optimiser step; returns its loss."""
        total = torch.zeros((), device=device)
        for rows in batches:
            with torch.autocast(device.type, torch.bfloat16):
                logits = logits_of(self.model, rows)
            loss = nll_BL(logits, rows.labels_BL).sum() / valid_tokens
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(self.trained, self.config.train.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return float(total)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    arguments, overrides = parser.parse_known_args()
    config = compose(["expansion=shallow_half", "train.schedule=constant", "train.warmup_share=0", *overrides])
    base = resolve_model(config.model)
    from transformers import AutoTokenizer

    loader = open_text(config, AutoTokenizer.from_pretrained(base), open_console()).loader
    plan = build_plan(read_model_config(base)["num_hidden_layers"], config.expansion, config.freeze)
    with tempfile.TemporaryDirectory() as folder, open_ranks() as ranks:
        expanded = Path(folder) / "expanded"
        build_expanded(base, plan, expanded, seed=config.seed)
        model = load_model(expanded, "bf16", ranks.device)
        trainable = trainable_names(plan, [name for name, _ in model.named_parameters()])
        engine = TrainingEngine(model, [TrainedGroup(names=tuple(trainable))], config, ranks)
        bare = BareLoop(expanded, trainable, config, ranks.device)
        records: list[dict] = []
        callbacks = Callbacks(on_log=records.append, on_evaluate=lambda _: True, on_save=lambda _: None)
        rates: dict[str, list[float]] = {"bare": [], "ours": []}
        for step in range(arguments.rounds + 1):
            tokens = loader.valid_tokens(step)
            started = time.perf_counter()
            batches = loader.micro_batches(step, rank=0, world=1, micro_batch_rows=config.engine.micro_batch_rows)
            bare_loss = bare.step(batches, tokens, ranks.device)
            rates["bare"].append(tokens / (time.perf_counter() - started))
            started = time.perf_counter()
            pace = Pace(flops_per_token=0.0, peak_flops=None)
            train(engine, loader, RunState(step=step), Course(total_steps=step + 1), config.train, callbacks, pace, StopRequest())
            rates["ours"].append(tokens / (time.perf_counter() - started))
            if step == 0:
                difference = abs(bare_loss - records[0]["loss"])
                assert difference < ALLOWED_LOSS_DIFFERENCE, f"first losses differ: {bare_loss} and {records[0]['loss']}"
                print(f"first loss: bare {bare_loss:.4f}, ours {records[0]['loss']:.4f}", flush=True)
                continue
            print(f"round {step}: bare {rates['bare'][-1]:.0f} tokens/s, ours {rates['ours'][-1]:.0f} tokens/s", flush=True)
        engine.close()
    medians = {arm: statistics.median(values[1:]) for arm, values in rates.items()}
    pairs = [ours / bare for ours, bare in zip(rates["ours"][1:], rates["bare"][1:], strict=True)]
    print(f"bare {medians['bare']:.0f} tokens/s, ours {medians['ours']:.0f} tokens/s")
    print(f"ratio of medians {medians['ours'] / medians['bare']:.3f} (pairs from {min(pairs):.3f} to {max(pairs):.3f}; wanted at least 0.8)")


if __name__ == "__main__":
    main()
