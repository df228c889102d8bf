"""A codec language model as a policy, on tiny models of the real classes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_codec_lms import RATE, V, adapted_public, speech, tiny
from tiny_diffro import Likes
from torch import Tensor
from training import Judge, algorithm, check_grpo, slope, train

from rlspeech.config import RL, DiffRO, Lora, RewardSpec, Sampling
from rlspeech.data.audio import save_audio
from rlspeech.data.batches import Clip
from rlspeech.models.adapters import Adapted
from rlspeech.models.audio_lm.generate import like_lengths
from rlspeech.tasks import get_task, token_policy
from rlspeech.tasks.tts.policy import TtsPolicy, gumbel_noise, needs_audio, noise_given, relaxed_tokens
from rlspeech.types import CriticPolicy, Policy, RelaxPolicy, SupervisedPolicy

NAME = "tts_duration"  # a column of the registry that needs_audio nothing, for its direction
SMALL = Lora(rank=2, alpha=4)


def clip(key: str, text: str | None, ids: Sequence[int] = (5, 6, 7), **columns: Any) -> Clip:
    wav = speech(ids)
    return Clip(key, wav, wav, RATE, text, columns)


CLIPS = [clip("a", "one two"), clip("b", "four", (9, 9)), clip("c", "seven eight nine", (1, 2, 3, 4))]


def policy(kind: str = "embedded", lora: Lora | None = SMALL, reward: str = NAME, **changes: Any) -> TtsPolicy:
    plain = {"task": "tts", "rewards": [RewardSpec(name=reward, scale="none")]}
    plain |= {"prompts_per_step": 3, "group": 4, "micro_batch": 2}
    plain |= {"clip_range": 0.2, "kl_beta": 0.1, "truncated": "keep", "sampling": Sampling(max_new_tokens=8)}
    lm = tiny() if kind == "embedded" else adapted_public(kind)
    made: TtsPolicy = get_task("tts").policy(Adapted(lm, lora), RL(**{**plain, **changes}))
    return made


SHORT = Judge(NAME, lambda s: -float(len(s.tokens)))
LOW = Judge(NAME, lambda s: -float(s.tokens.mean()) if len(s.tokens) else 0.0)


THREES = Likes([float(i == 3) for i in range(V)])  # a soft reward: as much of code 3 as there is


@pytest.mark.parametrize("kind", ["embedded", "llasa", "cosyvoice2"])
def test_two_steps_of_grpo(kind: str) -> None:
    p = policy(kind)
    assert isinstance(p, Policy) and isinstance(p, RelaxPolicy) and isinstance(p, CriticPolicy)
    check_grpo(p, CLIPS, LOW)


def test_half_precision_and_parked_parts() -> None:
    for lora in (None, SMALL):
        p = policy(lora=lora, precision="bf16", offload="phase", algo="grpo+diffro", diffro=DiffRO(on="all"))
        p.model.to(torch.bfloat16)
        p = get_task("tts").policy(p.adapted, p.config)
        assert all(x.dtype == torch.float32 for x in p.parameters())
        for stats in train(algorithm(p, soft=THREES), CLIPS, LOW):
            assert stats["ratio_max_gap"] == 0.0 and np.isfinite(stats["grad_norm"]) and stats["skipped_updates"] == 0


@pytest.mark.parametrize("algo", ["diffro", "grpo+diffro"])
@pytest.mark.parametrize("mode", ["teacher", "free"])
def test_two_steps_of_diffro(algo: str, mode: str) -> None:
    p = policy(algo=algo, diffro=DiffRO(mode=mode, on="all"), lora=None, sampling=Sampling(max_new_tokens=30))
    for stats in train(algorithm(p, soft=THREES), CLIPS, SHORT):
        assert stats["grad_norm"] > 0 and stats["skipped_updates"] == 0 and np.isfinite(stats["kl"]), stats


def test_grpo_and_diffro_teach_what_is_rewarded() -> None:
    """More of code 3: a policy that is given nothing but its reward finds it, by sampling and by gradient."""
    three = Judge(NAME, lambda s: float((s.tokens == 3).mean()) if len(s.tokens) else 0.0)
    rate = 0.01
    for algo in ("grpo", "diffro"):
        p = policy(algo=algo, lora=None, group=8, kl_beta=0.0, diffro=DiffRO(hard=True))
        p.model.net.lm_head.weight.data[p.model.layout.stops[0]] += 0.3 * p.model.net.lm_head.weight.data.std()
        made, shares = algorithm(p, rate, soft=THREES), []
        for step in range(14):
            experience = made.collect(CLIPS, three, seed=step)
            shares.append(float(np.mean([three.value(s) for s in experience.rollout.samples])))
            if bool(experience.rollout.finished.any()):
                made.update(experience, lr=rate)
        assert np.mean(shares[-4:]) > 2 * np.mean(shares[:4]) + 0.05, (algo, shares)


def test_rows_that_never_stop_are_not_finished() -> None:
    p = policy()
    p.model.net.lm_head.weight.data[p.model.layout.stops[0]] = 0.0
    p.model.net.lm_head.weight.data[p.model.layout.first : p.model.layout.first + V].mul_(5)
    made = p.rollout(CLIPS, group=4, seed=0)
    ended = (made.state.ids == V).any(1)
    assert not bool(ended.all()) and torch.equal(made.finished, ended)
    for s, done in zip(made.samples, made.finished.tolist(), strict=True):
        assert s.finished == done and len(s.tokens) == (8 if not done else len(s.tokens)) and (s.tokens < V).all()
    assert np.isfinite(train(algorithm(p), CLIPS, SHORT, 1)[0]["grad_norm"])


def test_a_row_may_be_as_long_as_its_own_text_whatever_its_neighbours() -> None:
    p = policy(sampling=Sampling())
    p.model.net.lm_head.weight.data[p.model.layout.stops[0]] = -1e3 * p.model.net.lm_head.weight.data.abs().mean()
    long = clip("long", "one two three four seven eight")  # 30 bytes: 2 + 6 s, of which the model says at most 4
    alone, both = p.rollout(CLIPS[1:2], group=2, seed=3), p.rollout([CLIPS[1], long], group=2, seed=3)
    short = int((2 + 4 / 5) / 0.04) + 1
    assert [int(x) for x in both.mask.sum(1)[2:]] and int(both.mask[2:].sum(1).max()) <= 101
    for a, b in zip(alone.samples, both.samples, strict=False):
        assert np.array_equal(a.tokens, b.tokens) and len(a.tokens) <= short and a.finished == b.finished


def test_rows_leave_the_batch_where_their_own_room_ends() -> None:
    """Room for each prompt: every row is what it is alone, and none is looked at after its end."""
    p = policy()
    lm, room = p.model, [3, 20, 0, 9]
    lm.net.lm_head.weight.data[lm.layout.stops[0]] *= 0.3
    prompts = lm.encode([p.task.line(c, lm) for c in [*CLIPS, CLIPS[0]]])
    seen = list[int]()

    def count(module: Any, args: Any, options: dict[str, Tensor], out: Any) -> None:
        seen.append(len(options["inputs_embeds"]))

    lm.net.model.register_forward_hook(count, with_kwargs=True)
    made = lm.generate(prompts, group=3, sampling=Sampling(), max_new_tokens=room, seed=[1, 2, 3, 4])
    work, seen[:] = sum(seen), []
    whole = lm.generate(prompts, group=3, sampling=Sampling(), max_new_tokens=20, seed=[1, 2, 3, 4])
    assert made.ids.shape[1] <= 20 and work < sum(seen) and len(seen) <= 20
    for row, most in enumerate(r for r in room for _ in range(3)):
        length = min(most, int(whole.mask[row].sum()))
        assert int(made.mask[row].sum()) == length and torch.equal(made.ids[row, :length], whole.ids[row, :length])
        assert bool(made.finished[row]) == (bool(whole.finished[row]) and int(whole.mask[row].sum()) <= most)


@given(st.lists(st.integers(0, 200), min_size=1, max_size=40), st.integers(1, 500))
def test_rows_of_like_length_share_a_pass(lengths: list[int], spare: int) -> None:
    parts = like_lengths(torch.tensor(lengths), spare)
    assert sorted(i for part in parts for i in part.tolist()) == list(range(len(lengths)))
    padded = sum(len(part) * max(lengths[i] for i in part.tolist()) for part in parts)
    assert padded <= len(lengths) * max(lengths) - spare * (len(parts) - 1)


@pytest.mark.parametrize("kind", ["embedded", "cosyvoice2"])
def test_how_rows_share_passes_changes_nothing(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor how many logits are made at once; none of them wait for the backward pass."""
    found, kept = [], list[int]()
    for spare in (1, 10**9):
        monkeypatch.setattr(token_policy, "SPARE", (spare, spare))
        monkeypatch.setattr(token_policy, "PART", spare)
        p = policy(kind, lora=None, algo="grpo+diffro", diffro=DiffRO(on="all"), sampling=Sampling(max_new_tokens=30))
        passes = list[int]()
        p.model.net.model.register_forward_hook(lambda m, args, out, passes=passes: passes.append(1))
        algo = algorithm(p, soft=THREES)
        made = algo.collect(CLIPS, LOW, seed=1)
        rows = torch.tensor([7, 0, 3])
        with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x.shape[-1]) or x, lambda x: x):
            real, look = made.rollout.mask[rows], p.log_prob(made.rollout, rows, with_kl=True)
        assert kept and p.model.size + 1 not in kept
        grads, stats = algo.gradients(made, made.advantage.value, torch.arange(3))
        numbers = made.rollout.logp, p.features(made.rollout, rows)[real], look.logp[real], grads.total
        found.append((len(passes), stats["kl"], numbers))
    one, other = found
    assert one[0] > other[0] and one[1] == pytest.approx(other[1], abs=1e-6)
    for a, b in zip(one[2], other[2], strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-3)


