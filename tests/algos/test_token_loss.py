"""The loss of token policies: against TRL's own code on the same numbers, and properties that TRL's code does not test."""

from __future__ import annotations

import ast
import importlib.util
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from test_math import _look, _loss
from torch import Tensor

N, S, BETA = 6, 7, 0.07


def _numbers(seed: int = 0) -> dict[str, Tensor]:
    """Ragged rows whose ratios lie well on both sides of a clip range of 0.2."""
    g = torch.Generator().manual_seed(seed)
    old = -torch.rand(N, S, generator=g) * 3
    mask = torch.arange(S) < torch.tensor([7, 2, 5, 1, 6, 3])[:, None]
    new = (old + 0.4 * torch.randn(N, S, generator=g)).requires_grad_()
    reference, advantage = old + 0.5 * torch.randn(N, S, generator=g), torch.tensor([1.0, -1.0, 0.5, -2.0, 0.7, -0.3])
    return {"old": old, "new": new, "reference": reference, "mask": mask, "advantage": advantage}


def _ours(x: dict[str, Tensor], **options: Any) -> tuple[float, Tensor]:
    away = x["reference"] - x["new"]
    kl = away.exp() - away - 1
    count = float(len(x["mask"]) if options.get("mean") == "sequence" else x["mask"].sum())
    made = _loss(_look(x["new"], kl), x["old"], x["mask"], x["advantage"], kl_beta=BETA, normaliser=count, **options)
    return made.loss.item(), torch.autograd.grad(made.loss, x["new"])[0]


@pytest.fixture(scope="module")
def trl_loss() -> Callable[..., Any]:
    """``GRPOTrainer._compute_loss`` cut out of the installed package: importing it takes longer than all tests here together."""
    found = importlib.util.find_spec("trl")
    if found is None or not found.submodule_search_locations:
        pytest.skip("trl is not installed")
    path = Path(next(iter(found.submodule_search_locations))) / "trainer" / "grpo_trainer.py"
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "_compute_loss"]
    if len(body) != 1:
        pytest.skip("another trl")
    space: dict[str, Any] = {"torch": torch, "nanmin": lambda x: x.min(), "nanmax": lambda x: x.max()}
    exec(compile(ast.Module(body, []), str(path), "exec"), space)
    return space["_compute_loss"]


def _trl(compute: Callable[..., Any], x: dict[str, Tensor], kind: str, level: str, high: float) -> tuple[float, Tensor]:
    class Trainer:
        aux_loss_enabled = use_vllm = _entropy_bonus_enabled = use_adaptive_entropy = False
        top_entropy_quantile, off_policy_mask_threshold, beta = 1.0, None, BETA
        epsilon_low, epsilon_high, importance_sampling_level = 0.2, high, level
        current_gradient_accumulation_steps = 1
        args = SimpleNamespace(delta=None, use_bias_correction_kl=False, steps_per_generation=1)
        each = {"reduce": lambda v, reduction: v, "gather": lambda v: v}
        accelerator = SimpleNamespace(num_processes=1, sync_gradients=True, **each)
        model = SimpleNamespace(training=True)

        def __init__(self) -> None:
            self.loss_type, self._metrics = kind, {"train": defaultdict(list)}

        def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
            return x["new"], torch.zeros(N, S), None

    mask = x["mask"].long()
    inputs = {"prompt_ids": torch.zeros(N, 1), "prompt_mask": torch.ones(N, 1), "num_items_in_batch": mask.sum()}
    inputs |= {"completion_ids": torch.zeros(N, S), "completion_mask": mask, "advantages": x["advantage"]}
    inputs |= {"old_per_token_logps": x["old"], "ref_per_token_logps": x["reference"]}
    loss = compute(Trainer(), None, inputs)
    return loss.item(), torch.autograd.grad(loss, x["new"])[0]


@pytest.mark.parametrize("high", [0.2, 0.28])
@pytest.mark.parametrize(("kind", "mean"), [("grpo", "sequence"), ("bnpo", "token"), ("dapo", "token")])
@pytest.mark.parametrize("level", ["token", "sequence"])
def test_it_is_trls(trl_loss: Callable[..., Any], kind: str, mean: str, level: str, high: float) -> None:
    x = _numbers()
    value, gradient = _ours(x, level=level, clip_high=high, mean=mean)
    wanted, its = _trl(trl_loss, x, kind, level, high)
    assert value == pytest.approx(wanted, rel=1e-5)
    torch.testing.assert_close(gradient, its, rtol=1e-5, atol=1e-7)
    assert not its[~x["mask"]].any() and its[x["mask"]].any()


def test_gspo_is_a_mean_over_rollouts_of_their_own_ratios() -> None:
    """arXiv 2507.18071, eq. 5 and 7, row by row; by the token, long rollouts would weigh more."""
    x, rows = _numbers(), []
    for new, old, on, a in zip(x["new"], x["old"], x["mask"], x["advantage"], strict=True):
        ratio = (new - old)[on].mean().exp()
        rows.append(torch.minimum(ratio * a, ratio.clamp(0.8, 1.28) * a))
    wanted = -torch.stack(rows).mean()
    gradient = torch.autograd.grad(wanted, x["new"])[0]
    new = torch.where(x["mask"], x["new"], torch.nan)  # what is masked may hold anything
    how: dict[str, Any] = {"level": "sequence", "clip_high": 0.28}
    made = _loss(new, x["old"], x["mask"], x["advantage"], normaliser=float(N), mean="sequence", **how)
    assert made.loss.item() == pytest.approx(wanted.item(), rel=1e-5)
    torch.testing.assert_close(torch.autograd.grad(made.loss, x["new"])[0], gradient)
    by_token = _loss(new, x["old"], x["mask"], x["advantage"], normaliser=float(x["mask"].sum()), **how)
    assert by_token.loss.item() != pytest.approx(wanted.item(), rel=0.1)


def test_an_upper_range_only_moves_the_upper_end() -> None:
    """One token a row: ratios 0.5, 1.25, 1.5 with advantages of both signs."""
    ratio = torch.tensor([0.5, 1.25, 1.5, 0.5, 1.25, 1.5])[:, None]
    a, zero, on = torch.tensor([1.0, 1, 1, -1, -1, -1]), torch.zeros(6, 1), torch.ones(6, 1, dtype=torch.bool)

    def made(high: float | None) -> Any:
        new = ratio.log().requires_grad_()
        out = _loss(new, zero, on, a, clip_high=high, normaliser=6.0)
        return (torch.autograd.grad(out.loss, new)[0] != 0)[:, 0].tolist(), out.stats

    same, stats = made(None)
    assert same == [True, False, False, False, True, True]
    assert stats["clipped_positive"] == pytest.approx(2 / 3) and stats["clipped_negative"] == pytest.approx(1 / 3)
    wide, stats = made(0.28)
    assert wide == [True, True, False, False, True, True] and stats["clipped_positive"] == pytest.approx(1 / 3)
