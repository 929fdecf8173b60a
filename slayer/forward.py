"""The one way this project runs a causal language model over packed rows.

Shape suffixes: B rows of a batch, L tokens of a row, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slayer.errors import ModelError

if TYPE_CHECKING:
    import torch
    from torch import Tensor


class PackedRows(Protocol):
    """Rows that hold several documents each; all members are int64 tensors of shape [B, L]."""

    @property
    def input_ids_BL(self) -> Tensor:
        """Token ids."""

    @property
    def labels_BL(self) -> Tensor:
        """The token that follows each position within its document; −100 where there is none. Already shifted."""

    @property
    def positions_BL(self) -> Tensor:
        """Position within the document, from 0."""

    @property
    def documents_BL(self) -> Tensor:
        """Number of the document within the row."""


DTYPES = {"bf16": "bfloat16", "fp32": "float32"}


def load_model(folder: Path, precision: str = "bf16", device: str | torch.device = "cpu") -> Any:
    """A transformers causal LM from a folder's safetensors, in evaluation mode. `precision` is bf16 or fp32.

    ModelError when transformers knows no such architecture.
    """
    import torch
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    logging.disable_progress_bar()
    dtype = getattr(torch, DTYPES[precision])
    for attention in ("sdpa", "eager"):  # some architectures have no sdpa
        try:
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype, attn_implementation=attention, use_safetensors=True, local_files_only=True, trust_remote_code=False
            )
            return model.to(device).eval()
        except ValueError as error:
            why = str(error).splitlines()[0]
    raise ModelError(f"{folder} cannot be loaded as a language model: {why}")


def hollow_model(folder: Path, precision: str, *, own_head: bool) -> Any:
    """The same model without its weights: every parameter is on the meta device; what is computed and not stored (rotary tables) is there.

    `own_head`: the files hold a head, which is then no other name of the embeddings, whatever the folder's configuration says.
    """
    import torch
    from accelerate import init_empty_weights
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    with init_empty_weights(include_buffers=False):
        model = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, DTYPES[precision]), attn_implementation="sdpa", trust_remote_code=False)
    if not own_head:
        model.tie_weights()  # each parameter that is put aside becomes one of its own
    return model.eval()


def attention_masks(documents_BL: Tensor, config: Any) -> Any:
    """Boolean masks [B, 1, L, L], True where a query (row) may look at a key (column): same document, not later.

    Models with sliding windows get the window cut in as well; those that mix both kinds of layers get one mask per kind,
    in the form their own forward pass uses.
    """
    import torch

    length = documents_BL.shape[1]
    index_L = torch.arange(length, device=documents_BL.device)
    distance_LL = index_L[:, None] - index_L[None, :]
    full = ((documents_BL[:, :, None] == documents_BL[:, None, :]) & (distance_LL >= 0)).unsqueeze(1)
    window = getattr(config, "sliding_window", None)
    if window is None or (length <= window and not getattr(config, "layer_types", None)):
        return full
    sliding = full & (distance_LL < window)
    kinds = getattr(config, "layer_types", None)
    if kinds is None:  # Mistral: every layer slides
        return sliding
    return {"full_attention": full, "sliding_attention": sliding}


def logits_of(model: Any, rows: PackedRows, config: Any = None) -> Tensor:
    """Logits [B, L, V] in the model's dtype. `config` is needed when `model` is an engine around the model."""
    config = config if config is not None else model.config
    masks = attention_masks(rows.documents_BL, config)
    if getattr(config, "_attn_implementation", "sdpa") == "eager":  # which adds a mask to its scores
        masks = {kind: _additive(mask) for kind, mask in masks.items()} if isinstance(masks, dict) else _additive(masks)
    return model(input_ids=rows.input_ids_BL, attention_mask=masks, position_ids=rows.positions_BL, use_cache=False).logits  # type: ignore[no-any-return]


def _additive(mask: Tensor) -> Tensor:
    import torch

    return torch.zeros(mask.shape, device=mask.device).masked_fill_(~mask, -torch.inf)


def require_packing(model: Any) -> None:
    """ModelError unless a document scores the same behind another one in a row as it does alone. For architectures that nobody here has looked at."""
    import torch

    generator = torch.Generator().manual_seed(0)
    ids_L = torch.randint(min(model.config.get_text_config().vocab_size, 1000), (12,), generator=generator).to(model.device)
    alone = _row(ids_L[5:], torch.zeros(7, dtype=torch.int64), torch.arange(7))
    behind = _row(ids_L, torch.tensor([0] * 5 + [1] * 7), torch.cat([torch.arange(5), torch.arange(7)]))
    try:
        with torch.inference_mode():
            expected, found = logits_of(model, alone)[0], logits_of(model, behind)[0, 5:]
            same = torch.allclose(found.float(), expected.float(), rtol=0.05, atol=0.05)
    except (TypeError, ValueError, KeyError, IndexError, AttributeError, RuntimeError):
        same = False
    if not same:
        raise ModelError(
            f"{model.config.model_type} models cannot be scored over packed rows, so not on held-out text; type suite=quick suite.heldout=false"
        )


@dataclass(frozen=True, slots=True)
class _Row:
    input_ids_BL: Tensor
    labels_BL: Tensor
    positions_BL: Tensor
    documents_BL: Tensor


def _row(ids_L: Tensor, documents_L: Tensor, positions_L: Tensor) -> _Row:
    """One row that nobody asks for labels."""
    return _Row(ids_L[None], ids_L[None], positions_L[None].to(ids_L.device), documents_L[None].to(ids_L.device))


def nll_BL(logits_BLV: Tensor, labels_BL: Tensor) -> Tensor:
    """Negative log-likelihood in nats [B, L], computed in fp32; 0 where the label is −100."""
    import torch.nn.functional as F

    flat = F.cross_entropy(logits_BLV.float().flatten(0, 1), labels_BL.flatten(), ignore_index=-100, reduction="none")
    return flat.view(labels_BL.shape)


def mean_loss(model: Any, rows: PackedRows, micro_batch_rows: int = 4) -> float:
    """Mean nats per token of a model on packed rows."""
    import torch

    total, count = 0.0, 0
    with torch.inference_mode():
        for part in split_rows(rows, micro_batch_rows):
            total += float(nll_BL(logits_of(model, part), part.labels_BL).double().sum())
            count += int((part.labels_BL != -100).sum())
    return total / max(count, 1)


class RowSlice:
    """Rows start to stop of a batch."""

    def __init__(self, rows: PackedRows, start: int, stop: int) -> None:
        self.input_ids_BL = rows.input_ids_BL[start:stop]
        self.labels_BL = rows.labels_BL[start:stop]
        self.positions_BL = rows.positions_BL[start:stop]
        self.documents_BL = rows.documents_BL[start:stop]


def split_rows(rows: PackedRows, micro_batch_rows: int) -> list[RowSlice]:
    """Slices of at most `micro_batch_rows` rows."""
    return [RowSlice(rows, start, start + micro_batch_rows) for start in range(0, rows.input_ids_BL.shape[0], micro_batch_rows)]