def test_an_empty_text_is_answered_with_nothing() -> None:
    p = policy()
    made = p.rollout([clip("a", ""), CLIPS[0], clip("b", "..."), clip("c", None)], group=2, seed=0)
    empty = [0, 1, 4, 5, 6, 7]
    assert not made.mask[empty].any() and made.finished[empty].all()
    assert all(len(made.samples[i].wav) == 0 for i in empty)
    assert np.isfinite(train(algorithm(p), [clip("a", ""), CLIPS[0]], SHORT, 1)[0]["grad_norm"])
    relaxed = p.relax(made, torch.arange(8), tau=1.0, hard=True, seed=0, with_kl=True)
    assert not relaxed.mask[empty].any() and torch.isfinite(relaxed.soft).all()


def test_characters_that_the_model_never_saw_are_a_text_like_others() -> None:
    p = policy()
    made = p.rollout([clip("a", "日本語 ☃ café"), clip("b", "<|endoftext|> 1\u200b2"), CLIPS[0]], group=2, seed=0)
    assert made.mask[:4].any(1).all() and torch.isfinite(made.logp).all()


def test_waveforms_are_made_where_a_reward_hears_them() -> None:
    assert needs_audio(["tts_duration", "tts_pitch_std"])
    assert not needs_audio(["tts_duration", "tts_stopped", "tts_loop"])
    quiet, loud = policy(), policy(reward="tts_pitch_std")
    made = [p.rollout(CLIPS, group=2, seed=0) for p in (quiet, loud)]
    assert quiet.model.codec.decoded == 0 and loud.model.codec.decoded == 6
    for a, b in zip(made[0].samples, made[1].samples, strict=True):
        assert np.array_equal(a.tokens, b.tokens) and len(a.wav) == 0 and np.array_equal(b.wav, speech(b.tokens))
    assert all(len(s.wav) for s in quiet.task.outputs(quiet, CLIPS) if len(s.tokens))
    alone = policy(reward="tts_pitch_std", algo="diffro")  # its rewards are those of validation
    assert not alone.decodes
    assert all(len(s.wav) == 0 and s.token_s == 0.04 for s in alone.rollout(CLIPS, group=2, seed=0).samples)
    assert alone.model.codec.decoded == 0 and policy(reward="tts_pitch_std", algo="grpo+diffro").decodes


