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
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from rlspeech import log
from rlspeech.algos import get_algorithm
from rlspeech.algos.update import Experience
from rlspeech.config import RL
from rlspeech.data.batches import Clip, batches, with_video
from rlspeech.engine import Engine, Watchdog, sampled_rows
from rlspeech.models.adapters import Adapted
from rlspeech.models.folder import loading
from rlspeech.models.sharding import part_of_state, whole
from rlspeech.rewards.rates import error_counts
from rlspeech.rewards.scorer import Scorer
from rlspeech.run import Run
from rlspeech.scores import step_name
from rlspeech.stages.finish import DONE, Ending, at_the_end, explain, longer, shown
from rlspeech.stages.validation import TEXT, Validation, texts_of, trim, tuned_facts
from rlspeech.state import load_optimizer_state, make_optimizer, rng_state, set_rng_state
from rlspeech.stats import mean_interval
from rlspeech.tasks import complete, get_task
from rlspeech.tasks.base import Task

# of several processes the slowest's and the largest's are logged; what else each has of its own is averaged
WORST = ("seconds/", "memory_mb/")


def run(config: RL) -> dict[str, Any]:
    """Train, validate, checkpoint; go on where an earlier attempt of the same run stopped.

    Returns:
        run folder, checkpoint, the best one, steps, why it stopped, whether a guard did (``tripped``), validation at the start and the
        end with paired differences.

    Raises:
        UserError: settings, data or rewards that cannot be used; nearly nothing could be scored.
    """
    task = get_task(config.task)
    config = complete(config, task)
    with Engine(config.device, "fp32", config.seed, shared=True) as engine:  # ratios of two passes in bf16 are noise
        summary = _run(config, engine, task)
    model, best, made = config.model, summary["best"], summary["run"]
    if summary["tripped"] and best:
        log.say(f"a guard stopped it; --model {made} takes the best checkpoint before that: {best}")
    elif summary["tripped"]:
        log.warn(f"a guard stopped it before any better checkpoint: go on with {model}, not with {made}")
    elif summary["beyond"]:
        log.warn(f"{', '.join(summary['beyond'])} ended beyond the limit; better within it: {best or 'no checkpoint'}")
    which = "" if config.task == RL.model_fields["task"].default else f" --task {config.task}"
    log.say(f"next: rlspeech eval{which} --model before={model} --model after={made}")
    return summary


def _run(config: RL, engine: Engine, task: Task) -> dict[str, Any]:
    device = str(engine.device)
    with (
        Run.create(config.out, "rl", config, growing={"steps"}) as folder,
        Watchdog() as watchdog,
        make_scorer(config, device, guards=False) as scorer,
        make_scorer(config, device) as judge,
    ):
        folder.note(device=engine.reason, rewards=judge.meta())
        session = Session(config, engine, task, folder, scorer, judge)
        size = sum(p.numel() for p in session.policy.parameters())
        explain(config, task, engine.reason, len(session.train.utts), size)
        with at_the_end(folder) as end:
            end.reason = session.fit(watchdog)
        summary = session.summary(end.reason) | {"report": str(end.page) if end.page else None}
    header = ["metric", "before", "after", "difference (95 %)", "role"]
    log.table(f"rl: {config.method} on {config.task}, {end.reason}", header, session.validation.table())
    if end.page:
        log.say(f"report: {end.page}")
    return summary


