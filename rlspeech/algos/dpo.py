"""DPO: learn from pairs of stored, scored samples which of two outputs is the better one (arXiv 2305.18290). Nothing is rolled out.

The textbook version: with l the log-likelihood of an output and r that under the reference, for a winner w and a loser l of one prompt

    minimise  -log sigmoid(beta ((l_w - r_w) - (l_l - r_l))).

The likelihood is the policy's (``types.FittingPolicy``): of tokens their log-probability; of an enhancer's output minus the squared error
of the prediction that it is regressed on, from the same noise at the same time for both (Diffusion-DPO, arXiv 2311.12908). The reference
are the weights that the run starts from.

What is added: pairs come from rewards, composed as GRPO composes them (by spreads of all samples, not of a step's), or from fronts of them
(``order`` "pareto"), and those that differ by less than ``margin`` are left out with their prompts. Controls learn from the same prompts:
``loss`` "sft" from the winners alone, ``pairs`` "random" from any two, ``winner`` "reference" from what was recorded.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from rlspeech import log
from rlspeech.algos.grpo import GRPO
from rlspeech.algos.math import Advantage, GradientSum, micro_batches
from rlspeech.algos.update import Columns, Experience, Further, JointScorer, Logged, Specs
from rlspeech.config import RL
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.batches import ClipSource, with_utts
from rlspeech.data.inputs import item_of, without_audio
from rlspeech.data.manifest import SAMPLE_SET, is_stored, read_manifest
from rlspeech.rewards.base import column_of, resolve
from rlspeech.rewards.mix import centred, to_arrays
from rlspeech.scores import Row, read_scores
from rlspeech.types import FittingPolicy, Rollout, Sample, Score, UserError

Pair = tuple[int | None, int]  # a winner and a loser of the set; None: the prompt's reference
HINT = "rlspeech sample --help"


class StoredSamples:
    """The outputs of a folder of ``rlspeech sample``: rows, the prompt (M,) of each, which of them stopped by themselves.

    Raises:
        UserError: no such folder, or rows that are no samples.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        if not (folder / SAMPLE_SET).is_file():
            raise UserError(f"{folder} holds no samples", f"there is no {SAMPLE_SET}", HINT)
        self.rows = read_manifest(folder / "manifest.jsonl")
        if bad := [u.id for u in self.rows if not is_stored(u.extra)]:
            raise UserError(f"{bad[0]} in {folder} is no sample", "it has no prompt or odd tokens", HINT)
        self.keys, group = np.unique([u.extra["prompt"] for u in self.rows], return_inverse=True)
        self.group = group.reshape(-1)
        self.finished = torch.tensor([u.extra.get("finished") is not False for u in self.rows])

    def scores(self, specs: Specs) -> dict[str, list[Score]]:
        """Scores (M,) by name of the rewards with a weight. Raises ``UserError``: there are none of one."""
        rows, out, missing = dict[str, Row](), dict[str, list[Score]](), list[str]()
        for of in read_scores(self.folder / "scores.jsonl").values():
            for key, row in of.items():
                rows.setdefault(key, {}).update(row)
        for name in (s.name for s in specs if s.weight):
            column = name if any(name in row for row in rows.values()) else resolve(name).column
            found = [rows.get(u.id, {}) for u in self.rows]
            values = [v if isinstance(v := row.get(column), int | float) else None for row in found]
            errors = (row.get("errors", {}).get(column, "not scored yet") for row in found)
            out[name] = [Score(v, None if v is not None else why) for v, why in zip(values, errors, strict=True)]
            missing += [] if any(column in row for row in found) else [name]  # null in all may mean: nothing to judge
        if missing:
            what, asked = f"{self.folder} has no scores of {', '.join(missing)}", " --reward ".join(["", *missing])
            raise UserError(what, "they are learnt from by their rewards", f"rlspeech reward {self.folder}{asked}")
        return out

    def sample(self, index: int, rate: int) -> Sample:
        """An output as it was made, its sound only where it has neither tokens nor a text. Raises ``AudioError``."""
        row = self.rows[index]
        made = without_audio(item_of(row))
        if made.tokens is None and made.hypothesis is None:
            made.wav, made.sample_rate = load_audio(row.audio_filepath, rate), rate
        return made


