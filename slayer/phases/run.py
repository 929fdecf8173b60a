"""What the phases of one run share, on one rank."""

from __future__ import annotations

import math
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

from slayer.config import RunConfig
from slayer.data.order.loader import Batch, Loader
from slayer.errors import CheckpointError, EngineError
from slayer.evaluation.scorer import HeldoutScorer, Nats
from slayer.models import load_tokenizer
from slayer.phases.text import OpenedText, open_text
from slayer.reporting.console import open_console
from slayer.reporting.progress import progress_bar
from slayer.results import Results
from slayer.surgery.plan import LayerPlan, load_plan
from slayer.surgery.weights import Weights
from slayer.training.ranks import Ranks
from slayer.training.signals import StopRequest

if TYPE_CHECKING:
    import torch

SAMPLE_TOKENS = 1024
"""Real training text for the proof, in whole rows."""

WORKING_SHARE = 1.3
"""Memory that scoring takes, activations and logits with it, over the weights."""

SHARED_SECONDS = 65.0
"""Longer than a network disk hides a new file: NFS asks anew what is in a folder after 60 seconds at the latest (acdirmax)."""


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

    def scoring_device(self, *folders: Path, beside_engine: bool = False) -> torch.device:
        """Where these models are loaded whole, by one process: this rank's device, or the CPU where they do not all fit there."""
        import torch

        device = self.ranks.device
        if device.type != "cuda":
            return device
        values = sum(math.prod(info.shape) for folder in folders for info in Weights(folder).infos.values())
        needed_bytes = WORKING_SHARE * values * {"bf16": 2, "fp32": 4}[self.config.engine.precision]
        free_bytes, total_bytes = torch.cuda.mem_get_info(device)
        # All of the device, unless an engine is there: what is scored on which must not depend on what was there before.
        return device if needed_bytes < (free_bytes if beside_engine else total_bytes) else torch.device("cpu")

    def score_folder(self, folder: Path, label: str) -> Nats:
        """Held-out nats of a model folder, from the cache where it was scored before."""
        with progress_bar("scoring", self.console) as on_progress:
            return self.scorer.score_folder(
                folder, label, precision=self.config.engine.precision, micro_batch_rows=self.micro_batch_rows,
                device=self.scoring_device(folder), on_progress=on_progress,
            )  # fmt: skip

    def read_prepared(self) -> None:
        """Every other rank: open what the first one left. CheckpointError where it cannot be seen from here."""
        if self.ranks.is_first:
            return
        wait_until_seen(self.folder / "plan.json")
        self.open_data()
        self.plan = load_plan(self.folder / "plan.json")
        self.results = Results(self.folder)

    def require_same(self) -> None:
        """EngineError, told by the first rank, unless all of them stand before the same plan and the same text. Collective."""
        found = self.ranks.gather((socket.gethostname(), self.plan.to_dict(), self.loader.fingerprint))
        _, plan, text = found[0]
        problem = None
        for rank, (host, its_plan, its_text) in enumerate(found):
            if its_plan != plan:
                problem = EngineError(
                    f"rank {rank} on {host} reads another {self.folder / 'plan.json'} than rank 0 wrote: runs_dir must be one folder that all hosts "
                    f"share; type runs_dir=DIR on such a disk"
                )
                break
            if its_text != text:
                problem = EngineError(
                    f"rank {rank} on {host} has made other text than rank 0 of the same configuration: the files that data names, or the "
                    "tokenizer of the model, differ there; copy them again, or let SLAYER_CACHE be one folder that all hosts share"
                )
                break
        self.ranks.agree_on(problem)


def wait_until_seen(path: Path, seconds: float = SHARED_SECONDS) -> None:
    """Return when a file that the first rank has written can be seen from here, too: network disks may take a while. CheckpointError."""
    until = time.monotonic() + seconds
    while not path.exists():
        if time.monotonic() > until:
            raise CheckpointError(
                f"{path.resolve()} is not there, {seconds:g} s after rank 0 has written it: runs_dir must be one folder that all hosts share; "
                "type runs_dir=DIR on such a disk, the same on every host"
            )
        time.sleep(min(0.2, seconds / 4))
