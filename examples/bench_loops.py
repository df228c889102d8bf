"""What ``bench.py`` compares with: loops of reinforcement learning as they are published, and generation by other libraries.

The loops are written as the papers' and their forerunners' code are, plainly: every rollout is a row of every forward pass, rewards are
computed file by file, the reference is asked at every update. They draw, decide and learn the same as ours on the same weights and clips;
nothing is slowed down on purpose.

- ``flowse``: Flow-GRPO's training script (github.com/yifan123/flow_grpo) with the SDE of FlowSE-GRPO (arXiv 2601.16483).
- ``avse``: LR-AVSE's one-step PPO with DNSMOS as the reward (arXiv 2603.13952), inner epochs as in its forerunner (arXiv 2410.13182).
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor

Parts = dict[str, float]  # seconds by phase: rollout, reward, update


class Clock:
    """Seconds by phase; a device finishes what was asked of it before a phase ends."""

    def __init__(self, device: torch.device) -> None:
        self.parts, self._device = Parts(), device

    @contextmanager
    def __call__(self, phase: str) -> Iterator[None]:
        """Add what is done inside to a phase."""
        began = self._now()
        yield
        self.parts[phase] = self.parts.get(phase, 0.0) + self._now() - began

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


Rate = Callable[[np.ndarray, Any], float]  # a waveform and its prompt


def one_by_one(names: Sequence[str], device: str) -> tuple[Rate, str]:
    """Rewards as a user of their packages computes them, a file at a time: the sum, and who computes DNSMOS."""
    from rlspeech.rewards.scorer import Scorer
    from rlspeech.types import Sample

    own, dnsmos = [n for n in names if not n.startswith("dnsmos")], None
    if len(own) < len(names):
        try:
            from speechmos import dnsmos
        except ImportError:
            own = list(names)
    scorer = Scorer(own, device=device, workers=0) if own else None

    def rate(wav: np.ndarray, clip: Any) -> float:
        total = 0.0
        if dnsmos is not None:
            total += float(dnsmos.run(np.clip(wav, -1, 1), 16000)["ovrl_mos"])
        if scorer is not None:
            sample = Sample("it", wav, 16000, np.asarray(clip.target))
            total += sum(score[0].value or 0.0 for score in scorer.score([sample]).values())
        return total

    return rate, "one by one" if dnsmos is None else "one by one, speechmos"


def flowse(session: Any, rate: Rate) -> Callable[[], Parts]:
    """One GRPO step of a flow: SDE steps inside an ODE, every rollout from its own latent. Returns what makes it, and its seconds."""
    from rlspeech.tasks.flowse.policy import collate, condition, decode

    policy, config, optimizer = session.policy, session.config, session.optimizer
    model, device, group = policy.model, policy.device, session.config.group

    def step(x: Tensor, y: Tensor, i: int, dt: float) -> tuple[Tensor, float]:
        """Mean (n, L, D) and standard deviation of the next state."""
        t, a = i * dt, config.explore.noise
        x1 = model.clean(x, y, t)
        v, (centre, spread) = (x1 - x) / (1 - t), model.prior_moments(y)
        mean = x + dt * v - dt * a**2 / (2 * t) * (x - t * v - centre)
        return mean, spread * a * math.sqrt((1 - t) / t * dt)

    def log_prob(x: Tensor, mean: Tensor, std: float) -> Tensor:
        return (-((x - mean) ** 2) / (2 * std**2) - math.log(std) - math.log(math.sqrt(2 * math.pi))).mean((1, 2))

    def run() -> Parts:
        clock, prompts = Clock(device), session.draw()
        nfe, window = policy.schedule(np.random.default_rng(0))
        dt, repeated = 1 / nfe, [c for c in prompts for _ in range(group)]
        with clock("rollout"), torch.no_grad():
            data = collate(repeated, model, device)
            y, _ = condition(model, data)
            x = model.prior(y, torch.randn(len(y), y.shape[1], model.front.width, device=device))
            kept = []
            for i in range(nfe):
                if i in window:
                    mean, std = step(x, y, i, dt)
                    after = mean + std * torch.randn_like(mean)
                    kept.append((i, x, after, log_prob(after, mean, std)))
                    x = after
                else:
                    x = x + dt * (model.clean(x, y, i * dt) - x) / (1 - i * dt)
            wavs = (decode(model, x, data.samples) / data.gain[:, None]).cpu().numpy()
        with clock("reward"):
            rewards = torch.tensor([rate(w, c) for w, c in zip(wavs, repeated, strict=True)], device=device)
        grouped = rewards.view(-1, group)
        advantage = ((grouped - grouped.mean(1, keepdim=True)) / (grouped.std(1, keepdim=True) + 1e-4)).flatten()
        with clock("update"):
            for rows in torch.arange(len(repeated)).split(config.micro_batch * group):
                for i, x, after, old in kept:
                    mean, std = step(x[rows], y[rows], i, dt)
                    with torch.no_grad(), policy.adapted.reference():
                        base, _ = step(x[rows], y[rows], i, dt)
                    ratio = (log_prob(after[rows], mean, std) - old[rows]).exp()
                    gain = torch.minimum(ratio * advantage[rows], ratio.clamp(0.8, 1.2) * advantage[rows])
                    kl = ((mean - base) ** 2).mean((1, 2)) / (2 * std**2)
                    loss = (config.kl_beta * kl - gain).sum() / (len(repeated) * len(kept))
                    loss.backward()
            _apply(policy.parameters(), optimizer)
        return clock.parts

    return run


def avse(session: Any, rate: Rate) -> Callable[[], Parts]:
    """One PPO step of a mask, judged against the frozen base's output. Returns what makes it, and its seconds."""
    from rlspeech.tasks.avse.enhancer import collate, supervised_loss

    policy, config, optimizer = session.policy, session.config, session.optimizer
    model, device, noise = policy.model, policy.device, session.config.explore.noise

    def given(data: Any) -> tuple[Any, ...]:
        return data.noisy, data.video, data.present, data.samples

    def run() -> Parts:
        clock, prompts = Clock(device), session.draw()
        with clock("rollout"), torch.no_grad():
            data = collate(prompts, model, device)
            made = model(*given(data))
            with policy.adapted.reference() as frozen:
                base = frozen(*given(data))
            sampled = made.mask + noise * torch.randn_like(made.mask)
            old = (-((sampled - made.mask) ** 2) / (2 * noise**2)).flatten(1).mean(1)
            both = [model.decode(made.latent[:, None] * sampled.clamp_min(0), data.noisy.shape[-1])]
            both += [model.decode(base.latent[:, None] * base.mask, data.noisy.shape[-1])]
            wavs = [(w / data.gain[:, None, None])[:, 0].cpu().numpy() for w in both]
            kl = ((made.mask - base.mask) ** 2 / (2 * noise**2)).flatten(1).mean(1)
        with clock("reward"):
            here, there = ([rate(w, c) for w, c in zip(side, prompts, strict=True)] for side in wavs)
        advantage = torch.tensor(here, device=device) - torch.tensor(there, device=device) - config.kl_beta * kl
        with clock("update"):
            for _ in range(config.epochs):
                for rows in torch.arange(len(prompts)).split(config.micro_batch):
                    part = data.pick(rows.to(device))
                    new = model(*given(part))
                    logp = (-((sampled[rows] - new.mask) ** 2) / (2 * noise**2)).flatten(1).mean(1)
                    ratio, worth = (logp - old[rows]).exp(), advantage[rows]
                    gain = torch.minimum(ratio * worth, ratio.clamp(0.9, 1.1) * worth)
                    out = model.decode(new.latent[:, None] * new.mask, part.noisy.shape[-1])
                    loss = config.supervised_weight * supervised_loss(model, out, part) - gain.mean()
                    (loss * len(rows) / len(prompts)).backward()
                _apply(policy.parameters(), optimizer)
        return clock.parts

    return run


