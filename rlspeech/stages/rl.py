"""``rlspeech rl``: tune a pretrained model with a reward.

    rlspeech rl --algo grpo --task flowse                                   # embedded checkpoint, embedded corpus
    rlspeech rl --algo ppo --task avse                                      # the same for audio-visual enhancement
    rlspeech rl --algo grpo --task asr                                      # the same for recognition, with rules as rewards
    rlspeech rl --algo diffro --task flowse                                 # the gradient of DNSMOS itself, smoothed
    rlspeech rl --preset flowse-grpo --model runs/base --data mix.json      # as published

One step: roll out a group for every prompt, score the rollouts, turn scores into advantages, update. ``metrics.jsonl`` gets a row a
step; validation compares the same held-out clips with step 0, pair by pair, and guards may stop the run. However it ends, there is a
``report.html``; ``rlspeech report RUN`` writes it again, also while the run goes on.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch

from rlspeech import log
from rlspeech.algos import get_algorithm
from rlspeech.config import RL
from rlspeech.data.batches import Clip, batches
from rlspeech.engine import Engine, Watchdog
from rlspeech.models.adapters import Adapted
from rlspeech.rewards.mix import GuardWatch
from rlspeech.rewards.scorer import Scorer
from rlspeech.run import Run, load_optimizer_state, optimizer_state, rng_state, set_rng_state
from rlspeech.scores import step_name
from rlspeech.stages import rl_report, validation
from rlspeech.stages.curves import columns_of
from rlspeech.stages.finish import DONE, Interrupt, at_the_end, longer
from rlspeech.stages.pretrain import data_of, transcribed
from rlspeech.stages.rl_rules import averaged, climbing, complete, describe, load_options, soft_of, word_interval
from rlspeech.stages.validation import change_told, shown_name, tuned_facts
from rlspeech.stats import Interval, mean_interval, paired_delta
from rlspeech.tasks import get_task
from rlspeech.tasks.base import EnhancementTask, channels_of
from rlspeech.types import UserError

Drawn = tuple[list[Clip], int]  # prompts, and the cursor behind them
DRAW = 100_003  # from the seed of a validation's draw to that of the next


def run(config: RL, *, json_mode: bool = False) -> dict[str, Any]:
    """Train, validate, checkpoint; go on where an earlier attempt of the same run stopped.

    Returns:
        run folder, checkpoint, the best one, steps, why it stopped, whether a guard did (``tripped``), validation at the start and the
        end with paired differences.

    Raises:
        UserError: settings, data or rewards that cannot be used; nearly nothing could be scored.
    """
    task = get_task(config.task)
    config = complete(config, task)
    engine = Engine(config.device, "fp32", config.seed)  # ratios of two passes in bf16 are noise
    device = str(engine.device)
    with (
        Run.create(config.out, "rl", config, growing={"steps"}) as folder,
        Watchdog() as watchdog,
        make_scorer(config, device, guards=False) as scorer,
        make_scorer(config, device) as judge,
    ):
        folder.note(device=engine.reason, rewards=judge.meta())
        session = Session(config, engine, task, folder, scorer, judge)
        _explain(config, session, engine)
        with at_the_end(folder, rl_report.page_data) as end:
            end.reason = session.fit(watchdog)
        summary = session.summary(end.reason) | {"report": str(end.page) if end.page else None}
    header = ["metric", "before", "after", "difference (95 %)", "role"]
    log.table(f"rl: {config.algo} on {config.task}, {end.reason}", header, _rows(session, config))
    which = "" if config.task == "flowse" else f" --task {config.task}"
    if end.page:
        log.say(f"report: {end.page}")
    if summary["tripped"] and summary["best"]:
        log.say(
            f"a guard stopped it; --model {summary['run']} takes the best checkpoint before that: {summary['best']}"
        )
    elif summary["tripped"]:
        log.warn(
            f"a guard stopped it before any better checkpoint: go on with {config.model}, not with {summary['run']}"
        )
    log.say(f"next: rlspeech eval{which} --model before={config.model} --model after={summary['run']}")
    return summary


class Session:
    """One run's moving parts: policy, algorithm, data cursor, validation.

    ``scorer`` computes the rewards of every rollout; ``judge`` also the guards, on validation clips only: they may be dear.
    """

    def __init__(
        self, config: RL, engine: Engine, task: EnhancementTask, folder: Run, scorer: Scorer, judge: Scorer
    ) -> None:
        self.config, self.engine, self.folder, self.scorer, self.judge, self.task = (
            config,
            engine,
            folder,
            scorer,
            judge,
            task,
        )
        model, self.facts = task.load(config.model, engine.device, **load_options(config))
        self.adapted = Adapted(model, config.lora)
        self.policy = task.policy(self.adapted, config)
        self.optimizer = torch.optim.AdamW(
            self.policy.parameters(), config.lr, betas=(0.9, 0.95), weight_decay=config.weight_decay
        )
        self.algo = get_algorithm(
            config, self.policy, self.optimizer, engine.average_gradients, soft_of(config, engine.device)
        )
        self.train, self.valid = data_of(
            config.data,
            config.valid,
            task.sample_rate_of(model),
            config.valid_items,
            config.seed,
            task=config.task,
            channels=channels_of(task, model),
            max_s=getattr(model, "max_s", None),
        )
        if len(self.valid) > 1:  # a single one has no other's to see
            self.valid = seen(self.valid, config.video)  # the control is checked as it is trained
        self.step = self.cursor = self.spent = 0
        self.feed: Iterator[Drawn] = iter(())
        self.reserve: Iterator[Drawn] = iter(())
        self.history: list[dict[str, Any]] = []  # validation columns: {"step": ..., name: [values]}
        self.guards, self.tripped = GuardWatch(config.guards), cast("str | None", None)
        self.best = -math.inf

    # -- the loop ------------------------------------------------------------------------------------------------------

    def fit(self, watchdog: Watchdog) -> str:
        """Run to the configured end. Returns why it stopped."""
        cfg, started = self.config, time.monotonic()
        self.resume()
        if self.folder.main:
            validation.trim(self.folder.path, self.step if self.history else -1)
        if remark := longer(self.folder, self.step, cfg.steps, cfg.lr_schedule == "linear"):
            self.engine.say(remark)
        self.feed = self.prompts(cfg.seed, self.cursor)
        self.reserve = self.prompts(
            cfg.seed + 1, self.spent
        )  # another order, for prompts that dynamic sampling asks for
        if not self.history:
            self.validate()
        if self.tripped:  # by an earlier attempt: going on would do more of the damage
            return self.tripped
        with (
            log.progress(cfg.steps, f"rl {cfg.algo}", "steps", start=self.step) as bar,
            Interrupt(self.engine.world) as interrupt,
        ):
            while self.step < cfg.steps:
                interrupt.obey()
                metrics = self.advance(self.draw())
                watchdog.beat()
                self.folder.log(self.step, **metrics)
                shown = {"reward": "reward", "wer": "wer", "grad_agreement": "agreement"}
                if not cfg.policy_weight:
                    shown = {"supervised_loss": "loss"}
                bar.advance(1, **{short: metrics[name] for name, short in shown.items() if name in metrics})
                late = cfg.max_minutes is not None and time.monotonic() - started > 60 * cfg.max_minutes
                stop = None
                if late or self.step % cfg.valid_every == 0 or self.step == cfg.steps:
                    stop = self.validate()
                if stop or late or interrupt.asked or self.step % cfg.save_every == 0 or self.step == cfg.steps:
                    self.save()
                if stop or late:
                    return stop or f"stopped after {cfg.max_minutes:g} minutes"
        return DONE

    def prompts(self, seed: int, start: int) -> Iterator[Drawn]:
        """Endless prompts from a cursor on."""
        cfg, engine = self.config, self.engine
        clip_s = 0.0 if transcribed(self.task) else cfg.clip_s
        return batches(
            self.train, cfg.prompts_per_step, clip_s, seed=seed, start=start, rank=engine.rank, world=engine.world
        )

    def draw(self) -> list[Clip]:
        """The next prompts."""
        clips, self.cursor = next(self.feed)
        return seen(clips, self.config.video)

    def further(self, count: int) -> list[Clip]:
        """Up to ``count`` prompts for those of this step that had no signal."""
        clips, self.spent = next(self.reserve)
        return seen(clips, self.config.video)[:count]

    def advance(self, prompts: list[Clip]) -> dict[str, Any]:
        """One step: collect and update. Returns what is logged."""
        cfg = self.config
        experience = self.algo.collect(
            prompts,
            self.scorer,
            seed=1 + self.step * self.engine.world + self.engine.rank,
            further=self.further if cfg.dynamic_sampling else None,
        )
        decay = 1 - self.step / cfg.steps if cfg.lr_schedule == "linear" else 1.0
        stats = self.algo.update(experience, lr=cfg.lr * decay)
        self.step += 1
        return {**describe(experience), **stats, "lr": cfg.lr * decay}

    @log.waiting("validating")
    def validate(self) -> str | None:
        """Score the held-out clips without exploration. Returns a reason to stop, or None."""
        cfg, began_s = self.config, time.monotonic()
        place = self.folder.path / "samples" / step_name(self.step)
        drawn = [
            self.task.outputs(
                self.policy, self.valid, place, players=0 if draw else validation.AUDIBLE, seed=cfg.seed + DRAW * draw
            )
            for draw in range(cfg.valid_draws)
        ]  # the same latents at every validation: differences are the weights'
        samples, scores = (
            drawn[0],
            averaged([self.judge.score(samples) for samples in drawn]),
        )  # the first is kept to be heard
        row: dict[str, Any] = {"step": self.step, **{k: [s.value for s in column] for k, column in scores.items()}}
        row["reward"] = validation.reward_of(cfg.rewards, row, (self.history or [row])[0])
        self.history.append(row)
        names = [k for k in row if k != "step"]
        deltas = {k: self.delta(k) for k in names}
        means = {k: mean_interval(row[k]) for k in names}
        if any(s.hypothesis is not None for s in samples):
            means["wer"] = word_interval(samples, cfg.seed)
        if self.folder.main:
            validation.keep(self.folder.path, self.step, self.valid, samples, scores, row["reward"])
        self.folder.log(
            self.step,
            **columns_of("valid", means),
            **columns_of("delta", deltas),
            **{"seconds/validate": time.monotonic() - began_s},
        )
        if self.step and (told := change_told(deltas)):
            self.engine.say(f"step {self.step}, {len(self.valid)} held-out clips against step 0: {told}")
        gain, self.tripped = deltas["reward"].mean, self.watch()
        if gain > self.best and self.step and not self.tripped and not self.spoilt():
            self.best = gain
            self.save()
            self.folder.mark_best(self.step)
        return self.tripped

    def spoilt(self) -> bool:
        """Whether the mean of a guard is beyond its limit, if not yet beyond doubt: no best checkpoint, however it is rewarded."""
        return any(
            g.max_drop is not None and self.guards.drops.get(g.name, 0.0) > g.max_drop for g in self.config.guards
        )

    def watch(self) -> str | None:
        """What the guards say of the last validation: a reason to stop, or None."""
        row = self.history[-1]
        return self.guards.update(row["step"], {g.name: row[g.name] for g in self.config.guards})

    def delta(self, name: str) -> Interval:
        """Paired difference of a metric between the last validation and the first."""
        return paired_delta(self.history[-1][name], self.history[0][name], seed=self.config.seed)

    # -- on disk -------------------------------------------------------------------------------------------------------

    def resume(self) -> None:
        """Go on from the run folder's latest checkpoint, if it holds one."""
        found = self.folder.latest()
        if found is None:
            return
        path, state = found
        self.adapted.load_trained({k: v.to(self.engine.device) for k, v in state["trained"].items()})
        load_optimizer_state(self.optimizer, state["optimizer"])
        self.step, self.cursor, self.history = int(state["step"]), int(state["cursor"]), state["history"]
        self.spent = int(state.get("spent", 0))
        self.best = state["best"] if state["best"] is not None else -math.inf
        self.guards.update(0, {g.name: self.history[0][g.name] for g in self.config.guards})
        self.tripped = self.watch()
        self.algo.load_state(state["algo"])
        set_rng_state(state["rng"])
        self.engine.say(f"resumed at step {self.step} from {path}")

    def save(self) -> None:
        """A plain checkpoint (adapter folded in), the adapter beside it, and trainer state."""
        facts = tuned_facts(
            self.config, self.facts.get("facts", {}), self.history, self.step, self.train.utts, self.judge.meta()
        )
        state = {
            "trained": self.adapted.trained(),
            "optimizer": optimizer_state(self.optimizer),
            "rng": rng_state(),
            "cursor": self.cursor,
            "spent": self.spent,
            "history": self.history,
            "algo": self.algo.state(),
            "best": None if math.isinf(self.best) else self.best,
        }

        def write(path: Any) -> None:
            self.task.save(path, self.adapted.model, facts=facts, weights=self.adapted.merged())
            self.adapted.save_adapter(str(path / "adapter"))

        self.folder.save_checkpoint(self.step, write, state)

    def summary(self, reason: str) -> dict[str, Any]:
        """What ``--json`` prints."""
        names = [k for k in self.history[0] if k != "step"]
        checkpoint = self.folder.path / "checkpoints" / f"step_{self.step:06d}"
        best = self.folder.best()
        return {
            "run": str(self.folder.path),
            "checkpoint": str(checkpoint),
            "best": None if best is None else str(best),
            "steps": self.step,
            "stopped": reason,
            "tripped": self.tripped,
            "before": {k: mean_interval(self.history[0][k]).as_dict() for k in names},
            "after": {k: mean_interval(self.history[-1][k]).as_dict() for k in names},
            "difference": {k: self.delta(k).as_dict() for k in names},
        }