def test_the_prompt_is_the_rows_own_and_encoded_once(tmp_path: Path) -> None:
    """Public bug: a prompt drawn anew for every scored sample."""
    save_audio(tmp_path / "p.wav", speech([9] * 10), RATE)
    long = speech([4] * 60)
    save_audio(tmp_path / "long.wav", long, RATE)
    files = {"a": "p.wav", "b": "long.wav", "d": "none.wav"}  # the long one lends its voice only
    batch = [clip(k, "one", prompt_filepath=str(tmp_path / f), prompt_text="four") for k, f in files.items()]
    batch.insert(2, clip("c", "one"))
    p = policy(reward="tts_pitch_std")
    for seed in range(2):
        made = p.rollout(batch, group=2, seed=seed)
    assert p.model.codec.encoded == 1
    rows = made.state.encoded.ids
    assert rows[0][-10:].tolist() == [p.model.layout.first + 9] * 10
    assert torch.equal(rows[1], rows[2]) and torch.equal(rows[2], rows[3])
    voices = p.model.codec.voices[-8:]
    np.testing.assert_allclose(voices[0], speech([9] * 10), atol=1e-3)
    np.testing.assert_allclose(voices[2], long, atol=1e-3)
    assert voices[0] is voices[1] and np.array_equal(voices[4], batch[2].target) and voices[6] is None
    assert made.samples[0].target is voices[0] and made.samples[6].target is None


