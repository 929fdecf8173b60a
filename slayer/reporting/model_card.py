"""README.md of an exported model: what it is, what it was trained on, what it scores, and what it is not good for."""

from __future__ import annotations

import json
from pathlib import Path

from slayer.reporting.document import Table, markdown_table
from slayer.reporting.numbers import count, fixed, interval, percent, share, short
from slayer.reporting.plan_rows import stage_rows
from slayer.reporting.run_folder import RunFolder, read_run
from slayer.reporting.scores import source_scores, verdict_sentence


def model_card(run_dir: Path) -> str:
    """The model card of a run folder as Markdown with a YAML head; parts that were not measured are left out."""
    run = read_run(run_dir)
    parts = [_head(run), f"# {run.name}", _summary(run), _loading()]
    for title, body in (("Layers", _layers(run)), ("Training", _training(run)), ("Scores", _scores(run))):
        parts += [f"## {title}", body] if body else []
    return "\n\n".join([*parts, "## Limits", _limits(run)]) + "\n"


def _base_name(run: RunFolder) -> str:
    if run.config is not None:
        if run.config.model.hub:
            return run.config.model.hub
        if run.config.model.path:
            # Only the folder's own name: where it lay on somebody's disk is nobody's business.
            return Path(run.config.model.path).name
    return run.model_name


def _head(run: RunFolder) -> str:
    lines = ["---", "library_name: transformers", "pipeline_tag: text-generation", f"base_model: {json.dumps(_base_name(run))}"]
    if run.config is not None and run.config.model.hub:
        lines.append("base_model_relation: finetune")
    return "\n".join([*lines, "tags:", "- slayer", "- continual-pretraining", "- block-expansion", "---"])


def _summary(run: RunFolder) -> str:
    plan = run.plan
    text = f"{_base_name(run)}, taught new text by continual pretraining with slayer, after [Llama SLayer](https://arxiv.org/abs/2410.02330)."
    if plan is None:
        return text
    new, pruned = len(plan.new_indices), len(plan.pruned)
    trained = "all weights were trained" if plan.trains_everything else f"only {len(plan.trainable)} layers were trained"
    if plan.stages:
        trained = f"what was trained changed in {plan.n_stages} stages"
    warm_start = run.config.warm_start if run.config is not None else None
    began = f", beginning from the result of {warm_start}" if warm_start is not None else ""
    return f"{text} {new} new blocks were inserted into its {plan.n_base} layers, {pruned} layers were removed, and {trained}{began}."


def _loading() -> str:
    return (
        "The folder is an ordinary Hugging Face model; nothing but transformers is needed.\n\n```python\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model = AutoModelForCausalLM.from_pretrained(".")\ntokenizer = AutoTokenizer.from_pretrained(".")\n'
        'prompt = tokenizer("Once upon a time", return_tensors="pt")\n'
        "print(tokenizer.decode(model.generate(**prompt, max_new_tokens=40)[0]))\n```"
    )


def _layers(run: RunFolder) -> str:
    plan = run.plan
    if plan is None:
        return ""
    new = [
        f"{index} (after base layer {entry.after})"
        for index, entry in enumerate(plan.entries)
        if index in plan.new_indices and hasattr(entry, "after")
    ]
    training = run.section("training")
    rows = [
        ("base layers", str(plan.n_base)), ("layers", str(plan.n_layers)), ("placement", plan.strategy), ("new blocks", ", ".join(new) or "none"),
        ("pruned base layers", ", ".join(map(str, plan.pruned)) or "none"), ("last base layer", plan.tail),
        ("trained layers", "everything" if plan.trains_everything else ", ".join(map(str, plan.whole_layers)) or "none"),
    ]  # fmt: skip
    if training.get("trained_parameters") is not None:
        trained, total = training["trained_parameters"], training.get("total_parameters")
        rows.append(("trained parameters", f"{short(trained)} of {short(total)} ({share(trained, total)})"))
    rows += [(f"stage {row.number}, {row.until}", f"{row.parts} ({row.layers})") for row in stage_rows(plan)]
    return markdown_table(Table(head=("", "value"), rows=tuple(rows)))


def _training(run: RunFolder) -> str:
    training, data = run.section("training"), run.rows("data")
    parts = []
    if training.get("tokens") is not None:
        parts.append(f"{count(training['tokens'])} tokens in {count(training.get('steps'))} steps.")
    if data:
        rows = tuple(
            (
                str(row.get("name", "")),
                str(row.get("role", "")),
                count(row.get("train_documents")),
                share(row.get("share"), 1),
                fixed(row.get("epochs"), 2),
            )
            for row in data
        )
        parts.append(markdown_table(Table(head=("source", "role", "documents#", "share of tokens#", "epochs#"), rows=rows)))
    return "\n\n".join(parts)


def _scores(run: RunFolder) -> str:
    scores = source_scores(run.results)
    if not scores:
        return ""
    head = ("held-out text", "role", "base#", "result#", "95 % interval#", "change#", "95 % interval#")
    rows = tuple(
        (score.source, score.role, fixed(score.base), fixed(score.result), interval(score.result_interval, digits=3),
         percent(score.change_percent), interval(score.change_interval_percent, unit=" %", signed=True))
        for score in scores
    )  # fmt: skip
    sentences = "\n".join(f"- {verdict_sentence(score)}" for score in scores)
    return (
        f"Bits per byte on documents that were kept out of training; lower is better.\n\n{markdown_table(Table(head=head, rows=rows))}\n\n{sentences}"
    )


def _limits(run: RunFolder) -> str:
    names = [score.source for score in source_scores(run.results)]
    scored = f"only on held-out text of {', '.join(names)}" if names else "on nothing yet"
    lines = [
        f"It was scored {scored}. What happened to other abilities (questions, code, other languages, following instructions) is not known.",
        "Fewer bits per byte mean that text is predicted better. They do not show that statements are true or that the model is safe to use.",
        "It keeps the licence, the biases and the gaps of its base model, and takes on those of the text it was trained on.",
    ]
    tokens = run.section("training").get("tokens")
    if isinstance(tokens, int) and tokens < 10_000_000:
        lines.append(f"It saw {count(tokens)} tokens of training text, which is very little: a demonstration, not a finished model.")
    return "\n".join(f"- {line}" for line in lines)
