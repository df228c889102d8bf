"""What can be set, stage by stage: typed, with the vetted default and its reason beside each field.

Defaults < ``--preset`` < ``--config FILE`` < flags < ``--set a.b=c``; ``rlspeech.settings`` does the layering and refuses
unknown keys with the closest name. Descriptions below become the help text.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Strict(BaseModel):
    """Base of every config: unknown keys are an error, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class FlowModel(Strict):
    """The flow-matching enhancer (``models/flow.py``)."""

    front_end: Literal["stft", "mel"] = Field("stft", description="compressed complex STFT (invertible), or log-mel with a vocoder")
    sample_rate: int = 16000
    n_fft: int = 512
    hop: int = 256
    compress: float = Field(0.5, description="exponent on the STFT magnitude")
    scale: float = Field(1.0, gt=0, description="stft: multiplies the compressed spectrum; speech should have a spread near 1, the prior's")
    n_mels: int = 80
    mel_fmax_hz: float = 8000.0
    vocoder: str | None = Field(None, description="Hub id or folder of a transformers SpeechT5HifiGan, for the mel front end")
    dim: int = 256
    depth: int = 6
    heads: int = 4
    ff_mult: int = 2
    conv_pos_kernel: int = 31
    conv_pos_groups: int = 16
    head: Literal["linear", "mask"] = Field("mask", description="linear: the network writes the spectrum; mask: complex masks on input and state plus a residual")
    prediction: Literal["velocity", "clean"] = Field("clean", description="what the network predicts; a trunk narrower than its input cannot pass white noise through, so small models predict the clean spectrum")
    prior: Literal["standard", "noisy"] = Field("standard", description="x_0 ~ N(0, I) as in FlowSE-GRPO, or N(y, sigma^2) as in the STFT FlowSE")
    prior_sigma: float = Field(0.487, description="sigma of the noisy prior")
    time_power: float = Field(1.0, gt=0, description="pretraining draws t = u**time_power; above 1 dwells on early times, where the input decides")
    condition_drop: float = Field(0.1, ge=0, le=1, description="chance that pretraining hides the condition, for classifier-free guidance")
    level_dbfs: float = Field(-25.0, description="inputs are scaled to this RMS before the network, and back after it")
    nfe: int = Field(8, ge=1, description="Euler steps at inference")
    guidance: float = Field(0.0, ge=0, description="classifier-free guidance strength at inference; 0 is off")


class AvseModel(Strict):
    """The audio-visual enhancer (``models/avse.py``); the defaults are the AVSEC-4 baseline's, 22.3 M parameters."""

    variant: Literal["own", "avse4"] = Field("own", description="avse4: the details of the challenge's code that its weights need")
    sample_rate: int = 16000
    channels: Literal[1, 2] = Field(1, description="2: binaural, one mask a channel")
    filters: int = Field(256, description="of the time-domain encoder")
    kernel: int = Field(40, description="their length in samples")
    stride: int = Field(20, description="their hop in samples")
    bottleneck: int = 256
    hidden: int = 512
    conv_kernel: int = 3
    blocks: int = Field(8, ge=1, description="dilated blocks a repeat, dilation 2**x")
    repeats: int = Field(4, ge=1, description="the video joins before each")
    mask: Literal["relu", "softplus"] = Field("relu", description="relu as published; a mask that is exactly 0 passes no gradient")
    video_crop: int = Field(112, description="centre of the stored frames that is used, in pixels")
    video_size: int = Field(112, description="the network's input, reduced by area from the crop")
    video_stem: int = Field(64, description="channels of the 3-D convolution")
    video_channels: list[int] = Field([64, 128, 256, 512], description="of the residual stages")
    video_layers: list[int] = Field([2, 2, 2, 2], description="residual blocks a stage")
    visual_blocks: int = Field(5, ge=0, description="residual blocks over time")
    video_mean: float = Field(0.4161, description="of grey levels in [0, 1]")
    video_std: float = Field(0.1688, gt=0)
    video_drop: float = Field(0.1, ge=0, le=1, description="chance that pretraining hides the video, so that a clip without one can be enhanced")
    level_dbfs: float | None = Field(-25.0, description="inputs are scaled to this RMS before the network and back after it; null: as they come, as published")
    floor_db: float = Field(-30.0, description="a clip whose SI-SNR is below this has no gradient: silence, a wrong target")
    cap_db: float = Field(30.0, description="a clip whose SI-SNR is above this has no gradient, as published")


