"""Estimated memory beside what is measured, part by part, on a CPU: python benchmarks/estimate.py

Engines over small random models make real passes. Weights, gradients, masters and moments are counted from the live tensors of engine and
DeepSpeed, activations by saved_tensors_hooks, and the passes as a whole by the storages that come and go. Prints a Markdown table.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

SIZES = {"layers": 6, "hidden_size": 256, "intermediate_size": 640, "heads": 4, "key_value_heads": 2, "head_dim": 64, "vocabulary": 2048}
PARTS = ("weights", "gradients", "optimizer", "activations", "passes")
CASES = [
    *(("llama", precision, stage, checkpointing) for precision in ("bf16", "fp32") for stage in range(4) for checkpointing in (False, True)),
    *((family, "bf16", stage, False) for family in ("mistral", "qwen2", "qwen3") for stage in (2, 3)),
]


def main() -> None:
    """Measure and print."""
    from live_memory import comparison
    from published_shapes import config_of, plan_of

    from slayer.config import ShapeConfig
    from slayer.training.ranks import open_ranks

    plan = plan_of(6, "shallow_half", prune=1)
    print(f"| model | precision | stage | checkpointing | {' | '.join(PARTS)} |")
    print(f"| --- | --- | --- | --- |{' ---: |' * len(PARTS)}")
    worst = 0.0
    with open_ranks() as ranks:
        for family, precision, stage, checkpointing in CASES:
            torch.nn.functional.linear = torch._C._nn.linear  # ZeRO-3 replaces it for good
            config = config_of(
                sequence_length=256, batch_rows=2, zero_stage=stage, precision=precision, micro_batch_rows=2, activation_checkpointing=checkpointing
            )
            found = comparison(ShapeConfig.model_validate({"architecture": family, **SIZES}), plan, config, ranks)
            ratios = [found[part][0] / found[part][1] for part in PARTS if part in found]
            worst = max(worst, *(abs(ratio - 1) for ratio in ratios))
            cells = [f"{found[part][0] / 1e6:.2f} / {found[part][1] / 1e6:.2f}" if part in found else "–" for part in PARTS]
            print(f"| {family} | {precision} | {stage} | {'on' if checkpointing else 'off'} | {' | '.join(cells)} |", flush=True)
    print(f"\nMB, estimated / measured. The largest difference is {worst:.1%} of what was measured.")


if __name__ == "__main__":
    main()
