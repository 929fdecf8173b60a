"""The one typed schema of a run. Hydra composes it once; every rank and every resume reads the frozen result.

Each field carries one line of help: `train.py --help` and docs/configuration.md are generated from them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from omegaconf import OmegaConf
from pydantic import BaseModel, ConfigDict, Field
from yaml import YAMLError

from slayer.errors import CheckpointError


class Section(BaseModel):
    """A frozen group of keys; unknown keys and wrong types are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class RandomModelConfig(Section):
    """Shape of a randomly initialised model (tests and dry trials)."""

    architecture: Literal["llama", "mistral", "qwen2", "qwen3"] = Field("llama", description="which family to build")
    layers: int = Field(4, ge=1, description="decoder layers")
    hidden_size: int = Field(64, ge=8, description="width of the residual stream")
    heads: int = Field(4, ge=1, description="attention heads; must divide hidden_size")
    tied_embeddings: bool = Field(True, description="share the input embedding with the output head")
    seed: int = Field(0, description="seed of the random weights")


class ModelConfig(Section):
    """Where the base model comes from; the first of path, hub, asset, random that is set is used."""

    name: str = Field(description="short name, shown in reports")
    path: str | None = Field(None, description="a Hugging Face folder with safetensors weights")
    hub: str | None = Field(None, description="a repository on the Hugging Face hub")
    revision: str | None = Field(None, description="commit or tag of the hub repository")
    asset: str | None = Field(None, description="an embedded model, fetched by `python -m slayer.data.assets fetch`")
    random: RandomModelConfig | None = Field(None, description="a random model of this shape")


Strategy = Literal[
    "none", "shallow_half", "even", "deep_half", "prefix_stack", "suffix_stack", "solar", "explicit", "least_important", "most_important"
]  # fmt: skip
PlanScore = Literal[
    "removal", "block_influence", "relative_magnitude", "norm", "angular_distance", "outlier_distribution", "weight_snr", "taylor", "expansion_probe",
    "window_removal", "shapley_window", "shapley",
]  # fmt: skip
"""Scores that can order the layers of a base before it is trained."""
Init = Literal["average", "copy", "slerp", "random"]


class ExpansionConfig(Section):
    """Which new blocks are inserted, where, and how they start."""

    strategy: Strategy = Field(description="the placement rule")
    after: list[int] | None = Field(None, description="explicit only: 0-based base layers that get a new block behind them")
    every: int | None = Field(None, ge=1, description="stride of shallow_half, deep_half and even, in base layers")
    count: int | None = Field(None, ge=1, description="number of new blocks (the halves take the outermost ones)")
    init: Init = Field("average", description="how a new block's weights are made from its neighbours")
    zero_outputs: bool = Field(True, description="zero o_proj and down_proj, so a new block starts as an exact identity")
    score: PlanScore | None = Field(None, description="least_important and most_important only: what orders the layers; null: removal")


class FreezeStageConfig(Section):
    """A stage of freeze=staged: what trains until a number of tokens is reached."""

    until_tokens: int | None = Field(None, ge=1, description="the stage ends once so many tokens are trained; null: the last one")
    parts: dict[str, float] = Field(
        description="what trains, each with a factor of the learning rate: new, tail, norms, originals[a:b] (base layers), head, embeddings"
    )


class FreezeConfig(Section):
    """What trains."""

    schedule: Literal["originals", "none", "existing_layers", "staged"] = Field(
        description="originals: only new blocks and a trained tail; none: everything; existing_layers: train_layers only; staged: stages"
    )
    train_layers: list[int] = Field(default_factory=list, description="existing_layers only: 0-based base layers that train")
    stages: list[FreezeStageConfig] = Field(
        default_factory=list, description="staged only: like [{until_tokens:1000000,parts:{new:1}},{parts:{new:1,norms:0.5}}]"
    )
    warmup_steps: int = Field(10, ge=0, description="staged only: steps over which the learning rate of what newly trains rises")


class SourceConfig(Section):
    """One source of text: a built-in text, files, or a dataset of the hub."""

    role: Literal["domain", "replay"] = Field(description="domain: what is to be learnt; replay: what must not be forgotten")
    builtin: str | None = Field(None, description="an embedded corpus by name")
    path: str | None = Field(
        None,
        description="a file, folder or glob: .txt .md (one document a file), .jsonl .csv (also .gz, .zst), .parquet, .arrow, a `datasets` folder",
    )
    hub: str | None = Field(None, description="a dataset of the Hugging Face hub, by name")
    revision: str | None = Field(None, description="hub only, and required there: the commit that is read")
    subset: str | None = Field(None, description="hub only: which configuration of the dataset")
    split: str = Field("train", description="hub and `datasets` folders: which split")
    stream: bool = Field(
        False, description="read in order while training instead of indexing first: any size, but no global shuffle, no duplicates found"
    )
    text_field: str = Field("text", description="field that holds the text (every format but plain text)")
    template: str | None = Field(None, description="text made of several fields, like '{title}\\n\\n{body}' (\\n is a new line); replaces text_field")
    weight: float = Field(1.0, gt=0, description="share of trained tokens relative to the other sources of the same role")
    max_epochs: float | None = Field(None, gt=0, description="a run that would read this source more often than this is refused; null: no cap")
    heldout_share: float = Field(0.05, gt=0, lt=1, description="share of documents held out, chosen by a hash that never moves")


