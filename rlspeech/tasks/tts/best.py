"""Best of N: of several draws of a text a reward keeps one. It needs no training, and is what training has to beat.

At most log N - (N - 1) / N nats a text separate what is kept from what the model draws (arXiv 2401.01879): 1.2 at N = 8.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import torch

from rlspeech import log
from rlspeech.data.batches import Clip
from rlspeech.models.codec.lm import CodecLM
from rlspeech.models.hub import read_config, resolve
from rlspeech.rewards import base
from rlspeech.rewards.scorer import Scorer
from rlspeech.run import settings_of
from rlspeech.tasks.tts.policy import needs_audio
from rlspeech.types import Sample, UserError

REWARD, EMBEDDED = "token-reward", "embedded"


def run_of(checkpoint: str) -> tuple[list[str], str]:
    """Rewards that a checkpoint's run was trained with, and the token reward whose gradient it followed; of no run nothing."""
    try:
        settings = settings_of(resolve(checkpoint, "tts").parent.parent)
        soft = str(settings["diffro"]["reward"]) if "diffro" in str(settings.get("algo")) else EMBEDDED
        return [str(r["name"]) for r in settings.get("rewards", [])], soft
    except (UserError, TypeError, KeyError):
        return [], EMBEDDED


def judge_of(checkpoint: str, count: int, judge: str | None = None) -> str:
    """The reward that chooses among ``count`` draws: by default the token reward of the checkpoint's run, else the embedded one; "" of one.

    Raises:
        UserError: no such reward, one that needs a recording or a transcript beside the speech, or nothing to choose.
    """
    if count == 1 and judge:
        raise UserError("a judge of one draw has nothing to choose", f"judge: {judge}", "--best-of 8")
    if count > 1 and not judge:
        rewards, soft = run_of(checkpoint)
        named = (re.match(r"token_\w+\[(?:.*,)?model=([^,\]]+)", r) for r in rewards)
        model = next((m[1] for m in named if m), soft)
        judge = "token_posterior" if model == EMBEDDED else f"token_posterior[model={model}]"
    if judge and (lacking := sorted(base.resolve(judge).entry.needs & {"target", "hypothesis"})):
        why = f"it needs a {lacking[0]}, and there is only the text"
        raise UserError(f"{judge} cannot choose among draws", why, "--judge token_posterior or dnsmos_ovrl")
    return judge or ""


class BestOf:
    """Clips to one sample each: the only draw, or of ``count`` the one that a reward scores best among those that say something and stop.

    Args:
        task, model, sampling, seed: as in ``Tts.synthesise``.
        checkpoint, count, judge: as in ``judge_of``; where the judge reads tokens, only what is kept is decoded.
        device: of the judge.

    Attributes:
        choices: key of a clip -> judge, its draws' scores (null: not scored) and the number of the one that is kept.

    Raises:
        UserError: see ``judge_of``; or a token reward of another codec.
    """

    def __init__(
        self, task: Any, model: CodecLM, checkpoint: str, count: int, judge: str | None, *, device: str, **how: Any
    ) -> None:
        self.task, self.model, self.count, self.how = task, model, count, how
        self.judge, self.choices = judge_of(checkpoint, count, judge), dict[str, dict[str, Any]]()
        if not self.judge:
            return
        request = base.resolve(self.judge)
        net = str(dict(request.options).get("model", EMBEDDED))
        if request.entry.family == "token_text":
            size = int(read_config(resolve(net, REWARD), REWARD)["codes"])
            if size != model.size:
                what = f"the model draws from {model.size} codes, the token reward {net} knows {size}"
                raise UserError(what, "it was trained on tokens of another codec", "--judge with a reward of waveforms")
        self.sign = 1 if request.entry.columns[request.column].higher_is_better else -1
        self.decodes, self.scorer = needs_audio([self.judge]), Scorer([self.judge], device=device, workers=0)
        self.scorer.dry_run()

    def __call__(self, clips: Sequence[Clip]) -> list[Sample]:
        if not self.judge:
            return list(self.task.synthesise(self.model, clips, **self.how))
        draws = self.task.synthesise(self.model, clips, group=self.count, wavs=self.decodes, **self.how)
        scores, kept = self.scorer.score(draws)[self.judge], list[Sample]()
        for n, clip in enumerate(clips):
            at = n * self.count
            own = scores[at : at + self.count]
            pairs = enumerate(zip(draws[at:], own, strict=False))
            rated = [(i, draw, score.value) for i, (draw, score) in pairs if score.value is not None]
            merits = [(d.finished and len(d.tokens) > 0, self.sign * value, -i) for i, d, value in rated]
            if not merits:
                log.warn(f"{clip.key}: no draw could be scored ({scores[at].error}); the first is kept")
            best = -max(merits)[2] if merits else 0
            kept.append(draws[at + best])
            self.choices[clip.key] = {"judge": self.judge, "scores": [s.value for s in own], "chosen": best}
        if self.decodes:
            return kept
        codes, finished = [torch.from_numpy(s.tokens) for s in kept], torch.tensor([s.finished for s in kept])
        return list(self.task.samples(self.model, clips, codes, finished))