class Session:
    """One run's moving parts: policy, algorithm, data cursor, validation.

    ``scorer`` computes the rewards of every rollout; ``judge`` also the guards, on validation clips only: they may be dear.
    """

    def __init__(self, config: RL, engine: Engine, task: Task, folder: Run, scorer: Scorer, judge: Scorer) -> None:
        self.config, self.engine, self.folder, self.scorer, self.task = config, engine, folder, scorer, task
        model, self.facts = task.load(config.model, engine.device, **task.load_options(config))
        compared = config.kl_beta > 0 or config.change_weight > 0 or config.algo in ("ppo", "dpo")
        self.adapted = Adapted(model, config.lora, compared=compared)
        self.policy = task.policy(self.adapted, config)
        self.optimizer = make_optimizer(config, self.policy.parameters())
        soft = task.soft_reward(config, engine.device) if "diffro" in config.algo and config.policy_weight else None
        self.algo = get_algorithm(config, self.policy, self.optimizer, engine, soft)
        self.train, valid = task.data(config, model)
        self.train = self.algo.select(self.train)
        if len(valid) > 1:  # a single one has no other to take a video from
            valid = with_video(valid, config.video)  # the control is checked as it is trained
        self.validation = Validation(config, engine, task, folder, judge, valid)
        self.algo.held = self.validation.holds.state["lambda"]
        self.step = self.cursor = self.reserve_cursor = self.drawn = 0
        self.repeats = False  # one has been remarked on
        self.feed: Iterator[tuple[list[Clip], int]] = iter(())  # prompts, and the cursor behind them
        self.reserve: Iterator[tuple[list[Clip], int]] = iter(())

    # -- the loop ------------------------------------------------------------------------------------------------------

    def fit(self, watchdog: Watchdog) -> str:
        """Run to the configured end. Returns why it stopped."""
        cfg = self.config
        self.resume()
        self.engine.reseed(cfg.seed, self.step)
        if self.folder.main:
            trim(self.folder.path, self.step if self.validation.history else -1)
        if remark := longer(self.folder, self.step, cfg.steps, cfg.lr_schedule == "linear"):
            log.say(remark)
        self.feed = self.prompts(cfg.seed, self.cursor)
        self.reserve = self.prompts(cfg.seed + 1, self.reserve_cursor)  # another order, for dynamic sampling
        if not self.validation.history:
            self.validate()
        if self.validation.tripped:  # by an earlier attempt: going on would do more of the damage
            return self.validation.tripped
        ending = Ending(self.engine, cfg.max_minutes)
        with log.progress(cfg.steps, f"rl {cfg.method}", "steps", start=self.step) as bar, ending:
            while self.step < cfg.steps:
                ending.check()
                metrics = self.advance(self.draw())
                watchdog.beat()
                self.folder.log(self.step, **metrics)
                bar.advance(1, **shown(cfg, metrics, self.validation.gain))
                ending.look()
                stop, last = None, self.step == cfg.steps
                if ending.late or self.step % cfg.valid_every == 0 or last:
                    stop = self.validate()
                if stop or ending.late or ending.asked or self.step % cfg.save_every == 0 or last:
                    self.save()
                if stop or ending.late:
                    return stop or f"stopped after {cfg.max_minutes:g} minutes"
        return DONE

    def prompts(self, seed: int, start: int) -> Iterator[tuple[list[Clip], int]]:
        """Endless prompts of all processes from a cursor on."""
        clip_s = 0.0 if self.task.transcribed else self.config.clip_s
        how: dict[str, Any] = {"seed": seed, "start": start, "bucketed": getattr(self.policy, "bucketed", True)}
        return batches(self.train, self.config.prompts_per_step, clip_s, **how)

    def draw(self) -> list[Clip]:
        """This process's share of the next prompts."""
        clips, self.cursor = next(self.feed)
        self.drawn, different = len(clips), len({c.key for c in clips})
        if different < len(clips) and not self.repeats:
            self.repeats = True
            log.say(f"a step's {len(clips)} prompts come from {log.several(different, 'utterance')}: some are repeated")
        return self.engine.share(with_video(clips, self.config.video), self.config.updates_per_collection)

    def further(self, count: int) -> list[Clip]:
        """This process's share of up to ``count`` prompts for those of this step that had no signal."""
        clips, self.reserve_cursor = next(self.reserve)
        clips = [replace(c, place=self.drawn + c.place) for c in with_video(clips, self.config.video)[:count]]
        self.drawn += len(clips)
        return self.engine.share(clips)

    def advance(self, prompts: list[Clip]) -> dict[str, Any]:
        """One step: collect and update. Returns what is logged, of all processes together."""
        cfg, seed = self.config, 1 + self.step
        with self.adapted.gathered(reference=cfg.algo == "ppo"):
            self.validation.hold(self.policy, self.step)
            experience = self.algo.collect(prompts, self.scorer, seed, self.further if cfg.dynamic_sampling else None)
        decay = 1 - self.step / cfg.steps if cfg.lr_schedule == "linear" else 1.0
        stats = self.algo.update(experience, lr=cfg.lr * decay)
        self.step += 1
        row, counts = describe(experience)
        whole = merged(self.engine.gather(({**row, **stats}, counts)))
        return {**whole, **self.algo.steer(whole), "lr": cfg.lr * decay, **self.validation.holds.row()}

    def validate(self) -> str | None:
        """Score the held-out clips; keep the weights where they are the best so far. Returns a guard's reason to stop, or None."""
        with self.adapted.gathered():
            better = self.validation.run(self.policy, self.step)
        if better:
            self.save(best=True)
        return self.validation.tripped

    # -- on disk -------------------------------------------------------------------------------------------------------

    @loading("this run's latest checkpoint", "delete it, or --out NEW")
    def resume(self) -> None:
        """Go on from the run folder's latest checkpoint, if it holds one."""
        found = self.folder.latest(self.engine.agree)
        if found is None:
            return
        path, state = found
        self.adapted.load_trained({k: v.to(self.engine.device) for k, v in state["trained"].items()})
        load_optimizer_state(self.optimizer, part_of_state(state["optimizer"], self.policy.parameters()))
        self.step, self.cursor, self.reserve_cursor = (int(state.get(k, 0)) for k in ("step", "cursor", "spent"))
        self.validation.restore(state["history"], state["best"], state.get("holds", {}))
        self.algo.load_state(state["algo"])
        set_rng_state(state["rng"])
        log.say(f"resumed at step {self.step} from {path}")

    def save(self, *, best: bool = False) -> None:
        """A plain checkpoint (adapter folded in), the adapter beside it, and trainer state."""
        history, reached, held = self.validation.history, self.validation.best, self.validation.holds.state
        before, judged = self.facts.get("facts", {}), self.validation.judge.meta()
        facts = tuned_facts(self.config, before, history, self.step, self.train.utts, judged)
        own = {"trained": self.adapted.trained(), "optimizer": self.optimizer.state_dict()}
        state: dict[str, Any] = whole(own, self.folder.main)
        weights = self.adapted.merged(self.folder.main)
        state |= {"rng": rng_state(), "cursor": self.cursor, "spent": self.reserve_cursor, "history": history}
        state |= {"algo": self.algo.state(), "best": None if math.isinf(reached) else reached, "holds": held}

        def write(path: Any) -> None:
            self.task.save(path, self.adapted.model, facts=facts, weights=weights)
            self.adapted.save_adapter(str(path / "adapter"), state["trained"])

        self.folder.checkpoints.save(self.step, write, state, best=best)

    def summary(self, reason: str) -> dict[str, Any]:
        """What ``--json`` prints."""
        best, place = self.folder.checkpoints.pointed("best"), self.folder.path / "checkpoints" / step_name(self.step)
        made: dict[str, Any] = {"run": str(self.folder.path), "checkpoint": str(place), "best": best and str(best)}
        made |= {"steps": self.step, "stopped": reason, "tripped": self.validation.tripped}
        return made | self.validation.summary()


