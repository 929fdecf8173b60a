"""A decoder-only model taken apart: what goes in, one layer at a time in its two halves, what comes out.

Everything that measures layers goes through here, so that a model in memory and one that is read layer by layer from its folder
(larger than memory) are measured by the same code. Run whole, it gives the very bits of transformers' own forward pass.

Shape suffixes: B rows of a batch, L tokens of a row, D width of the residual stream, N positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from slayer.forward import PackedRows, attention_masks, load_model
from slayer.surgery.families import LAYER_PREFIX, read_model_config
from slayer.surgery.weights import Weights

if TYPE_CHECKING:
    import torch
    from torch import Tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Some rows as every layer is given them. `masks` is one mask [B, 1, L, L], or one per kind of attention; True (or 0) where a key may be seen."""

    input_ids_BL: Tensor
    positions_BL: Tensor
    masks: Any
    rotation: tuple[Tensor, Tensor]
    """Cosine and sine of the rotary embedding, [B, L, head width] each."""

    @property
    def n_tokens(self) -> int:
        """Positions, padding included."""
        return self.input_ids_BL.numel()

    def repeated(self, times: int) -> Part:
        """The same rows `times` times, one batch of B · times rows."""
        if times == 1:
            return self

        def again(tensor: Tensor) -> Tensor:
            return tensor.repeat(times, *[1] * (tensor.dim() - 1))

        masks = {kind: again(mask) for kind, mask in self.masks.items()} if isinstance(self.masks, dict) else again(self.masks)
        return Part(
            input_ids_BL=again(self.input_ids_BL), positions_BL=again(self.positions_BL), masks=masks,
            rotation=(again(self.rotation[0]), again(self.rotation[1])),
        )  # fmt: skip


class Layer:
    """One decoder layer: h ← h + attention(h); h ← h + mlp(h)."""

    def __init__(self, module: Any, kind: str | None) -> None:
        """`module` is transformers' decoder layer; `kind` its attention where a model has several."""
        self.module, self._kind = module, kind

    def attention(self, hidden_BLD: Tensor, part: Part) -> Tensor:
        """What attention adds to the residual stream, [B, L, D]."""
        mask = part.masks[self._kind] if isinstance(part.masks, dict) else part.masks
        added, _ = self.module.self_attn(
            hidden_states=self.module.input_layernorm(hidden_BLD), attention_mask=mask, position_ids=part.positions_BL,
            position_embeddings=part.rotation, past_key_values=None,
        )  # fmt: skip
        return added  # type: ignore[no-any-return]

    def mlp(self, hidden_BLD: Tensor) -> Tensor:
        """What the MLP adds to the residual stream, [B, L, D]."""
        return self.module.mlp(self.module.post_attention_layernorm(hidden_BLD))  # type: ignore[no-any-return]

    def whole(self, hidden_BLD: Tensor, part: Part) -> Tensor:
        """The state that leaves the layer, [B, L, D]."""
        hidden_BLD = hidden_BLD + self.attention(hidden_BLD, part)
        return hidden_BLD + self.mlp(hidden_BLD)


class Decoder(Protocol):
    """What a measurement asks of a model. Call under torch.inference_mode()."""

    n_layers: int
    config: Any
    device: torch.device
    dtype: torch.dtype
    shell: Any
    """The transformers model; streamed, its weights are on the meta device."""
    streamed: bool
    """Layers are read from the folder each time they are asked for: ask for each once, for everything."""

    def part(self, rows: PackedRows) -> Part:
        """Rows made ready, on the model's device."""

    def tree_part(self, input_ids_BL: Tensor, positions_BL: Tensor, masks: Any) -> Part:
        """The same from ids, positions and masks of one's own."""

    def embed(self, part: Part) -> Tensor:
        """Input of the first layer, [B, L, D]."""

    def layer(self, index: int) -> Any:
        """Context manager: the layer, usable inside the block."""

    def normed(self, hidden: Tensor) -> Tensor:
        """Final norm, [..., D]."""

    def head(self, normed: Tensor) -> Tensor:
        """Logits [..., V] of normed states."""


class LoadedDecoder:
    """A model in memory."""

    streamed = False

    def __init__(self, model: Any) -> None:
        """`model` is a transformers causal LM of a supported family."""
        self.model = self.shell = model
        self.config = model.config
        self.n_layers, self.device, self.dtype = len(model.model.layers), model.device, model.dtype

    def part(self, rows: PackedRows) -> Part:
        """Rows made ready, on the model's device."""
        masks = attention_masks(rows.documents_BL.to(self.device), self.config)
        return self.tree_part(rows.input_ids_BL, rows.positions_BL, masks)

    def tree_part(self, input_ids_BL: Tensor, positions_BL: Tensor, masks: Any) -> Part:
        """The same from ids, positions and masks of one's own."""
        return _part(self, self.model.model.rotary_emb, input_ids_BL, positions_BL, masks)

    def embed(self, part: Part) -> Tensor:
        """Input of the first layer, [B, L, D]."""
        return self.model.model.embed_tokens(part.input_ids_BL)  # type: ignore[no-any-return]

    @contextmanager
    def layer(self, index: int) -> Iterator[Layer]:
        """The layer, usable inside the block."""
        yield Layer(self.model.model.layers[index], _kind(self.config, index))

    def normed(self, hidden: Tensor) -> Tensor:
        """Final norm, [..., D]."""
        return self.model.model.norm(hidden)  # type: ignore[no-any-return]

    def head(self, normed: Tensor) -> Tensor:
        """Logits [..., V] of normed states."""
        return self.model.lm_head(normed)  # type: ignore[no-any-return]