class CleaningConfig(Section):
    """What is left out of the text, and when bad records stop a run."""

    max_bad_share: float = Field(0.01, ge=0, le=1, description="share of unreadable records per source above which a run stops")
    max_record_bytes: int = Field(
        8 << 20, ge=1_000, description="longer records are put aside as unreadable (text files are cut at blank lines instead)"
    )
    min_characters: int = Field(10, ge=0, description="shorter documents are removed")
    max_control_share: float = Field(0.02, ge=0, le=1, description="documents with a larger share of control and replacement characters are removed")
    min_compressed_share: float = Field(
        0.08, ge=0, le=1, description="documents of 1,000 bytes and more that zlib shrinks below this share are removed: they repeat themselves"
    )
    exact_duplicates: bool = Field(True, description="remove documents whose text came before, in any source")
    near_duplicates: float | None = Field(
        0.8, gt=0, le=1, description="remove documents this similar (Jaccard, word 5-grams) to one before; null: keep"
    )
    decontaminate: list[str] = Field(
        default_factory=lambda: ["all"], description="benchmarks whose questions are removed from the text, by name, or all; []: none"
    )
    max_overlap: float = Field(0.5, gt=0, le=1, description="documents that hold this share of a question's word 8-grams are removed")


class StageConfig(Section):
    """A later part of the run with another mixture."""

    from_tokens: int = Field(ge=1, description="the stage begins at the first step from which so many tokens are trained")
    replay: float | None = Field(None, ge=0, lt=1, description="share of replay in this stage; null: as before")
    weights: dict[str, float] = Field(default_factory=dict, description="weights of sources in this stage by name (0: not served); others as before")


class DataConfig(Section):
    """The mixture of texts and how it is cut into rows."""

    name: str = Field(description="short name, shown in reports")
    suite: str | None = Field(None, description="the suite of conf/suite that asks about this domain (suite=domain)")
    path: str | None = Field(None, description="data=local only: your text (file, folder or glob)")
    sources: dict[str, SourceConfig] = Field(description="sources by name")
    replay: float = Field(0.25, ge=0, lt=1, description="share of all trained tokens that comes from replay sources")
    stages: list[StageConfig] = Field(
        default_factory=list, description="later mixtures, like [{from_tokens:1000000,replay:0.1,weights:{best:3}}] to anneal on the best text last"
    )
    warn_epochs: float = Field(4.0, gt=0, description="a source that is read more often is warned about (arXiv 2305.16264: up to 4 cost little)")
    sequence_length: int = Field(512, ge=8, description="tokens in a row")
    packing: Literal["best_fit", "concat", "pad"] = Field(
        "best_fit", description="best_fit: no needless cut; concat: cut wherever a row ends; pad: one document a row"
    )
    cleaning: CleaningConfig = Field(default_factory=CleaningConfig)
    processes: int | None = Field(None, ge=1, description="processes that read, clean and tokenise; null: one per core")


class EngineConfig(Section):
    """How DeepSpeed runs."""

    zero_stage: int = Field(ge=0, le=3, description="ZeRO stage: what is partitioned among ranks")
    precision: Literal["bf16", "fp32"] = Field("bf16", description="compute precision; bf16 keeps fp32 masters of trained tensors")
    micro_batch_rows: int = Field(4, ge=1, description="rows in one forward pass of one rank")
    accumulation: int | None = Field(None, ge=1, description="forward passes per step; null: what train.batch_rows asks for")
    activation_checkpointing: bool = Field(False, description="recompute activations in the backward pass to save memory")
    peak_teraflops: float | None = Field(None, gt=0, description="peak of one device for mfu; null: known GPUs by name, none on a CPU")


