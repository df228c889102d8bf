"""What can be set, stage by stage: typed, with the vetted default and its reason beside each field.

Defaults < ``--preset`` < ``--config FILE`` < flags < ``--set a.b=c``; ``rlspeech.settings`` does the layering and refuses
unknown keys with the closest name. Descriptions below become the help text.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rlspeech.config_models import (
    AvseModel,
    CodecLMModel,
    CodecModel,
    FlowModel,
    ListenerModel,
    RecogniserModel,
    Strict,
    TokenRewardModel,
)

__all__ = [
    "PPO",
    "RL",
    "Augment",
    "AvseModel",
    "CodecLMModel",
    "CodecModel",
    "DiffRO",
    "Evaluate",
    "Exploration",
    "FlowModel",
    "GuardSpec",
    "ListenerModel",
    "Lora",
    "Mixing",
    "Pretrain",
    "RecogniserModel",
    "RewardSpec",
    "Sampling",
    "ScoreFolder",
    "Strict",
    "TokenRewardModel",
    "Video",
]


def _own_task(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ValueError("or package.module:Class")
    return name


OwnTask = Annotated[str, AfterValidator(_own_task)]  # see tasks/__init__.py


class Mixing(Strict):
    """How clean speech and noise become a mixture (``data/mixing.py``)."""

    snr_db: tuple[float, float] = (-5.0, 15.0)
    level_dbfs: tuple[float, float] = Field((-35.0, -15.0), description="RMS level of the mixture")
    reverb: float = Field(0.0, ge=0, le=1, description="share of mixtures that pass through an impulse response")
    early_ms: float | None = Field(
        50.0, description="the target keeps reflections up to this long after the direct sound; null keeps all of them"
    )
    clip_s: float = Field(
        2.0, ge=0, description="length of a mixture made on the fly; 0 keeps whole utterances, batched by like length"
    )
    talker: float = Field(
        0.0,
        ge=0,
        le=1,
        description="share of mixtures with a competing talker, drawn from the clean utterances of other speakers, in place of the noise or on top of it",
    )
    talker_snr_db: tuple[float, float] = Field((-5.0, 5.0), description="target against competing talker")


class Augment(Strict):
    """What ``pretrain --task asr`` does to a recording before the model hears it."""

    speed: tuple[float, float] = Field(
        (0.85, 1.15), description="range of playing speeds; pitch and formants move along, as another speaker's would"
    )
    time_masks: int = Field(2, ge=0, description="stretches of frames that are hidden (SpecAugment)")
    time_share: float = Field(0.08, ge=0, le=1, description="longest of them, as a share of the recording")
    mel_masks: int = Field(2, ge=0, description="bands that are hidden")
    mel_width: int = Field(12, ge=0, description="widest of them, in mel channels")


class Sampling(Strict):
    """How a language model's tokens are drawn."""

    temperature: float = Field(1.0, gt=0)
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="below 1 the rollouts are not the policy's own: the ratio of what it samples to what it is trained on is measured and said",
    )
    top_k: int = Field(0, ge=0, description="0: no truncation; see top_p")
    max_new_tokens: int | None = Field(
        None, ge=1, description="null: as many as the longest audio of the batch can hold (tokens_per_s), at least 16"
    )
    tokens_per_s: float = Field(
        12.0,
        gt=0,
        description="bound on a transcript's tokens by its audio's length; rollouts that reach it are truncated",
    )
    language: str | None = Field(None, description="handed to models that take one")
    prompt: str | None = Field(
        None,
        description="instruction or context, handed to models that take one; null: the model's own transcription request",
    )


Video = Literal["right", "shuffled", "none"]  # shuffled: another utterance's, the control; none: hidden
Trackers = Annotated[
    list[Literal["auto", "none", "tensorboard", "wandb"]], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
]
TRACKERS = "who gets the curves besides metrics.jsonl: auto: TensorBoard where it is installed; wandb: Weights & Biases (WANDB_MODE=offline keeps it here); one or a list"