def test_relaxed_hard_rows_are_the_rollout_without_its_stop() -> None:
    p = policy(sampling=Sampling(max_new_tokens=20))
    made = p.rollout(CLIPS, group=4, seed=2)
    relaxed = p.relax(made, torch.arange(12), tau=0.7, hard=True, seed=5, with_kl=True)
    ids, mask = made.state.ids, made.state.mask
    assert torch.equal(relaxed.mask, mask & (ids < V)) and relaxed.soft.shape == (*ids.shape, V) == relaxed.logits.shape
    assert torch.equal(relaxed.soft.argmax(-1)[relaxed.mask], ids[relaxed.mask])
    assert set(relaxed.soft.detach().unique().tolist()) == {0.0, 1.0}
    assert bool(made.finished.any())
    look = p.log_prob(made, torch.arange(12), with_kl=True)
    torch.testing.assert_close(relaxed.kl, look.kl)
    # as published: another sequence than was sampled
    p.config = p.config.model_copy(update={"diffro": DiffRO(noise="fresh")})
    other = p.relax(made, torch.arange(12), tau=0.7, hard=True, seed=5)
    assert not torch.equal(other.soft.argmax(-1)[relaxed.mask], ids[relaxed.mask]) and other.kl is None


@pytest.mark.parametrize("noise", ["given", "fresh"])
@pytest.mark.parametrize("mode", ["teacher", "free"])
def test_a_rows_relaxation_is_its_own(mode: str, noise: str) -> None:
    p = policy(diffro=DiffRO(mode=mode, noise=noise), sampling=Sampling(max_new_tokens=12))
    made = p.rollout(CLIPS, group=2, seed=2)
    whole = p.relax(made, torch.arange(6), tau=1.0, hard=False, seed=5)
    for rows in ([0], [3, 5], [4, 1]):
        part = p.relax(made, torch.tensor(rows), tau=1.0, hard=False, seed=5)
        width = part.soft.shape[1]
        wanted = (whole.soft * whole.mask[..., None])[rows, :width]
        torch.testing.assert_close(part.soft * part.mask[..., None], wanted, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(whole.soft, p.relax(made, torch.arange(6), tau=1.0, hard=False, seed=6).soft)


@pytest.mark.parametrize("mode", ["teacher", "free"])
def test_the_relaxed_gradient_is_that_of_finite_differences(mode: str) -> None:
    # given noise moves with the weights, and its gradient is by design not taken
    p = policy(lora=None, diffro=DiffRO(mode=mode, noise="fresh"), sampling=Sampling(max_new_tokens=5))
    p.model.double()
    made, rows = p.rollout(CLIPS, group=2, seed=2), torch.arange(6)
    taste = torch.randn(V, generator=torch.Generator().manual_seed(0))

    def reward() -> Tensor:
        relaxed = p.relax(made, rows, tau=0.9, hard=False, seed=5)
        return ((relaxed.soft @ taste).square() * relaxed.mask).sum()

    length, found = slope(reward, [p.model.net.lm_head.weight], 1e-3)
    assert length == pytest.approx(found, rel=2e-2)


def test_free_running_rows_end_where_their_stop_wins() -> None:
    p = policy(diffro=DiffRO(mode="free"), sampling=Sampling(max_new_tokens=30))
    made = p.rollout(CLIPS, group=4, seed=2)
    relaxed = p.relax(made, torch.arange(12), tau=1.0, hard=True, seed=5)
    lengths = relaxed.mask.sum(1)
    assert torch.equal(relaxed.mask, torch.arange(relaxed.mask.shape[1]) < lengths[:, None])
    assert len(set(lengths.tolist())) > 2
    head = p.model.net.model.layers[0].self_attn.q_proj
    relaxed.soft[:, -1].square().sum().backward()
    assert any(x.grad is not None and float(x.grad.abs().max()) > 0 for x in head.parameters())


def test_the_supervised_loss_is_the_recordings_cross_entropy_and_falls() -> None:
    p = policy(lora=None, policy_weight=0.0, supervised_weight=1.0)
    assert isinstance(p, SupervisedPolicy)
    with torch.no_grad():
        each = [float(p.supervised([c])) for c in CLIPS]
        assert float(p.supervised([*CLIPS, clip("x", None)])) == pytest.approx(sum(each) / 4, rel=1e-5)
        assert float(p.supervised([clip("x", None)])) == 0.0
        assert float(p.supervised([clip("x", "one", recorded=False)])) == 0.0  # its sound is the prompt's
    ids = torch.tensor([[5, 6, 7, V]])
    logp = p.model.forward_logits(p.model.encode([p.task.line(CLIPS[0], p.model)]), [0], ids).log_softmax(-1)
    assert each[0] == pytest.approx(-float(logp.detach()[0].gather(-1, ids[0][:, None]).mean()), rel=1e-4)
    losses = [row["supervised_loss"] for row in train(algorithm(p, 0.01), CLIPS, SHORT, 15)]
    assert losses[-1] < 0.7 * losses[0] and p.model.codec.encoded == 3


def test_a_recording_joins_its_group_and_diffro_sees_what_was_sampled() -> None:
    p = policy(algo="grpo+diffro", diffro=DiffRO(on="all"), reference_in_group=True)
    made = algorithm(p, soft=THREES).collect([*CLIPS, clip("x", "one", recorded=False)], LOW, seed=0)
    given = [i for i, s in enumerate(made.rollout.samples) if s.reference]
    assert given == [4, 9, 14] and len(made.rollout.samples) == 19
    assert [made.rollout.samples[i].tokens.tolist() for i in given] == [[5, 6, 7], [9, 9], [1, 2, 3, 4]]
    assert made.extra["kept"].sum() == 16 and not made.extra["kept"][given].any() and made.reward[given].all()


def test_moments_and_what_wins() -> None:
    noise = gumbel_noise([20000], 4, [0])
    assert abs(float(noise.mean()) - 0.5772) < 0.02 and abs(float(noise.var()) - math.pi**2 / 6) < 0.05
    logits = torch.tensor([0.0, 1.0, -1.0, 0.5]).expand(1, 20000, 4)
    won = (logits + noise).argmax(-1)[0].bincount(minlength=4) / 20000
    torch.testing.assert_close(won, logits[0, 0].softmax(-1), atol=0.012, rtol=0)


def test_noise_given_a_winner_lets_it_win_and_has_the_law_of_noise() -> None:
    torch.manual_seed(0)
    logits = torch.tensor([0.0, 2.0, -1.0]).expand(1, 40000, 3)
    ids = torch.multinomial(logits[0, 0].softmax(-1), 40000, replacement=True)[None]
    noise = noise_given(logits, ids, gumbel_noise([40000], 3, [3]))
    assert float(((logits + noise).argmax(-1) == ids).double().mean()) > 0.9999
    for k in range(3):  # winners drawn from the softmax: over all of them the noise is plain Gumbel noise again
        one = noise[0, :, k]
        assert abs(float(one.mean()) - 0.5772) < 0.03 and abs(float(one.var()) - math.pi**2 / 6) < 0.08
    hard = relaxed_tokens(logits, noise, 1.0, True, ids)
    assert torch.equal(hard.argmax(-1), ids)
    far = noise_given(torch.tensor([[[0.0, 60.0]]]), torch.tensor([[0]]), gumbel_noise([1], 2, [0]))
    assert bool(far.isfinite().all())
    shut = torch.tensor([[[0.0, -torch.inf, 1.0]]], requires_grad=True)  # the second one cannot be drawn
    given = noise_given(shut, torch.tensor([[2]]), gumbel_noise([1], 3, [0]))
    soft = relaxed_tokens(shut, given, 1.0, True, torch.tensor([[2]]))
    (grad,) = torch.autograd.grad((soft * torch.arange(3)).sum(), shut)
    assert soft[0, 0].tolist() == [0, 0, 1] and bool(grad.isfinite().all()) and grad[0, 0, 1] == 0


def test_hard_is_exactly_one_hot_and_soft_sums_to_one() -> None:
    logits, noise = torch.randn(2, 3, 6, generator=torch.Generator().manual_seed(0)), gumbel_noise([3, 3], 6, [0, 1])
    hard, soft = (relaxed_tokens(logits, noise, 0.3, h) for h in (True, False))
    assert set(hard.unique().tolist()) == {0.0, 1.0} and torch.equal(hard.argmax(-1), soft.argmax(-1))
    torch.testing.assert_close(soft.sum(-1), torch.ones(2, 3))


def test_the_same_text_twice_is_answered_twice_and_relaxed_by_noise_of_its_own() -> None:
    p, twice = policy(), [CLIPS[0], replace(CLIPS[0], place=1)]
    made = p.rollout(twice, group=2, seed=2)
    alone = p.rollout(twice[1:], group=2, seed=2)  # as another process would that has it alone
    ids, mask = made.state.ids, made.mask
    assert not torch.equal(ids[:2], ids[2:])
    first = p.rollout(twice[:1], group=2, seed=2)
    assert [s.tokens.tolist() for r in (first, alone) for s in r.samples] == [s.tokens.tolist() for s in made.samples]
    soft = p.relax(made, torch.arange(4), tau=1.0, hard=False, seed=5).soft
    other = p.relax(alone, torch.arange(2), tau=1.0, hard=False, seed=5).soft
    torch.testing.assert_close(other, soft[2:, : other.shape[1]], rtol=1e-4, atol=1e-6)
    assert mask.any() and not torch.allclose(soft[0, 0], soft[1, 0])
