"""What keeps a bad batch from the weights, decided on the device: nothing is read back within a step.

The verdict is handed to torch's fused AdamW as `found_inf`, its own way of leaving weights, moments and step count untouched.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from slayer.config import GuardConfig

if TYPE_CHECKING:
    import torch

ACCEPTED, NON_FINITE, SPIKE = 0, 1, 2
REASONS = {NON_FINITE: "the loss or a gradient is not finite", SPIKE: "the loss or the gradient norm leaps"}


class Guard:
    """Judges each step by its loss and its gradient norm, both global, so that every rank comes to the same verdict.

    A step is skipped when either is not finite, or more than `sigma` standard deviations above its mean over the last `window_steps`
    accepted steps (OLMo-core: 6 over 128), once half of those are there. Skipped steps do not enter the window.
    W: window_steps; the two rows are loss and gradient norm.
    """

    def __init__(self, config: GuardConfig, device: torch.device) -> None:
        import torch

        self.config = config
        self.history_2W = torch.zeros((2, config.window_steps), dtype=torch.float64, device=device)
        self.n_accepted = torch.zeros((), dtype=torch.int64, device=device)
        self.skip = torch.zeros((), dtype=torch.float32, device=device)
        """1.0 when the step in hand must not be taken."""
        self.in_a_row = 0
        self._verdicts: list[torch.Tensor] = []
        self._places_W = torch.arange(config.window_steps, device=device)

    def judge(self, loss: torch.Tensor, gradient_norm: torch.Tensor) -> None:
        """Set `skip` for a step; both scalars. A negative norm is DeepSpeed's sign for one that is not finite."""
        import torch

        seen_2 = torch.stack([loss, gradient_norm]).double()
        finite = torch.isfinite(seen_2).all() & (gradient_norm >= 0)
        spike = self._is_spike(seen_2) & finite
        accepted = finite & ~spike
        here_W = (self._places_W == self.n_accepted % self.config.window_steps) & accepted
        self.history_2W.copy_(torch.where(here_W, seen_2[:, None], self.history_2W))
        self.n_accepted += accepted
        self.skip.copy_(~accepted)
        self._verdicts.append(torch.where(finite, spike.long() * SPIKE, NON_FINITE))

    def _is_spike(self, seen_2: torch.Tensor) -> torch.Tensor:
        import torch

        if self.config.sigma is None:
            return torch.zeros((), dtype=torch.bool, device=seen_2.device)
        filled_W = self._places_W < self.n_accepted
        n = filled_W.sum().clamp(min=2)
        mean_2 = (self.history_2W * filled_W).sum(1) / n
        deviation_2 = (((self.history_2W - mean_2[:, None]) ** 2 * filled_W).sum(1) / (n - 1)).sqrt()
        known = self.n_accepted >= self.config.window_steps // 2
        return known & (seen_2 > mean_2 + self.config.sigma * deviation_2).any()

    def read(self) -> list[int]:
        """Verdicts since the last call, oldest first (ACCEPTED, NON_FINITE, SPIKE); keeps `in_a_row`. Synchronises with the device."""
        import torch

        verdicts: list[int] = torch.stack(self._verdicts).tolist() if self._verdicts else []
        self._verdicts = []
        for verdict in verdicts:
            self.in_a_row = self.in_a_row + 1 if verdict != ACCEPTED else 0
        return verdicts

    @property
    def gives_up(self) -> bool:
        """True when so many steps were skipped one after the other that skipping does not help."""
        return self.in_a_row >= self.config.patience

    def forget(self) -> None:
        """Judge anew: what trains, or on what, has changed."""
        self.history_2W.zero_()
        self.n_accepted.zero_()
        self.in_a_row = 0

    def state(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps: a copy on the CPU."""
        import torch

        history_2W, accepted_1 = self.history_2W.to("cpu", copy=True), self.n_accepted.to("cpu", copy=True).view(1)
        return {"history": history_2W, "accepted": accepted_1, "in_a_row": torch.tensor([self.in_a_row])}

    def load(self, state: dict[str, torch.Tensor]) -> None:
        """Go on from `state`; one of another window length is forgotten."""
        if state["history"].shape != self.history_2W.shape:
            return
        self.history_2W.copy_(state["history"])
        self.n_accepted.copy_(state["accepted"].view(()))
        self.in_a_row = int(state["in_a_row"])
