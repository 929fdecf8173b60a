"""What each of two ranks does for test_rank_memory.py: engines at every ZeRO stage, their memory as estimated and as measured.

python -m torch.distributed.run --standalone --nproc_per_node=2 memory_worker.py FILE
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from live_memory import comparison
from published_shapes import config_of, plan_of

from slayer.config import ShapeConfig
from slayer.training.ranks import open_ranks

SIZES = ShapeConfig(architecture="llama", layers=6, hidden_size=256, intermediate_size=640, heads=4, key_value_heads=2, head_dim=64, vocabulary=2048)


def main(file: Path) -> None:
    """Write {"stage 2, bf16": {part: [estimated, measured]}} of the first rank; both ranks measure."""
    found = {}
    with open_ranks() as ranks:
        for stage, precision in ((0, "fp32"), (1, "bf16"), (2, "bf16"), (3, "bf16")):
            torch.nn.functional.linear = torch._C._nn.linear  # ZeRO-3 replaces it for good
            config = config_of(sequence_length=256, batch_rows=8, zero_stage=stage, precision=precision, micro_batch_rows=2)
            found[f"stage {stage}, {precision}"] = comparison(SIZES, plan_of(6, "shallow_half", prune=1), config, ranks)
        if ranks.is_first:
            file.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
