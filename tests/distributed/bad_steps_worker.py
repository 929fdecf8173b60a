"""What each of two ranks does for test_bad_steps_of_one_rank.py.

python -m torch.distributed.run --standalone --nproc_per_node=2 bad_steps_worker.py FOLDER
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from bad_steps import guarded_config, train_by_hand
from small_training import PRECISIONS, STAGES, same

from slayer.training.ranks import open_ranks


def main(folder: Path) -> None:
    found = []
    with open_ranks() as ranks:
        for stage in STAGES:
            for precision in PRECISIONS:
                for micro_batch_rows in (2, 1):
                    config = guarded_config(stage, precision, micro_batch_rows)
                    met, verdicts = train_by_hand(ranks, config, never_asks=False)
                    spared, untroubled = train_by_hand(ranks, config, never_asks=True)
                    case = [stage, precision, micro_batch_rows]
                    found.append({"case": case, "same": same(met, spared), "verdicts": verdicts, "untroubled": untroubled})
        (folder / f"bad-steps-{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