class DPO(GRPO):
    """Preferences between stored samples. Raises ``UserError``: no samples, or none with scores; settings of rollouts."""

    name = "dpo"
    requires: ClassVar[frozenset[str]] = frozenset({"fit"})

    def check(self, config: RL) -> None:
        if config.samples is None:
            raise UserError("dpo learns from stored samples", "none are named", f"--samples FOLDER, made by {HINT}")

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.stored = StoredSamples(Path(str(self.config.samples)))
        self.pairs = self._pairs()
        self._now: list[list[tuple[Any, Sample, Sample]]] = []  # clip, winner and loser of each prompt's pairs

    # -- pairs ---------------------------------------------------------------------------------------------------------

    def _pairs(self) -> dict[str, list[Pair]]:
        """Pairs by prompt; what is left out is said. Raises ``UserError``: too few scores, or not one pair."""
        cfg, stored = self.config.dpo, self.stored
        nothing, specs = torch.zeros(len(stored.rows), 0), [s for s in self.specs if s.weight]
        whole = Rollout(torch.from_numpy(stored.group), nothing, nothing.bool(), [], None, stored.finished)
        scores = to_arrays(columns := stored.scores(specs))
        reward, judged = self.advantage_of(whole, scores, specs)
        self.check_scorable({s.name: columns.get(s.name, []) for s in self.specs}, judged.unscorable)
        least = cfg.margin * float(np.sqrt(np.nanmean(centred(reward, stored.group)[0] ** 2)))
        found = dict[str, list[Pair]]()
        for number, key in enumerate(stored.keys.tolist()):
            rows = [int(i) for i in (stored.group == number).nonzero()[0] if np.isfinite(reward[i])]
            front = _fronts(rows, scores, specs) if cfg.order == "pareto" else {i: -reward[i] for i in rows}
            place = {i: (front[i], -reward[i]) for i in rows}
            rows.sort(key=place.__getitem__)
            most = len(rows) // 2 if cfg.pairs == "ranked" else min(1, len(rows) // 2)
            far = ((w, x) for w, x in zip(rows[:most], rows[::-1], strict=False) if reward[w] - reward[x] >= least)
            pairs: list[Pair] = [(w, x) for w, x in far if front[w] < front[x]]
            if pairs and cfg.pairs == "random":
                two = random.Random(f"{self.config.seed} {key}").sample(rows, 2)
                pairs = [(two[0], two[1])]
            if cfg.winner == "reference":
                pairs = [(None, loser) for _, loser in pairs]
            if pairs:
                found[key] = pairs
        count, kept = len(stored.keys), len(found)
        self.kept = kept / count
        many = log.several(sum(map(len, found.values())), "pair")
        log.say(f"{many} of {kept} of {count} prompts; {count - kept} differ by less than {cfg.margin:g} spreads")
        if not found:
            raise UserError("no two samples of a prompt differ enough", f"of {count} prompts", "--set dpo.margin=0")
        return found

    def select(self, source: ClipSource) -> ClipSource:
        """The prompts that have pairs. Raises ``UserError``: none of them are left."""
        utts = [u for u in source.utts if u.id in self.pairs]
        if not utts:
            raise UserError("no prompt to learn from is left", "all with pairs are held back", "--valid FILE")
        return with_utts(source, utts)

    # -- learning ------------------------------------------------------------------------------------------------------

    def collect(self, prompts: list[Any], scorer: JointScorer, seed: int, further: Further | None = None) -> Experience:
        """Read the stored pairs of the prompts; ``seed`` is that of what is drawn in fitting. Nothing is scored."""
        nothing, seconds = Advantage(torch.zeros(0), 0.0, 0.0, 0, 0), {"rollout": 0.0, "reward": 0.0}
        self._now, lost = [[] for _ in prompts], 0
        with self.phases.record(seconds):
            self.phases.enter(self.phases.first)
            for clip, chosen in zip(prompts, self._now, strict=True):
                for winner, loser in self.pairs.get(clip.key, ()):
                    try:
                        chosen.append((clip, self._output(clip, winner), self._output(clip, loser)))
                    except (AudioError, LookupError):  # a file that has gone, no reference: check names them
                        lost += 1
        logged = {"dpo/kept": self.kept, "dpo/lost": float(lost)}
        return Experience(None, {}, np.zeros(0), nothing, seconds, prompts, logged=logged, seed=seed)

    def _output(self, clip: Any, index: int | None) -> Sample:
        if index is None:
            return cast(FittingPolicy, self.policy).references([clip])[0]
        return self.stored.sample(index, self.policy.sample_rate)

    def gradients(self, experience: Experience, advantage: Tensor, prompts: Tensor) -> tuple[GradientSum, Logged]:
        cfg, policy, grads = self.config.dpo, cast(FittingPolicy, self.policy), GradientSum(self.policy.parameters())
        compares, parts = cfg.loss == "dpo", list[Logged]()
        normaliser = max(1.0, self.total(sum(len(self._now[i]) for i in prompts.tolist())))
        for part in self.passes(micro_batches(prompts, self.config.micro_batch), grads, compares):
            if not (pairs := [pair for i in part.tolist() for pair in self._now[i]]):
                grads.count += 1
                self.idle(grads, compares)
                continue
            clips, winners, losers = zip(*pairs, strict=True)
            n, outputs = len(pairs), [*winners, *(losers if compares else ())]
            made = policy.fit([*clips] * (1 + compares), outputs, seed=experience.seed, reference=compares)
            size = made.size.clamp_min(1)
            each = made.logp / size
            row, loss = {"pairs": float(n)}, -each[:n] * (cfg.sft_weight if compares else 1.0)
            if compares:
                shift = (made.logp - cast(Tensor, made.reference)) / (size if cfg.length_normalised else 1.0)
                margin = cfg.beta * (shift[:n] - shift[n:])
                loss = loss - logsigmoid(margin)
                right = 0.5 * (1 + margin.detach().sign())  # at the first step all are 0: a half is right
                row |= {"dpo/margin": margin.mean().item(), "dpo/accuracy": right.mean().item()}
                row["dpo/loser_logp"] = each[n:].mean().item()
                row |= {} if made.kl is None else {"kl": (made.kl.sum() / size.sum()).item()}
            parts.append({**row, "dpo/winner_logp": each[:n].mean().item(), "dpo/loss": loss.mean().item()})
            grads.add(loss.sum() / normaliser)
        grads.join(self.ranks)
        found = [row for own in self.ranks.gather(parts) for row in own]
        weights = [row.pop("pairs") for row in found]
        stats = {k: float(np.average([r[k] for r in found], weights=weights)) for k in (found[0] if found else ())}
        return grads, {**stats, "dpo/pairs": sum(weights), "log_ratio_std": 0.0}


def _fronts(rows: Sequence[int], scores: Columns, specs: Specs) -> dict[int, float]:
    """Number of each row's Pareto front, 0 for those that no other is at least as good as in each reward and better in one."""
    signs = [(scores[s.name], s.weight * (1 if column_of(s.name).higher_is_better else -1)) for s in specs]
    worth = {i: np.nan_to_num([values[i] * np.sign(sign) for values, sign in signs]) for i in rows}  # null: as composed
    left, found = set(rows), dict[int, float]()
    while left:
        beaten = {i for i in left if any((worth[j] >= worth[i]).all() and (worth[j] > worth[i]).any() for j in left)}
        number = len(set(found.values()))
        found |= dict.fromkeys(left - beaten, number)
        left = beaten
    return found
