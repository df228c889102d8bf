"""A value function for PPO: a small network on what a policy says of the states before its decisions.

The textbook version shares a trunk with the policy, or trains a second model as large as it. What is left out is the second model:
the features are pooled numbers that the policy keeps from its rollout, detached, so that the critic costs no forward pass and
cannot bend the policy. What is changed: features and returns are expressed in the mean and spread of the first collection (kept
from then on, in the checkpoint too), so that learning rate, value clip and initial value 0 mean the same for every reward; and one
update of the policy is several steps of the critic, which is far smaller.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rlspeech.algos.math import value_loss
from rlspeech.config import PPO
from rlspeech.engine import Ranks
from rlspeech.state import load_optimizer_state, optimizer_state

STEPS = 8  # of the critic's optimiser, for one of the policy's
TINY = 1e-6


def pooled_moments(columns: Sequence[Tensor], ranks: Ranks) -> list[tuple[Tensor, Tensor] | None]:
    """Mean and (population) standard deviation, each (D,), of every set of rows (k, D), those of all processes together.

    The sets are on one device; one without a row gets None. The sums travel together.
    """
    device = columns[0].device
    exact = torch.float32 if device.type == "mps" else torch.float64  # Apple's has no double
    parts = list[Tensor]()
    for c in columns:
        parts += [c.new_tensor([len(c)]), c.to(exact).sum(0), c.to(exact).square().sum(0)]
    sums = torch.cat([p.to(exact) for p in parts])
    ranks.add_up(sums)
    split, out = sums.split([len(p) for p in parts]), list[tuple[Tensor, Tensor] | None]()
    for count, total, squares in zip(split[::3], split[1::3], split[2::3], strict=True):
        mean = total / count
        spread = (squares / count - mean.square()).clamp_min(0).sqrt()
        out.append((mean.float(), spread.float()) if count.item() > 0 else None)
    return out


class Critic:
    """V(s). It takes its size from the first features it sees; its last layer starts at 0, so that V starts as the mean return.

    The ``seed`` of the initial weights must be the same in every process.
    """

    def __init__(self, config: PPO, seed: int = 0, ranks: Ranks | None = None, grad_clip: float = 1.0) -> None:
        self.config, self.seed, self.ranks, self.grad_clip = config, seed, ranks or Ranks(), grad_clip
        self.net: nn.Sequential | None = None
        self.optimizer: torch.optim.Optimizer | None = None
        self.settled = False
        self.units: dict[str, Tensor] = {}  # feature mean and spread (D,), return mean and spread ()

    def _build(self, width: int, device: torch.device | str) -> nn.Sequential:
        if self.net is None:
            sizes = (width, self.config.value_hidden, self.config.value_hidden, 1)
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(self.seed)
                first, second, last = (nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
                self.net = nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last)
            for p in self.net[-1].parameters():
                nn.init.zeros_(p)
            self.net.to(device)
            self.optimizer = torch.optim.AdamW(self.net.parameters(), self.config.value_lr, weight_decay=0.0)
        return self.net

    def measure(self, features: Tensor, returns: Tensor, mask: Tensor) -> None:
        """Take the units from the first collection whose returns vary; later calls change nothing.

        Features are (N, S, D); returns (N, S), such as the sum of what is still to come, on any device; ``mask`` is (N, S) bool, decisions
        that count.
        """
        if self.settled:
            return
        chosen = features[mask], returns.to(features.device)[mask][:, None]
        for name, moments in zip(("feature", "return"), pooled_moments(chosen, self.ranks), strict=True):
            if moments is None:
                return
            mean, spread = moments
            varies = spread > TINY * (1 + mean.abs())
            self.settled = bool(varies.any())  # the last word is the returns'
            self.units |= {f"{name}_mean": mean, f"{name}_spread": torch.where(varies, spread, 1.0)}

    def _normal(self, features: Tensor) -> Tensor:
        """Values (n, S) in units of the returns' spread, with gradient."""
        net = self._build(features.shape[-1], features.device)
        if self.units:
            features = ((features - self.units["feature_mean"]) / self.units["feature_spread"]).clamp(-10, 10)
        return net(features)[..., 0]

    @torch.no_grad()
    def values(self, features: Tensor) -> Tensor:
        """V (n, S) in the reward's units for features (n, S, D)."""
        value = self._normal(features)
        return value * self.units["return_spread"] + self.units["return_mean"] if self.units else value

    def fit(self, features: Tensor, old: Tensor, returns: Tensor, mask: Tensor) -> float:
        """Learn the returns of some rows in ``STEPS`` steps. Returns the loss before the first of them, in units of the spread.

        Features are (n, S, D), values at collection (``old``) and returns (n, S) in the reward's units, ``mask`` (n, S) bool.
        """
        if self.units:
            old, returns = ((v - self.units["return_mean"]) / self.units["return_spread"] for v in (old, returns))
        first, whole = float("nan"), max(1, sum(self.ranks.gather(int(mask.sum()))))
        net = self._build(features.shape[-1], features.device)
        assert self.optimizer is not None
        for i in range(STEPS):
            loss = value_loss(self._normal(features), old, returns, mask, self.config.value_clip, whole)
            first = sum(self.ranks.gather(loss.item())) if i == 0 else first
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.ranks.add_up(*(p.grad for p in net.parameters() if p.grad is not None))
            if torch.isfinite(nn.utils.clip_grad_norm_(net.parameters(), self.grad_clip)):
                self.optimizer.step()
        return first

    def state(self) -> dict[str, Any]:
        """Plain tensors and numbers for a checkpoint."""
        if self.net is None or self.optimizer is None:
            return {}
        weights = {k: v.detach().clone() for k, v in self.net.state_dict().items()}
        made = {"net": weights, "optimizer": optimizer_state(self.optimizer), "settled": self.settled}
        return {**made, "units": {k: v.clone() for k, v in self.units.items()}}

    def load_state(self, state: Mapping[str, Any], device: torch.device | str = "cpu") -> None:
        """Put back what ``state`` gave."""
        if not state:
            return
        net = self._build(int(state["net"]["0.weight"].shape[1]), device)
        net.load_state_dict({k: v.to(device) for k, v in state["net"].items()})
        assert self.optimizer is not None
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.units, self.settled = {k: v.to(device) for k, v in state["units"].items()}, bool(state["settled"])
