"""SQUIM where torchaudio is missing, broken, or imitated."""

from __future__ import annotations

import sys
import types

import pytest
import torch
from reward_signals import sample, scored, voice

from rlspeech.models.folder import importlib, torchaudio_problem
from rlspeech.rewards.base import available
from rlspeech.rewards.scorer import get_reward
from rlspeech.types import UserError


@pytest.fixture(autouse=True)
def forget():
    torchaudio_problem.cache_clear()
    yield
    torchaudio_problem.cache_clear()


class Net(torch.nn.Module):
    """Three answers a clip, as SQUIM."""

    def __init__(self):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.ones(1))

    def forward(self, x):
        level = x.square().mean(-1) * self.gain
        return [level, 1 + level, 10 * level]


def pretend(monkeypatch):
    """Put an imitation of torchaudio in place."""
    package = types.SimpleNamespace(__version__="9.9", __spec__=types.SimpleNamespace(name="torchaudio"))
    models = types.SimpleNamespace(squim_objective_base=Net)
    for name, module in {"torchaudio": package, "torchaudio.models": models}.items():
        monkeypatch.setitem(sys.modules, name, module)


def test_a_torchaudio_that_is_missing_is_a_reason_and_stops_nothing(monkeypatch):
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == "torchaudio" else real(n))
    why = next(why for entry, why in available() if entry.family == "squim")
    assert torchaudio_problem() == "" and "torchaudio is not installed" in why


def test_columns_come_out_in_the_right_places_and_weights_are_never_fetched_unasked(monkeypatch, tmp_path):
    from safetensors.torch import save_file

    pretend(monkeypatch)
    with pytest.raises(UserError, match="weights"):
        scored([sample(voice(0.5))], "squim_pesq")
    save_file(Net().state_dict(), tmp_path / "w.safetensors")
    samples = [sample(voice(0.5)), sample(voice(0.7))]
    for name, expected in (("squim_stoi", 0.01), ("squim_pesq", 1.01), ("squim_si_sdr", 0.1)):
        reward = get_reward(name, weights=str(tmp_path / "w.safetensors"))
        assert [s.value for s in reward.score(samples)] == pytest.approx([expected] * 2, rel=1e-3)
        assert "w.safetensors" in reward.version
