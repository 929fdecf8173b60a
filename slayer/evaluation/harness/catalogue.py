"""The names of all of lm-eval's tasks, groups and tags.

The harness reads its fifteen thousand task files anew at every start (ten seconds and more); what it found is remembered in the cache.
"""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from slayer.data.cache import cache_dir, write_file


def task_manager(folders: tuple[Path, ...] = ()) -> Any:
    """lm-eval's TaskManager over its own tasks and the YAML files in `folders`, where a later name hides an earlier one."""
    from lm_eval.tasks import TaskManager
    from lm_eval.tasks._index import Kind

    manager = TaskManager(include_path=[str(folder) for folder in folders], include_defaults=False)
    index = {**_own_tasks(str(cache_dir())), **manager._index}
    manager._index.clear()
    manager._index.update(index)
    kinds = {name: entry.kind for name, entry in index.items()}
    manager._all_tasks = sorted(kinds)
    manager._all_subtasks = sorted(name for name, kind in kinds.items() if kind in (Kind.TASK, Kind.PY_TASK))
    manager._all_groups = sorted(name for name, kind in kinds.items() if kind is Kind.GROUP)
    manager._all_tags = sorted(name for name, kind in kinds.items() if kind is Kind.TAG)
    return manager


@lru_cache(maxsize=2)
def _own_tasks(cache: str) -> dict[str, Any]:
    """lm-eval's own index by name (`cache` only tells folders apart in the memory of this function)."""
    import lm_eval.tasks
    from lm_eval.tasks._index import Entry, Kind, TaskIndex

    root = Path(lm_eval.tasks.__file__).parent
    stamp = f"{version('lm_eval')} {root} {root.stat().st_mtime_ns}"
    remembered = cache_dir() / "harness" / f"tasks-{hashlib.sha256(stamp.encode()).hexdigest()[:16]}.json"
    try:
        rows = json.loads(remembered.read_bytes())
    except (OSError, ValueError):
        found = TaskIndex.build([root])
        rows = [
            [one.name, one.kind.name, str(one.yaml_path.relative_to(root)) if one.yaml_path else None, sorted(one.tags)] for one in found.values()
        ]
        write_file(remembered, json.dumps(rows).encode())
    return {
        name: Entry(name=name, kind=Kind[kind], yaml_path=root / path if path else None, cfg=None, tags=set(tags)) for name, kind, path, tags in rows
    }
