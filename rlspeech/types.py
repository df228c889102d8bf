"""The types that every stage shares, and the letters their shapes are written in.

Dimension letters, used in every docstring of the package:

    B prompts (utterances)      G rollouts a prompt (the group)     N = B * G rollouts
    S decisions a rollout       T audio samples                     L spectral frames
    F video frames              V vocabulary                        D features

Waveforms are mono ``float32`` in [-1, 1] (numpy outside the model, torch inside). Units are in the names: ``_s _hz _db _ms``.
Nothing here imports torch: the command line reads this file before it knows whether a model is needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor
    from torch.nn import Parameter


class UserError(Exception):
    """An error that the user can fix: what happened, why, and what to try.

    The command line prints it without a traceback and exits with code 2.

    Args:
        what: what went wrong, one sentence without a full stop.
        why: the cause, as far as it is known.
        try_this: the next command to type, or where to look.
    """

    def __init__(self, what: str, why: str = "", try_this: str = "") -> None:
        super().__init__(what)
        self.what, self.why, self.try_this = what, why, try_this

    def __str__(self) -> str:
        parts = ("", self.what), ("why: ", self.why), ("try: ", self.try_this)
        return "\n  ".join(label + text for label, text in parts if text or not label)


@dataclass(slots=True)
class Utterance:
    """One manifest row. Paths are absolute in memory and relative to the manifest on disk.

    ``audio_filepath`` is the input (the noisy mixture for enhancement); ``target_filepath`` the reference, where there is one.
    ``duration`` is in seconds. Keys that this class does not know are kept in ``extra`` and reach reward functions as columns.
    """

    id: str
    audio_filepath: str
    duration: float
    sample_rate: int
    offset: float = 0.0
    text: str | None = None
    target_filepath: str | None = None
    video_filepath: str | None = None
    lips_filepath: str | None = None
    prompt_filepath: str | None = None
    prompt_text: str | None = None
    speaker_id: str | None = None
    language: str | None = None
    snr_db: float | None = None
    extra: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def field_names(cls) -> tuple[str, ...]:
        """Names of the known manifest keys, ``extra`` left out."""
        return tuple(f.name for f in fields(cls) if f.name != "extra")


@dataclass(slots=True)
class Sample:
    """One output to be scored: a waveform, or its transcript by a recogniser."""

    key: str  # the utterance id
    wav: np.ndarray  # (T,) float32, the waveform under test
    sample_rate: int  # of ``wav`` and ``target``, in Hz
    target: np.ndarray | None = None  # (T',) float32 reference; rewards that need it give null without it
    text: str | None = None  # the reference transcript
    columns: dict[str, Any] = field(default_factory=dict)  # further manifest columns, for user functions
    hypothesis: str | None = None  # of ``wav`` by a recogniser, as it wrote it; None where the sound itself is scored
    tokens: np.ndarray | None = None  # (S,) int64 codec ids of ``wav``, which may then be empty; without a stop
    finished: bool = True  # False where the row was cut off before its stop token
    token_s: float | None = None  # seconds of speech that a token stands for; None where that is not known
    group: int | None = None  # the rollout's prompt, which may stand twice in a batch; None: that of its key
    reference: bool = False  # True of a rollout's row that nobody sampled: its prompt's reference


@dataclass(frozen=True, slots=True)
class Score:
    """The reward of one sample: a number, or null with the reason. Never a number that stands for a failure.

    ``detail`` holds further columns of the same computation (``{"dnsmos_sig_raw": 3.2, ...}``) for the score file.
    """

    value: float | None
    error: str | None = None
    detail: dict[str, Any] = field(default_factory=dict)


@runtime_checkable
class Reward(Protocol):
    """A scalar reward of waveforms or texts, computed for a batch and returned in its order."""

    name: str  # column name in score files
    needs: frozenset[str]  # subset of {"target", "text", "hypothesis"}
    higher_is_better: bool  # direction; the composition flips the sign of the others
    bounds: tuple[float, float]  # smallest and largest value that can occur (``inf`` where unbounded)
    where: str  # "cpu" (runs in the worker pool, must be picklable), "device" (main process, batched) or "http"
    sample_rate: int | None  # the rate the reward computes at, in Hz, or None for any; the scorer resamples
    version: str  # implementation and weights, as written to ``scores.meta.json``

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """Score a batch: one ``Score`` per sample, in order; one that cannot be scored does not affect the others."""
        ...


@dataclass(slots=True)
class Rollout:
    """N = B * G rows of S decisions; the G rows of one prompt stand next to each other."""

    group: Tensor  # (N,) long, prompt index of every row
    logp: Tensor  # (N, S) float32, nats, by the policy that acted, reduced over each decision's dimensions as the policy says
    mask: Tensor  # (N, S) bool, decisions that count
    samples: list[Sample]  # N decoded waveforms with their references, ready to be scored
    state: Any  # what the policy needs to re-evaluate the same decisions; opaque to all other code
    finished: Tensor  # (N,) bool, False where the rollout was cut off before its end
    weight: Tensor | None = None  # (N, S) importance weights, where another engine than the policy has sampled


class LogProb(NamedTuple):
    """Stored decisions re-evaluated by a policy, all (n, S) float32."""

    logp: Tensor  # under the current weights, with gradient, reduced as in ``Rollout.logp``
    kl: Tensor | None  # true KL to the reference policy with the same reduction; None where it was not asked for
    drift: Tensor  # half the squared shift of the mean in units of the noise, same reduction; what RatioNorm adds back
    scale: Tensor  # standard deviation of the decision's noise, (S,); what RatioNorm multiplies with
    dt: Tensor  # step length of every decision, (S,)
    kl_other: Tensor | None = None  # the KL with the other reduction (sum for mean, mean for sum), for the log
    change: Tensor | None = None  # relative energy of the difference to the reference output, asked for with ``kl``


@runtime_checkable
class Policy(Protocol):
    """A model that samples decisions. PPO and GRPO use nothing else of it.

    ``supports`` says what the algorithms may ask for beyond the methods below: "sample" (roll out at all), "relax" (``RelaxPolicy``),
    "base" (``BasePolicy``; with "latent" as well, its output hangs on a start that the collection's seed draws), "critic"
    (``CriticPolicy``), "supervised" (``SupervisedPolicy``; with "supervised_sample" as well, also on sampled actions), "fit"
    (``FittingPolicy``).
    """

    sample_rate: int
    supports: frozenset[str]

    def rollout(self, batch: Any, *, group: int, seed: int) -> Rollout:
        """Sample ``group`` rollouts for each of the batch's B prompts."""
        ...

    def log_prob(self, rollout: Rollout, rows: Tensor, *, with_kl: bool) -> LogProb:
        """Evaluate the stored decisions of ``rows`` (n,) under the current weights, in fp32."""
        ...

    def parameters(self) -> list[Parameter]:
        """Trainable parameters, for the optimiser."""
        ...


class BasePolicy(Policy, Protocol):
    """A policy that can also compute the output of the model that it started from."""

    def base(self, batch: list[Any], *, seed: int | None = None) -> list[Sample]:
        """The reference model's output without noise for B prompts, in order; with a collection's ``seed`` ("latent") from its starts."""
        ...


class CriticPolicy(Policy, Protocol):
    """A policy that gives features of the states of its decisions to a value function."""

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """Features of the state before each decision of ``rows`` (n,): (n, S, D) float32 without gradient."""
        ...


class SupervisedPolicy(Policy, Protocol):
    """A policy whose task also has a supervised loss."""

    def supervised(self, prompts: list[Any], *, rollout: Rollout | None = None, rows: Tensor | None = None) -> Tensor:
        """Mean loss over clips with their targets, a scalar with gradient; of ``rows`` of a collection with their sampled actions."""
        ...


class Fit(NamedTuple):
    """Given outputs under a policy, (n,) float32 each."""

    logp: Tensor  # log-likelihood in nats, or the surrogate that the task's regression is, with gradient
    reference: Tensor | None  # the same of the reference, at the same noise and times; None where it was not asked for
    kl: Tensor | None  # to the reference, with gradient: of the fitted Gaussians, or k3 of the tokens; None as above
    size: Tensor  # tokens or elements that ``logp`` is a sum over


class FittingPolicy(Policy, Protocol):
    """A policy that says how likely given outputs are, whoever made them."""

    def fit(self, prompts: list[Any], samples: list[Sample], *, seed: int, reference: bool = True) -> Fit:
        """Evaluate n samples at the policy's rate, each an output for its prompt; one prompt may stand several times.

        What a flow draws (noise, time) is a function of the seed and the prompt's ``Clip.draw`` alone: outputs of one prompt share it.
        """
        ...

    def references(self, prompts: list[Any]) -> list[Sample]:
        """The prompts' own references as outputs that ``fit`` takes. Raises ``LookupError`` where one has none."""
        ...


class Relaxed(NamedTuple):
    """Output of a policy for n rows, differentiable in its weights."""

    soft: Tensor  # (n, T, V) distributions over a codec's ids, one-hot where they are hard; or (n, T) waveforms in [-1, 1]
    mask: Tensor  # (n, T) bool, what is real: neither padding, nor the stop token and what stands behind it
    logits: Tensor | None = None  # (n, T, V) that ``soft`` was drawn from, with gradient; None for waveforms
    kl: Tensor | None = None  # (n, S) true KL to the reference; None where ``log_prob`` has to be asked
    seed: int = 0  # of whatever a reward draws itself


class RelaxPolicy(Policy, Protocol):
    """A policy whose output can be differentiated."""

    def relax(
        self, rollout: Rollout, rows: Tensor, *, tau: float, hard: bool, seed: int, with_kl: bool = False
    ) -> Relaxed:
        """Recompute the output of some rows as a differentiable function of the current weights.

        Args:
            rollout, rows: a collection of this policy, and (n,) of it.
            tau: temperature of the Gumbel-softmax; nothing to a policy without tokens.
            hard: straight-through.
            seed: of its noise, which for a row is a function of the seed, its prompt and its member alone: micro-batches change nothing.
            with_kl: also the KL to the reference, where the same pass can give it.
        """
        ...


class SoftReward(Protocol):
    """A reward with a gradient to its input (DiffRO)."""

    last: dict[str, float]  # means of its parts in the last call, for the log

    def score_soft(self, relaxed: Relaxed, samples: Sequence[Sample]) -> Tensor:
        """(n,) with gradient, more is better. nan, without a gradient, where a row cannot be scored."""
        ...
