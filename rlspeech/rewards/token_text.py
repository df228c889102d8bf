"""The token-to-text reward as a reward: of sampled tokens (family ``token_text``), and of relaxed ones, with a gradient (DiffRO).

Of sampled tokens it answers what a recogniser answers of their waveform, without codec, vocoder or recogniser in the loop. Of relaxed
tokens it is arXiv 2507.05911's objective: R = log-posterior of the text (a mean over its pieces) + the weighted log-probabilities of
attributes. Both are in nats, so that weights mean the same for every head.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from rlspeech.data.text import get_normaliser
from rlspeech.models.token_reward import IGNORED, TokenReward, load_token_reward
from rlspeech.rewards.speech_rules import TextScores
from rlspeech.types import Sample, Score, UserError

__all__ = ["SoftTokenReward", "TokenText", "attribute_of"]

TEXT = "basic-1"  # as the network's training texts are written
BATCH = 64
COLUMN = {"sex": "sex", "speaker": "speaker_id"}  # attribute -> the manifest's column that names its value


def attribute_of(name: str, sample: Sample, levels: Sequence[str]) -> Any:
    """The value that a row should have: of the manifest's column; of quality the column's level, without one the best level."""
    value = sample.columns.get(COLUMN.get(name, name))
    return levels[-1] if name == "quality" and str(value) not in levels else value


class TokenText:
    """Family ``token_text``.

    Args:
        model: checkpoint of ``pretrain --task token-reward``, or 'embedded'; the network itself is taken as it is.
        normaliser, language, form, low, nll_scale: see ``speech_rules.TextScores``.
        device: where it runs.
    """

    def __init__(
        self,
        model: str | TokenReward = "embedded",
        normaliser: str = "basic-2",
        language: str | None = None,
        form: str = "linear",
        low: float | None = -1.0,
        nll_scale: float = 3.0,
        device: str = "cpu",
    ) -> None:
        self._scores = TextScores(normaliser, language, form, low, nll_scale)
        self._net = load_token_reward(model, device)[0].frozen() if isinstance(model, str) else model
        self._written = get_normaliser(TEXT)
        self.version = f"token-text-1, {model if isinstance(model, str) else 'unnamed'}, text {normaliser}, form {form}"

    def compute(self, samples: Sequence[Sample], columns: Sequence[str]) -> list[dict[str, Score]]:
        """Read, rate and classify; a row with an id that is none of the codec's has null."""
        rows = [torch.from_numpy(np.asarray(s.tokens, dtype=np.int64).ravel()) for s in samples]
        good = [i for i, r in enumerate(rows) if not len(r) or (0 <= int(r.min()) and int(r.max()) < self._net.codes)]
        wrong = Score(None, f"a token is none of the codec's {self._net.codes} ids")
        out: list[dict[str, Score]] = [dict.fromkeys(columns, wrong) for _ in samples]
        for part in (good[i : i + BATCH] for i in range(0, len(good), BATCH)):
            for i, scores in zip(
                part, self._judge([samples[i] for i in part], [rows[i] for i in part], columns), strict=True
            ):
                out[i] = scores
        return out

    @torch.no_grad()
    def _judge(self, samples: list[Sample], rows: list[Tensor], columns: Sequence[str]) -> list[dict[str, Score]]:
        net, asked = self._net, set(columns)
        texts: list[str | None] = [None] * len(rows)
        nll: list[float | None] = [None] * len(rows)
        if asked & {"token_accuracy", "token_cer"}:
            texts = [*net.transcribe(rows)]
        heard = None
        if asked - {"token_accuracy", "token_cer"}:
            mask = pad_sequence([torch.ones_like(r, dtype=torch.bool) for r in rows], batch_first=True)
            heard = net.encode(pad_sequence(rows, batch_first=True).to(net.device), mask.to(net.device))
        if asked & {"token_nll", "token_posterior"} and heard is not None:
            guess = math.log(len(net.tokenizer))  # no token tells nothing of a text
            said = (-net.text_logp(heard, [self._written(s.text or "") for s in samples])).tolist()
            nll = [value if len(r) else guess for value, r in zip(said, rows, strict=True)]
        out = [self._scores.row(s, t, v, "token", columns) for s, t, v in zip(samples, texts, nll, strict=True)]
        for name in ("sex", "speaker", "quality"):
            if f"token_{name}" in asked and heard is not None:
                for scores, score in zip(out, self._attribute(name, samples, heard), strict=True):
                    scores[f"token_{name}"] = score
        return out

    def _attribute(self, name: str, samples: list[Sample], heard: Any) -> list[Score]:
        net = self._net
        if name not in net.pools:
            return [Score(None, f"this token reward has no head for {name}")] * len(samples)
        p = net.pools[name](heard).softmax(-1).cpu()
        if name == "quality":
            expected = (p * torch.arange(1, p.shape[1] + 1)).sum(1).tolist()
            return [Score(e) for e in expected]
        wanted = net.classes(name, [s.columns.get(COLUMN[name]) for s in samples]).tolist()
        return [
            Score(None, f"the row's {COLUMN[name]} is none that the token reward knows")
            if k == IGNORED
            else Score(float(row[k]))
            for k, row in zip(wanted, p, strict=True)
        ]


