"""What can be set, stage by stage: typed, with the vetted default and its reason beside each field.

Defaults < ``--preset`` < ``--config FILE`` < flags < ``--set a.b=c``; ``rlspeech.settings`` does the layering and refuses
unknown keys with the closest name. Descriptions below are the help texts of options and of ``rlspeech presets keys``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rlspeech.config_parts import (
    Augment,
    AvseModel,
    CodecLMModel,
    CodecModel,
    Count,
    FlowModel,
    ListenerModel,
    Mixing,
    NonNegative,
    Positive,
    RecogniserModel,
    Sampling,
    Share,
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
TASK = "what the model does, or package.module:Class of your own"
SEED = "random seed; the same seed gives the same result"
DEVICE = "auto, cpu, cuda, cuda:1 or mps"
MINUTES = "stop after this many minutes, validate and save"
Enhancement = Literal["flowse", "avse"]  # tasks that enhance, the default first
Video = Literal["right", "shuffled", "none"]  # shuffled: another utterance's, the control; none: hidden
Trackers = Annotated[
    list[Literal["auto", "none", "tensorboard", "wandb"]], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)
]
TRACKERS = "where curves go besides metrics.jsonl, one or a list; auto: TensorBoard where it is installed; wandb: Weights & Biases (WANDB_MODE=offline keeps it local)"


class Pretrain(Strict):
    """``rlspeech pretrain``."""

    task: Literal["flowse", "avse", "listener", "asr", "codec", "tts", "token-reward"] | OwnTask = Field(
        "flowse", description=TASK
    )
    data: str | None = Field(
        None,
        description="paired manifest, mixture recipe (mix.json), or a folder that holds one (default: the embedded corpus)",
    )
    valid: str | None = Field(
        None, description="paired manifest for samples and metrics during training (default: held back from the data)"
    )
    init: str | None = Field(
        None, description="checkpoint to start from, or 'embedded' (default: random initialisation)"
    )
    out: str | None = None
    model: FlowModel = FlowModel()
    avse: AvseModel = AvseModel()
    listener: ListenerModel = ListenerModel()
    asr: RecogniserModel = RecogniserModel()
    codec: CodecModel = CodecModel()
    tts: CodecLMModel = CodecLMModel()
    token_reward: TokenRewardModel = TokenRewardModel()
    augment: Augment = Augment()
    ctc_weight: Share = Field(
        0.3,
        description="asr: weight of a CTC loss on the encoder, which teaches it where the words are; its head is not kept",
    )
    content_weight: NonNegative = Field(
        0.0,
        description="codec: weight of the distance (1 - cosine) between content_ear's encodings of original and copy, beside the spectral loss",
    )
    content_ear: str = Field(
        "embedded",
        description="codec: frozen recogniser for content_weight: 'embedded' or a run folder of pretrain --task asr",
    )
    video: Video = Field(
        "right", description="avse: shuffled trains the control on another utterance's video, none trains without video"
    )
    mixing: Mixing | None = Field(None, description="overrides the mixing of the recipe")
    steps: Count = Field(2000, description="number of optimiser steps")
    batch: Count = Field(16, description="clips in one step")
    lr: float = Field(5e-4, description="peak learning rate")
    warmup: int = Field(200, description="steps over which the learning rate rises")
    weight_decay: float = 0.01
    grad_clip: float = Field(1.0, description="largest norm of the gradient")
    ema: float = Field(0.999, ge=0, lt=1, description="decay of the averaged weights, which are what is saved")
    magnitude_weight: NonNegative = Field(
        0.5, description="weight of an extra magnitude error (clean prediction only); 0 is plain flow matching"
    )
    valid_every: int = Field(500, description="validate every so many steps")
    save_every: int = Field(500, description="save a checkpoint every so many steps")
    valid_items: int = Field(16, description="number of clips in a validation")
    seed: int = Field(0, description=SEED)
    device: str = Field("auto", description=DEVICE)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = Field(0, ge=0, description="threads that load and mix audio ahead of the training step")
    max_minutes: float | None = Field(None, description=MINUTES)
    tracker: Trackers = Field(["auto"], description=TRACKERS)


class RewardSpec(Strict):
    """One reward inside a composition."""

    name: str = Field(description="a name from `rlspeech doctor`, or package.module:function")
    weight: float = 1.0
    scale: Literal["batch", "group", "none"] = Field(
        "batch",
        description="divide by the batch's standard deviation (as FlowSE-GRPO), z-score within the group, or leave as it is",
    )
    bounds: tuple[float | None, float | None] = Field(
        (None, None), description="clamp the raw score to these before scaling"
    )
    missing: Literal["auto", "unscorable", "skip"] = Field(
        "auto",
        description="a null of this reward makes the row unscorable, or adds nothing (skip: a keyword reward where there are no keywords); auto: as the reward declares",
    )
    mode: Literal["add", "override"] = Field(
        "add",
        description="override: where the score is below 0, weight times the score is the whole reward of the row (a hallucination); scale must be none",
    )


class GuardSpec(Strict):
    """A metric that is measured, not rewarded, and may stop the run."""

    name: str
    max_drop: float | None = Field(
        None,
        description="stop when the validation mean is worse than at step 0 by more than this and its interval; null only watches",
    )


class Exploration(Strict):
    """Where the randomness of a flow policy enters (``tasks/explore.py``)."""

    kind: Literal["sde", "cps", "dance", "gain", "mask"] = Field(
        "gain",
        description="gain: log-gains of bands of the predicted clean signal; sde, cps, dance (flowse): independent noise in every bin of a step; mask (avse): independent noise in every element of the mask",
    )
    noise: NonNegative = Field(
        0.3,
        description="a (sde), eta (cps, dance), or standard deviation of the log-gains in nepers (gain); 0 is the plain ODE",
    )
    window: Count = Field(1, description="number of consecutive stochastic steps")
    start: tuple[int, int] | Literal["last"] = Field(
        "last",
        description="first step of the window, drawn from this range, never 0, where the SDE is singular; last: the window ends with the final step",
    )
    nfe: tuple[int, int] | None = Field(
        None,
        description="Euler steps of a training rollout, drawn once a collection; null: as many as the model takes at inference",
    )
    bands: Count = Field(
        4, description="gain: bands on the mel scale; fewer dimensions need fewer rollouts (see --probe)"
    )
    segment_s: float | None = Field(
        None, gt=0, description="gain: length of the stretches that share a gain; null: the whole clip"
    )
    basis: list[Literal["level", "contrast"]] = Field(
        ["level", "contrast"],
        description="gain: level moves a band up or down; contrast makes its attenuation of the input stronger or weaker",
    )
    antithetic: bool = Field(
        True, description="draw the noise of a group in mirrored pairs; every rollout keeps its own distribution"
    )
    mask_clamp: bool = Field(
        True,
        description="mask: clip a sampled mask at 0 before it is decoded (its probability is that of the unclipped one); the paper does not say",
    )
    shared_latent: bool = Field(
        True, description="one x_0 per prompt: the steps before the window are run once for the whole group"
    )


class Lora(Strict):
    """Low-rank adapter."""

    rank: Count = 32
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
        description="where beta KL is subtracted: from the advantage (as published; a number without a gradient of its own) or as a term of the loss",
    )
    discount: Share = 1.0
    gae_lambda: Share = 0.95
    whiten: bool = Field(
        False, description="normalise the advantages of a collection; the one-step form uses them as they are"
    )
    value_lr: Positive = 1e-3
    value_clip: float | None = Field(
        0.2,
        gt=0,
        description="how far a value may move from its old one in one collection, in units of the returns' spread; null: anywhere",
    )
    value_hidden: Count = 64


class DiffRO(Strict):
    """Differentiable reward optimisation (``algos/diffro.py``; arXiv 2507.05911); temperature, hardness and weights are not given there."""

    reward: str = Field(
        "embedded",
        description="checkpoint of the differentiable reward: tts: `pretrain --task token-reward`; flowse, avse: dnsmos",
    )
    tau: Positive = Field(1.0, description="temperature of the Gumbel-softmax at the first step")
    tau_end: float | None = Field(
        None, gt=0, description="temperature at the last step, reached geometrically; null: the same (HPRO: 2 to 0.8)"
    )
    hard: bool = Field(
        True, description="straight-through: the reward gets one-hot tokens, the gradient passes through the soft ones"
    )
    mode: Literal["teacher", "free"] = Field(
        "teacher",
        description="teacher: one pass over self-generated tokens; free: every step gets the relaxed tokens before it",
    )
    noise: Literal["given", "fresh"] = Field(
        "given",
        description="teacher: Gumbel noise drawn given the sampled tokens, so that the reward reads the rollout itself; fresh: drawn anew, as published: each token as if the ones before it were others (free: always fresh)",
    )
    on: Literal["positive", "nonnegative", "all"] = Field(
        "positive",
        description="grpo+diffro: rollouts whose advantage is above 0, at least 0, or all, also those that never stopped or loop (the unfiltered sum); diffro alone has no advantages: positive and nonnegative take every rollout that stopped and does not loop, all takes every one",
    )
    weight: NonNegative = Field(
        1.0, description="grpo+diffro: weight of the differentiable reward's loss beside GRPO's"
    )
    content_weight: NonNegative = Field(
        1.0, description="weight of the log-posterior of the text, a mean over its pieces"
    )
    attribute_weights: dict[str, float] = Field(
        default_factory=dict,
        description="weights of further heads of the reward by name (multi-task reward), e.g. sex: 0.1",
    )
    last_steps: Count = Field(1, description="flowse: Euler steps at the end that the gradient passes through")
    smooth: Count = Field(
        4,
        description="flowse, avse: noisy, shifted copies that a gradient is averaged over; 1 is the raw, adversarial one",
    )


class RL(Strict):
    """``rlspeech rl``."""

    task: Literal["flowse", "avse", "asr", "tts"] | OwnTask = Field("flowse", description=TASK)
    algo: Literal["grpo", "ppo", "diffro", "grpo+diffro"] = Field("grpo", description="how the policy is trained")
    model: str = Field("embedded", description="checkpoint or run folder to start from, or 'embedded'")
    data: str | None = Field(None, description="manifest or mixture recipe (default: the embedded corpus)")
    valid: str | None = Field(
        None,
        description="paired manifest that is scored before, during and after training (default: held back from the data)",
    )
    out: str | None = None
    rewards: list[RewardSpec] = Field(
        default_factory=list,
        description="reward and its weight, e.g. estoi=1 (see rlspeech doctor); may be repeated (default: the task's own)",
    )
    guards: list[GuardSpec] = Field(
        default_factory=list,
        description="metric to watch; the run stops when it falls by more than MAX_DROP; may be repeated",
    )
    explore: Exploration = Exploration()
    sampling: Sampling = Sampling()
    ppo: PPO = PPO()
    diffro: DiffRO = DiffRO()
    policy_weight: NonNegative = Field(
        1.0,
        description="weight of the policy loss; 0 with a supervised weight is the control without RL: same data, steps and rate, nothing sampled or scored",
    )
    supervised_weight: NonNegative = Field(
        0.0, description="weight of the task's supervised loss on the same prompts (LR-AVSE: gamma, SI-SNR)"
    )
    supervised_on: Literal["mean", "sample"] = Field(
        "mean", description="avse: SI-SNR of the noiseless output, or of the sampled one"
    )
    video: Video = Field(
        "right", description="avse: shuffled is the control, in which every clip gets the video of another one"
    )
    lora: Lora | None = Field(Lora(), description="null trains every weight")
    train_encoder: bool = Field(
        False, description="asr: also train the audio encoder and projector; they then run in every update"
    )
    precision: Literal["fp32", "bf16"] = Field(
        "fp32",
        description="asr: precision of a language model's weights and rollouts; log-probabilities are summed in fp32 either way",
    )
    offload: Literal["none", "phase"] = Field(
        "none",
        description="phase keeps in host memory what the running phase (encode, rollout, reward, update) does not need",
    )
    steps: Count = Field(60, description="number of training steps, each a collection of rollouts and its updates")
    prompts_per_step: Count = Field(16, description="prompts in one step, over all processes")
    group: Count = Field(8, description="rollouts of each prompt")
    updates_per_collection: Count = Field(
        1, description="optimiser updates on one collection, each on its own share of the prompts' rollouts"
    )
    epochs: Count = Field(1, description="passes over one collection")
    micro_batch: Count = Field(
        4,
        description="prompts in one backward pass; changes memory, and over how many parts grad_agreement is taken, not the update",
    )
    lr: Positive = Field(
        1e-3,
        description="learning rate; the default was measured for a LoRA and structured exploration, published per-bin runs use 2e-4",
    )
    lr_schedule: Literal["linear", "constant"] = "linear"
    weight_decay: float = 0.0
    grad_clip: float = Field(1.0, description="largest norm of the gradient")
    clip_range: float | Literal["auto"] = Field(
        "auto", description="PPO clip on the ratio; auto: clip_std times the measured spread of the log-ratio"
    )
    clip_high: float | None = Field(
        None,
        gt=0,
        description="upper clip range where it differs from the lower one (DAPO: 0.28 over 0.2); null: the same",
    )
    clip_std: Positive = 2.0
    ratio_level: Literal["token", "sequence"] = Field(
        "token", description="sequence: one ratio per rollout, the geometric mean over its tokens (GSPO)"
    )
    loss_mean: Literal["token", "sequence"] = Field(
        "token",
        description="token: every token has the same weight; sequence: every rollout has, however long (GRPO as first published)",
    )
    truncated: Literal["mask", "penalise", "keep"] = Field(
        "mask",
        description="rollouts that never stopped are left out, get truncated_reward, or are rewarded as they are",
    )
    truncated_reward: float = -1.0
    dynamic_sampling: int = Field(
        0,
        ge=0,
        description="how often prompts whose rollouts all got the same reward are replaced by further ones (DAPO); 0: they are skipped",
    )
    reduction: Literal["mean", "sum"] = Field(
        "mean", description="over the dimensions of one decision; the useful clip range depends on it"
    )
    ratio: Literal["plain", "rationorm"] = "plain"
    kl_beta: NonNegative = Field(
        0.01, description="weight of the KL to the reference policy; 0 skips the reference pass"
    )
    kl: Literal["full", "k3"] = Field(
        "full",
        description="KL of token policies: over the whole vocabulary, or the k3 estimate from the sampled token; that of Gaussian policies is exact",
    )
    advantage: Literal["sum_then_norm", "norm_then_sum"] = Field(
        "sum_then_norm", description="compose the rewards, then normalise in the group; or normalise each and add"
    )
    advantage_std: Literal["group", "batch", "none"] = "group"
    advantage_clip: float = 5.0
    max_unscorable: Share = Field(0.2, description="stop the run when a larger share of rows cannot be scored")
    clip_s: NonNegative = Field(2.0, description="length of a training prompt; 0 keeps whole utterances (asr)")
    valid_every: Count = Field(20, description="validate every so many steps")
    valid_items: Count = Field(24, description="number of clips in a validation")
    valid_draws: Count = Field(
        1,
        description="samples per held-out clip in a validation, their scores averaged: chance in the output (tts) then hides less from guards",
    )
    save_every: Count = Field(50, description="save a checkpoint every so many steps")
    seed: int = Field(0, description=SEED)
    device: str = Field("auto", description=DEVICE)
    workers: int = Field(2, ge=0, description="processes for CPU rewards")
    probe_batches: int = Field(16, ge=4, description="--probe: independent gradients per setting")
    probe_settings: list[Exploration] = Field(
        default_factory=list,
        description="--probe: explorations to compare; empty: the configured one, its neighbours and the published one",
    )
    max_minutes: float | None = Field(None, description=MINUTES)
    tracker: Trackers = Field(["auto"], description=TRACKERS)


class Evaluate(Strict):
    """``rlspeech eval``."""

    task: Literal["flowse", "avse", "asr", "tts"] | OwnTask = Field("flowse", description=TASK)
    data: str | None = Field(None, description="paired manifest to evaluate on (default: the embedded test set)")
    models: dict[str, str] = Field(
        default_factory=dict,
        description="system to score, by name, e.g. rl=runs/rl or base=embedded; may be repeated; the unprocessed input comes first",
    )
    baseline: str | None = Field(
        None,
        description="system that the others are compared with (default: the first of several models, the input for a single one)",
    )
    metrics: list[str] = Field(
        default_factory=list, description="metric to measure; may be repeated (default: the task's own)"
    )
    out: str | None = None
    nfe: int | None = Field(None, description="number of Euler steps (default: the model's own)")
    guidance: float | None = Field(None, description="strength of classifier-free guidance (default: the model's own)")
    video: Video = Field(
        "right", description="avse: shuffled is the control, in which every clip gets the video of another one"
    )
    shuffled: list[str] = Field(
        default_factory=list,
        description="avse: score this model a second time with shuffled video, as NAME-shuffled; may be repeated",
    )
    normaliser: str = Field(
        "basic-2",
        description="asr, tts: text normaliser for both texts, e.g. basic-2 or english-1 (see rlspeech doctor)",
    )
    sampling: Sampling = Field(
        Sampling(), description="asr: language, prompt and length; decoding is greedy; tts: how tokens are sampled"
    )
    beams: Count = Field(1, description="asr: width of the beam search; 1 is greedy")
    recogniser: str | None = Field(
        None,
        description="tts: recogniser that scores; use another one than the reward's: Hub id, folder or pocketsphinx (default: embedded)",
    )
    anchors: bool = Field(
        True, description="tts: also score the recordings themselves and their copies through the codec"
    )
    by: str = Field("condition", description="asr, tts: manifest column whose values get tables of their own")
    limit: int | None = Field(None, description="evaluate only the first N utterances")
    batch: int = Field(8, description="utterances in one batch")
    seed: int = Field(0, description=SEED)
    device: str = Field("auto", description=DEVICE)
    workers: int = Field(2, description="processes for CPU metrics")
    players: int = Field(6, ge=0, description="number of clips with players in the report")


class ScoreFolder(Strict):
    """``rlspeech reward``."""

    rewards: list[str] = Field(
        default_factory=lambda: ["dnsmos"],
        description="reward to compute: dnsmos, pesq, asr_wer, ..., or package.module:function; may be repeated",
    )
    target: str | None = Field(
        None, description="folder with reference recordings of the same names; a file for a single file"
    )
    text: str | None = Field(None, description="transcripts: JSONL with id and text, Kaldi text, or a folder of .txt")
    hypotheses: str | None = Field(
        None,
        description="for asr_*: texts of a recogniser, in the same forms (default: the manifest's hypothesis or pred_text)",
    )
    system: str = Field("system", description="label that is written into every row")
    recogniser: str | None = Field(
        None, description="for wer: Hub id or folder of a transformers recogniser, or pocketsphinx"
    )
    speaker_encoder: str | None = Field(
        None, description="for speaker_similarity: Hub id or folder (default: the embedded encoder)"
    )
    speech_encoder: str | None = Field(
        None, description="for speech_bert_score: Hub id or folder (default: the embedded encoder)"
    )
    llm: str | None = Field(
        None,
        description="for llm: Hub id or folder of an audio language model, or http(s)://host/v1 (default: the embedded listener)",
    )
    llm_model: str | None = Field(
        None, description="for llm at an address: name of the model there (default: the only one it serves)"
    )
    sentiment: str | None = Field(
        None, description="for llm: Hub id or folder of a classifier with ordered labels (default: the embedded one)"
    )
    prompt: str | None = Field(
        None,
        description="for llm: file of prompts, one a line, of which the first is asked (default: the shipped ones)",
    )
    report: Literal["auto", "always", "never"] = Field(
        "auto", description="report.html beside the scores; auto: where a reward gives words or the rows are ladders"
    )
    players: int = Field(8, ge=0, description="number of clips with players in the report")
    out: str | None = None
    batch: int = Field(16, description="files in one batch")
    seed: int = Field(0, description=SEED)
    device: str = Field("auto", description=DEVICE)
    workers: int = Field(2, description="processes for CPU metrics")
    timeout_s: Positive = Field(60.0, description="give up a CPU metric on one item after this long; its score is null")