class ListenerModel(Strict):
    """The embedded listener: a small configuration of transformers' Qwen2-Audio (``models/listener.py``)."""

    mels: int = 80
    max_s: float = Field(6.0, gt=0, description="longest stretch heard at once; longer audio is heard in several")
    audio_dim: int = 128
    audio_layers: int = 4
    audio_heads: int = 4
    text_dim: int = 128
    text_layers: int = 3
    text_heads: int = 4


class Mixing(Strict):
    """How clean speech and noise become a mixture (``data/mixing.py``)."""

    snr_db: tuple[float, float] = (-5.0, 15.0)
    level_dbfs: tuple[float, float] = Field((-35.0, -15.0), description="RMS level of the mixture")
    reverb: float = Field(0.0, ge=0, le=1, description="share of mixtures that pass through an impulse response")
    early_ms: float | None = Field(50.0, description="the target keeps reflections up to this long after the direct sound; null keeps all of them")
    clip_s: float = Field(2.0, ge=0, description="length of a mixture made on the fly; 0 keeps whole utterances, batched by like length")
    talker: float = Field(0.0, ge=0, le=1, description="share of mixtures with a competing talker, drawn from the clean utterances of other speakers, in place of the noise or on top of it")
    talker_snr_db: tuple[float, float] = Field((-5.0, 5.0), description="target against competing talker")


Video = Literal["right", "shuffled", "none"]  # shuffled: another utterance's, the control; none: hidden


class Pretrain(Strict):
    """``rlspeech pretrain``."""

    task: Literal["flowse", "avse", "listener"] = "flowse"
    data: str | None = Field(None, description="manifest (paired), mixture recipe (mix.json) or folder holding one; none: the embedded corpus")
    valid: str | None = Field(None, description="paired manifest for samples and metrics while it runs; none: held back from data")
    init: str | None = Field(None, description="checkpoint to start from, or 'embedded'; none: random weights")
    out: str | None = None
    model: FlowModel = FlowModel()
    avse: AvseModel = AvseModel()
    listener: ListenerModel = ListenerModel()
    video: Video = Field("right", description="avse: shuffled trains the control on another utterance's video, none without video")
    mixing: Mixing | None = Field(None, description="overrides the recipe's own mixing")
    steps: int = Field(2000, ge=1)
    batch: int = Field(16, ge=1, description="clips a step")
    lr: float = 5e-4
    warmup: int = 200
    weight_decay: float = 0.01
    grad_clip: float = 1.0
    ema: float = Field(0.999, ge=0, lt=1)
    magnitude_weight: float = Field(0.5, ge=0, description="weight of an extra magnitude error (clean prediction only); 0 is plain flow matching")
    valid_every: int = 500
    save_every: int = 500
    valid_items: int = 16
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    workers: int = Field(0, ge=0, description="threads that load and mix audio ahead of the training step")
    max_minutes: float | None = Field(None, description="stop, validate and save after this long")


class RewardSpec(Strict):
    """One reward inside a composition."""

    name: str = Field(description="a name from `rlspeech doctor`, or package.module:function")
    weight: float = 1.0
    scale: Literal["batch", "group", "none"] = Field("batch", description="divide by the batch's standard deviation (as FlowSE-GRPO), z-score within the group, or leave")
    bounds: tuple[float | None, float | None] = Field((None, None), description="the raw score is clamped to these before scaling")


class GuardSpec(Strict):
    """A metric that is measured, not rewarded, and may stop the run."""

    name: str
    max_drop: float | None = Field(None, description="stop when the validation mean is worse than at step 0 by more than this and its interval; null only watches")