def describe(experience: Experience) -> tuple[dict[str, Any], dict[str, float]]:
    """What a collection logs: reward and its parts, spread inside groups, shares without signal, seconds and memory a phase.

    Rollouts of tokens also log how long they are and the share that stopped by itself, transcripts their word error rate: errors over
    words (characters where the language has no spaces) of all texts in which something is said. A reference in a group is left out.

    Returns the row; and how many rollouts, groups or words its means are taken over, by name, "" for all others.
    """
    a, rollout = experience.advantage, experience.rollout
    costs = {k if "/" in k else f"seconds/{k}": v for k, v in experience.seconds.items()}
    if rollout is None:  # the control without RL
        return {"reward": math.nan, **costs}, {"": len(experience.prompts)}
    samples = [s for s in rollout.samples if not s.reference]
    own = sampled_rows(rollout.samples)
    scores = {f"reward/{k}": mean_interval(v[own], n=1) for k, v in experience.scores.items()}
    scores = {"reward": mean_interval(experience.reward[own], n=1), **scores}
    row: dict[str, Any] = {k: found.mean for k, found in scores.items()}
    counts: dict[str, float] = {"": len(samples), **{k: found.n for k, found in scores.items()}}
    counts |= dict.fromkeys(("sampler_gap", "temperature_gap", "rollout/logp_gap"), float(rollout.mask[own].sum()))
    if any(s.hypothesis is not None or s.tokens is not None for s in samples):
        row["tokens"] = rollout.mask[own].sum(1).float().mean().item()
        row["finished"] = rollout.finished[own].float().mean().item()
    if any(s.hypothesis is not None for s in samples):
        errors, words = error_counts(texts_of(samples), TEXT).sum(0)
        row["wer"], counts["wer"] = float(errors / words) if words else math.nan, float(words)
    row |= {"groups": a.groups, "groups_with_signal": a.signal, "constant_groups": a.constant_groups}
    return {**row, "unscorable": a.unscorable, **costs}, counts


def merged(parts: Sequence[tuple[dict[str, Any], dict[str, float]]]) -> dict[str, Any]:
    """The rows of all processes in one, see ``WORST``, from ``describe``'s of each. What all have alike was found out together."""
    if len(parts) == 1:
        return parts[0][0]
    out: dict[str, Any] = {}
    for name in dict.fromkeys(k for row, _ in parts for k in row):
        here = [(row[name], counts.get(name, counts[""])) for row, counts in parts if name in row]
        found = [(value, count) for value, count in here if not math.isnan(value)]
        values, total = [value for value, _ in found], sum(count for _, count in found)
        if name.startswith(WORST):
            out[name] = max(values, default=math.nan)
        elif len(set(values)) == 1:
            out[name] = values[0]
        else:
            out[name] = sum(value * count for value, count in found) / total if total else math.nan
    return out


def make_scorer(config: RL, device: str, *, guards: bool = True) -> Scorer:
    """The rewards, the guards that are held, and the others if asked for, loaded and tried once before anything is computed.

    Raises:
        UserError: one of them does not work here.
    """
    names = [r.name for r in config.rewards] + [g.name for g in config.guards if guards or g.hold]
    scorer = Scorer(list(dict.fromkeys(names)), device=device, workers=config.workers)
    scorer.dry_run()
    return scorer