class TrainConfig(Section):
    """Length, batch, optimiser and cadence."""

    max_steps: int | None = Field(None, ge=0, description="stop after so many steps; 0 builds, proves and exports only")
    max_tokens: int | None = Field(None, ge=1, description="stop after so many tokens (the smaller of the two stops the run)")
    batch_rows: int = Field(4, ge=1, description="rows in one step over all ranks")
    learning_rate: float = Field(1e-3, gt=0, description="peak learning rate")
    schedule: Literal["cosine", "constant", "wsd"] = Field("cosine", description="course of the learning rate after warm-up")
    warmup_share: float = Field(0.06, ge=0, lt=1, description="share of the steps spent warming up linearly")
    decay_share: float = Field(0.2, gt=0, le=1, description="wsd only: share of the steps spent decaying at the end")
    final_lr_share: float = Field(0.1, ge=0, le=1, description="learning rate at the end as a share of the peak")
    weight_decay: float = Field(0.1, ge=0, description="AdamW weight decay of trained matrices (never of norms or frozen tensors)")
    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW beta 1")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW beta 2")
    clip_norm: float = Field(1.0, gt=0, description="gradients are clipped to this global L2 norm")
    log_every: int = Field(1, ge=1, description="steps between log lines")
    save_every: int = Field(100, ge=1, description="steps between checkpoints")
    keep_checkpoints: int = Field(2, ge=1, description="newest checkpoints kept")
    keep_every: int | None = Field(None, ge=1, description="checkpoints of every so many steps are kept for good; null: only the newest")
    max_failed_saves: int = Field(5, ge=1, description="saves that may fail one after the other (disk full, read-only) before the run stops")
    evaluate_every: int | None = Field(None, ge=1, description="steps between held-out evaluations; null: only before and after")


class GuardConfig(Section):
    """What keeps a bad batch from the weights."""

    sigma: float | None = Field(6.0, gt=0, description="a step with loss or gradient norm so many deviations above the mean is skipped; null: none")
    window_steps: int = Field(
        128, ge=8, description="steps that mean and deviation are of (below 64 noise looks like spikes); judged once half are there"
    )
    patience: int = Field(3, ge=1, description="steps skipped one after the other before the run goes back to its last good checkpoint")
    max_rewinds: int = Field(3, ge=0, description="returns to a checkpoint, each past the bad data, before the run stops")


class WatchdogConfig(Section):
    """When a rank counts as hung."""

    seconds: float = Field(60.0, ge=0, description="longest time without progress of any rank once steps are made; 0: no watch")


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


class TrackerConfig(Section):
    """Where metrics go besides metrics.jsonl."""

    name: Literal["jsonl", "wandb", "tensorboard", "trackio"] = Field("jsonl", description="jsonl is always written")
    project: str = Field("slayer", description="project name at the tracker")


class LauncherConfig(Section):
    """Where a run runs."""

    name: Literal["local"] = Field("local", description="this machine")
    processes: int = Field(1, ge=1, description="ranks on this machine")
    port: int = Field(0, ge=0, le=65535, description="rendezvous port of the ranks; 0: any free one")
    restarts: int = Field(0, ge=0, description="times a run that was killed or hung is started again without having made a step in between")


class RunConfig(Section):
    """One run, complete."""

    seed: int = Field(0, ge=0, lt=2**63, description="seed of data order and random initialisation")
    run: str = Field(description="name of the run folder; default: made from the overrides")
    runs_dir: str = Field("runs", description="folder of run folders")
    dry_run: bool = Field(False, description="stop after the plan")
    objective: Literal["domain_bits_per_byte", "replay_bits_per_byte", "mean_bits_per_byte"] = Field(
        "domain_bits_per_byte", description="the held-out score returned to a sweeper (lower is better)"
    )
    model: ModelConfig
    expansion: ExpansionConfig
    prune: int = Field(0, ge=0, description="number of base layers removed")
    prune_by: Literal["last", "last_but_final", "explicit", PlanScore] = Field(
        "last", description="which layers are removed: by place, or those that matter least by a score"
    )
    prune_layers: list[int] = Field(default_factory=list, description="prune_by=explicit only: the 0-based base layers to remove")
    score_tokens: int = Field(4_096, ge=1_000, description="tokens of training text that score layers (prune_by, expansion.score)")
    tail: Literal["auto", "average", "train", "frozen"] = Field(
        "auto", description="the block that is last after pruning; auto: average when prune_by=last removes layers, else frozen"
    )
    freeze: FreezeConfig
    warm_start: str | None = Field(
        None, description="another run's folder: its result, made by the same plan, is where the trained weights of this run start"
    )
    data: DataConfig
    engine: EngineConfig
    train: TrainConfig
    guard: GuardConfig = Field(default_factory=GuardConfig)
    watchdog: WatchdogConfig = Field(default_factory=WatchdogConfig)
    heldout: HeldoutConfig = Field(default_factory=HeldoutConfig)
    suite: SuiteConfig = Field(default_factory=lambda: SuiteConfig(name="heldout"))
    tracker: TrackerConfig = Field(default_factory=TrackerConfig)
    launcher: LauncherConfig = Field(default_factory=LauncherConfig)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return Path(self.runs_dir) / self.run