class StreamedDecoder:
    """A model whose layers are read from its safetensors files one at a time, so that it may be larger than memory.

    Where the stored type is the asked one and the device is the CPU, weights are used where the file is mapped: they take no memory that
    could not be given back. Otherwise one layer, and the head, are held in the asked type.
    """

    streamed = True

    def __init__(self, folder: Path, precision: str, device: str | torch.device = "cpu") -> None:
        import torch
        from transformers import AutoConfig, AutoModelForCausalLM

        read_model_config(folder)
        self.config = AutoConfig.from_pretrained(folder, local_files_only=True)
        self.device, self.dtype = torch.device(device), {"bf16": torch.bfloat16, "fp32": torch.float32}[precision]
        with torch.device("meta"):
            shell = AutoModelForCausalLM.from_config(self.config, dtype=self.dtype, attn_implementation="sdpa")
        self.config = shell.config
        self.n_layers = self.config.num_hidden_layers
        self._weights = Weights(folder)
        self._layer_class, rotary = type(shell.model.layers[0]), type(shell.model.rotary_emb)
        self._rotary = rotary(self.config).to(self.device)  # what it holds is computed, not stored
        self._norm = self._filled(shell.model.norm, "model.norm.")
        self._embedding = self._weights["model.embed_tokens.weight"]
        self._tied = "lm_head.weight" not in self._weights.infos
        self._head: Tensor | None = None
        self.shell = shell

    def part(self, rows: PackedRows) -> Part:
        """Rows made ready, on the model's device."""
        masks = attention_masks(rows.documents_BL.to(self.device), self.config)
        return self.tree_part(rows.input_ids_BL, rows.positions_BL, masks)

    def tree_part(self, input_ids_BL: Tensor, positions_BL: Tensor, masks: Any) -> Part:
        """The same from ids, positions and masks of one's own."""
        return _part(self, self._rotary, input_ids_BL, positions_BL, masks)

    def embed(self, part: Part) -> Tensor:
        """Input of the first layer, [B, L, D]: only the rows of these tokens are read."""
        return self._embedding[part.input_ids_BL.cpu()].to(self.device, self.dtype)

    @contextmanager
    def layer(self, index: int) -> Iterator[Layer]:
        """The layer, read now and let go at the end of the block."""
        import torch

        with torch.device("meta"):
            module = self._layer_class(self.config, index)
        yield Layer(self._filled(module, f"{LAYER_PREFIX}{index}."), _kind(self.config, index))

    def normed(self, hidden: Tensor) -> Tensor:
        """Final norm, [..., D]."""
        return self._norm(hidden)  # type: ignore[no-any-return]

    def head(self, normed: Tensor) -> Tensor:
        """Logits [..., V] of normed states."""
        from torch.nn import functional as F

        if self._head is None:
            self._head = self._weights["model.embed_tokens.weight" if self._tied else "lm_head.weight"].to(self.device, self.dtype)
        return F.linear(normed, self._head)

    def _filled(self, module: Any, prefix: str) -> Any:
        state = {name: self._weights[prefix + name].to(self.device, self.dtype) for name in module.state_dict()}
        module.load_state_dict(state, assign=True)
        return module.requires_grad_(False).eval()


def open_decoder(folder: Path, precision: str, device: str | torch.device = "cpu", *, streamed: bool = False) -> Decoder:
    """The model of a folder, in memory or read layer by layer. ModelError when it is of no supported family."""
    if streamed:
        return StreamedDecoder(folder, precision, device)
    read_model_config(folder)
    return LoadedDecoder(load_model(folder, precision, device))


def _part(decoder: Decoder, rotary: Any, input_ids_BL: Tensor, positions_BL: Tensor, masks: Any) -> Part:
    import torch

    input_ids_BL, positions_BL = input_ids_BL.to(decoder.device), positions_BL.to(decoder.device)
    like = torch.empty(0, dtype=decoder.dtype, device=decoder.device)
    return Part(input_ids_BL=input_ids_BL, positions_BL=positions_BL, masks=masks, rotation=rotary(like, positions_BL))


def _kind(config: Any, index: int) -> str | None:
    kinds = getattr(config, "layer_types", None)
    return kinds[index] if kinds else None
