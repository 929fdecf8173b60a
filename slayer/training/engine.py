"""The DeepSpeed engine: the only module that knows DeepSpeed, its stages and its ways of holding masters and moments."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, Protocol

from slayer.config import RunConfig
from slayer.forward import PackedRows, logits_of, nll_BL
from slayer.training.optim import parameter_groups
from slayer.training.ranks import Ranks

if TYPE_CHECKING:
    import torch

MOMENTS = ("exp_avg", "exp_avg_sq")


class TensorsByName(Protocol):
    """Anything that gives a tensor for a name."""

    def __getitem__(self, name: str, /) -> torch.Tensor: ...


class TrainingEngine:
    """A model whose named tensors train, under ZeRO stage 0–3 in bf16 (fp32 masters) or fp32."""

    def __init__(self, model: Any, trainable: list[str], config: RunConfig, ranks: Ranks) -> None:
        import torch

        deepspeed = _deepspeed()
        self.ranks, self.stage = ranks, config.engine.zero_stage
        self.accumulation = config.train.batch_rows // (config.engine.micro_batch_rows * ranks.world)
        self.model_config = model.config
        chosen = set(trainable)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        if config.engine.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        self.trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        groups = parameter_groups((parameter for parameter in model.parameters() if parameter.requires_grad), config.train.weight_decay)
        # Rate and decay are set before each step; a rate of 0 until then keeps DeepSpeed's own set-up steps from moving anything.
        optimizer = torch.optim.AdamW(groups, lr=0.0, betas=(config.train.beta1, config.train.beta2), fused=True)
        n_trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
        self._engine, *_ = deepspeed.initialize(
            model=model, optimizer=optimizer, config=deepspeed_settings(config, self.accumulation, n_trained), dist_init_required=False
        )
        self.module = self._engine.module
        self._parameters: dict[str, torch.nn.Parameter] = dict(self.module.named_parameters())
        self._zero_grad_norm: Any = None
        self._set_optimizer_steps(0)

    @property
    def device(self) -> torch.device:
        """Where batches must be."""
        return self.ranks.device

    def forward_backward(self, rows: PackedRows, global_valid_tokens: int) -> torch.Tensor:
        """One micro-batch. Returns nats [B, L] per label, detached.

        The optimised loss is (sum of nats over all micro-batches of all ranks) / global_valid_tokens. DeepSpeed divides by the
        number of ranks when it averages gradients and by the accumulation in backward; both are multiplied back here.
        """
        nats_BL = nll_BL(logits_of(self._engine, rows, self.model_config), rows.labels_BL)
        self._engine.backward(nats_BL.sum() * (self.ranks.world * self.accumulation / global_valid_tokens))
        if self.stage == 0 and self._engine.is_gradient_accumulation_boundary():
            self._zero_grad_norm = self._norm_without_zero()
        if not self._is_last_micro_batch():
            self._engine.step()  # only counts the micro-batch
        return nats_BL.detach()

    def update(self, learning_rate: float, weight_decay: float) -> None:
        """Clip and apply the gradients of the micro-batches since the last update. Norms and biases never decay."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = learning_rate
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        self._engine.step()

    def _is_last_micro_batch(self) -> bool:
        return bool(self._engine.is_gradient_accumulation_boundary())

    def _norm_without_zero(self) -> torch.Tensor:
        import torch

        return torch.nn.utils.get_total_norm([p.grad for name in self.trainable if (p := self._parameters[name]).grad is not None])

    def gradient_norm(self) -> float:
        """Global L2 norm of the last update's gradients before clipping. Synchronises with the device."""
        norm = self._zero_grad_norm if self.stage == 0 else self._engine.get_global_grad_norm()
        return float(norm) if norm is not None else float("nan")

    def logits(self, rows: PackedRows) -> torch.Tensor:
        """Logits [B, L, V] without gradients. Under ZeRO-3 all ranks must call together."""
        import torch

        self._engine.eval()
        try:
            with torch.no_grad():
                return logits_of(self._engine, rows, self.model_config)
        finally:
            self._engine.train()

    @contextmanager
    def scored(self) -> Iterator[Any]:
        """The module in evaluation mode, for whoever scores it. Under ZeRO-3 all ranks must run the same forward passes together."""
        self._engine.eval()
        try:
            yield self._engine.module
        finally:
            self._engine.train()

    @contextmanager
    def whole(self, name: str, *, write: bool = False) -> Iterator[torch.nn.Parameter]:
        """The parameter with its full value (gathered under ZeRO-3; collective). With `write` rank 0's change is kept."""
        parameter = self._parameters[name]
        if self.stage == 3:
            with _deepspeed().zero.GatheredParameters([parameter], modifier_rank=0 if write else None):
                yield parameter
        else:
            with nullcontext():
                yield parameter

    @property
    def names(self) -> list[str]:
        """All parameter names."""
        return list(self._parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        """Full shape of a parameter at any stage."""
        parameter = self._parameters[name]
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def state_of(self, name: str, kind: str) -> torch.Tensor:
        """fp32 `master`, `exp_avg` or `exp_avg_sq` of a trained tensor, whole, on the CPU. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        parameter = self._parameters[name]
        if self.stage == 0:
            master, state = self._unpartitioned(name)
            value = master if kind == "master" else state[kind]
        else:
            self._link_moments()
            value = safe_get_full_fp32_param(parameter) if kind == "master" else safe_get_full_optimizer_state(parameter, kind)
        return value.detach().float().cpu().view(self.shape(name))  # type: ignore[no-any-return]

    def load_state(self, tensors: TensorsByName, step: int) -> None:
        """Put masters and moments back (keys `kind/name`) and set the optimiser's step count. Collective."""
        import torch

        self._make_optimizer_state()
        self._link_moments()
        with torch.no_grad():
            for name in self.trainable:
                for kind in ("master", *MOMENTS):
                    self._set_state(name, kind, tensors[f"{kind}/{name}"])
                with self.whole(name, write=True) as parameter:
                    parameter.data.copy_(tensors[f"master/{name}"])
        self._set_optimizer_steps(step)

    def _set_state(self, name: str, kind: str, value: torch.Tensor) -> None:
        from deepspeed.utils import safe_set_full_fp32_param, safe_set_full_optimizer_state

        parameter = self._parameters[name]
        value = value.to(self.device)
        if self.stage == 0:
            master, state = self._unpartitioned(name)
            (master.data if kind == "master" else state[kind]).copy_(value)
        elif kind == "master":
            safe_set_full_fp32_param(parameter, value)
        else:
            safe_set_full_optimizer_state(parameter, value, kind)

    def _unpartitioned(self, name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Stage 0: the master is the parameter itself in fp32, and in bf16 the copy at the same place of DeepSpeed's groups."""
        parameter, optimizer = self._parameters[name], self._engine.optimizer
        if not hasattr(optimizer, "fp32_groups"):
            return parameter, optimizer.state[parameter]
        for low_group, master_group in zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True):
            for low, master in zip(low_group, master_group, strict=True):
                if low is parameter:
                    return master, optimizer.state[master]
        raise KeyError(name)

    def _make_optimizer_state(self) -> None:
        """Moments exist only after a first step: take one on a few tokens at learning rate 0, which moves nothing."""
        import torch

        for _ in range(self.accumulation):
            tokens = torch.zeros((1, 4), dtype=torch.long, device=self.device)
            output = self._engine(input_ids=tokens, use_cache=False).logits
            self._engine.backward(output.float().mean() * 0.0)
            for group in self._engine.optimizer.param_groups:
                group["lr"] = 0.0
            self._engine.step()

    def _link_moments(self) -> None:
        """DeepSpeed links tensors to their moments after the step of the first parameter group, when the second group has none yet."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        optimizer = self._engine.optimizer
        if self.stage in (1, 2):
            for group, partition in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
                lazy_init_hp_params_optimizer_state(group, partition, optimizer.optimizer.state)

    def _set_optimizer_steps(self, step: int) -> None:
        import torch

        inner = getattr(self._engine.optimizer, "optimizer", self._engine.optimizer)
        for state in inner.state.values():
            if "step" in state:
                state["step"] = torch.as_tensor(float(step), dtype=torch.float32).to(state["step"].device)

    def close(self) -> None:
        """Give memory and hooks back."""
        self._engine.destroy()


def deepspeed_settings(config: RunConfig, accumulation: int, trained_parameters: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run. The bucket is no larger than what trains: DeepSpeed allocates it whole."""
    bucket = max(min(trained_parameters, 50_000_000), 1)
    return {
        "train_micro_batch_size_per_gpu": config.engine.micro_batch_rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.train.clip_norm,
        "bf16": {"enabled": config.engine.precision == "bf16"},
        "zero_optimization": {"stage": config.engine.zero_stage, "reduce_bucket_size": bucket, "allgather_bucket_size": bucket},
        "steps_per_print": 1_000_000_000,
        "wall_clock_breakdown": False,
    }


def _deepspeed() -> Any:
    """DeepSpeed, quiet, and without the shared-memory op that it would compile on a CPU and that only inference uses."""
    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    # Inside DeepSpeed's calls of collectives that newer torch renames; nothing a user could act on.
    warnings.filterwarnings("ignore", message=".*is deprecated", category=FutureWarning, module="torch.distributed")
    import deepspeed

    logging.getLogger("DeepSpeed").setLevel(logging.ERROR)
    if deepspeed.accelerator.get_accelerator().device_name() == "cpu":
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    return deepspeed
