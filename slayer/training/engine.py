"""The DeepSpeed engine: the only module that knows DeepSpeed, its stages and its ways of holding masters and moments."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any

from slayer.config import RunConfig
from slayer.forward import PackedRows, logits_of, nll_BL
from slayer.training.guard import Guard
from slayer.training.optim import TrainedGroup, parameter_groups
from slayer.training.partition import TensorsByName, take_parts
from slayer.training.ranks import Ranks

if TYPE_CHECKING:
    import torch

KINDS = ("master", "exp_avg", "exp_avg_sq")


class TrainingEngine:
    """A model whose named tensors train, under ZeRO stage 0–3 in bf16 (fp32 masters) or fp32."""

    def __init__(
        self, model: Any, groups: Sequence[TrainedGroup], config: RunConfig, ranks: Ranks, weights: TensorsByName | None = None
    ) -> None:  # fmt: skip
        """`weights`: for a model on the meta device under ZeRO-3, where each rank reads its own part of every tensor."""
        import torch

        deepspeed = _deepspeed()
        self.ranks, self.stage, self.groups = ranks, config.engine.zero_stage, list(groups)
        self.accumulation = config.train.batch_rows // (config.engine.micro_batch_rows * ranks.world)
        self.model_config = model.config
        chosen = {name for group in groups for name in group.names}
        n_trained = sum(parameter.numel() for name, parameter in model.named_parameters() if name in chosen)
        settings = deepspeed_settings(config, self.accumulation, n_trained)
        if weights is not None:
            deepspeed.init_distributed(dist_init_required=False)  # takes over the group that is open
            # Given a module, even an empty one, it sets the same things up as for a model that it partitions itself.
            cutter = deepspeed.zero.Init(module=torch.nn.Module(), dtype=next(model.parameters()).dtype, config_dict_or_path=settings)
            take_parts(model, weights, cutter, ranks)
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name in chosen)
        if config.engine.activation_checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.train()
        self.trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
        self.guard = Guard(config.guard, ranks.device)
        self._loss: torch.Tensor | None = None
        """Of the micro-batches since the last update; None once it is judged."""
        # Rate and decay are set before each step; a rate of 0 until then keeps DeepSpeed's own set-up steps from moving anything.
        parameters = parameter_groups(self.groups, dict(model.named_parameters()), config.train.weight_decay)
        self._adamw = torch.optim.AdamW(parameters, lr=0.0, betas=(config.train.beta1, config.train.beta2), fused=True)
        self._adamw.register_step_pre_hook(self._judge)
        self._engine, *_ = deepspeed.initialize(model=model, optimizer=self._adamw, config=settings, dist_init_required=False)
        self.module = self._engine.module
        self._parameters: dict[str, torch.nn.Parameter] = dict(self.module.named_parameters())
        self._training = set(self.trainable)
        self._retired: dict[str, torch.Tensor] = {}
        optimizer = self._engine.optimizer
        groups_of_masters = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True) if hasattr(optimizer, "fp32_groups") else ()
        self._masters = {low: master for pair in groups_of_masters for low, master in zip(*pair, strict=True)}
        self.before_update: Callable[[], None] = lambda: None
        """Called before any master or moment moves: whoever still copies them waits there."""
        self._zero_grad_norm: Any = None
        self._make_optimizer_state()

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
        loss = nats_BL.detach().sum() / global_valid_tokens
        self._loss = loss if self._loss is None else self._loss + loss
        return nats_BL.detach()

    def update(self, step: int, learning_rate: float, weight_decay: float, warmup_steps: int = 0) -> None:
        """Clip and apply the gradients of the micro-batches since the last update, unless the guard forbids it. Norms and biases never
        decay. `warmup_steps`: for tensors that joined a run under way."""
        for group in self._engine.optimizer.param_groups:
            group["lr"] = group["trained"].learning_rate(step, learning_rate, warmup_steps)
            group["weight_decay"] = weight_decay if group["decays"] else 0.0
        assert self._loss is not None
        self._loss = self.ranks.sum(self._loss)
        self.before_update()
        self._engine.step()
        if self._loss is not None:  # DeepSpeed saw an overflow itself and never asked AdamW to step
            self.guard.judge(self._loss * math.nan, self._loss)
            self._loss = None

    def _judge(self, *_: Any) -> None:
        """Before AdamW's step, for the first group of an update: DeepSpeed knows the norm by now."""
        import torch

        if self._loss is None:
            return
        # get_global_grad_norm would give that of the update before.
        norm = self._zero_grad_norm if self.stage == 0 else self._engine.optimizer._global_grad_norm
        self.guard.judge(self._loss, torch.as_tensor(norm, device=self._loss.device))
        self._loss = None
        self._adamw.found_inf = self.guard.skip  # type: ignore[attr-defined]

    def _is_last_micro_batch(self) -> bool:
        return bool(self._engine.is_gradient_accumulation_boundary())

    def _norm_without_zero(self) -> torch.Tensor:
        import torch

        return torch.nn.utils.get_total_norm([p.grad for name in self.trainable if (p := self._parameters[name]).grad is not None])

    def gradient_norm(self) -> float:
        """Global L2 norm of the last update's gradients before clipping, nan where it is not finite. Synchronises with the device."""
        norm = self._zero_grad_norm if self.stage == 0 else self._engine.get_global_grad_norm()
        return float(norm) if norm is not None and 0 <= norm < math.inf else math.nan

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
    def around_forward(self, *, before: Callable[[], None], after: Callable[[], None] | None = None) -> Iterator[None]:
        """Call before (and after) every forward pass of the model, of training and of whoever scores it, while the body runs."""
        hooks = [self.module.register_forward_pre_hook(lambda *_: before(), prepend=True)]
        if after is not None:
            hooks.append(self.module.register_forward_hook(lambda *_: after()))
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

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

    def resident(self, name: str) -> torch.Tensor:
        """What this rank itself holds of a parameter: all of it, or its own part under ZeRO-3."""
        parameter = self._parameters[name]
        return getattr(parameter, "ds_tensor", parameter) if self.stage == 3 else parameter

    @property
    def names(self) -> list[str]:
        """All parameter names."""
        return list(self._parameters)

    def shape(self, name: str) -> tuple[int, ...]:
        """Full shape of a parameter at any stage."""
        parameter = self._parameters[name]
        return tuple(getattr(parameter, "ds_shape", parameter.shape))

    def kinds(self, name: str) -> tuple[str, ...]:
        """What a checkpoint keeps of a tensor: master and moments while it trains, the master alone when it no longer does."""
        return KINDS if name in self._training else KINDS[:1]

    @property
    def changed(self) -> list[str]:
        """Names whose values are not the base's any more: what trains, and what trained in an earlier freeze stage."""
        return [name for name in self._parameters if name in self._training or name in self._retired]

    def state_of(self, name: str, kind: str) -> torch.Tensor:
        """fp32 `master`, `exp_avg` or `exp_avg_sq` of a changed tensor, whole; a view of it where this rank holds it all. Collective."""
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        if name in self._retired or self.stage == 0 or self.ranks.world == 1:
            return self.held(name, kind)[1].view(self.shape(name))
        parameter = self._parameters[name]
        value = safe_get_full_fp32_param(parameter) if kind == "master" else safe_get_full_optimizer_state(parameter, kind)
        return value.detach().float().view(self.shape(name))  # type: ignore[no-any-return]

    def held(self, name: str, kind: str) -> tuple[int, torch.Tensor]:
        """The part of a changed tensor's `master` or moment that this rank holds: where it begins in the flattened tensor, and a view of
        its values, fp32 [n]. They stay as they are until `update`. Ranks hold parts that do not overlap, or each of them everything."""
        import torch
        from deepspeed.utils import safe_get_local_fp32_param, safe_get_local_optimizer_state

        if name in self._retired:
            return 0, self._retired[name].view(-1)
        parameter: Any = self._parameters[name]
        if self.stage == 0:
            master, state = self._unpartitioned(name)
            return 0, (master if kind == "master" else state[kind]).detach().view(-1)
        if self.stage == 3:
            part = safe_get_local_fp32_param(parameter) if kind == "master" else safe_get_local_optimizer_state(parameter, kind)
            start = self.ranks.rank * part.numel()
            return start, part.detach()[: max(parameter.ds_numel - start, 0)]  # the last parts are padded to the length of the others
        fragment = parameter._hp_mapping
        if fragment is None:
            return 0, torch.empty(0, device=self.device)
        return fragment.lp_fragment_address.start, fragment.get_hp_fragment(None if kind == "master" else kind).detach()

    def load_state(self, tensors: TensorsByName, updates: Mapping[str, int]) -> None:
        """Put masters and moments back (keys `kind/name`; `updates`: AdamW steps taken of each tensor). Collective.

        A tensor without moments there starts clean; one that trained before and does not now is put into the model and kept.
        """
        import torch

        with torch.no_grad():
            for name in self._parameters:
                if f"master/{name}" not in tensors:
                    continue
                master = tensors[f"master/{name}"]
                if name not in self._training:
                    self._retired[name] = master.clone()
                else:
                    # In place: DeepSpeed's own calls fail on a tensor that its ranks cannot cut in equal parts.
                    for kind in KINDS if f"exp_avg/{name}" in tensors else KINDS[:1]:
                        start, part = self.held(name, kind)
                        part.copy_(tensors[f"{kind}/{name}"].flatten()[start : start + len(part)])
                with self.whole(name, write=True) as parameter:
                    parameter.data.copy_(master)
        self._set_updates({name: updates.get(name, 0) for name in self.trainable})

    def _unpartitioned(self, name: str) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Stage 0: the master is the parameter itself in fp32, and in bf16 the copy at the same place of DeepSpeed's groups."""
        parameter = self._parameters[name]
        master = self._masters[parameter] if self._masters else parameter
        return master, self._engine.optimizer.state[master]

    def _make_optimizer_state(self) -> None:
        """Moments exist only after a first step: take one on a few tokens at learning rate 0, which moves nothing, and forget it."""
        import torch

        for _ in range(self.accumulation):
            tokens = torch.zeros((1, 4), dtype=torch.long, device=self.device)
            output = self._engine(input_ids=tokens, use_cache=False).logits
            self._engine.backward(output.float().mean() * 0.0)
            for group in self._engine.optimizer.param_groups:
                group["lr"] = 0.0
            self._engine.step()
        self._link_moments()
        self._set_updates(dict.fromkeys(self.trainable, 0))

    def _link_moments(self) -> None:
        """DeepSpeed links tensors to their moments after the step of the first parameter group, when the second group has none yet."""
        from deepspeed.utils import lazy_init_hp_params_optimizer_state

        optimizer = self._engine.optimizer
        if self.stage in (1, 2):
            for group, partition in zip(optimizer.bit16_groups, optimizer.single_partition_of_fp32_groups, strict=True):
                lazy_init_hp_params_optimizer_state(group, partition, optimizer.optimizer.state)

    @property
    def updates(self) -> dict[str, int]:
        """AdamW steps taken of each tensor that trains: skipped ones do not count. Synchronises with the device."""
        return {name: int(steps[0]["step"]) for group, steps in self._optimizer_states() if steps for name in self._names_of(group)}

    def _set_updates(self, updates: Mapping[str, int]) -> None:
        import torch

        for group, states in self._optimizer_states():
            taken = {updates[name] for name in self._names_of(group)}
            assert len(taken) == 1, "tensors of a group train since the same step"
            for state in states:
                state["step"] = torch.as_tensor(float(*taken), dtype=torch.float32).to(state["step"].device)

    def _optimizer_states(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """AdamW's groups, each with the states that belong to it (ZeRO-3 cuts a group into sub-groups); empty before the first step."""
        state, groups = self._adamw.state, self._adamw.param_groups
        if self.stage == 3:
            zero = self._engine.optimizer
            flat = [(zero.sub_group_to_group_id[number], tensor) for number, tensor in enumerate(zero.fp32_partitioned_groups_flat)]
            return [(group, [state[tensor] for owner, tensor in flat if owner == index and tensor in state]) for index, group in enumerate(groups)]
        return [(group, [state[tensor] for tensor in group["params"] if tensor in state]) for group in groups]

    def _names_of(self, group: dict[str, Any]) -> list[str]:
        return [name for name in group["trained"].names if (len(self.shape(name)) > 1) == group["decays"]]

    def close(self) -> None:
        """Give memory and hooks back."""
        self._engine.destroy()


def deepspeed_settings(config: RunConfig, accumulation: int, trained_parameters: int) -> dict[str, Any]:
    """DeepSpeed's own configuration for a run. The bucket is no larger than what trains: DeepSpeed allocates it whole, and wants it even."""
    bucket = min(trained_parameters + trained_parameters % 2, 50_000_000)
    return {
        "train_micro_batch_size_per_gpu": config.engine.micro_batch_rows,
        "gradient_accumulation_steps": accumulation,
        "gradient_clipping": config.train.clip_norm,
        # The guard looks for overflows on the device; DeepSpeed would wait for the device in every step.
        "bf16": {"enabled": config.engine.precision == "bf16", "check_grad_overflow": False},
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