class Pretrain(Strict):
    """``rlspeech pretrain``."""

    task: Literal["flowse", "avse", "listener", "asr", "codec", "tts", "token-reward"] | OwnTask = "flowse"
    data: str | None = Field(
        None,
        description="manifest (paired), mixture recipe (mix.json) or folder holding one; none: the embedded corpus",
    )
    valid: str | None = Field(
        None, description="paired manifest for samples and metrics while it runs; none: held back from data"
    )
    init: str | None = Field(None, description="checkpoint to start from, or 'embedded'; none: random weights")
    out: str | None = None
    model: FlowModel = FlowModel()
    avse: AvseModel = AvseModel()
    listener: ListenerModel = ListenerModel()
    asr: RecogniserModel = RecogniserModel()
    codec: CodecModel = CodecModel()
    tts: CodecLMModel = CodecLMModel()
    token_reward: TokenRewardModel = TokenRewardModel()
    augment: Augment = Augment()
    ctc_weight: float = Field(
        0.3,
        ge=0,
        le=1,
        description="asr: share of a CTC loss on the encoder, which teaches it where the words are; the head is not kept",
    )
    content_weight: float = Field(
        0.0,
        ge=0,
        description="codec: of what content_ear's encoder tells apart in original and copy (1 - cosine), beside the spectra",
    )
    content_ear: str = Field(
        "embedded",
        description="codec: the frozen recogniser of content_weight: 'embedded' or a run folder of pretrain --task asr",
    )
    video: Video = Field(
        "right", description="avse: shuffled trains the control on another utterance's video, none without video"
    )
    mixing: Mixing | None = Field(None, description="overrides the recipe's own mixing")
    steps: int = Field(2000, ge=1)
    batch: int = Field(16, ge=1, description="clips a step")
    lr: float = 5e-4
    warmup: int = 200
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema: float = Field(0.999, ge=0, lt=1)
    magnitude_weight: float = Field(
        0.5, ge=0, description="weight of an extra magnitude error (clean prediction only); 0 is plain flow matching"
    )
    valid_every: int = 500
    save_every: int = 500
    valid_items: int = 16
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = Field(0, ge=0, description="threads that load and mix audio ahead of the training step")
    max_minutes: float | None = Field(None, description="stop, validate and save after this long")
    tracker: Trackers = Field(["auto"], description=TRACKERS)


class RewardSpec(Strict):
    """One reward inside a composition."""

    name: str = Field(description="a name from `rlspeech doctor`, or package.module:function")
    weight: float = 1.0
    scale: Literal["batch", "group", "none"] = Field(
        "batch",
        description="divide by the batch's standard deviation (as FlowSE-GRPO), z-score within the group, or leave",
    )
    bounds: tuple[float | None, float | None] = Field(
        (None, None), description="the raw score is clamped to these before scaling"
    )
    missing: Literal["auto", "unscorable", "skip"] = Field(
        "auto",
        description="a null of this reward makes the row unscorable, or adds nothing (skip: a keyword reward where there are no keywords); auto: as the reward says",
    )
    mode: Literal["add", "override"] = Field(
        "add",
        description="override: where its score is below 0, weight times it is the whole reward of the row (a hallucination); scale must be none",
    )


class GuardSpec(Strict):
    """A metric that is measured, not rewarded, and may stop the run."""

    name: str
    max_drop: float | None = Field(
        None,
        description="stop when the validation mean is worse than at step 0 by more than this and its interval; null only watches",
    )


class Exploration(Strict):
    """Where a flow policy's randomness goes (``tasks/explore.py``)."""

    kind: Literal["sde", "cps", "dance", "gain", "mask"] = Field(
        "gain",
        description="gain: log-gains of bands of the predicted clean signal; sde, cps, dance (flowse): independent noise in every bin of a step; mask (avse): independent noise in every element of the mask",
    )
    noise: float = Field(
        0.3,
        ge=0,
        description="a (sde), eta (cps, dance), or standard deviation of the log-gains in nepers (gain); 0 is the plain ODE",
    )
    window: int = Field(1, ge=1, description="consecutive stochastic steps")
    start: tuple[int, int] | Literal["last"] = Field(
        "last",
        description="the window's first step is drawn from this range, never 0, where the SDE is singular; last: the window ends with the final step",
    )
    nfe: tuple[int, int] | None = Field(
        None,
        description="Euler steps of a training rollout, drawn once a collection; null: as many as the model takes at inference",
    )
    bands: int = Field(
        4, ge=1, description="gain: bands on the mel scale; fewer dimensions need fewer rollouts (--probe tells)"
    )
    segment_s: float | None = Field(
        None, gt=0, description="gain: length of the stretches that share a gain; null: the whole clip"
    )
    basis: list[Literal["level", "contrast"]] = Field(
        ["level", "contrast"],
        description="gain: level moves a band up or down; contrast makes its attenuation of the input stronger or weaker",
    )
    antithetic: bool = Field(
        True, description="draw the group's noise in mirrored pairs; every rollout keeps its own distribution"
    )
    mask_clamp: bool = Field(
        True,
        description="mask: a sampled mask is cut at 0 before it is decoded (its probability is that of the uncut one); the paper does not say",
    )
    shared_latent: bool = Field(
        True, description="one x_0 a prompt: the steps before the window are run once for the whole group"
    )


