"""What each of two ranks does for test_bad_steps_of_one_rank.py.

python -m torch.distributed.run --standalone --nproc_per_node=2 bad_steps_worker.py FOLDER CASES
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from bad_steps import guarded_config, train_by_hand
from small_training import same

from slayer.training.ranks import open_ranks


def main(folder: Path, cases: list[list[Any]]) -> None:
    found = []
    with open_ranks() as ranks:
        for case in cases:
            config = guarded_config(*case)
            met, verdicts = train_by_hand(ranks, config, never_asks=False)
            spared, untroubled = train_by_hand(ranks, config, never_asks=True)
            found.append({"case": case, "same": same(met, spared), "verdicts": verdicts, "untroubled": untroubled})
        (folder / f"bad-steps-{ranks.rank}.json").write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main(Path(sys.argv[1]), json.loads(sys.argv[2]))
