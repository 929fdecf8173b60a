"""How a run trains, and what guards it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slayer.config.section import Section


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
