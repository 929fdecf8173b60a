"""What is measured of a model, and how."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slayer.config.section import Section


class HeldoutConfig(Section):
    """Held-out evaluation and the samples of the report."""

    tokens_per_source: int = Field(12_000, ge=1, description="held-out tokens scored per source (whole documents, fixed choice)")
    in_loop_tokens_per_source: int = Field(3_000, ge=1, description="the same, for evaluations during training")
    samples: int = Field(3, ge=0, description="sample continuations per source in the report")
    sample_tokens: int = Field(40, ge=1, description="tokens generated per sample")


class TaskConfig(Section):
    """One benchmark task of a suite, by its name in lm-eval (a task, group or tag)."""

    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt; null: as the task defines")
    limit: int | None = Field(None, ge=1, description="items scored, drawn with the seed and always the same; null: all")
    role: Literal["general", "domain"] = Field("general", description="general: what must not be forgotten; domain: what is to be learnt")


class SuiteConfig(Section):
    """Which benchmarks are scored."""

    name: str = Field(description="short name, shown in reports")
    tasks: dict[str, TaskConfig] = Field(default_factory=dict, description="tasks by name")
    heldout: bool = Field(True, description="score held-out text as well, where there is a text")
    of_the_text: bool = Field(False, description="the tasks of the suite that the text names (data.suite) instead of tasks of its own")
    in_loop_items: int = Field(100, ge=1, description="items per task in evaluations during training (train.evaluate_every)")


class DecodingConfig(Section):
    """How the next token is chosen from a model's scores."""

    name: Literal["task", "greedy", "sampling", "dola"] = Field(
        "task", description="task: as each task defines; dola: contrast the last layer with an earlier one (arXiv 2309.03883), in scoring too"
    )
    temperature: float = Field(1.0, gt=0, description="sampling only: temperature")
    top_p: float = Field(1.0, gt=0, le=1, description="sampling only: smallest set of tokens with this probability together")
    top_k: int | None = Field(None, ge=1, description="sampling only: the so many likeliest tokens")
    layers: list[int] | None = Field(
        None, description="dola only: candidate layers, as 0-based layers of the base model; null: the even ones of one half"
    )
    half: Literal["shallow", "deep"] = Field("shallow", description="dola only: which half the candidates are from when layers is null")
    alpha: float = Field(0.1, gt=0, lt=1, description="dola only: tokens less likely than alpha times the likeliest are left out")
    divergence: Literal["jensen_shannon", "released"] = Field(
        "jensen_shannon", description="dola only: the textbook divergence, or the one that the released code computes"
    )


class AnalysisConfig(Section):
    """How the layers of a model are measured (analysis=layers)."""

    name: Literal["none", "layers"] = Field("none", description="layers: which layers matter, by the scores asked for")
    value: Literal["loss", "accuracy"] = Field("loss", description="what is lost without a layer: loss on the text, or accuracy on the suite")
    sources: list[str] = Field(default_factory=list, description="the sources of the text that are measured, each by itself; []: all")
    sample_tokens: int = Field(16_384, ge=1_000, description="held-out tokens per source, in whole documents; fewer where there are fewer")
    longest_window: int | None = Field(None, ge=1, description="window_removal only: layers in the longest window; null: all but one")
    shapley_window: int = Field(3, ge=1, description="shapley_window only: players (an attention, an MLP) in the longest window")
    players: Literal["layers", "halves"] = Field("halves", description="shapley only: whole layers, or attention and MLP apart")
    permutation_pairs: int = Field(8, ge=2, description="shapley only: random orders, each with its reverse")
    truncation: float = Field(0.25, gt=0, le=1, description="shapley only: an order ends when this share of the players is gone; 1: at the last one")
    outlier_multiple: float = Field(5.0, gt=0, description="outlier_distribution only: times the mean from which a weight stands out")
    outlier_lambda: float = Field(0.08, ge=0, lt=0.5, description="outlier_distribution only: how far a layer's sparsity may be from the mean")
    sparsity: float = Field(0.7, gt=0, lt=1, description="outlier_distribution only: mean sparsity of the allocation and its check")
    outlier_check: bool = Field(False, description="outlier_distribution only: the loss of a copy pruned that way, and evenly (five passes more)")
    probe_set: str = Field("sst2", description="probe only: an embedded set of sentences with two labels")
    probe_path: str | None = Field(None, description="probe only: your own sentences instead, .jsonl with text and label (0 or 1)")
    probe_items: int = Field(400, ge=1, description="probe only: sentences, drawn with the seed")
    mask_steps: int = Field(40, ge=1, description="learned_mask only: optimiser steps")
    streamed: bool | None = Field(None, description="read the model layer by layer from its folder; null: when it would not fit into memory")
    state_gib: float = Field(2.0, gt=0, description="memory for states between layers; with less, layers are read more often")
