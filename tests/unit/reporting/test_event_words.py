"""Events in sentences: every kind is told, and a thousand of them do not fill the page."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from sample_run import sample_events

from slayer.reporting.event_words import MOST_SENTENCES, event_sentences


def test_every_kind_of_event_is_told_in_order():
    assert event_sentences(sample_events()) == [
        "Went on from the checkpoint of step 10 in freeze stage 2, on 2 ranks.",
        "The checkpoint of step 12 was damaged and passed over: model.safetensors is truncated.",
        "Steps 14, 15 and 16 were skipped: the loss is not finite. The weights stayed as they were.",
        "Step 18 was skipped: the gradient is 7.1 deviations above the mean. The weights stayed as they were.",
        "Went back from step 33 to the checkpoint of step 30, and on with data 3 steps further.",
        "The checkpoint of step 34 was not saved: no space left on device.",
        "The checkpoint of step 35 was saved: saving worked again.",
        "Stopped on request at step 36, saved.",
        "No progress behind step 37 (rank 1): ended to be started again. The folder watchdog has the stacks.",
        "Started again after step 37 (exit code 75).",
        "Stopped for good at step 38: too many returns to a checkpoint.",
        "Lost its way at step 39: to <b>nowhere</b>.",
    ]


def test_skipped_steps_are_told_together_only_where_nothing_came_between():
    skipped = [{"event": "skipped", "step": step, "steps": [step], "why": "x"} for step in (1, 2, 3)]
    assert len(event_sentences(skipped)) == 1
    assert len(event_sentences([skipped[0], {"event": "stopped", "step": 1}, *skipped[1:]])) == 3


def test_of_very_many_events_the_first_are_told_and_the_others_counted():
    sentences = event_sentences([{"event": "stopped", "step": step} for step in range(1000)])
    assert len(sentences) == MOST_SENTENCES + 1 and sentences[-1] == f"And {1000 - MOST_SENTENCES} more: events.jsonl has them all."
    assert event_sentences([]) == []


values = st.one_of(st.none(), st.integers(), st.text(max_size=5), st.lists(st.one_of(st.none(), st.integers()), max_size=3))
kinds = st.sampled_from([event["event"] for event in sample_events()])
facts = st.dictionaries(st.sampled_from(["step", "steps", "why", "to_step", "jump", "stage", "ranks", "code", "problem", "culprits"]), values)


@given(st.lists(st.builds(lambda kind, known: {**known, "event": kind}, kinds, facts), max_size=6))
def test_events_that_lack_something_or_hold_something_else_are_told_as_far_as_they_go(events):
    assert all(sentence.endswith(".") for sentence in event_sentences(events)) and len(event_sentences(events)) <= len(events)