class Lora(Strict):
    """Low-rank adapter."""

    rank: int = Field(32, ge=1)
    alpha: float = 64.0
    targets: Literal["attention", "attention+ff", "all"] = "attention"


class PPO(Strict):
    """What PPO has beyond GRPO (``algos/ppo.py``)."""

    form: Literal["relative", "critic"] = Field(
        "relative",
        description="relative: one decision, advantage = reward - reward of the frozen base's output (LR-AVSE); critic: value network and GAE",
    )
    kl_in: Literal["advantage", "loss"] = Field(
        "advantage",
        description="where beta KL is taken off: from the advantage (as published; a number, it has no gradient of its own) or as a term of the loss",
    )
    discount: float = Field(1.0, ge=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    whiten: bool = Field(
        False, description="advantages of a collection to mean 0 and spread 1; the one-step form uses them as they are"
    )
    value_lr: float = Field(1e-3, gt=0)
    value_clip: float | None = Field(
        0.2,
        gt=0,
        description="how far a value may move from its old one in one collection, in units of the returns' spread; null: anywhere",
    )
    value_hidden: int = Field(64, ge=1)


class DiffRO(Strict):
    """Differentiable reward optimisation (``algos/diffro.py``; arXiv 2507.05911); temperature, hardness and weights are not given there."""

    reward: str = Field(
        "embedded",
        description="checkpoint of the differentiable reward: tts: `pretrain --task token-reward`; flowse, avse: dnsmos",
    )
    tau: float = Field(1.0, gt=0, description="temperature of the Gumbel-softmax at the first step")
    tau_end: float | None = Field(
        None, gt=0, description="at the last one, reached geometrically; null: the same (HPRO: 2 to 0.8)"
    )
    hard: bool = Field(
        True, description="straight-through: the reward sees one-hot tokens, the gradient passes through the soft ones"
    )
    mode: Literal["teacher", "free"] = Field(
        "teacher",
        description="teacher: one pass over self-generated tokens; free: every step sees the relaxed ones before it",
    )
    noise: Literal["given", "fresh"] = Field(
        "given",
        description="teacher: Gumbel noise drawn given the sampled tokens, so that the reward reads the rollout itself; fresh: drawn anew, as published: each token as if the ones before it were others (free: always fresh)",
    )
    on: Literal["positive", "nonnegative", "all"] = Field(
        "positive",
        description="grpo+diffro: rollouts whose advantage is above 0, at least 0, or all, also those that never stopped or loop (the unfiltered sum); diffro alone has no advantages: positive and nonnegative take every rollout that stopped and does not loop, all takes every one",
    )
    weight: float = Field(1.0, ge=0, description="grpo+diffro: of the differentiable reward's loss beside GRPO's")
    content_weight: float = Field(1.0, ge=0, description="of the text's log-posterior, a mean over its pieces")
    attribute_weights: dict[str, float] = Field(
        default_factory=dict, description="of further heads of the reward, by name (multi-task reward), e.g. sex: 0.1"
    )
    last_steps: int = Field(1, ge=1, description="flowse: Euler steps at the end that the gradient passes through")
    smooth: int = Field(
        4,
        ge=1,
        description="flowse, avse: noisy, shifted copies that a gradient is averaged over; 1 is the raw, adversarial one",
    )


class RL(Strict):
    """``rlspeech rl``."""

    task: Literal["flowse", "avse", "asr", "tts"] | OwnTask = "flowse"
    algo: Literal["grpo", "ppo", "diffro", "grpo+diffro"] = "grpo"
    model: str = Field("embedded", description="checkpoint folder, or 'embedded'")
    data: str | None = Field(None, description="manifest or mixture recipe; none: the embedded corpus")
    valid: str | None = Field(
        None, description="paired manifest, scored before, during and after; none: held back from data"
    )
    out: str | None = None
    rewards: list[RewardSpec] = Field(default_factory=list, description="empty: the task's default composition")
    guards: list[GuardSpec] = Field(default_factory=list)
    explore: Exploration = Exploration()
    sampling: Sampling = Sampling()
    ppo: PPO = PPO()
    diffro: DiffRO = DiffRO()
    policy_weight: float = Field(
        1.0,
        ge=0,
        description="of the policy's loss; 0 with a supervised weight is the control without RL: same data, steps and rate, nothing sampled or scored",
    )
    supervised_weight: float = Field(
        0.0, ge=0, description="of the task's supervised loss on the same prompts (LR-AVSE: gamma, SI-SNR)"
    )
    supervised_on: Literal["mean", "sample"] = Field(
        "mean", description="avse: SI-SNR of the noiseless output, or of the sampled one"
    )
    video: Video = Field("right", description="avse: shuffled is the control, every clip sees another one's video")
    lora: Lora | None = Field(Lora(), description="null trains every weight")
    train_encoder: bool = Field(
        False, description="asr: also train the audio encoder and projector; they are then run again in every update"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="asr: of a language model's weights and rollouts; log-probabilities are summed in fp32 either way",
    )
    offload: Literal["none", "phase"] = Field(
        "none",
        description="phase: what the running phase (encode, rollout, reward, update) does not need waits in the host's memory",
    )
    steps: int = Field(60, ge=1, description="collections of rollouts")
    prompts_per_step: int = Field(16, ge=1, description="prompts in one collection")
    group: int = Field(8, ge=1, description="rollouts a prompt")
    updates_per_collection: int = Field(
        1, ge=1, description="optimiser updates on one collection, each on its own share of the prompts' rollouts"
    )
    epochs: int = Field(1, ge=1, description="passes over one collection")
    micro_batch: int = Field(
        4,
        ge=1,
        description="prompts in one backward pass; changes memory, and over how many parts grad_agreement is taken, not the update",
    )
    lr: float = Field(
        1e-3, gt=0, description="measured for a LoRA and structured exploration; published per-bin runs use 2e-4"
    )
    lr_schedule: Literal["linear", "constant"] = "linear"
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    clip_range: float | Literal["auto"] = Field(
        "auto", description="PPO clip on the ratio; auto: clip_std times the measured spread of the log-ratio"
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="upper clip range where it differs from the lower one (DAPO: 0.28 over 0.2); null: the same",
    )
    clip_std: float = Field(2.0, gt=0)
    ratio_level: Literal["token", "sequence"] = Field(
        "token", description="sequence: one ratio a rollout, the geometric mean of its tokens' (GSPO)"
    )
    loss_mean: Literal["token", "sequence"] = Field(
        "token",
        description="token: every token counts the same; sequence: every rollout does, however long (GRPO as first published)",
    )
    truncated: Literal["mask", "penalise", "keep"] = Field(
        "mask",
        description="rollouts that never stopped: take no part, get truncated_reward, or are rewarded as they are",
    )
    truncated_reward: float = -1.0
    dynamic_sampling: int = Field(
        0,
        ge=0,
        description="times that prompts whose rollouts all got the same reward are replaced by further ones (DAPO); 0: they are skipped",
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="over the dimensions of one decision; the useful clip range depends on it"
    )
    ratio: Literal["plain", "rationorm"] = "plain"
    kl_beta: float = Field(
        0.01, ge=0, description="weight of the KL to the reference policy; 0 skips the reference pass"
    )
    kl: Literal["full", "k3"] = Field(
        "full",
        description="of token policies: over the whole vocabulary, or the k3 estimate from the sampled token; Gaussian policies know theirs exactly",
    )
    advantage: Literal["sum_then_norm", "norm_then_sum"] = Field(
        "sum_then_norm", description="compose the rewards, then normalise in the group; or normalise each and add"
    )
    advantage_std: Literal["group", "batch", "none"] = "group"
    advantage_clip: float = 5.0
    max_unscorable: float = Field(0.2, ge=0, le=1, description="a larger share of unscorable rows stops the run")
    clip_s: float = Field(2.0, ge=0, description="length of a training prompt; 0 keeps whole utterances (asr)")
    valid_every: int = Field(20, ge=1)
    valid_items: int = Field(24, ge=1)
    valid_draws: int = Field(
        1,
        ge=1,
        description="times that every held-out clip is drawn at a validation, its scores averaged: what is said by chance (tts) hides less from guards",
    )
    save_every: int = Field(50, ge=1)
    seed: int = 0
    device: str = "auto"
    workers: int = Field(2, ge=0, description="processes for CPU rewards")
    probe_batches: int = Field(16, ge=4, description="--probe: independent gradients per setting")
    probe_settings: list[Exploration] = Field(
        default_factory=list,
        description="--probe: explorations to compare; empty: the configured one, its neighbours and the published one",
    )
    max_minutes: float | None = None
    tracker: Trackers = Field(["auto"], description=TRACKERS)


class Evaluate(Strict):
    """``rlspeech eval``."""

    task: Literal["flowse", "avse", "asr", "tts"] | OwnTask = "flowse"
    data: str | None = Field(None, description="paired manifest; none: the embedded test set")
    models: dict[str, str] = Field(
        default_factory=dict, description="name -> checkpoint; the unprocessed input is always scored first"
    )
    baseline: str | None = Field(
        None,
        description="system that the others are paired against; none: the first of several models, the input of a single one",
    )
    metrics: list[str] = Field(default_factory=list, description="empty: the task's default metrics")
    out: str | None = None
    nfe: int | None = Field(None, description="Euler steps; none: the model's own")
    guidance: float | None = None
    video: Video = Field("right", description="avse: shuffled is the control, every clip sees another one's video")
    shuffled: list[str] = Field(
        default_factory=list, description="avse: models that are scored once more with shuffled video, as NAME-shuffled"
    )
    normaliser: str = Field(
        "basic-2", description="asr, tts: of both texts before they are compared; `rlspeech doctor` lists them"
    )
    sampling: Sampling = Field(
        Sampling(), description="asr: language, prompt and length; decoding is greedy; tts: how tokens are drawn"
    )
    beams: int = Field(1, ge=1, description="asr: beams of the search; 1 is greedy")
    recogniser: str | None = Field(
        None,
        description="tts: who listens, best not the one of the reward: Hub id, folder, 'pocketsphinx'; none: embedded",
    )
    anchors: bool = Field(
        True, description="tts: also score the recordings themselves and their copies through the codec"
    )
    by: str = Field("condition", description="asr, tts: manifest column whose values get tables of their own")
    limit: int | None = None
    batch: int = 8
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    players: int = Field(6, ge=0, description="clips with players in the report")


class ScoreFolder(Strict):
    """``rlspeech reward``."""

    rewards: list[str] = Field(default_factory=lambda: ["dnsmos"])
    target: str | None = Field(None, description="folder with reference wavs of the same names")
    text: str | None = Field(None, description="transcripts: JSONL with id and text, Kaldi text, or a folder of .txt")
    hypotheses: str | None = Field(
        None,
        description="for asr_*: a recogniser's texts in the same forms; none: the manifest's hypothesis or pred_text",
    )
    system: str = Field("system", description="label written into every row")
    recogniser: str | None = Field(
        None, description="for wer: Hub id or folder of a transformers recogniser, or 'pocketsphinx'"
    )
    speaker_encoder: str | None = Field(
        None, description="for speaker_similarity: Hub id or folder; none: the embedded encoder"
    )
    speech_encoder: str | None = Field(
        None, description="for speech_bert_score: Hub id or folder; none: the embedded encoder"
    )
    llm: str | None = Field(
        None,
        description="for llm: Hub id or folder of an audio language model, or http(s)://host/v1; none: the embedded listener",
    )
    llm_model: str | None = Field(
        None, description="for llm at an address: the model's name there; none: the only one it serves"
    )
    sentiment: str | None = Field(
        None, description="for llm: Hub id or folder of a classifier with ordered labels; none: the embedded one"
    )
    prompt: str | None = Field(
        None, description="for llm: file of prompts, one a line, the first is asked; none: the shipped ones"
    )
    report: Literal["auto", "always", "never"] = Field(
        "auto", description="report.html beside the scores; auto: where a reward gives words or the rows are ladders"
    )
    players: int = Field(8, ge=0, description="clips with players in the report")
    out: str | None = None
    batch: int = 16
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    timeout_s: float = Field(60.0, gt=0, description="a CPU metric that takes longer on one item costs that item")
