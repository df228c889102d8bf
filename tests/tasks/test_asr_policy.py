"""An audio language model as a policy, on tiny models of the real classes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny_audio_lms import clips as noises
from tiny_audio_lms import parameters_of, tiny
from torch import Tensor
from training import Judge, algorithm, check_grpo, train

from rlspeech import log
from rlspeech.config import PPO, RL, Lora, RewardSpec, Rollouts, Sampling
from rlspeech.data.batches import Clip
from rlspeech.models.adapters import Adapted
from rlspeech.stages.rl import describe
from rlspeech.tasks import token_policy
from rlspeech.tasks.asr.policy import AsrPolicy
from rlspeech.tasks.token_policy import kept_mass, sampled_kl, token_kl, token_logp
from rlspeech.types import CriticPolicy, Policy, SupervisedPolicy

FOUR = ("fun_asr_nano", "qwen2_audio", "voxtral", "whisper")
NAME = "estoi"  # a column of the registry, for its direction
SMALL = Lora(rank=2, alpha=4)


def _clips(kind: str = "fun_asr_nano", *more: float) -> list[Clip]:
    """Voxtral's tiny windows are 2 s: its clips have two chunks, one, and two."""
    seconds = (3.1, 1.2, 2.4) if kind == "voxtral" else (0.6, 1.0, 0.4)
    return [_clip(f"u{i}", w, f"hi {i}") for i, w in enumerate(noises(*seconds, *more))]


def _clip(key: str, wav: np.ndarray, text: str | None = "hi") -> Clip:
    return Clip(key, wav, wav, 16000, text, {})


def _policy(
    kind: str = "fun_asr_nano", lora: Lora | None = SMALL, model: Any = None, ragged: bool = False, **changes: Any
) -> AsrPolicy:
    """``ragged``: a third of the bytes end a transcript, so that rows have lengths."""
    sampling = changes.pop("sampling", {})
    plain = {"task": "asr", "rewards": [RewardSpec(name=NAME, scale="none")], "prompts_per_step": 3, "group": 4}
    plain |= {"micro_batch": 2, "clip_range": 0.2, "kl_beta": 0.1, "truncated": "keep"}
    plain |= {"sampling": Sampling(**{"max_new_tokens": 6, **sampling})}
    config = RL(**{**plain, **changes})
    lm = tiny(kind, **(model or {}))
    if ragged:
        lm.stops = [*lm.stops, *range(0, 256, 3)]
    if config.precision == "bf16":
        lm = lm.to(torch.bfloat16)
    return AsrPolicy(None, Adapted(lm, lora), config)


SHORT = Judge(NAME, lambda s: -float(len(s.hypothesis.encode())))