class SoftTokenReward:
    """A ``types.SoftReward``: the reward of relaxed tokens, with a gradient to them.

    Args:
        model: the network, or its checkpoint's name.
        content_weight: of the text's log-posterior.
        attribute_weights: of the log-probabilities of attributes; see ``attribute_of`` for their values. A row whose value is not known
            has none.
        device: where a checkpoint is loaded to.

    Raises:
        UserError: a weight for an attribute that the network has no head for.
    """

    def __init__(
        self,
        model: TokenReward | str,
        content_weight: float = 1.0,
        attribute_weights: Mapping[str, float] | None = None,
        device: str | torch.device = "cpu",
    ) -> None:
        self.net = (load_token_reward(model, device)[0] if isinstance(model, str) else model).frozen()
        self._content, self._weights = content_weight, {k: w for k, w in (attribute_weights or {}).items() if w}
        self._written = get_normaliser(TEXT)
        missing = sorted(set(self._weights) - set(self.net.labels))
        if missing:
            raise UserError(
                f"the token reward has no head for {', '.join(missing)}",
                f"it has {', '.join(self.net.labels) or 'none'}",
                "--set diffro.attribute_weights={...} with these",
            )
        self.last: dict[str, float] = {}  # means of the parts of the last call, for the log

    def score_soft(self, relaxed: Any, samples: Sequence[Sample]) -> Tensor:
        """Reward (n,) in nats of relaxed tokens; nan, without a gradient, where a row has no text.

        Args:
            relaxed: ``types.Relaxed`` with ``soft`` (n, T, V) distributions over the codec's ids and ``mask`` (n, T) bool.
            samples: n rows with ``text`` and columns.

        Raises:
            UserError: the tokens are another codec's.
        """
        if relaxed.soft.shape[-1] != self.net.codes:
            raise UserError(
                f"the policy chooses among {relaxed.soft.shape[-1]} codes, the token reward knows {self.net.codes}",
                f"it was trained on tokens of the codec {self.net.cfg.codec}",
                "--set diffro.reward=CHECKPOINT of that codec",
            )
        heard = self.net.encode(relaxed.soft, relaxed.mask.bool())
        texts = [self._written(s.text or "") for s in samples]
        mute = torch.tensor([not t for t in texts], device=heard.states.device)
        content = self.net.text_logp(heard, texts)
        total, self.last = self._content * content, {"content": _mean(content, ~mute)}
        for name, weight in self._weights.items():
            logp = self.net.pools[name](heard).float().log_softmax(-1)
            wanted = self.net.classes(name, [attribute_of(name, s, self.net.labels[name]) for s in samples])
            known = wanted != IGNORED
            part = logp.gather(1, wanted.clamp_min(0)[:, None])[:, 0].masked_fill(~known, 0.0)
            total = total + weight * part
            self.last[name] = _mean(part, known & ~mute)
        return total.masked_fill(mute, torch.nan)


def _mean(values: Tensor, rows: Tensor) -> float:
    return float(values.detach()[rows].mean()) if bool(rows.any()) else float("nan")
