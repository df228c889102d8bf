"""How a run that trains begins and ends: what it says of itself; why it stopped is noted and its page written, however it ended."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.config import RL
from rlspeech.data.manifest import SAMPLE_SET
from rlspeech.engine import Ranks
from rlspeech.files import read_object
from rlspeech.report.build import write_page
from rlspeech.run import Run
from rlspeech.tasks.base import Task
from rlspeech.tasks.owners import check_owners
from rlspeech.types import UserError

DONE = "all steps done"
REPEAT_S = 2.0


@dataclass(slots=True)
class End:
    """How a run ended, and the page that tells."""

    reason: str = ""
    page: Path | None = None


class Ending:
    """What ends a loop of steps before its last one: the minutes are over, by the clock of rank 0, or a signal to any process.

    Ctrl-C, and what a scheduler or a closed terminal sends (SIGTERM, SIGHUP), are one. All processes decide together, after each step.
    The step at hand is finished and saved first, a second Ctrl-C ends at once; of several processes a launcher passes on what the
    terminal has sent already, so that there the second must come ``REPEAT_S`` later.
    """

    def __init__(self, ranks: Ranks, minutes: float | None) -> None:
        self.late = self.asked = False  # the minutes are over; a signal has come: as of the last ``look``
        self._ranks, self._minutes, self._began_s = ranks, minutes, time.monotonic()
        self._before = dict[int, Any]()
        self._pressed_s: float | None = None

    def __enter__(self) -> Ending:
        for number in log.SIGNALS:
            if signal.getsignal(number) is not signal.SIG_IGN:  # a background job ignores Ctrl-C, and goes on to
                with suppress(ValueError):  # not the main thread
                    self._before[number] = signal.signal(number, self._press)
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    def _press(self, number: int, *_: object) -> None:
        log.ended_by, now = signal.Signals(number), time.monotonic()
        if self._pressed_s is None:
            self._pressed_s = now
            log.say(f"{log.ended_by.name}: finishing this step and saving it (Ctrl-C again: at once)")
        elif self._ranks.world == 1 or now - self._pressed_s > REPEAT_S:
            raise KeyboardInterrupt

    def look(self) -> None:
        """Ask all processes whether this step is the last one."""
        late = self._minutes is not None and time.monotonic() - self._began_s > 60 * self._minutes
        found = self._ranks.gather((late, log.ended_by if self._pressed_s is not None else None))
        signals = [sent for _, sent in found if sent is not None]
        self.late, self.asked = found[0][0], bool(signals)
        log.ended_by = signals[0] if signals else log.ended_by  # all end with the code of one

    def check(self) -> None:
        """End the loop between two steps by a ``KeyboardInterrupt`` if that was asked for; the step before has been saved."""
        if self.asked:
            raise KeyboardInterrupt("in all processes")


@contextmanager
def at_the_end(folder: Run) -> Iterator[End]:
    """Note why a run stopped, and write its page; a page that fails never costs the run."""
    end = End()
    try:
        yield end
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            log.say("interrupted; writing the report (Ctrl-C again: without it)")
        known = {KeyboardInterrupt: "interrupted", UserError: getattr(error, "what", "")}
        end.reason = str(known.get(type(error), type(error).__name__))
        _finish(folder, end)
        if end.page:
            log.say(f"report: {end.page}")
        raise
    _finish(folder, end)


def _finish(folder: Run, end: End) -> None:
    if not folder.main:
        return
    with suppress(UserError, OSError):  # a disk that is full has had its error
        folder.note(stopped=end.reason)
    end.page = write_page(folder.path)


def longer(folder: Run, step: int, steps: int, falls: bool) -> str:
    """A remark on a run that is at ``step`` and goes on to other ``steps`` than it had, or could; ``falls``: its rate, over the steps."""
    if "steps" in folder.grown:
        rate = f": the learning rate falls over all {steps}, and is now that of step {step} of them" if falls else ""
        return f"{folder.grown['steps']} steps were asked for before, now {steps}{rate}"
    done = folder.resumed and step >= steps
    return f"all {steps} steps are done; a larger --steps goes on from there" if done else ""


def explain(config: RL, task: Task, device: str, rows: int, trainable: int) -> None:
    """Say the arithmetic that users ask about before the first step; ``rows`` are prompts to draw from, ``trainable`` parameters."""
    n, u = config.prompts_per_step, config.updates_per_collection
    size = f"{trainable / 1e6:.2f} M trainable parameters"
    log.say(f"{device}; {size}; {rows} prompts to draw from")
    watched = ", ".join(g.name + ":hold" * g.hold for g in config.guards) or "nothing"
    if config.policy_weight == 0:
        log.say(f"control without RL: {n} prompts a step, the supervised loss alone; {config.steps} steps")
        log.say(f"measured {', '.join(r.name for r in config.rewards)}; watched {watched}")
        if spare := check_owners(config, task, own=":" in config.task):
            log.say(f"not used, for they belong to the policy's loss: {', '.join(spare)}")
        return
    rewards = ", ".join(f"{r.weight:g} x {r.name}" for r in config.rewards)
    if config.samples:
        log.say(f"a step = {n} prompts with their stored pairs, {u} update(s); {config.steps} steps")
        if (made := read_object(Path(config.samples) / SAMPLE_SET).get("model")) != config.model:
            log.say(f"the samples are those of {made}, the run starts from {config.model}")
        log.say(f"rewards {rewards}; watched {watched}")
        return
    group, own = config.group + config.reference_in_group, " (the reference is one)" * config.reference_in_group
    whole = n * group
    each = f"a step = {n} prompts x {group} rollouts{own} = {whole} rollouts, {u} update(s) of {-(-n // u)} prompts"
    log.say(f"{each}; {config.steps} steps = {config.steps * whole} rollouts")
    log.say(f"rewards {rewards}; watched {watched}")
    if "diffro" in config.algo:
        log.say(_climbing(config, task))
    if task.transcribed:
        sampling = config.sampling
        cut = ", truncated: what is trained is not what samples" if sampling.top_p < 1 or sampling.top_k else ""
        rest = f"rollouts that never stop: {config.truncated}; weights {config.precision}, offload {config.offload}"
        log.say(f"tokens are sampled at temperature {sampling.temperature:g}{cut}; {rest}")


def shown(config: RL, metrics: Mapping[str, Any], gain: float | None) -> dict[str, Any]:
    """What the progress line says of a step's row: the first reward by name, what tells whether it learns, the last validation's gain."""
    first = next((r.name for r in config.rewards if r.weight), "")
    names = {"supervised_loss": "loss"} if not config.policy_weight else {"wer": "wer", "grad_agreement": "agreement"}
    names = {f"reward/{first}": first, "diffro/reward": "climbed", **names}
    found = {short: metrics[name] for name, short in names.items() if name in metrics}
    return found if gain is None else {**found, "gain": gain}


def _climbing(config: RL, task: Task) -> str:
    """What DiffRO does in this run, in a line."""
    d, tokens = config.diffro, "diffro.tau" in task.settings
    which = {"positive": "rollouts with A > 0", "nonnegative": "rollouts with A >= 0", "all": "every rollout"}[d.on]
    weight, relaxation = f", weight {d.weight:g}", ""
    if config.algo == "diffro":  # alone it knows no advantage
        weight = ""
        which = "rollouts that stopped and do not loop" if tokens and d.on != "all" else "every rollout"
    if tokens:
        end, noise = d.tau if d.tau_end is None else d.tau_end, "" if d.mode == "free" else f", noise {d.noise}"
        relaxation = f"; tau {d.tau:g} to {end:g}, {'one-hot' if d.hard else 'soft'}, {d.mode}{noise}"
    return f"gradient of {task.climbed(config)}, on {which}{weight}{relaxation}; KL {config.kl_beta:g}"
