"""What can be set, stage by stage: typed, with the vetted default and its reason beside each field.

Defaults < ``--preset`` < ``--config FILE`` < flags < ``--set a.b=c``; ``rlspeech.settings`` does the layering and refuses
unknown keys with the closest name. Descriptions below are the help texts of options and of ``rlspeech presets keys``.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from rlspeech.config_parts import (
    SHARD,
    Augment,
    AvseModel,
    CodecLMModel,
    CodecModel,
    Count,
    EulerSteps,
    FlowModel,
    ListenerModel,
    Mixing,
    NonNegative,
    Positive,
    RecogniserModel,
    Rollouts,
    Sampling,
    ShardText,
    Share,
    Size,
    Strict,
    TokenRewardModel,
    Whole,
    Workers,
    conf,
)


def _own_task(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", name):
        raise ValueError("or package.module:Class")
    return name


OwnTask = Annotated[str, AfterValidator(_own_task)]  # see tasks/__init__.py
TASK = "what the model does, or package.module:Class of your own"
SEED = "random seed; the same seed gives the same result"
DEVICE = "auto, cpu, cuda, cuda:1 or mps"
MINUTES = "stop after this many minutes, validate and save"
Tuned = Literal["flowse", "avse", "asr", "tts"]  # that rl and eval take, the default first
Enhancement = Literal["flowse", "avse"]  # tasks that enhance, the default first
Video = Literal["right", "shuffled", "none"]  # shuffled: another utterance's, the control; none: hidden
Online = Literal["grpo", "ppo", "awr", "diffro", "grpo+diffro"]
Algo = Literal[Online, "dpo"]
Tracker = Literal["auto", "none", "tensorboard", "wandb"]
Trackers = Annotated[list[Tracker], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
TRACKERS = "where curves go besides metrics.jsonl, one or a list; auto: TensorBoard where it is installed; wandb: Weights & Biases (WANDB_MODE=offline keeps it local)"


class Pretrain(Strict):
    """``rlspeech pretrain``."""

    task: Literal["flowse", "avse", "listener", "asr", "codec", "tts", "token-reward"] | OwnTask = conf("flowse", TASK)
    data: str | None = conf(None, "paired manifest, mixture recipe, or folder with one (default: embedded corpus)")
    valid: str | None = conf(None, "paired manifest for validation (default: held back from the data)")
    init: str | None = conf(None, "checkpoint to start from, or 'embedded' (default: random initialisation)")
    out: str | None = None
    model: FlowModel = FlowModel()
    avse: AvseModel = AvseModel()
    listener: ListenerModel = ListenerModel()
    asr: RecogniserModel = RecogniserModel()
    codec: CodecModel = CodecModel()
    tts: CodecLMModel = CodecLMModel()
    token_reward: TokenRewardModel = TokenRewardModel()
    augment: Augment = Augment()
    ctc_weight: Share = conf(0.3, "asr: weight of a CTC loss on the encoder, which teaches it where the words are")
    content_weight: NonNegative = conf(0.0, "codec: weight of the copy's cosine distance in content_ear's encodings")
    content_ear: str = conf("embedded", "codec: recogniser for content_weight: embedded or a `pretrain --task asr` run")
    video: Video = conf("right", "avse: shuffled trains the control on another utterance's video, none without video")
    mixing: Mixing | None = conf(None, "overrides the mixing of the recipe")
    steps: Count = conf(2000, "number of optimiser steps")
    batch: Count = conf(16, "clips in one step, of each process")
    lr: Positive = conf(5e-4, "peak learning rate")
    warmup: Whole = conf(200, "steps over which the learning rate rises")
    lr_schedule: Literal["cosine", "linear", "constant", "plateau"] = conf(
        "cosine",
        "its course after the warm-up; plateau (enhancers): x 0.8 at every 4th validation without a better si_sdr, end at the 6th",
    )
    weight_decay: NonNegative = 0.01
    grad_clip: Positive = conf(1.0, "largest norm of the gradient")
    ema: float = conf(0.999, "decay of the averaged weights, which are what is saved; 0: no average", ge=0, lt=1)
    magnitude_weight: NonNegative = conf(0.5, "weight of an added magnitude error (clean prediction); 0: none")
    flow_weight: NonNegative = conf(1.0, "flowse: weight of the flow's loss beside its predictor's; 0: predictor alone")
    predictor_weight: NonNegative = conf(1.0, "flowse: weight of the predictor's loss; 0 keeps it as it is")
    valid_every: Whole = conf(500, "validate every so many steps")
    save_every: Count = conf(500, "save a checkpoint every so many steps")
    valid_items: Whole = conf(16, "number of clips in a validation")
    seed: Whole = conf(0, SEED)
    device: str = conf("auto", DEVICE)
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: Workers = conf(0, "threads that load and mix audio ahead of the training step")
    max_minutes: Positive | None = conf(None, MINUTES)
    tracker: Trackers = conf(["auto"], TRACKERS)


class RewardSpec(Strict):
    """One reward inside a composition."""

    name: str = Field(description="from `rlspeech doctor`, or package.module:function, http://host:port#name")
    weight: float = 1.0
    scale: Literal["batch", "group", "none"] = conf(
        "batch", "divide by the batch's standard deviation (FlowSE-GRPO), z-score in the group, or leave as it is"
    )
    bounds: tuple[float | None, float | None] = conf((None, None), "clamp the raw score to these before scaling")
    missing: Literal["auto", "unscorable", "skip"] = conf(
        "auto", "what a null does: its row is unscorable, or it adds nothing (skip); auto: as the reward declares"
    )
    mode: Literal["add", "override"] = conf("add", "override: a score < 0 is its row's whole reward; needs scale none")


class GuardSpec(Strict):
    """A metric that is measured, not rewarded, and may stop the run, or is held."""

    name: str
    max_drop: NonNegative | None = conf(None, "stop when the mean falls by more than this, beyond doubt; null: watch")
    hold: bool = conf(False, "instead of stopping, weigh it in as far as its fall has to be kept within max_drop")


class Hold(Strict):
    """How guards are held (``stages/validation.py``)."""

    every: Count = conf(2, "steps between two readings on the validation clips; 4 let falls pass their limits")
    aim: float = conf(0.75, "share of the limit at which a fall is held: steps between readings overshoot", gt=0, le=1)
    gains: tuple[NonNegative, NonNegative, NonNegative] = conf((4.0, 0.5, 4.0), "PID of the error (fall / limit - aim)")
    most: Positive = conf(10.0, "largest multiplier: 1 weighs as much as all rewards together")


class Exploration(Strict):
    """Where the randomness of a flow policy enters (``tasks/explore.py``)."""

    kind: Literal["sde", "cps", "dance", "gain", "mask"] = conf(
        "gain",
        "gain: log-gains of bands of the clean signal; sde, cps, dance (flowse): noise in every bin of a step; mask (avse): in every element",
    )
    noise: NonNegative = conf(0.3, "a (sde), eta (cps, dance), deviation of log-gains in nepers (gain); 0: plain ODE")
    window: EulerSteps = conf(1, "number of consecutive stochastic steps")
    start: tuple[Count, Count] | Literal["last"] = conf(
        "last", "first step of the window, from this range, never 0 (the SDE is singular there); last: the final ones"
    )
    nfe: tuple[EulerSteps, EulerSteps] | None = conf(None, "Euler steps, drawn per collection; null: as at inference")
    bands: Size = conf(4, "gain: bands on the mel scale; fewer dimensions need fewer rollouts (see --probe)")
    segment_s: Positive | None = conf(None, "gain: length of the stretches that share a gain; null: the whole clip")
    basis: list[Literal["level", "contrast"]] = conf(
        ["level", "contrast"], "gain: level moves a band up or down, contrast strengthens or weakens its attenuation"
    )
    antithetic: bool = conf(True, "draw the noise of a group in mirrored pairs; each rollout keeps its distribution")
    mask_clamp: bool = conf(True, "mask: decode a sampled mask clipped at 0; its probability is the unclipped one's")
    shared_latent: bool = conf(True, "one x_0 per prompt: the steps before the window are run once for the whole group")


class Lora(Strict):
    """Low-rank adapter."""

    rank: Size = 32
    alpha: Positive = 64.0
    targets: Literal["attention", "attention+ff", "all"] = "attention"


class PPO(Strict):
    """What PPO has beyond GRPO (``algos/ppo.py``)."""

    form: Literal["relative", "critic"] = conf("relative", "relative: over the frozen base (LR-AVSE); critic: GAE")
    kl_in: Literal["advantage", "loss"] = conf("advantage", "where beta KL is subtracted; advantage: without gradient")
    discount: Share = 1.0
    gae_lambda: Share = 0.95
    whiten: bool = conf(False, "normalise the advantages of a collection; the one-step form uses them as they are")
    value_lr: Positive = 1e-3
    value_clip: Positive | None = conf(0.2, "how far a value moves in a collection, in spreads of returns; null: free")
    value_hidden: Size = 64


class AWR(Strict):
    """Advantage-weighted regression (``algos/awr.py``; AdvantageFlow, arXiv 2605.26013)."""

    repulsion: NonNegative = conf(1.0, "weight of outputs below their group's mean, which are pushed away; 0: left out")


class DiffRO(Strict):
    """Differentiable reward optimisation (``algos/diffro.py``; arXiv 2507.05911); temperature, hardness and weights are not given there."""

    reward: str = conf(
        "embedded", "tts: checkpoint of pretrain --task token-reward; flowse, avse: followed if no rewards are given"
    )
    tau: Positive = conf(1.0, "temperature of the Gumbel-softmax at the first step")
    tau_end: Positive | None = conf(None, "last step's temperature, reached geometrically; null: tau (HPRO: 0.8)")
    hard: bool = conf(True, "straight-through: one-hot tokens to the reward, the gradient through the soft ones")
    mode: Literal["teacher", "free"] = conf("teacher", "teacher: one pass over sampled tokens; free: over relaxed ones")
    noise: Literal["given", "fresh"] = conf(
        "given",
        "given (teacher): Gumbel noise given the sampled tokens, so that the reward reads the rollout; fresh: drawn anew, as published",
    )
    on: Literal["positive", "nonnegative", "all"] = conf(
        "positive",
        "grpo+diffro: rollouts whose advantage is above 0, at least 0, or all, also those that never stopped or loop (the unfiltered sum); diffro alone has no advantages: positive and nonnegative take every rollout that stopped and does not loop, all takes every one",
    )
    weight: NonNegative = conf(1.0, "grpo+diffro: weight of the differentiable reward's loss beside GRPO's")
    content_weight: NonNegative = conf(1.0, "weight of the log-posterior of the text")
    reduction: Literal["mean", "sum"] = conf("mean", "tts: over pieces and tokens; sum: as published, for its kl_beta")
    attribute_weights: dict[str, float] = conf({}, "weights of further heads of the reward by name, e.g. sex: 0.1")
    last_steps: EulerSteps = conf(1, "flowse: Euler steps at the end that the gradient passes through")
    smooth: Count = conf(4, "flowse, avse: noisy, shifted copies that a gradient is averaged over; 1: the raw one")


class DPO(Strict):
    """Preferences from stored samples (``algos/dpo.py``)."""

    loss: Literal["dpo", "sft"] = conf("dpo", "sft: likelihood of the winners alone (best-of-K SFT, RAFT)")
    beta: Positive = conf(0.1, "how much a shift of likelihood against the reference counts; larger stays closer to it")
    pairs: Literal["best_worst", "ranked", "random"] = conf(
        "best_worst", "ranked: k-th best against k-th worst; random: of the same prompts any two, the control"
    )
    order: Literal["reward", "pareto"] = conf(
        "reward", "pareto: by Pareto fronts: whether another draw is better in one reward and worse in none"
    )
    margin: NonNegative = conf(1.0, "least distance in reward of a pair, in spreads of the reward inside prompts")
    winner: Literal["sampled", "reference"] = conf("sampled", "reference: the prompt's own recording or text")
    sft_weight: NonNegative = conf(0.0, "weight of the winners' negative log-likelihood by token or element beside it")
    length_normalised: bool = conf(False, "likelihoods by token or element, not of whole outputs; beta is then larger")


class RL(Strict):
    """``rlspeech rl``."""

    task: Tuned | OwnTask = conf("flowse", TASK)
    algo: Algo = conf("grpo", "how the policy is trained")
    model: str = conf("embedded", "checkpoint or run folder to start from, or 'embedded'")
    data: str | None = conf(None, "manifest or mixture recipe (default: the embedded corpus)")
    valid: str | None = conf(None, "paired manifest of the validations (default: held back from the data)")
    samples: str | None = conf(None, "dpo: folder of rlspeech sample, scored by rlspeech reward, with the prompts")
    out: str | None = None
    rewards: list[RewardSpec] = conf([], "reward, e.g. estoi=1 (see rlspeech doctor); repeatable (default: the task's)")
    guards: list[GuardSpec] = conf(
        [],
        "metric to watch; a fall beyond MAX_DROP stops the run, or with :hold is weighed in so that it stays within (every rollout is then scored by it); NAME?: if it can be computed; repeatable; []: none",
    )
    weights: Literal["fixed", "agreement"] = conf(
        "fixed",
        "agreement: the weight of each further reward times the cosine of its gradient with the first one's, 0 where they oppose (GA-AF)",
    )
    weights_every: Count = conf(10, "agreement: steps between two measurements, each a gradient of every reward")
    hold: Hold = Hold()
    explore: Exploration = Exploration()
    sampling: Sampling = Sampling()
    rollouts: Rollouts = Rollouts()
    ppo: PPO = PPO()
    awr: AWR = AWR()
    diffro: DiffRO = DiffRO()
    dpo: DPO = DPO()
    policy_weight: NonNegative = conf(1.0, "weight of the policy loss; 0 with a supervised weight: control without RL")
    supervised_weight: NonNegative = conf(0.0, "weight of the task's supervised loss (LR-AVSE: gamma, SI-SNR)")
    supervised_on: Literal["mean", "sample"] = conf("mean", "avse: SI-SNR of the noiseless or of the sampled output")
    video: Video = conf("right", "avse: shuffled is the control, in which every clip gets the video of another one")
    lora: Lora | None = conf(Lora(), "null trains every weight")
    train_encoder: bool = conf(False, "asr: also train the audio encoder and projector; they then run in every update")
    suppress: Literal["keep", "allow_empty", "none"] = conf(
        "keep",
        "asr: tokens of the generation config that stay suppressed, in training and in what is saved: all (keep); all but the stop, so that a text may be empty, which R2 needs of a Whisper (allow_empty); none",
    )
    encoder_cache_mib: Whole = conf(1024, "asr: memory for outputs of a frozen encoder of fixed windows; 0: none")
    precision: Literal["auto", "fp32", "bf16"] = conf("fp32", "of language models; auto: bf16 where a GPU has it")
    offload: Literal["none", "phase"] = conf("none", "phase: keep in host memory what the running phase does not need")
    sharding: Literal["none", "fsdp"] = conf(
        "none", "asr, tts: fsdp: each of several processes holds a part of weights, gradients and moments (FSDP2)"
    )
    steps: Count = conf(60, "number of training steps, each a collection of rollouts and its updates")
    prompts_per_step: Count = conf(16, "prompts in one step, over all processes")
    group: Count = conf(8, "rollouts of each prompt")
    reference_in_group: bool = conf(False, "asr, tts: the reference is one rollout more, so each group has a winner")
    updates_per_collection: Count = conf(1, "optimiser updates on one collection, each on its own share of rollouts")
    epochs: int = conf(1, "passes over one collection", ge=1, le=1000)
    micro_batch: Count = conf(4, "prompts a backward pass; changes memory and grad_agreement's parts, not the update")
    micro_tokens: Count | None = conf(
        None,
        "asr, tts: most tokens of answers, padded, a backward pass; a prompt's rows are then cut up; null: no bound",
    )
    rollout_tokens: Count = conf(
        2**18, "asr, tts: most tokens of prompts and answers, padded, that are decoded at once"
    )
    gradient_checkpointing: bool = conf(
        False, "asr, tts: keep only what enters each layer, and compute the rest anew for the backward pass"
    )
    attn_implementation: Literal["auto", "eager", "sdpa", "flash_attention_2", "flex_attention"] = conf(
        "auto", "asr, tts: how transformers computes attention; auto: as the model loads"
    )
    optimizer: Literal["adamw", "adamw_8bit", "paged_adamw_8bit"] = conf(
        "adamw", "8bit (bitsandbytes): moments of a byte; paged: on CUDA they go to host memory where there is no room"
    )
    lr: Positive = conf(1e-3, "learning rate; the default suits a LoRA, published per-bin runs use 2e-4")
    lr_schedule: Literal["linear", "constant"] = "linear"
    weight_decay: NonNegative = 0.0
    grad_clip: Positive = conf(1.0, "largest norm of the gradient")
    clip_range: Positive | Literal["auto"] = conf("auto", "clip of the ratio; auto: clip_std spreads of the log-ratio")
    clip_high: Positive | None = conf(None, "upper clip range (DAPO: 0.28 over 0.2); null: same as the lower one")
    clip_std: Positive = 2.0
    ratio_level: Literal["token", "sequence"] = conf("token", "sequence: geometric mean over a rollout's tokens (GSPO)")
    loss_mean: Literal["token", "sequence"] = conf("token", "equal weight of tokens, or of rollouts (the first GRPO)")
    truncated: Literal["mask", "penalise", "keep"] = conf(
        "mask", "rollouts that never stopped: left out, given truncated_reward, or kept (default of asr and tts)"
    )
    truncated_reward: float = conf(-1.0, "penalise: their reward; never above the lowest one of a finished rollout")
    dynamic_sampling: Whole = conf(0, "how often prompts of equal rewards are replaced (DAPO); 0: they are skipped")
    reduction: Literal["mean", "sum"] = conf("mean", "over the dimensions of a decision; the clip range depends on it")
    ratio: Literal["plain", "rationorm"] = "plain"
    kl_beta: NonNegative = conf(0.01, "weight of the KL to the reference policy; 0 skips the reference pass")
    kl_target: Positive | None = conf(None, "hold kl near this: above it weights move back to the reference; null: off")
    change_weight: NonNegative = conf(0.0, "flowse, avse: weight of the output's relative change to the reference's")
    kl: Literal["full", "k3"] = conf("full", "tokens: over the vocabulary, or k3 of the sampled token; Gaussian: exact")
    advantage: Literal["sum_then_norm", "norm_then_sum"] = conf(
        "sum_then_norm", "compose the rewards, then normalise in the group; or normalise each and add"
    )
    advantage_std: Literal["group", "batch", "none"] = "group"
    advantage_clip: Positive = 5.0
    max_unscorable: Share = conf(0.2, "stop the run when a larger share of rows cannot be scored")
    clip_s: NonNegative = conf(2.0, "length of a training prompt; 0 keeps whole utterances (asr)")
    valid_every: Count = conf(20, "validate every so many steps")
    valid_items: Count = conf(24, "number of clips in a validation")
    valid_draws: Count = conf(1, "samples per clip in a validation, averaged: chance (tts) hides less from guards")
    save_every: Count = conf(50, "save a checkpoint every so many steps")
    seed: Whole = conf(0, SEED)
    device: str = conf("auto", DEVICE)
    workers: Workers = conf(2, "processes for CPU rewards")
    probe_batches: int = conf(16, "--probe: independent gradients per setting", ge=4)
    probe_algos: list[Online] = conf([], "--probe: algorithms to compare with the first one's gradient; []: algo alone")
    probe_settings: list[Exploration] = conf([], "--probe: explorations to compare; []: own, neighbours and published")
    max_minutes: Positive | None = conf(None, MINUTES)
    tracker: Trackers = conf(["auto"], TRACKERS)

    @property
    def method(self) -> str:
        """What trains: the algorithm, or in the control without RL the supervised loss alone."""
        return self.algo if self.policy_weight else "control"


class Evaluate(Strict):
    """``rlspeech eval``."""

    task: Tuned | OwnTask = conf("flowse", TASK)
    data: str | None = conf(None, "paired manifest to evaluate on (default: the embedded test set)")
    models: dict[str, str] = conf({}, "system, e.g. rl=runs/rl or base=embedded; repeatable; the input comes first")
    systems: dict[str, str] = conf({}, "another program: NAME=FOLDER of its files, named as the rows; asr: NAME=TEXTS")
    baseline: str | None = conf(None, "system to compare with (default: first of several, the input for a single one)")
    metrics: list[str] = conf([], "metric to measure; may be repeated (default: the task's own)")
    out: str | None = None
    nfe: EulerSteps | None = conf(None, "number of Euler steps (default: the model's own)")
    guidance: NonNegative | None = conf(None, "strength of classifier-free guidance (default: the model's own)")
    video: Video = conf("right", "avse: shuffled is the control, in which every clip gets the video of another one")
    shuffled: list[str] = conf([], "avse: score this model also with shuffled video, as NAME-shuffled; may be repeated")
    normaliser: str = conf("basic-3", "asr, tts: normaliser of texts, e.g. basic-3 or english-2 (see rlspeech doctor)")
    sampling: Sampling = conf(Sampling(), "asr: language, prompt, length (decoding is greedy); tts: token sampling")
    beams: Count = conf(1, "asr: width of the beam search; 1 is greedy")
    recogniser: str | None = conf(None, "tts: embedded, Hub id, folder, run, pocketsphinx or http://host/v1#model")
    anchors: bool = conf(True, "tts: also score the recordings themselves and their copies through the codec")
    best_of: Count = conf(1, "tts: compare also the best of N draws of the baseline, as NAME-bestN")
    judge: str | None = conf(None, "tts: reward that chooses it (default: the model's token reward, else embedded)")
    by: str = conf("condition", "asr, tts: manifest column whose values get tables of their own")
    limit: Count | None = conf(None, "evaluate only the first N utterances")
    batch: Count = conf(8, "utterances in one batch")
    shard: ShardText | None = conf(None, SHARD)
    seed: Whole = conf(0, SEED)
    device: str = conf("auto", DEVICE)
    workers: Workers = conf(2, "processes for CPU metrics")
    players: Whole = conf(6, "number of clips with players in the report")


class ScoreFolder(Strict):
    """``rlspeech reward``."""

    rewards: list[str] = conf(["dnsmos"], "reward: dnsmos, wer, package.module:function, http://host#name; repeatable")
    target: str | None = conf(None, "folder with reference recordings of the same names; a file for a single file")
    text: str | None = conf(None, "transcripts: JSONL with id and text, Kaldi text, or a folder of .txt")
    hypotheses: str | None = conf(None, "for asr_*: texts of a recogniser (default: its hypothesis or pred_text)")
    system: str = conf("system", "label that is written into every row")
    recogniser: str | None = conf(None, "wer, asr_*, tts_*: Hub id, folder, run, pocketsphinx, http://host/v1#model")
    speaker_encoder: str | None = conf(None, "for speaker_similarity: Hub id or folder (default: the embedded encoder)")
    speech_encoder: str | None = conf(None, "for speech_bert_score: Hub id or folder (default: the embedded encoder)")
    llm: str | None = conf(None, "for llm: Hub id or folder of an audio LLM, or http://host/v1 (default: embedded)")
    llm_model: str | None = conf(None, "for llm at an address: name of the model (default: the only one it serves)")
    sentiment: str | None = conf(None, "for llm: Hub id or folder of an ordinal classifier (default: the embedded one)")
    prompt: str | None = conf(None, "for llm: file of prompts, of which the first is asked (default: the shipped ones)")
    report: Literal["auto", "always", "never"] = conf(
        "auto", "report.html; auto: for rewards in words, and ladders, up to 100,000 rows"
    )
    players: Whole = conf(8, "number of clips with players in the report")
    out: str | None = None
    batch: Count = conf(16, "files in one batch")
    shard: ShardText | None = conf(None, SHARD)
    seed: Whole = conf(0, SEED)
    device: str = conf("auto", DEVICE)
    workers: Workers = conf(2, "processes for CPU metrics")
    timeout_s: Positive = conf(60.0, "give up a CPU metric on one item after this long; its score is null")
