"""What events.jsonl tells of a run, in sentences."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from slayer.reporting.numbers import count
from slayer.reporting.run_folder import Record

MOST_SENTENCES = 40
"""More are left to the file itself."""


def event_sentences(events: Sequence[Record]) -> list[str]:
    """A sentence an event, in order; steps that were skipped one after the other for the same reason share one."""
    sentences = [_sentence(event) for event in _together(events)]
    left = len(sentences) - MOST_SENTENCES
    return [*sentences[:MOST_SENTENCES], f"And {left} more: events.jsonl has them all."] if left > 0 else sentences


def _together(events: Sequence[Record]) -> Iterator[Record]:
    waiting: Record | None = None
    for event in events:
        alike = waiting is not None and event.get("event") == "skipped" and event.get("why") == waiting.get("why")
        if waiting is not None and alike:
            waiting = {**waiting, "steps": [*_steps(waiting), *_steps(event)]}
            continue
        if waiting is not None:
            yield waiting
        waiting = event if event.get("event") == "skipped" else None
        if waiting is None:
            yield event
    if waiting is not None:
        yield waiting


def _steps(event: Record) -> list[object]:
    steps = event.get("steps")
    return list(steps) if isinstance(steps, list) and steps else [event.get("step")]


def _sentence(event: Record) -> str:
    name, step = event.get("event"), _number(event.get("step"))
    why = f": {reason}" if (reason := event.get("why") or event.get("problem")) else ""
    match name:
        case "resumed":
            stage = event.get("stage")
            return f"Went on from the checkpoint of step {step}{f' in freeze stage {stage}' if isinstance(stage, int) else ''}{_places(event)}."
        case "skipped":
            steps = _steps(event)
            listed = [_number(step) for step in steps]
            were = f"Steps {', '.join(listed[:-1])} and {listed[-1]} were" if len(listed) > 1 else f"Step {listed[0]} was"
            return f"{were} skipped{why}. The weights stayed as they were."
        case "rewind":
            return (
                f"Went back from step {step} to the checkpoint of step {_number(event.get('to_step'))}, "
                f"and on with data {_number(event.get('jump'))} steps further."
            )
        case "gave_up":
            return f"Stopped for good at step {step}: too many returns to a checkpoint."
        case "failed_save":
            return f"The checkpoint of step {step} was not saved{why}."
        case "saved_again":
            return f"The checkpoint of step {step} was saved: saving worked again."
        case "damaged_checkpoint":
            return f"The checkpoint of step {step} was damaged and passed over{why}."
        case "stopped":
            return f"Stopped on request at step {step}, saved."
        case "hung":
            ranks = event.get("culprits")
            whose = f" (rank {', '.join(map(_number, ranks))})" if isinstance(ranks, list) and ranks else ""
            return f"No progress behind step {step}{whose}: ended to be started again. The folder watchdog has the stacks."
        case "restarted":
            return f"Started again after step {step} (exit code {_number(event.get('code'))})."
    facts = ", ".join(f"{key} {value}" for key, value in event.items() if key not in ("event", "time", "step"))
    return f"{str(name).replace('_', ' ').capitalize()} at step {step}{f': {facts}' if facts else ''}."


def _number(value: object) -> str:
    return count(value) if isinstance(value, (int, float)) else "?"


def _places(event: Record) -> str:
    ranks = event.get("ranks")
    return f", on {ranks} rank{'s' if ranks != 1 else ''}" if isinstance(ranks, int) else ""
