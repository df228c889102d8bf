"""DistillMOS: our module with random weights, read from a package that is not imported, and the real one."""

from __future__ import annotations

import importlib
import sys
import types
from pathlib import Path

import pytest
import torch
from reward_signals import sample, scored, voice, with_noise

from rlspeech.config import RewardSpec
from rlspeech.rewards.distillmos import SPAN, STEP, DistillMos, DistillMosNet, windows
from rlspeech.rewards.soft import SoftMix
from rlspeech.types import Relaxed


def test_windows_cover_long_clips_and_short_ones_are_repeated() -> None:
    for samples, count in ((SPAN, 1), (SPAN + 1, 2), (SPAN + STEP, 2), (SPAN + 3 * STEP + 1, 5)):
        wav = torch.arange(samples, dtype=torch.float64)[None]
        firsts = windows(wav)[:, 0, 0]
        assert len(firsts) == count and windows(wav)[-1, 0, -1] == samples - 1
        assert firsts[0] == 0 and all(firsts.diff() <= STEP)
    assert torch.equal(windows(torch.tensor([[1.0, 2.0, 3.0]]))[0, 0, :7], torch.tensor([1.0, 2, 3, 1, 2, 3, 1]))


@pytest.mark.slow
def test_weights_of_the_package_scores_and_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    net, folder = DistillMosNet(), tmp_path / "distillmos"
    (folder / "weights").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise ImportError('torchaudio')")  # it is not to be imported
    torch.save({"model": net.state_dict(), "step": 1}, folder / "weights" / "distill_mos_v7.pt")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "distillmos", raising=False)
    wavs = [voice(1.0), voice(8.0, seed=1)]
    values = [s.value for s in scored([sample(w) for w in wavs], "distillmos")["distillmos"]]
    with torch.no_grad():  # alone, and at another level
        assert values == pytest.approx([float(net(0.3 * torch.from_numpy(w)[None])) for w in wavs], abs=1e-3)
    assert all(1 < v < 5 for v in values) and abs(values[0] - values[1]) > 1e-4
    wav = torch.cat([torch.zeros(8000), torch.from_numpy(voice(0.5))])[None].requires_grad_()
    soft = SoftMix([RewardSpec(name="distillmos")], copies=1)
    value = soft.score_soft(Relaxed(wav, torch.ones(1, 16000, dtype=torch.bool), seed=0), [sample(wavs[0])])
    (grad,) = torch.autograd.grad(value.sum(), wav)
    assert soft.last == {"distillmos": pytest.approx(value.item())}
    assert bool(grad.isfinite().all()) and float(grad[0, 8000:].abs().sum()) > 0


@pytest.mark.realmodels
def test_agrees_with_the_package(realmodels: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("torchaudio", "torchaudio.transforms"):  # it would import them, and needs them for files alone
        monkeypatch.setitem(sys.modules, name, types.SimpleNamespace(MFCC=None, transforms=None))
    monkeypatch.syspath_prepend(str(realmodels / "packages"))
    real, ours = importlib.import_module("distillmos").ConvTransformerSQAModel().eval(), DistillMos().predict
    wavs = [torch.from_numpy(w)[None] for w in (voice(8.9), with_noise(voice(7.7, seed=1), 10, 1))]
    with torch.no_grad():
        assert [float(ours(w)) for w in wavs] == pytest.approx([float(real(w)) for w in wavs], abs=1e-3)
