"""What is trained on."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from slayer.config.section import Section


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
