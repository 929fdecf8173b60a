"""How a step is laid out on GPUs: everything that decides memory and traffic besides the model itself."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """One way to make a step: DeepSpeed's stage, GPUs, rows of a micro-batch, and whether activations are recomputed."""

    zero_stage: int
    gpus: int
    precision: str
    micro_batch_rows: int
    accumulation: int
    sequence_length: int
    activation_checkpointing: bool = False

    @property
    def value_bytes(self) -> int:
        """Bytes of a weight, a gradient or an activation in the compute type."""
        return {"bf16": 2, "fp32": 4}[self.precision]

    @property
    def micro_batch_tokens(self) -> int:
        """Tokens in one forward pass of one GPU."""
        return self.micro_batch_rows * self.sequence_length