def seen(clips: list[Clip], video: str) -> list[Clip]:
    """The clips with the videos that the run lets them have: their own, each the one before's in the list, or none.

    Raises:
        UserError: a single clip has nobody to take a video from.
    """
    if video == "right":
        return clips
    if video == "shuffled" and len(clips) < 2:
        raise UserError(
            "one clip cannot have another one's video",
            "video=shuffled with a single prompt or validation clip",
            "--set prompts_per_step=2 --set valid_items=2",
        )
    return [replace(c, lips=None if video == "none" else clips[i - 1].lips) for i, c in enumerate(clips)]


def make_scorer(config: RL, device: str, *, guards: bool = True) -> Scorer:
    """The rewards, and the guards if asked for, loaded and tried once before anything is computed.

    Raises:
        UserError: one of them does not work here.
    """
    names = [r.name for r in config.rewards] + ([g.name for g in config.guards] if guards else [])
    scorer = Scorer(list(dict.fromkeys(names)), device=device, workers=config.workers)
    scorer.dry_run()
    return scorer


def _explain(config: RL, session: Session, engine: Engine) -> None:
    """The arithmetic that users ask about, in one line each."""
    n, u = config.prompts_per_step, config.updates_per_collection
    trainable = sum(p.numel() for p in session.policy.parameters())
    engine.say(
        f"{engine.reason}; {trainable / 1e6:.2f} M trainable parameters; {len(session.train.utts)} prompts to draw from"
    )
    if config.policy_weight == 0:
        engine.say(f"no RL: {n} prompts a step, the supervised loss alone; {config.steps} steps")
        return
    engine.say(
        f"a step = {n} prompts x {config.group} rollouts = {n * config.group} rollouts, {u} update(s) of {-(-n // u)} prompts; "
        f"{config.steps} steps = {config.steps * n * config.group} rollouts"
    )
    rewards = ", ".join(f"{r.weight:g} x {r.name}" for r in config.rewards)
    watched = ", ".join(g.name for g in config.guards) or "nothing"
    engine.say(f"rewards {rewards}; watched {watched}")
    if "diffro" in config.algo:
        engine.say(climbing(config))
    if transcribed(session.task):
        cut = (
            ", truncated: what is trained is not what samples"
            if config.sampling.top_p < 1 or config.sampling.top_k
            else ""
        )
        engine.say(
            f"tokens are sampled at temperature {config.sampling.temperature:g}{cut}; "
            f"rollouts that never stop: {config.truncated}; weights {config.precision}, offload {config.offload}"
        )


def _rows(session: Session, config: RL) -> list[list[Any]]:
    rewarded = {r.name for r in config.rewards}
    first, last = session.history[0], session.history[-1]
    return [
        [
            shown_name(k),
            mean_interval(first[k]).text(3),
            mean_interval(last[k]).text(3),
            session.delta(k).text(3, sign=True),
            _role(k, rewarded),
        ]
        for k in first
        if k != "step"
    ]


def _role(name: str, rewarded: set[str]) -> str:
    return "all together" if name == "reward" else "reward" if name in rewarded else "guard"
