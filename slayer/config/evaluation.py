"""One call of evaluate.py, complete."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slayer.config.launching import TrackerConfig
from slayer.config.scoring import AnalysisConfig, DecodingConfig, HeldoutConfig, SuiteConfig
from slayer.config.section import Section
from slayer.config.text import DataConfig


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