class EvaluationConfig(Section):
    """One call of evaluate.py."""

    checkpoint: str | None = Field(None, description="what is scored: a run folder, a Hugging Face folder, or a name from conf/model")
    base: str | None = Field(None, description="what it is compared with, likewise; a run knows its own base")
    runs: list[str] = Field(default_factory=list, description="several models instead of one checkpoint: runs, folders, names, or a sweep folder")
    sequence: bool = Field(False, description="the runs were trained one after the other, each from the one before: OP, BWT and FG")
    factors: list[str] = Field(
        default_factory=list, description="keys whose effect is tested over the runs; default: those that differ, but the seed"
    )
    suite: SuiteConfig = Field(default_factory=lambda: SuiteConfig(name="heldout"))
    tasks: list[str] = Field(default_factory=list, description="lm-eval tasks, groups or tags instead of the suite's")
    num_fewshot: int | None = Field(None, ge=0, description="examples in the prompt, for every task; null: as suite or task define")
    limit: int | None = Field(None, ge=1, description="items scored per task, drawn with the seed; null: as the suite says, else all")
    seed: int = Field(0, ge=0, lt=2**63, description="seed of sub-samples and intervals")
    include_path: str | None = Field(None, description="a folder of lm-eval task files of your own")
    questions: Literal["auto", "hub", "local"] = Field(
        "auto", description="where questions come from; auto: the hub if it can be reached, else the embedded sets"
    )
    apply_chat_template: bool = Field(False, description="put prompts into the tokenizer's chat template")
    decoding: DecodingConfig = Field(default_factory=DecodingConfig)
    confirm_run_unsafe_code: bool = Field(False, description="run code that the model wrote (HumanEval, MBPP), in a sandbox")
    backend: Literal["shared_prefix", "harness"] = Field(
        "shared_prefix", description="shared_prefix: shared beginnings are computed once; harness: lm-eval's own Hugging Face backend"
    )
    batch_tokens: int | None = Field(None, ge=64, description="tokens in one forward pass of a benchmark; null: chosen for the device")
    shift_tokens: int = Field(2_000, ge=0, description="held-out tokens per source for KL and rank shift against the base; 0: none")
    output: str | None = Field(None, description="folder for results.json and report; default: the run folder, or runs/evaluations/NAME")
    precision: Literal["bf16", "fp32"] | None = Field(None, description="compute precision; null: the run's own, else bf16")
    micro_batch_rows: int | None = Field(None, ge=1, description="rows in one forward pass of held-out text; null: the run's own, else 4")
    heldout: HeldoutConfig | None = Field(None, description="what is scored; null: the run's own choice, so its numbers come again")
    data: DataConfig | None = Field(None, description="text to score on; default: the run's own")
    analysis: AnalysisConfig = Field(default_factory=AnalysisConfig)
    scores: list[str] = Field(default_factory=list, description="analysis=layers: the scores, by name, or all; []: those of one forward pass")
    tracker: TrackerConfig = Field(default_factory=TrackerConfig)


NOT_PART_OF_A_RUN: dict[str, Any] = {
    "dry_run": True, "runs_dir": True, "launcher": True, "tracker": True, "watchdog": True, "data": {"processes": True, "suite": True},
    "engine": {"zero_stage": True, "micro_batch_rows": True, "accumulation": True, "activation_checkpointing": True, "peak_teraflops": True},
    "train": {"keep_checkpoints": True, "keep_every": True, "max_failed_saves": True}, "guard": True,
}  # fmt: skip
"""Keys that may differ between two starts of the same run: they do not change what is computed (of the guard: but for what it skips, where
a person decides that a run which it has stopped is to go on)."""


def save_config(config: RunConfig, path: Path) -> None:
    """Write the resolved configuration as YAML; `load_config` gives an equal object back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    OmegaConf.save(OmegaConf.create(config.model_dump()), temporary)
    temporary.replace(path)


def load_config(path: Path) -> RunConfig:
    """Read a configuration that `save_config` wrote; CheckpointError when it is not one."""
    try:
        return RunConfig.model_validate(OmegaConf.to_container(OmegaConf.load(path)))
    except (OSError, ValueError, YAMLError) as error:  # pydantic's ValidationError is a ValueError
        raise CheckpointError(f"{path} is not a configuration of this version; start a new run with run=NAME") from error


def config_differences(saved: RunConfig, asked: RunConfig) -> list[tuple[str, object, object]]:
    """(key, saved value, asked value) of every difference that would change what a run computes."""

    def flatten(value: object, other: object, prefix: str) -> list[tuple[str, object, object]]:
        if isinstance(value, dict) and isinstance(other, dict):
            keys = sorted({*value, *other})
            return [found for key in keys for found in flatten(value.get(key), other.get(key), f"{prefix}.{key}" if prefix else str(key))]
        return [(prefix, value, other)] if value != other else []

    return flatten(saved.model_dump(exclude=NOT_PART_OF_A_RUN), asked.model_dump(exclude=NOT_PART_OF_A_RUN), "")
