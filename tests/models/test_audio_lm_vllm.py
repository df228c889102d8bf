"""Rollouts in vLLM: the same distribution and the same weights as the policy's, before and after it has learned."""

from __future__ import annotations

from typing import Any

import pytest
import tiny_audio_lms
import torch
from tiny_audio_lms import clips as noises
from tiny_codec_lms import adapted_public
from tiny_codec_lms import tiny as tiny_codec_lm
from torch import Tensor
from training import Judge, algorithm, train

from rlspeech.config import RL, Lora, RewardSpec, Sampling
from rlspeech.config_parts import Rollouts
from rlspeech.data.batches import Clip
from rlspeech.models.adapters import Adapted
from rlspeech.models.audio_lm.vllm import VllmEngine, refuse
from rlspeech.models.codec.lm import Line
from rlspeech.settings import resolve
from rlspeech.tasks.asr.policy import AsrPolicy
from rlspeech.types import UserError

VLLM = Rollouts(engine="vllm", cache_gib=0.25)
LINES = [Line("one two"), Line("four"), Line("seven eight nine")]


def _logp(lm: Any, prompts: Any, ids: Tensor, temperature: float = 1.0) -> Tensor:
    logits = lm.forward_logits(prompts, torch.arange(len(prompts)).repeat_interleave(len(ids) // len(prompts)), ids)
    return (logits / temperature).log_softmax(-1).gather(-1, ids[..., None])[..., 0].detach()


@pytest.mark.vllm
@pytest.mark.parametrize("kind", ["embedded", "llasa", "cosyvoice2"])
def test_it_samples_from_the_weights_that_the_model_has(kind: str) -> None:
    lm = tiny_codec_lm(dim=64) if kind == "embedded" else adapted_public(kind, hidden_size=64, head_dim=32)
    engine, prompts, state = VllmEngine(lm, False, VLLM), lm.encode(LINES), torch.get_rng_state()
    for seed in range(2):
        if kind != "cosyvoice2":  # whose three stops are one decision here, and three likeliest tokens there
            greedy, own = (x.generate(prompts, max_new_tokens=12) for x in (engine, lm))
            assert all(map(torch.equal, greedy[:3], own[:3]))
        how: dict[str, Any] = {"group": 4, "max_new_tokens": [12, 5, 8], "seed": [1, 2, seed]}
        made = engine.generate(prompts, sampling=Sampling(temperature=0.7), **how)
        assert all(map(torch.equal, made[:2], engine.generate(prompts, sampling=Sampling(temperature=0.7), **how)[:2]))
        stops = made.mask & (made.ids == lm.stop)
        assert torch.equal(stops.any(1), made.finished) and (made.mask.sum(1)[4:8] <= 5).all()
        known = made.mask & (made.ids != lm.stop) if kind == "cosyvoice2" else made.mask
        assert torch.equal(made.logp.isfinite(), known) and len({tuple(r) for r in made.ids.tolist()}) > 6
        torch.testing.assert_close(made.logp[known], _logp(lm, prompts, made.ids, 0.7)[known], atol=2e-5, rtol=0)
        assert torch.equal(state, torch.get_rng_state())
        with torch.no_grad():
            for p in lm.net.parameters():
                p.add_(0.3 * p.std() * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))


@pytest.mark.vllm
@pytest.mark.parametrize("lora", [Lora(rank=2, alpha=4, targets="attention+ff"), None], ids=["lora", "whole"])
def test_a_policy_learns_from_its_rollouts(lora: Lora | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tiny_audio_lms.TEXT, "head_dim", 32)
    lm = tiny_audio_lms.tiny("fun_asr_nano")
    lm.suppress_tokens = [5, 7]
    config = RL(
        task="asr", rewards=[RewardSpec(name="estoi", scale="none")], group=4, prompts_per_step=3, rollouts=VLLM
    )
    config = config.model_copy(update={"sampling": Sampling(max_new_tokens=6), "truncated": "keep", "clip_range": 0.2})
    policy = AsrPolicy(None, Adapted(lm, lora), config)
    batch = [Clip(f"u{i}", w, w, 16000, "hi", {}) for i, w in enumerate(noises(0.6, 1.0, 0.4))]
    rows = train(algorithm(policy), batch, Judge("estoi", lambda s: -float(len(s.hypothesis.encode()))), 3, 0.03)
    assert all(r["ratio_max_gap"] < 1e-4 and r["rollout/logp_gap_max"] < 1e-4 and r["grad_norm"] > 0 for r in rows)
    prompts = policy.model.encode([c.noisy for c in batch])
    greedy, own = (x.generate(prompts, max_new_tokens=12) for x in (policy.sampler, policy.model))
    assert torch.equal(greedy.ids, own.ids) and not torch.isin(own.ids, torch.tensor([5, 7])).any()
    first = tiny_audio_lms.tiny("fun_asr_nano").generate(prompts, max_new_tokens=12)
    assert first.ids.shape != own.ids.shape or not torch.equal(first.ids, own.ids)


@pytest.mark.parametrize("kind", ["whisper", "granite_speech", "begin", "bias", "here"])
def test_what_it_cannot_sample_is_refused(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    lm = tiny_audio_lms.tiny("fun_asr_nano" if kind in {"begin", "bias", "here"} else kind)
    lm.begin_suppress_tokens = lm.stops if kind == "begin" else []
    if kind == "bias":
        lm.net.get_output_embeddings().bias = torch.nn.Parameter(torch.zeros(1))
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError) as found:
        refuse(lm)
    assert "rollouts.engine=own" in found.value.try_this and ("rlspeech[vllm]" in found.value.try_this) == (
        kind == "here"
    )


def test_a_server_is_refused() -> None:
    with pytest.raises(UserError, match="rollouts.engine"):
        resolve(RL, sets=["rollouts.engine=http://127.0.0.1:8000"])