def _apply(parameters: list[Any], optimizer: Any) -> None:
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


LOOPS = {"flowse": flowse, "avse": avse}


# ------------------------------------------------------------------------------------------------- tokens by other libraries


def transformers_generate(policy: Any, clips: Sequence[Any], group: int, tokens: int) -> Callable[[], int]:
    """``generate`` of transformers with every prompt repeated, sampled at temperature 1. Returns what gives the number of tokens."""
    from transformers import GenerationConfig, GenerationMixin

    from rlspeech.models.audio_lm.generate import left_padded

    model, stops = policy.model, _stops(policy.model)
    how: dict[str, Any] = {"do_sample": True, "top_k": 0, "top_p": 1.0, "temperature": 1.0}
    config = GenerationConfig(max_new_tokens=tokens, eos_token_id=stops, pad_token_id=stops[0], **how)

    @torch.no_grad()
    def run() -> int:
        repeated = [c for c in clips for _ in range(group)]
        encoded = policy._encode(repeated)
        embeds, mask = left_padded(model.embed(encoded))
        kept, model.net.generation_config = model.net.generation_config, config
        try:
            ids = GenerationMixin.generate(
                model.net, generation_config=config, inputs_embeds=embeds, attention_mask=mask
            )
        finally:
            model.net.generation_config = kept
        ended = torch.isin(ids, torch.tensor(stops, device=ids.device))
        return int((ended.cumsum(1) - ended.long() == 0).sum())

    return run


