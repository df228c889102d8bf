"""``rlspeech pretrain``: supervised training of a task's model, with an average of the weights, validation and resume.

rlspeech pretrain --task flowse --data mix.json --out runs/base
rlspeech pretrain --task avse --data av/mix.json --out runs/avse
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rlspeech import log
from rlspeech.config import Pretrain
from rlspeech.data.batches import Clip, ClipSource, batches
from rlspeech.engine import Engine, Watchdog
from rlspeech.files import safe_name
from rlspeech.models.folder import loading
from rlspeech.report.build import compared, print_table
from rlspeech.report.runs import open_runs
from rlspeech.rewards.scorer import Scorer
from rlspeech.run import Run
from rlspeech.scores import step_name
from rlspeech.stages.finish import DONE, Ending, at_the_end, longer
from rlspeech.stages.validation import keep_inputs
from rlspeech.state import load_optimizer_state, rng_state, set_rng_state
from rlspeech.stats import Interval, interval_columns
from rlspeech.tasks import get_task
from rlspeech.tasks.base import Numbers, Task
from rlspeech.tasks.owners import check_owners
from rlspeech.types import UserError

# a plateau, as the AVSEC-4 baseline's training: of what, what the rate falls by, after more validations than this, and the end after these
WATCHED, FACTOR, PATIENCE = "si_sdr", 0.8, (3, 6)
LOG_EVERY, POINTS = 50, 40  # steps behind a row of losses at most, and rows that a short run should have


def run(config: Pretrain) -> dict[str, Any]:
    """Train to ``config.steps`` or ``config.max_minutes``; the run folder's checkpoints hold the averaged weights.

    Returns step, last validation, why it stopped, checkpoint, report and run folder.
    Raises ``UserError``: data or checkpoint that cannot be used, a loss that is not finite.
    """
    task: Task = get_task(config.task)
    check_owners(config, task, own=":" in config.task)
    with Engine(config.device, config.precision, config.seed, shared=True) as engine:
        return _run(config, engine, task)


def _run(config: Pretrain, engine: Engine, task: Task) -> dict[str, Any]:
    with Run.create(config.out, "pretrain", config, growing={"steps"}) as folder, Watchdog() as watchdog:
        folder.note(device=engine.reason)
        model = task.build(config).to(engine.device).train()
        train, valid = task.data(config, model)
        trainer = Trainer(config, engine, task, model, folder)
        trainer.resume()
        millions, rows = sum(p.numel() for p in model.parameters()) / 1e6, len(train.utts)
        if config.lr_schedule == "plateau" and not (valid and config.valid_every and WATCHED in task.valid_metrics):
            why = f"it follows {WATCHED} of validations, and there is none"
            raise UserError("lr_schedule=plateau cannot be used here", why, "--set lr_schedule=cosine")
        log.say(f"{millions:.2f} M parameters, {log.several(rows, 'utterance')}, {engine.reason}")
        if remark := longer(folder, trainer.step, config.steps, falls=config.lr_schedule in {"cosine", "linear"}):
            log.say(remark)
        if not valid:
            log.say(f"{rows} utterances are too few to hold any back: nothing is validated; --valid MANIFEST does it")

        def check() -> Numbers:
            if not valid or not folder.main:
                return {}
            found = task.validate(trainer.averaged(), valid, folder, trainer.step, scorer, config.seed)
            _keep_inputs(folder.path / "samples", valid, trainer.step)
            return found

        device, workers = str(engine.device), min(2, config.workers or 1)
        with Scorer(list(task.valid_metrics), device=device, workers=workers) as scorer, at_the_end(folder) as end:
            end.reason = trainer.fit(train, check, watchdog)
        place = folder.path / "checkpoints" / step_name(trainer.step)
        summary = {"run": str(folder.path), "checkpoint": str(place), "step": trainer.step, **trainer.last_valid}
        summary |= {"stopped": end.reason, "report": str(end.page) if end.page else None}
        if folder.main:
            print_table(compared(open_runs([str(folder.path)])))
    if end.page:
        log.say(f"report: {end.page}")
    log.say("next: " + task.next_command.format(run=summary["run"]))
    return summary


class Trainer:
    """The loop's state: weights, their average, optimiser, data cursor."""

    def __init__(self, config: Pretrain, engine: Engine, task: Task, model: nn.Module, folder: Run) -> None:
        self.config, self.engine, self.task, self.model, self.folder = config, engine, task, model, folder
        how: dict[str, Any] = {"betas": (0.9, 0.99), "weight_decay": config.weight_decay}
        self.optimizer = torch.optim.AdamW(model.parameters(), config.lr, **how)
        self.average: dict[str, Tensor] = {k: v.detach().clone() for k, v in model.state_dict().items()}
        self.step = self.cursor = 0
        self.last_valid: dict[str, Any] = {}
        self.watched: list[float] = []  # of every validation so far, where the rate follows them

    @loading("this run's latest checkpoint", "delete it, or --out NEW")
    def resume(self) -> None:
        """Go on from the run folder's latest checkpoint, if it holds one."""
        found = self.folder.latest(self.engine.agree)
        if found is None:
            return
        path, state = found
        self.model.load_state_dict({k: v.to(self.engine.device) for k, v in state["weights"].items()})
        load_optimizer_state(self.optimizer, state["optimizer"])
        averaged = self.task.reload(str(path))[0].state_dict()
        self.average = {k: v.to(self.engine.device) for k, v in averaged.items()}
        self.step, self.cursor, self.last_valid = int(state["step"]), int(state["cursor"]), state["last_valid"]
        self.watched = state.get("watched", [])
        set_rng_state(state["rng"])
        log.say(f"resumed at step {self.step} from {path}")

    def fit(self, train: ClipSource, check: Callable[[], Numbers], watchdog: Watchdog) -> str:
        """Train until the configured end. ``check`` validates in the first process and returns its numbers. Returns why it stopped."""
        cfg, started = self.config, time.monotonic()
        self.engine.reseed(cfg.seed, self.step)
        often = min(LOG_EVERY, max(1, cfg.steps // POINTS))
        share: dict[str, Any] = {"rank": self.engine.rank, "world": self.engine.world, "workers": cfg.workers}
        clip_s = _clip_s(train, cfg, self.task)
        feed = batches(train, cfg.batch, clip_s, seed=cfg.seed, start=self.cursor, **share)
        sums: dict[str, float] = {}
        counted = 0  # steps behind the sums: fewer than `often` after a resume
        ending = Ending(self.engine, cfg.max_minutes)
        with log.progress(cfg.steps, "pretrain", "steps", start=self.step) as bar, ending:
            while self.step < cfg.steps and not self.plateaus()[1]:
                ending.check()
                clips, self.cursor = next(feed)
                parts = self.update(clips)
                watchdog.beat()
                self.step += 1
                sums, counted = {k: sums.get(k, 0.0) + v for k, v in parts.items()}, counted + 1
                bar.advance(1, loss=parts["loss"])
                ending.look()
                last = ending.late or self.step == cfg.steps
                if self.step % often == 0 or last:
                    rows = self.engine.gather(sums)  # each of as many steps and clips
                    means = {f"train/{k}": sum(r[k] for r in rows) / len(rows) / counted for k in sums}
                    self.folder.log(self.step, **means, lr=self.rate(), seconds=time.monotonic() - started)
                    sums, counted = {}, 0
                if last or (cfg.valid_every and self.step % cfg.valid_every == 0):
                    generators = rng_state()
                    with log.waiting("validating"):
                        numbers = self.engine.agree(check())  # the first process has them, the others wait
                    nan = math.nan
                    found = {k: v if isinstance(v, Interval) else Interval(v, nan, nan, 1) for k, v in numbers.items()}
                    set_rng_state(generators)  # how often one looks must not change what is learned
                    self.last_valid = {k: v.mean for k, v in found.items()}
                    self.watched += [self.last_valid[WATCHED]] if cfg.lr_schedule == "plateau" else []
                    self.folder.log(self.step, **interval_columns("valid", found))
                if last or ending.asked or self.step % cfg.save_every == 0 or self.plateaus()[1]:
                    self.save()
                if ending.late:
                    return f"stopped after {cfg.max_minutes:g} minutes"
        return DONE if self.step >= cfg.steps else f"stopped: no better {WATCHED} in {PATIENCE[1]} validations"

    def plateaus(self) -> tuple[int, bool]:
        """How often the rate has fallen on a plateau of what is watched, and whether training ends there; nan is no better."""
        best, falls, since_fall, since_best = -math.inf, 0, 0, 0
        for value in self.watched:
            since_fall, since_best = (0, 0) if value > best else (since_fall + 1, since_best + 1)
            best = value if value > best else best
            if since_fall > PATIENCE[0]:
                falls, since_fall = falls + 1, 0
        return falls, since_best >= PATIENCE[1]

    def rate(self) -> float:
        """Learning rate at this step: linear warm-up, then half a cosine to zero, a line to zero, or as validations say."""
        cfg, done, whole = self.config, self.step - self.config.warmup, max(1, self.config.steps - self.config.warmup)
        if done < 0:
            return cfg.lr * (self.step + 1) / cfg.warmup
        if cfg.lr_schedule == "cosine":
            return cfg.lr * 0.5 * (1 + math.cos(math.pi * done / whole))
        return cfg.lr * (1 - done / whole if cfg.lr_schedule == "linear" else FACTOR ** self.plateaus()[0])

    def update(self, clips: list[Clip]) -> dict[str, float]:
        """One optimiser step on B clips. Returns the loss in parts and the gradient norm."""
        cfg, parameters = self.config, list(self.model.parameters())
        batch = self.task.collate(clips, self.model, self.engine.device)
        with self.engine.autocast():
            parts = self.task.pretrain_loss(self.model, batch, cfg)
        if not torch.isfinite(parts["loss"]):
            why = "the learning rate is too high, or a batch holds extreme values"
            raise UserError(f"the loss is {parts['loss'].item()} at step {self.step}", why, f"--set lr={cfg.lr / 3:g}")
        self.optimizer.zero_grad(set_to_none=True)
        parts["loss"].backward()
        if self.engine.world > 1:
            for p in parameters:
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad / self.engine.world
            self.engine.add_up(*(p.grad for p in parameters if p.grad is not None))
        norm = torch.nn.utils.clip_grad_norm_(parameters, cfg.grad_clip)
        for group in self.optimizer.param_groups:
            group["lr"] = self.rate()
        self.optimizer.step()
        # a short memory at first, or the average keeps the random start
        decay = min(cfg.ema, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            state = self.model.state_dict()
            mixed = [k for k, v in self.average.items() if v.is_floating_point()]
            torch._foreach_lerp_([self.average[k] for k in mixed], [state[k] for k in mixed], 1 - decay)
            for k in self.average.keys() - set(mixed):  # counters, as BatchNorm's
                self.average[k].copy_(state[k])
        return {**{k: v.item() for k, v in parts.items()}, "grad_norm": norm.item()}

    def averaged(self) -> nn.Module:
        """A copy of the model with the averaged weights, in evaluation mode."""
        model = copy.deepcopy(self.model)
        model.load_state_dict(self.average)
        return model.eval()

    def save(self) -> None:
        """Checkpoint: averaged weights for use, raw weights and optimiser for resuming."""
        facts = {"stage": "pretrain", "steps": self.step, "data": self.config.data or "the embedded corpus"}
        facts |= {"batch": self.config.batch, "validation": self.last_valid}
        state: dict[str, Any] = {"weights": self.model.state_dict(), "optimizer": self.optimizer.state_dict()}
        state |= {"rng": rng_state(), "cursor": self.cursor, "last_valid": self.last_valid, "watched": self.watched}

        def write(path: Path) -> None:
            self.task.save(path, self.model, facts=facts, weights=self.average)

        self.folder.checkpoints.save(self.step, write, state)


def _keep_inputs(folder: Path, clips: Sequence[Clip], step: int) -> None:
    """Beside outputs that can be heard, once, what they were made from."""
    audible = {path.stem for path in (folder / step_name(step)).glob("*.flac")}
    own = any((folder / name).is_dir() for name in ("input", "recording", "original"))  # some tasks keep their own
    if audible and not own:
        keep_inputs(folder, [c for c in clips if {c.key, safe_name(c.key)} & audible])


def _clip_s(train: ClipSource, config: Pretrain, task: Task) -> float:
    if task.transcribed:
        return 0.0
    mixing = config.mixing or getattr(getattr(train, "mixtures", None), "mixing", None)
    return mixing.clip_s if mixing is not None else 2.0
