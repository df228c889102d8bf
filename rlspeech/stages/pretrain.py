"""``rlspeech pretrain``: supervised training of a task's model, with an average of the weights, validation and resume.

    rlspeech pretrain --task flowse --data mix.json --out runs/base
"""

from __future__ import annotations

import math
import time
from typing import Any

import torch
from torch import Tensor

from rlspeech import log
from rlspeech.config import Pretrain
from rlspeech.data.audio import save_audio
from rlspeech.data.batches import Clip, ClipSource, batches, hold_back, open_clips, whole_clips
from rlspeech.engine import Engine, Watchdog
from rlspeech.models.flow import FlowEnhancer
from rlspeech.models.hub import load_flow, save_flow
from rlspeech.rewards.scorer import Scorer
from rlspeech.run import Run, load_optimizer_state, optimizer_state, rng_state, set_rng_state
from rlspeech.stats import mean_interval
from rlspeech.tasks import get_task
from rlspeech.tasks.flowse import Enhancer, FlowSE
from rlspeech.types import Sample, UserError

SOFT = frozenset({"time_power", "condition_drop", "nfe", "guidance"})  # settings that weights do not depend on
VALID_METRICS = ("estoi", "si_sdr", "dnsmos_ovrl")


def run(config: Pretrain, *, json_mode: bool = False) -> dict[str, Any]:
    """Train to ``config.steps`` or ``config.max_minutes``; the run folder's checkpoints hold the averaged weights.

    Returns:
        step, last validation, checkpoint and run folder.

    Raises:
        UserError: data or checkpoint that cannot be used, a loss that is not finite.
    """
    engine = Engine(config.device, config.precision, config.seed)
    task = get_task(config.task)
    with Run.create(config.out, "pretrain", config) as folder, Watchdog() as watchdog:
        folder.note(device=engine.reason)
        model = _model(config, task).to(engine.device).train()
        train, valid = data_of(config.data, config.valid, model.sample_rate, config.valid_items, config.seed, config.mixing)
        trainer = Trainer(config, engine, task, model, folder)
        trainer.resume()
        engine.say(f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters, {len(train.utts)} utterances, {engine.reason}")
        with Scorer(list(VALID_METRICS), device=str(engine.device), workers=min(2, config.workers or 1)) as scorer:
            trainer.fit(train, lambda: validate(trainer.enhancer(), valid, scorer, folder, trainer.step), watchdog)
        checkpoint = folder.path / "checkpoints" / f"step_{trainer.step:06d}"
        summary = {"run": str(folder.path), "checkpoint": str(checkpoint), "step": trainer.step, **trainer.last_valid}
    log.say(f"next: rlspeech rl --task {config.task} --algo grpo --model {summary['run']}")
    return summary


class Trainer:
    """The loop's state: weights, their average, optimiser, data cursor."""

    def __init__(self, config: Pretrain, engine: Engine, task: FlowSE, model: FlowEnhancer, folder: Run) -> None:
        self.config, self.engine, self.task, self.model, self.folder = config, engine, task, model, folder
        self.optimizer = torch.optim.AdamW(model.parameters(), config.lr, betas=(0.9, 0.99), weight_decay=config.weight_decay)
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step = self.cursor = 0
        self.last_valid: dict[str, Any] = {}

    def resume(self) -> None:
        """Go on from the run folder's latest checkpoint, if it holds one."""
        found = self.folder.latest()
        if found is None:
            return
        path, state = found
        self.model.load_state_dict({k: v.to(self.engine.device) for k, v in state["weights"].items()})
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.average = {k: v.to(self.engine.device) for k, v in load_flow(str(path))[0].state_dict().items()}
        self.step, self.cursor, self.last_valid = int(state["step"]), int(state["cursor"]), state["last_valid"]
        set_rng_state(state["rng"])
        self.engine.say(f"resumed at step {self.step} from {path}")

    def fit(self, train: ClipSource, check: Any, watchdog: Watchdog) -> None:
        """Train until the configured end. ``check`` validates and returns its numbers."""
        cfg, started = self.config, time.monotonic()
        feed = batches(train, cfg.batch, _clip_s(train, cfg), seed=cfg.seed, start=self.cursor, rank=self.engine.rank,
                       world=self.engine.world, workers=cfg.workers)
        sums: dict[str, float] = {}
        counted = 0  # steps behind the sums: fewer than 50 after a resume
        with log.progress(cfg.steps, "pretrain", "steps", start=self.step) as bar:
            while self.step < cfg.steps:
                clips, self.cursor = next(feed)
                parts = self.update(clips)
                watchdog.beat()
                self.step += 1
                sums, counted = {k: sums.get(k, 0.0) + v for k, v in parts.items()}, counted + 1
                bar.advance(1, loss=parts["loss"])
                late = cfg.max_minutes is not None and time.monotonic() - started > 60 * cfg.max_minutes
                last = late or self.step == cfg.steps
                if self.step % 50 == 0 or last:
                    means = {f"train/{k}": v / counted for k, v in sums.items()}
                    self.folder.log(self.step, **means, lr=self.rate(), seconds=time.monotonic() - started)
                    sums, counted = {}, 0
                if last or (cfg.valid_every and self.step % cfg.valid_every == 0):
                    generators = rng_state()
                    self.last_valid = check()
                    set_rng_state(generators)  # how often one looks must not change what is learned
                    self.folder.log(self.step, **{f"valid/{k}": v for k, v in self.last_valid.items()})
                if last or self.step % cfg.save_every == 0:
                    self.save()
                if late:
                    self.engine.say(f"stopped at step {self.step} after {cfg.max_minutes} minutes")
                    break

    def rate(self) -> float:
        """Learning rate at this step: linear warm-up, then half a cosine to zero."""
        cfg = self.config
        if self.step < cfg.warmup:
            return cfg.lr * (self.step + 1) / cfg.warmup
        return cfg.lr * 0.5 * (1 + math.cos(math.pi * (self.step - cfg.warmup) / max(1, cfg.steps - cfg.warmup)))

    def update(self, clips: list[Clip]) -> dict[str, float]:
        """One optimiser step on B clips. Returns the loss in parts and the gradient norm."""
        cfg, parameters = self.config, list(self.model.parameters())
        batch = self.task.collate(clips, self.model.cfg, self.engine.device)
        with self.engine.autocast():
            parts = self.task.pretrain_loss(self.model, batch, cfg.magnitude_weight)
        if not torch.isfinite(parts["loss"]):
            raise UserError(f"the loss is {parts['loss'].item()} at step {self.step}",
                            "the learning rate is too high, or a batch holds extreme values", f"--set lr={cfg.lr / 3:g}")
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        self.engine.average_gradients(parameters)
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        decay = min(cfg.ema, (1 + self.step) / (10 + self.step))  # a short memory at first, or the average keeps the random start
        with torch.no_grad():
            torch._foreach_lerp_(list(self.average.values()), [v for v in self.model.state_dict().values()], 1 - decay)
        return {**{k: v.item() for k, v in parts.items()}, "grad_norm": norm.item()}

    def enhancer(self) -> Enhancer:
        """An enhancer with the averaged weights."""
        model = FlowEnhancer(self.model.cfg).to(self.engine.device)
        model.load_state_dict(self.average)
        return Enhancer(self.task, model.eval(), seed=self.config.seed)

    def save(self) -> None:
        """Checkpoint: averaged weights for use, raw weights and optimiser for resuming."""
        facts = {"stage": "pretrain", "steps": self.step, "data": self.config.data or "the embedded corpus", "batch": self.config.batch,
                 "validation": self.last_valid}
        state = {"weights": self.model.state_dict(), "optimizer": optimizer_state(self.optimizer), "rng": rng_state(),
                 "cursor": self.cursor, "last_valid": self.last_valid}
        self.folder.save_checkpoint(self.step, lambda path: save_flow(path, self.model, facts=facts, weights=self.average), state)


def validate(enhancer: Enhancer, clips: list[Clip], scorer: Scorer, folder: Run, step: int, players: int = 2) -> dict[str, float]:
    """Enhance held-out clips, score them, keep a few to listen to under ``samples/``. Returns means."""
    made = [enhancer.infer([c.noisy], [c.key])[0] for c in clips]
    for c, wav in list(zip(clips, made, strict=True))[:players]:
        save_audio(folder.path / "samples" / f"step_{step:06d}" / f"{c.key}.flac", wav, enhancer.sample_rate)
    scores = scorer.score([Sample(c.key, w, enhancer.sample_rate, c.target, c.text) for c, w in zip(clips, made, strict=True)])
    return {name: mean_interval([s.value for s in column]).mean for name, column in scores.items()}


def data_of(data: str | None, valid: str | None, sample_rate: int, valid_items: int, seed: int,
            mixing: Any = None) -> tuple[ClipSource, list[Clip]]:
    """Training source and validation clips. Without ``data`` the embedded corpus; without ``valid`` utterances held back from the data.

    Returns:
        the source to train on, and up to ``valid_items`` whole clips that it does not contain.
    """
    if data is None:
        from rlspeech.corpora.demo import demo_recipe, demo_valid

        data, valid = str(demo_recipe()), valid or str(demo_valid())
    source = open_clips(data, sample_rate, mixing=mixing, seed=seed)
    if valid is not None:
        held = open_clips(valid, sample_rate, seed=seed)
        return source, whole_clips(held, valid_items)
    train, held = hold_back(source, valid_items)
    return train, whole_clips(held, valid_items)


def _model(config: Pretrain, task: FlowSE) -> FlowEnhancer:
    """Fresh weights, or ``init``'s: there only settings that fit its weights may be given anew."""
    if config.init is None:
        return task.build(config.model)
    model, _ = load_flow(config.init)
    given = {k: getattr(config.model, k) for k in config.model.model_fields_set}
    misfits = [k for k, v in given.items() if k not in SOFT and v != getattr(model.cfg, k)]
    if misfits:
        raise UserError(f"{config.init} has another {', '.join(misfits)}", f"with --init only {', '.join(sorted(SOFT))} can be set",
                        "leave them out, or train from random weights without --init")
    model.cfg = model.cfg.model_copy(update={k: v for k, v in given.items() if k in SOFT})
    return model


def _clip_s(train: ClipSource, config: Pretrain) -> float:
    mixing = config.mixing or getattr(getattr(train, "mixtures", None), "mixing", None)
    return mixing.clip_s if mixing is not None else 2.0