def ours_generate(policy: Any, clips: Sequence[Any], group: int, tokens: int) -> Callable[[], int]:
    """Our sampler on the same prompts. Returns what gives the number of tokens."""
    from rlspeech.config_parts import Sampling

    turn = iter(range(10**6))

    @torch.no_grad()
    def run() -> int:
        how: dict[str, Any] = {"sampling": Sampling(temperature=1.0), "max_new_tokens": tokens, "seed": next(turn)}
        return int(policy.model.generate(policy._encode(clips), group=group, **how).mask.sum())

    return run


def _stops(model: Any) -> list[int]:
    layout = getattr(model, "layout", None)
    return list(layout.stops) if layout is not None else list(model.stops)


def trl_seconds(
    net: Any, tokenizer: Any, prompts: int, group: int, tokens: int, steps: int, folder: str
) -> list[float]:
    """Seconds of each step of TRL's ``GRPOTrainer`` on a causal model: rollouts, a reward that costs nothing, an update."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    times: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_step_end(self, *_: Any, **__: Any) -> None:
            times.append(time.perf_counter())

    rows = Dataset.from_list([{"prompt": "one two three four"}] * (prompts * steps))
    how: dict[str, Any] = {"per_device_train_batch_size": prompts * group, "num_generations": group, "beta": 0.0}
    how |= {
        "max_completion_length": tokens,
        "max_steps": steps,
        "report_to": [],
        "save_strategy": "no",
        "logging_steps": 10**6,
    }
    how |= {"use_cpu": net.device.type == "cpu", "disable_tqdm": True, "bf16": False, "gradient_checkpointing": False}

    def reward(completions: list[str], **_: Any) -> list[float]:
        return [float(len(c) % 7) for c in completions]

    parts: dict[str, Any] = {"train_dataset": rows, "processing_class": tokenizer, "callbacks": [Watch()]}
    GRPOTrainer(net, reward, GRPOConfig(folder, **how), **parts).train()
    return np.diff(times).tolist()


def vllm_generate(folder: str, prompts: Sequence[Sequence[int]], group: int, tokens: int) -> Callable[[], int]:
    """vLLM's sampler on a folder that transformers loads. Returns what gives the number of tokens. Raises ``ImportError``."""
    from vllm import LLM, SamplingParams

    engine = LLM(folder, skip_tokenizer_init=True, gpu_memory_utilization=0.3, enable_prefix_caching=True)
    how = SamplingParams(n=group, temperature=1.0, max_tokens=tokens, detokenize=False)

    def run() -> int:
        made = engine.generate([{"prompt_token_ids": list(p)} for p in prompts], how, use_tqdm=False)
        return sum(len(o.token_ids) for row in made for o in row.outputs)

    return run