class Exploration(Strict):
    """Where a flow policy's randomness goes (``tasks/explore.py``)."""

    kind: Literal["sde", "cps", "dance", "gain", "mask"] = Field("gain", description="gain: log-gains of bands of the predicted clean signal; sde, cps, dance (flowse): independent noise in every bin of a step; mask (avse): independent noise in every element of the mask")
    noise: float = Field(0.3, ge=0, description="a (sde), eta (cps, dance), or standard deviation of the log-gains in nepers (gain); 0 is the plain ODE")
    window: int = Field(1, ge=1, description="consecutive stochastic steps")
    start: tuple[int, int] | Literal["last"] = Field("last", description="the window's first step is drawn from this range, never 0, where the SDE is singular; last: the window ends with the final step")
    nfe: tuple[int, int] | None = Field(None, description="Euler steps of a training rollout, drawn once a collection; null: as many as the model takes at inference")
    bands: int = Field(4, ge=1, description="gain: bands on the mel scale; fewer dimensions need fewer rollouts (--probe tells)")
    segment_s: float | None = Field(None, gt=0, description="gain: length of the stretches that share a gain; null: the whole clip")
    basis: list[Literal["level", "contrast"]] = Field(["level", "contrast"], description="gain: level moves a band up or down; contrast makes its attenuation of the input stronger or weaker")
    antithetic: bool = Field(True, description="draw the group's noise in mirrored pairs; every rollout keeps its own distribution")
    mask_clamp: bool = Field(True, description="mask: a sampled mask is cut at 0 before it is decoded (its probability is that of the uncut one); the paper does not say")
    shared_latent: bool = Field(True, description="one x_0 a prompt: the steps before the window are run once for the whole group")


class Lora(Strict):
    """Low-rank adapter."""

    rank: int = Field(32, ge=1)
    alpha: float = 64.0
    targets: Literal["attention", "attention+ff", "all"] = "attention"


class PPO(Strict):
    """What PPO has beyond GRPO (``algos/ppo.py``)."""

    form: Literal["relative", "critic"] = Field("relative", description="relative: one decision, advantage = reward - reward of the frozen base's output (LR-AVSE); critic: value network and GAE")
    kl_in: Literal["advantage", "loss"] = Field("advantage", description="where beta KL is taken off: from the advantage (as published; a number, it has no gradient of its own) or as a term of the loss")
    discount: float = Field(1.0, ge=0, le=1)
    gae_lambda: float = Field(0.95, ge=0, le=1)
    whiten: bool = Field(False, description="advantages of a collection to mean 0 and spread 1; the one-step form uses them as they are")
    value_lr: float = Field(1e-3, gt=0)
    value_clip: float | None = Field(0.2, gt=0, description="how far a value may move from its old one in one collection, in units of the returns' spread; null: anywhere")
    value_hidden: int = Field(64, ge=1)