@pytest.fixture
def warned(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What is warned of."""
    said: list[str] = []
    monkeypatch.setattr(log, "warn", said.append)
    return said


@pytest.mark.parametrize("kind", FOUR)
def test_two_steps_of_grpo(kind: str) -> None:
    policy = _policy(kind, ragged=True)
    assert isinstance(policy, Policy)
    check_grpo(policy, _clips(kind), SHORT)


@pytest.mark.parametrize("kind", FOUR)
def test_two_steps_of_ppo_with_a_critic(kind: str) -> None:
    policy = _policy(kind, ragged=True, algo="ppo", ppo=PPO(form="critic", value_hidden=8), epochs=2)
    assert isinstance(policy, CriticPolicy)
    for stats in train(algorithm(policy), _clips(kind), SHORT):
        assert stats["grad_norm"] > 0 and np.isfinite(stats["value_loss"]) and stats["skipped_updates"] == 0


def test_the_whole_model_without_an_adapter() -> None:
    """The encoder stays as it was, the reference too; the relative form of PPO asks for the base's own transcripts."""
    policy = _policy(lora=None, algo="ppo", group=2)
    base = [s.hypothesis for s in policy.base(_clips())]
    ear = [p.detach().clone() for p in parameters_of(policy.model, "encoder")]
    assert base == policy.transcribe(_clips())
    train(algorithm(policy, 0.01), _clips(), SHORT, 3)
    assert [s.hypothesis for s in policy.base(_clips())] == base != policy.transcribe(_clips())
    assert all(torch.equal(a, b) for a, b in zip(ear, parameters_of(policy.model, "encoder"), strict=True))


@pytest.mark.parametrize("kind", FOUR)
def test_every_row_is_looked_at_with_its_own_clip(kind: str) -> None:
    """A row alone, from a clip heard alone, has the same log-probabilities: tiled instead of interleaved repeats would not (bug 1)."""
    policy, batch = _policy(kind), _clips(kind)
    made = policy.rollout(batch, group=3, seed=1)
    assert [s.key for s in made.samples] == [c.key for c in batch for _ in range(3)]
    assert made.logp.shape == made.mask.shape
    for i in range(9):
        heard = policy.model.encode([batch[i // 3].noisy])
        logits = policy.model.forward_logits(heard, [0], made.state.ids[[i]])
        alone = logits.log_softmax(-1).gather(-1, made.state.ids[[i]][..., None])[0, :, 0]
        keep = made.mask[i]
        torch.testing.assert_close(made.logp[i][keep], alone[keep], atol=2e-5, rtol=1e-5)
        assert made.samples[i].hypothesis == policy.model.text(made.state.ids[[i]], made.state.mask[[i]])[0]
        assert made.samples[i].text == batch[i // 3].text


def test_rollouts_are_a_function_of_the_seed_and_the_clip() -> None:
    policy, batch = _policy(), _clips()
    one, two, other = (policy.rollout(b, group=4, seed=s) for b, s in ((batch, 1), (batch[::-1], 1), (batch, 2)))
    texts = [[s.hypothesis for s in r.samples] for r in (one, two, other)]
    assert texts[0][:4] == texts[1][-4:] and texts[0] != texts[2] and len(set(texts[0][:4])) > 1


@pytest.mark.parametrize(("kind", "mib", "runs"), [("fun_asr_nano", 1, 9), ("whisper", 1, 3), ("whisper", 0.01, 7)])
def test_a_clip_is_encoded_once_a_step_and_once_where_there_is_room(kind: str, mib: float, runs: int) -> None:
    """Windows that are always the same ones are kept, also for the reference; what is mixed is another clip each time."""
    policy, ran = _policy(kind, lora=None, epochs=2, model={"encoder_cache_mib": mib}), list[int]()
    (encoder,) = policy.model.modules_of("encoder")
    encoder.register_forward_pre_hook(lambda m, a, k: ran.append(len((*a, *k.values())[0])), with_kwargs=True)
    train(algorithm(policy), _clips(), SHORT, 2)
    base = [s.hypothesis for s in policy.base(_clips())]
    assert sum(ran) == runs and policy.bucketed == (kind != "whisper")
    mixed = [replace(c, target=c.noisy + 1) for c in _clips()]
    assert base == [s.hypothesis for s in policy.base(mixed)] and sum(ran) == runs + 3


def test_what_is_suppressed_is_neither_sampled_nor_learnt(warned: list[str]) -> None:
    policy, batch = _policy("whisper"), [*_clips(), _clip("n", noises(0.5, seed=9)[0], "")]
    (hard,) = policy.model.tokenizer("h")["input_ids"]
    policy.model.suppress_tokens, policy.model.begin_suppress_tokens = [hard, 5], policy.model.stops
    made = policy.rollout(batch, group=8, seed=0)
    assert not torch.isin(made.state.ids, torch.tensor([hard, 5])).any() and not (made.state.ids[:, 0] == hard).any()
    look = policy.log_prob(made, torch.arange(16), with_kl=True)
    torch.testing.assert_close(look.logp[made.mask[:16]], made.logp[:16][made.mask[:16]], atol=1e-6, rtol=1e-6)
    assert float(look.kl.detach().abs().max()) < 1e-6 and len(warned) == 1 and "suppress=allow_empty" in warned[0]
    loss = policy.supervised(batch)
    ids, mask = policy.model.references([c.text for c in batch])
    logits = policy.model.forward_logits(policy.model.encode([c.noisy for c in batch]), range(4), ids, restricted=False)
    logits[..., [hard, 5]], logits[:, 0, policy.model.stops] = -torch.inf, -torch.inf
    each = -logits.log_softmax(-1).gather(-1, ids[..., None])[..., 0].masked_fill(~mask, torch.nan)
    assert each[3].isinf().sum() == 1 and int((hard == ids).sum()) == int(each[:3].isinf().sum()) == 3
    wanted = each.masked_fill(each.isinf(), torch.nan).nanmean(1)[:3].sum().item() / 4
    assert loss.item() == pytest.approx(wanted, rel=1e-5)
    loss.backward()
    assert all(p.grad.isfinite().all() for p in policy.parameters())


def test_a_trained_encoder_is_heard_again_and_moves() -> None:
    policy = _policy(lora=None, model={"train_encoder": True}, train_encoder=True)
    ear = parameters_of(policy.model, "encoder")
    before = [p.detach().clone() for p in ear]
    assert [row["kl"] > 1e-7 for row in train(algorithm(policy), _clips(), SHORT)] == [False, True]
    assert any((a != b).any() for a, b in zip(before, ear, strict=True))


@pytest.mark.parametrize("lora", [SMALL, None], ids=["lora", "whole"])
def test_half_precision_does_not_move_the_ratio(lora: Lora | None) -> None:
    """Micro-batches of the rollout are those of the update, so that the same rounding is done twice; weights that step are fp32."""
    policy = _policy(lora=lora, ragged=True, precision="bf16", updates_per_collection=2, micro_batch=1, group=6)
    assert all(p.dtype == torch.float32 for p in policy.parameters())
    assert any(p.dtype == torch.bfloat16 for p in policy.model.parameters())
    made = policy.rollout(_clips(), group=6, seed=0)
    for rows in policy._micro(made.state):
        look = policy.log_prob(made, rows, with_kl=True)
        assert look.logp.dtype == torch.float32 and float(look.kl.detach().abs().max()) < 1e-7
        assert float((look.logp - made.logp[rows])[made.mask[rows]].detach().abs().max()) < 1e-6
    before = [p.detach().clone() for p in policy.parameters()]
    assert train(algorithm(policy, 1e-5), _clips(), SHORT, lr=1e-5)[-1]["skipped_updates"] == 0
    assert any((a != b).any() for a, b in zip(before, policy.parameters(), strict=True))


def test_old_log_probabilities_come_in_the_updates_micro_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Larger models round by the shapes of a batch; these are too small to show it."""
    policy, looks = _policy(kl_beta=0.0, updates_per_collection=2, micro_batch=1), list[list[int]]()
    real = policy._forward

    def look(model: Any, said: Any, rows: Tensor) -> Tensor:
        looks.append(rows.tolist())
        return real(model, said, rows)

    monkeypatch.setattr(policy, "_forward", look)
    algo = algorithm(policy)
    made = algo.collect(_clips(), SHORT, seed=0)
    old = list(looks)
    algo.update(made, lr=0.01)
    assert old == looks[len(old) :] == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]


RIGHT = Judge(NAME, lambda s: float(s.hypothesis == s.text))


def test_a_reference_in_the_group_teaches_what_is_never_sampled() -> None:
    """It is rewarded, and what is logged of the collection is what it is without it."""
    texts, rows = ["hi 0", "hi 1", "hi 2"], []
    for joins in (False, True):
        policy = _policy(kl_beta=0.0, lora=None, reference_in_group=joins)
        algo, before = algorithm(policy), policy.transcribe(_clips())
        made = algo.collect(_clips(), RIGHT, seed=0)
        rows.append(describe(made))
        train(algo, _clips(), RIGHT, 30 if joins else 3, 0.03)
        assert policy.transcribe(_clips()) == (texts if joins else before)
    (without, count), (row, counts) = rows
    assert (without["groups_with_signal"], row["groups_with_signal"]) == (0, 3) and count[""] == counts[""] == 12
    assert all(row[k] == without[k] for k in ("reward", f"reward/{NAME}", "tokens", "finished", "wer"))
    assert [s.hypothesis for s in made.rollout.samples if s.reference] == texts
    given, plain = torch.tensor([s.reference for s in made.rollout.samples]), _policy(lora=None)
    assert given.tolist() == [*[False] * 4, True] * 3 and made.rollout.finished[given].all()
    # its old log-probabilities are those of the policy that acted, so that the first ratio is 1
    mean = (made.rollout.logp * made.rollout.mask).sum(1)[given] / made.rollout.mask.sum(1)[given]
    assert -float(mean.mean()) == pytest.approx(plain.supervised(_clips()).item(), rel=1e-5)


@pytest.mark.parametrize("shut", [False, True], ids=["longer than the budget", "suppressed"])
def test_a_reference_that_cannot_be_written_does_not_join(shut: bool, warned: list[str]) -> None:
    batch = [
        replace(_clips()[0], text="" if shut else "hi 0"),
        replace(_clips()[1], text="i"),
        _clip("x", _clips()[2].noisy, None),
    ]
    policy = _policy(reference_in_group=True, kl_beta=0.0, sampling={"max_new_tokens": 4})
    policy.model.begin_suppress_tokens = policy.model.stops if shut else []
    algo = algorithm(policy)
    made = algo.collect(batch, RIGHT, seed=0)
    assert made.rollout.group.tolist() == [0] * 4 + [1] * 5 + [2] * 4
    assert algo.update(made, lr=0.01)["skipped_updates"] == 0 and "1 of 2" in warned[0]


@pytest.mark.parametrize("more", [0, 1], ids=["sampled", "with references"])
def test_collections_join(more: int) -> None:
    policy, batch = _policy(reference_in_group=more > 0), _clips("fun_asr_nano", 0.8, 0.5)
    one, two = policy.rollout(batch[:3], group=4, seed=1), policy.rollout(batch[3:], group=4, seed=2)
    made = policy.join([(one, torch.tensor([0, 2])), (two, torch.tensor([1]))])
    size = 4 + more
    assert made.group.tolist() == [i for i in range(3) for _ in range(size)]
    assert [s.key for s in made.samples] == ["u0"] * size + ["u2"] * size + ["u4"] * size
    assert [s.reference for s in made.samples] == [*[False] * 4, *[True] * more] * 3
    for mine, (rollout, row) in enumerate([(one, 0), (one, 2), (two, 1)]):
        mine, row = (i * size + size - 1 for i in (mine, row))
        a, b = made.logp[mine][made.mask[mine]], rollout.logp[row][rollout.mask[row]]
        torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    look = policy.log_prob(made, torch.arange(8), with_kl=False)
    assert float((look.logp - made.logp[:8])[made.mask[:8]].detach().abs().max()) < 1e-6


def test_rows_of_an_engine_are_weighted_by_how_far_it_is_off() -> None:
    policy, batch = _policy(reference_in_group=True, rollouts=Rollouts(weight_cap=1.5)), _clips()

    class Off:
        """The policy's own draws, that an engine says were likelier or less likely by these numbers of nats."""

        def generate(self, prompts: Any, **how: Any) -> Any:
            made, rows = policy.model.generate(prompts, **how), torch.arange(3).repeat_interleave(4)
            logp = token_logp(policy.model.forward_logits(prompts, rows, made.ids), made.ids)
            return made._replace(logp=logp - torch.tensor([[-0.7], [0.2], [0.7], [torch.nan]]).repeat(3, 1))

    policy.sampler = Off()
    algo = algorithm(policy)
    made = algo.collect(batch, SHORT, seed=1)
    whole = policy.join([(made.rollout, torch.tensor([2])), (made.rollout, torch.tensor([0]))])
    for rollout in (made.rollout, whole):
        wanted = torch.tensor([np.exp(-0.7), np.exp(0.2), 1.5, 1.0, 1.0]).float().repeat(len(rollout.mask) // 5)
        torch.testing.assert_close(rollout.weight[rollout.mask], wanted[:, None].expand_as(rollout.mask)[rollout.mask])
    counts = made.rollout.mask.sum(1).view(3, 5)[:, :3].sum(0).float()
    share = counts / counts.sum()
    assert made.logged["rollout/capped"] == pytest.approx(float(share[2]))
    assert made.logged["rollout/logp_gap"] == pytest.approx(float(share @ torch.tensor([0.7, 0.2, 0.7])), rel=1e-3)
    assert algo.update(made, lr=0.01)["ratio_max_gap"] < 1e-4


def test_phases_move_the_parts_and_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, parked = [], list[str]()
    for offload in ("none", "phase"):
        policy = _policy(lora=None, ragged=True, offload=offload)
        real = policy.model.park
        monkeypatch.setattr(policy.model, "park", lambda phase, at, real=real: (parked.append(phase), real(phase, at)))
        train(algorithm(policy), _clips(), SHORT)
        ends.append((torch.cat([p.detach().flatten() for p in policy.parameters()]), policy.transcribe(_clips())))
    torch.testing.assert_close(ends[0][0], ends[1][0])
    assert ends[0][1] == ends[1][1]
    assert parked == ["encode", "rollout", "reward", "update"] * 2 + ["encode", "rollout"]


SAVING = [
    {"micro_tokens": 7},
    {"gradient_checkpointing": True},
    {"attn_implementation": "eager"},
    {"rollout_tokens": 99},
]


@pytest.mark.parametrize("kind", ["qwen2_audio", "whisper"])
def test_what_saves_memory_changes_no_step(kind: str) -> None:
    found = []
    for changes in ({}, *SAVING):
        policy, kept = _policy(kind, lora=None, ragged=True, **changes), list[int]()
        algo = algorithm(policy)
        made = algo.collect(_clips(kind), SHORT, seed=1)
        with torch.autograd.graph.saved_tensors_hooks(lambda x, kept=kept: kept.append(x.numel()) or x, lambda x: x):
            grads, stats = algo.gradients(made, made.advantage.value, torch.arange(3))
        assert stats["ratio_max_gap"] == 0
        found.append((grads.total, sum(kept), max(map(len, algo.parts(made.rollout)))))
    for total, _, _ in found[1:]:
        torch.testing.assert_close(total, found[0][0], atol=1e-6, rtol=1e-4)
    assert found[1][2] < found[0][2] and found[2][1] < 0.7 * found[0][1]


def test_a_truncated_sampler_is_measured_and_said_once(warned: list[str]) -> None:
    policy = _policy(sampling={"top_p": 0.6})
    for seed in range(2):
        made = policy.rollout(_clips(), group=4, seed=seed)
    rows, wanted = torch.arange(12), []
    logits = policy._logits(policy.model, policy._forward(policy.model, made.state, rows))
    for i in range(12):
        for s in range(int(made.mask[i].sum())):
            p = sorted(logits[i, s].softmax(-1).tolist(), reverse=True)
            kept, total = 0, 0.0
            while total < 0.6:
                total, kept = total + p[kept], kept + 1
            wanted.append(-np.log(total))
    assert policy.notes["sampler_gap"] == pytest.approx(np.mean(wanted), rel=1e-4) and np.mean(wanted) > 0.05
    assert len(warned) == 1 and "top_p 0.6" in warned[0] and "log ratio" in warned[0]
    plain = _policy()
    plain.rollout(_clips(), group=4, seed=0)
    assert len(warned) == 1 and not plain.notes


def test_the_policy_is_the_one_at_the_sampling_temperature(warned: list[str]) -> None:
    policy = _policy(sampling={"temperature": 0.7})
    made = policy.rollout(_clips(), group=4, seed=0)
    logits = policy._logits(policy.model, policy._forward(policy.model, made.state, torch.arange(12)))
    wanted = (logits / 0.7).log_softmax(-1).gather(-1, made.state.ids[..., None])[..., 0]
    torch.testing.assert_close(made.logp[made.mask], wanted[made.mask])
    assert len(warned) == 1 and policy.notes["temperature_gap"] > 0.05
    look = policy.log_prob(made, torch.arange(12), with_kl=True)
    assert float(look.kl[made.mask].detach().abs().max()) < 1e-6


def test_kept_mass_of_top_k_and_top_p() -> None:
    logits = torch.tensor([[[0.5, 0.3, 0.15, 0.05]]]).log()
    assert kept_mass(logits, Sampling(top_k=2)).item() == pytest.approx(0.8)
    assert kept_mass(logits, Sampling(top_p=0.9)).item() == pytest.approx(0.95)
    assert kept_mass(logits, Sampling(top_k=2, top_p=0.6)).item() == pytest.approx(0.5)  # 0.6 of what top-k left
    assert kept_mass(logits, Sampling()).item() == pytest.approx(1.0)


def test_both_kls_are_0_at_the_reference_and_agree_away_from_it() -> None:
    """k3 of many sampled tokens has the full KL for its mean."""
    found = {}
    for kind in ("full", "k3"):
        policy = _policy(lora=None, kl=kind, sampling={"max_new_tokens": 1})
        made = policy.rollout(_clips()[:1], group=64, seed=0)
        assert float(policy.log_prob(made, torch.arange(64), with_kl=True).kl.detach().abs().max()) < 1e-6
        with torch.no_grad():
            for p in parameters_of(policy.model, "language"):
                p += 0.03 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
        made = policy.rollout(_clips()[:1], group=300, seed=0)
        look = policy.log_prob(made, torch.arange(300), with_kl=True)
        assert look.kl.requires_grad and float(look.kl.detach().min()) >= 0
        found[kind] = float(look.kl.detach().mean())
    assert found["full"] > 0.02 and found["k3"] == pytest.approx(found["full"], rel=0.3)


def test_token_kl_is_torchs() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randn(3, 4, 9, generator=g, requires_grad=True) for _ in range(2))
    wanted = torch.distributions.kl_divergence(*(torch.distributions.Categorical(logits=x) for x in (a, b)))
    torch.testing.assert_close(token_kl(a, b), wanted)
    shut = [x.index_fill(2, torch.tensor([2, 5]), -torch.inf) for x in (a, b)]  # a vocabulary of which a part is closed
    found = token_kl(*shut)
    rest = [x[..., [i for i in range(9) if i not in {2, 5}]] for x in (a, b)]
    torch.testing.assert_close(found, token_kl(*rest))
    ours, theirs = (torch.autograd.grad(kl.sum(), a)[0] for kl in (found, token_kl(*rest)))
    torch.testing.assert_close(ours, theirs)
    ids = torch.randint(9, (3, 4), generator=g)
    torch.testing.assert_close(token_logp(a, ids, 0.5), torch.distributions.Categorical(logits=2 * a).log_prob(ids))


@pytest.mark.parametrize("moved", [0.0, 0.7])
def test_the_sampled_kl_has_the_kl_and_its_gradient_in_expectation(moved: float) -> None:
    """By enumeration of a vocabulary of 6, at the policy that sampled and away from it; k3 alone has KL(reference || policy)'s."""
    g = torch.Generator().manual_seed(1)
    theta, shift, other = (torch.randn(6, generator=g, dtype=torch.double) for _ in range(3))
    theta = (theta + moved * shift).requires_grad_()
    old, here, there = (x.log_softmax(0) for x in (theta.detach() - moved * shift, theta, other))
    estimate = (old.exp() * sampled_kl(here, there, old)).sum()
    kl = token_kl(theta[None], other[None])[0]
    torch.testing.assert_close(estimate, kl)
    mine, true = (torch.autograd.grad(x, theta, retain_graph=True)[0] for x in (estimate, kl))
    torch.testing.assert_close(mine, true)
    plain = (there - here).exp() - (there - here) - 1
    biased = torch.autograd.grad((here.detach().exp() * plain).sum(), theta, retain_graph=True)[0]
    reverse = torch.autograd.grad((there.exp() * (there - here)).sum(), theta)[0]
    torch.testing.assert_close(biased, reverse)
    assert torch.cosine_similarity(biased, true, dim=0) < 0.99
    dead = sampled_kl(here.detach().index_fill(0, torch.tensor([0]), -torch.inf).requires_grad_(), there, old)
    assert bool(dead.isfinite().all())


def test_supervision_teaches_the_references() -> None:
    policy = _policy(lora=None, policy_weight=0.0, supervised_weight=1.0, sampling={"max_new_tokens": 12})
    assert isinstance(policy, SupervisedPolicy)
    batch = [*_clips(), _clip("n", noises(0.5, seed=9)[0], "")]
    losses = [row["supervised_loss"] for row in train(algorithm(policy), batch, SHORT, 20, 0.03)]
    assert losses[-1] < 0.2 < losses[0]
    assert policy.transcribe(batch)[3] == "" and set(policy.transcribe(batch)[:3]) <= {"hi 0", "hi 1", "hi 2"}


@pytest.mark.parametrize("kind", FOUR)
def test_the_supervised_loss_is_a_mean_over_clips(kind: str) -> None:
    policy, batch = _policy(kind), _clips(kind)
    whole = policy.supervised(batch).item()
    assert whole == pytest.approx(np.mean([policy.supervised([c]).item() for c in batch]), rel=1e-4)
    ids, mask = policy.model.references([c.text for c in batch])
    logits = policy.model.forward_logits(policy.model.encode([c.noisy for c in batch]), [0, 1, 2], ids)
    rows = [torch.nn.functional.cross_entropy(a[m], i[m]).item() for a, i, m in zip(logits, ids, mask, strict=True)]
    assert whole == pytest.approx(np.mean(rows), rel=1e-4)
    silent = _clip("x", batch[0].noisy, None)
    assert policy.supervised([silent]).item() == 0
    assert policy.supervised([batch[0], silent]).item() == pytest.approx(rows[0] / 2, rel=1e-4)


def test_empty_short_and_broken_audio() -> None:
    policy = _policy()
    nan = noises(0.5)[0].copy()
    nan[100:200] = np.nan
    none, short = _clip("none", np.zeros(0, np.float32), ""), _clip("short", noises(0.05)[0])
    batch = [none, short, _clip("nan", nan), *_clips()]
    algo = algorithm(policy)
    made = algo.collect(batch, SHORT, seed=0)
    silent = made.rollout.group == 0
    assert {s.hypothesis for s, e in zip(made.rollout.samples, silent, strict=True) if e} == {""}
    assert not made.rollout.mask[silent].any() and made.rollout.finished[silent].all()
    assert made.rollout.mask[~silent].any(1).all() and bool(made.rollout.logp.isfinite().all())
    stats = algo.update(made, lr=0.01)
    assert stats["skipped_updates"] == 0 and stats["grad_norm"] > 0
    assert policy.transcribe(batch)[0] == "" and policy.transcribe([]) == []
    nothing = algo.collect([batch[0], batch[0]], SHORT, seed=0)
    assert algo.update(nothing, lr=0.01)["skipped_updates"] == 0


def test_what_is_too_long_is_said_once(warned: list[str]) -> None:
    policy = _policy(model={"max_s": 0.5})
    for _ in range(2):
        policy.transcribe(_clips())
    assert len(warned) == 1 and "longer than" in warned[0]


def test_room_for_tokens_grows_with_the_audio() -> None:
    policy = _policy(sampling={"max_new_tokens": None, "tokens_per_s": 5.0})
    short, long = _clips()[0], _clip("long", np.zeros(160_000, np.float32))
    assert policy._room([short, long]) == [16, 50]  # whatever stands beside it


def test_features_of_wide_models_are_projected(monkeypatch: pytest.MonkeyPatch) -> None:
    policy = _policy()
    made = policy.rollout(_clips(), group=2, seed=0)
    whole: Tensor = policy.features(made, torch.arange(6))
    assert whole.shape == (*made.mask.shape, 16) and not whole.requires_grad
    monkeypatch.setattr(token_policy, "FEATURES", 5)
    part = policy.features(made, torch.arange(6))
    assert part.shape == (*made.mask.shape, 5)
    torch.testing.assert_close(part[2:3], policy.features(made, torch.tensor([2])), atol=1e-5, rtol=1e-4)
