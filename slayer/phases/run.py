"""What the phases of one run share, on one rank."""

from __future__ import annotations

from pathlib import Path

from slayer.config import RunConfig
from slayer.data.order.loader import Batch, Loader
from slayer.evaluation.scorer import HeldoutScorer, Nats
from slayer.models import load_tokenizer
from slayer.phases.text import OpenedText, open_text
from slayer.reporting.console import open_console
from slayer.reporting.progress import progress_bar
from slayer.results import Results
from slayer.surgery.plan import LayerPlan, load_plan
from slayer.training.ranks import Ranks
from slayer.training.signals import StopRequest

SAMPLE_TOKENS = 1024
"""Real training text for the proof, in whole rows."""


class Run:
    """One run on one rank: its folders, text, plan and findings."""

    def __init__(self, config: RunConfig, base: Path, ranks: Ranks, stop: StopRequest) -> None:
        self.config, self.base, self.ranks, self.stop = config, base, ranks, stop
        self.folder, self.expanded, self.exported = config.folder, config.folder / "expanded", config.folder / "model"
        self.console = open_console()
        self.console.quiet = not ranks.is_first
        self.tokenizer = load_tokenizer(base)
        self.micro_batch_rows = config.engine.micro_batch_rows
        self.loader: Loader
        self.scorer: HeldoutScorer
        self.plan: LayerPlan
        self.results: Results
        self.text: OpenedText
        self.total_steps = 0

    def open_data(self) -> None:
        """Prepare (or open) the text; choose the held-out documents; count the steps."""
        self.text = open_text(self.config, self.tokenizer, self.console, lambda: self.stop.requested)
        self.loader, self.total_steps = self.text.loader, self.text.total_steps
        heldout = {name: self.text.prepared.heldout_documents(name, self.tokenizer) for name in self.config.data.sources}
        self.scorer = HeldoutScorer(heldout, self.tokenizer, self.config.heldout, self.config.data.sequence_length)

    @property
    def total_tokens(self) -> int:
        """Tokens of all steps, where every row is full."""
        return self.total_steps * self.config.train.batch_rows * self.config.data.sequence_length

    def sample_rows(self, tokens: int = SAMPLE_TOKENS, *, skip_tokens: int = 0) -> Batch:
        """The first rows that training would see (behind `skip_tokens` of them), domain and replay in their shares: what is measured must
        serve both. At least one row."""
        import torch

        row_tokens, batch_rows = self.config.data.sequence_length, self.config.train.batch_rows
        first, n_rows = -(-skip_tokens // row_tokens), max(tokens // row_tokens, 1)
        steps = range(first // batch_rows, -(-(first + n_rows) // batch_rows))
        batches, offset = [self.loader.batch(step) for step in steps], first % batch_rows
        fields = Batch.__dataclass_fields__
        return Batch(
            **{name: torch.cat([getattr(batch, name) for batch in batches])[offset : offset + n_rows].to(self.ranks.device) for name in fields}
        )

    def score_folder(self, folder: Path, label: str) -> Nats:
        """Held-out nats of a model folder, from the cache where it was scored before."""
        with progress_bar("scoring", self.console) as on_progress:
            return self.scorer.score_folder(
                folder, label, precision=self.config.engine.precision, micro_batch_rows=self.micro_batch_rows, device=self.ranks.device,
                on_progress=on_progress,
            )  # fmt: skip

    def read_prepared(self) -> None:
        """Every other rank: open what the first one left."""
        if not self.ranks.is_first:
            self.open_data()
            self.plan = load_plan(self.folder / "plan.json")
            self.results = Results(self.folder)