class RL(Strict):
    """``rlspeech rl``."""

    task: Literal["flowse", "avse"] = "flowse"
    algo: Literal["grpo", "ppo"] = "grpo"
    model: str = Field("embedded", description="checkpoint folder, or 'embedded'")
    data: str | None = Field(None, description="manifest or mixture recipe; none: the embedded corpus")
    valid: str | None = Field(None, description="paired manifest, scored before, during and after; none: held back from data")
    out: str | None = None
    rewards: list[RewardSpec] = Field(default_factory=list, description="empty: the task's default composition")
    guards: list[GuardSpec] = Field(default_factory=list)
    explore: Exploration = Exploration()
    ppo: PPO = PPO()
    policy_weight: float = Field(1.0, ge=0, description="of the policy's loss; 0 with a supervised weight is the control without RL: same data, steps and rate, nothing sampled or scored")
    supervised_weight: float = Field(0.0, ge=0, description="of the task's supervised loss on the same prompts (LR-AVSE: gamma, SI-SNR)")
    supervised_on: Literal["mean", "sample"] = Field("mean", description="avse: SI-SNR of the noiseless output, or of the sampled one")
    video: Video = Field("right", description="avse: shuffled is the control, every clip sees another one's video")
    lora: Lora | None = Field(Lora(), description="null trains every weight")
    steps: int = Field(60, ge=1, description="collections of rollouts")
    prompts_per_step: int = Field(16, ge=1, description="prompts in one collection")
    group: int = Field(8, ge=1, description="rollouts a prompt")
    updates_per_collection: int = Field(1, ge=1, description="optimiser updates on one collection, each on its own share of the prompts' rollouts")
    epochs: int = Field(1, ge=1, description="passes over one collection")
    micro_batch: int = Field(4, ge=1, description="prompts in one backward pass; changes memory, and over how many parts grad_agreement is taken, not the update")
    lr: float = Field(1e-3, gt=0, description="measured for a LoRA and structured exploration; published per-bin runs use 2e-4")
    lr_schedule: Literal["linear", "constant"] = "linear"
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    clip_range: float | Literal["auto"] = Field("auto", description="PPO clip on the ratio; auto: clip_std times the measured spread of the log-ratio")
    clip_std: float = Field(2.0, gt=0)
    reduction: Literal["mean", "sum"] = Field("mean", description="over the dimensions of one decision; the useful clip range depends on it")
    ratio: Literal["plain", "rationorm"] = "plain"
    kl_beta: float = Field(0.01, ge=0, description="weight of the true Gaussian KL to the reference policy; 0 skips the reference pass")
    advantage: Literal["sum_then_norm", "norm_then_sum"] = Field("sum_then_norm", description="compose the rewards, then normalise in the group; or normalise each and add")
    advantage_std: Literal["group", "batch", "none"] = "group"
    advantage_clip: float = 5.0
    max_unscorable: float = Field(0.2, ge=0, le=1, description="a larger share of unscorable rows stops the run")
    clip_s: float = Field(2.0, gt=0, description="length of a training prompt")
    valid_every: int = Field(20, ge=1)
    valid_items: int = Field(24, ge=1)
    save_every: int = Field(50, ge=1)
    seed: int = 0
    device: str = "auto"
    workers: int = Field(2, ge=0, description="processes for CPU rewards")
    probe_batches: int = Field(16, ge=4, description="--probe: independent gradients per setting")
    probe_settings: list[Exploration] = Field(default_factory=list, description="--probe: explorations to compare; empty: the configured one, its neighbours and the published one")
    max_minutes: float | None = None


class Evaluate(Strict):
    """``rlspeech eval``."""

    task: Literal["flowse", "avse"] = "flowse"
    data: str | None = Field(None, description="paired manifest; none: the embedded test set")
    models: dict[str, str] = Field(default_factory=dict, description="name -> checkpoint; the unprocessed input is always scored first")
    baseline: str | None = Field(None, description="system that the others are paired against; none: the first of several models, the input of a single one")
    metrics: list[str] = Field(default_factory=list, description="empty: the task's default metrics")
    out: str | None = None
    nfe: int | None = Field(None, description="Euler steps; none: the model's own")
    guidance: float | None = None
    video: Video = Field("right", description="avse: shuffled is the control, every clip sees another one's video")
    shuffled: list[str] = Field(default_factory=list, description="avse: models that are scored once more with shuffled video, as NAME-shuffled")
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
    system: str = Field("system", description="label written into every row")
    recogniser: str | None = Field(None, description="for wer: Hub id or folder of a transformers recogniser, or 'pocketsphinx'")
    speaker_encoder: str | None = Field(None, description="for speaker_similarity: Hub id or folder; none: the embedded encoder")
    speech_encoder: str | None = Field(None, description="for speech_bert_score: Hub id or folder; none: the embedded encoder")
    llm: str | None = Field(None, description="for llm: Hub id or folder of an audio language model, or http(s)://host/v1; none: the embedded listener")
    llm_model: str | None = Field(None, description="for llm at an address: the model's name there; none: the only one it serves")
    sentiment: str | None = Field(None, description="for llm: Hub id or folder of a classifier with ordered labels; none: the embedded one")
    prompt: str | None = Field(None, description="for llm: file of prompts, one a line, the first is asked; none: the shipped ones")
    report: Literal["auto", "always", "never"] = Field("auto", description="report.html beside the scores; auto: where a reward gives words or the rows are ladders")
    players: int = Field(8, ge=0, description="clips with players in the report")
    out: str | None = None
    batch: int = 16
    seed: int = 0
    device: str = "auto"
    workers: int = 2
    timeout_s: float = Field(60.0, gt=0, description="a CPU metric that takes longer on one item costs that item")
