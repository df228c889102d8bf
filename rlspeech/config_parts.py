"""Settings below those of a stage: mixtures, augmentation, sampling, sizes of the models.

``rlspeech.config`` re-exports them; code that needs no stage's settings imports them from here, which is quicker.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = [
    "Augment",
    "AvseModel",
    "CodecLMModel",
    "CodecModel",
    "Count",
    "FlowModel",
    "ListenerModel",
    "Mixing",
    "NonNegative",
    "Positive",
    "RecogniserModel",
    "Sampling",
    "Share",
    "Strict",
    "TokenRewardModel",
]

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]


class Strict(BaseModel):
    """Base of every config: unknown keys are an error, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Mixing(Strict):
    """How clean speech and noise become a mixture (``data/mixing.py``)."""

    snr_db: tuple[float, float] = Field((-5.0, 15.0), description="range of signal-to-noise ratios")
    level_dbfs: tuple[float, float] = Field((-35.0, -15.0), description="range of RMS levels of the mixture")
    reverb: Share = Field(0.0, description="share of mixtures that pass through an impulse response")
    early_ms: float | None = Field(
        50.0, description="the target keeps reflections up to this long after the direct sound; null keeps all"
    )
    clip_s: NonNegative = Field(
        2.0, description="length of a mixture made on the fly; 0 keeps whole utterances, batched by similar length"
    )
    talker: Share = Field(
        0.0,
        description="share of mixtures with a competing talker, drawn from the clean utterances of other speakers, in place of the noise or on top of it",
    )
    talker_snr_db: tuple[float, float] = Field(
        (-5.0, 5.0), description="range of ratios between target and competing talker"
    )


class Augment(Strict):
    """How ``pretrain --task asr`` changes a recording before the model gets it."""

    speed: tuple[float, float] = Field(
        (0.85, 1.15), description="range of playing speeds; pitch and formants change too, as with another speaker"
    )
    time_masks: int = Field(2, ge=0, description="number of masked stretches of frames (SpecAugment)")
    time_share: Share = Field(0.08, description="longest masked stretch, as a share of the recording")
    mel_masks: int = Field(2, ge=0, description="number of masked mel bands (SpecAugment)")
    mel_width: int = Field(12, ge=0, description="widest masked band, in mel channels")


class Sampling(Strict):
    """How the tokens of a language model are sampled."""

    temperature: Positive = Field(1.0, description="sampling temperature; lower is steadier")
    top_p: float = Field(
        1.0,
        gt=0,
        le=1,
        description="nucleus sampling; below 1 the rollouts are not the policy's own, and the ratio between the sampled and the trained distribution is measured and reported",
    )
    top_k: int = Field(0, ge=0, description="sample from the k most likely tokens; 0: no truncation; see top_p")
    max_new_tokens: int | None = Field(
        None,
        ge=1,
        description="most tokens of an answer; null: as many as the longest audio of the batch can hold (tokens_per_s), at least 16",
    )
    tokens_per_s: Positive = Field(
        12.0,
        description="most tokens of a transcript per second of audio; rollouts that reach this bound are truncated",
    )
    language: str | None = Field(None, description="language of the speech, for models that take one")
    prompt: str | None = Field(
        None,
        description="instruction or context, for models that take one (default: the model's own transcription request)",
    )


class FlowModel(Strict):
    """The flow-matching enhancer (``models/flow.py``)."""

    front_end: Literal["stft", "mel"] = Field(
        "stft", description="compressed complex STFT (invertible), or log-mel with a vocoder"
    )
    sample_rate: int = 16000
    n_fft: int = 512
    hop: int = 256
    compress: float = Field(0.5, description="exponent on the STFT magnitude")
    scale: Positive = Field(
        1.0, description="stft: multiplies the compressed spectrum; speech should have a spread near 1, the prior's"
    )
    n_mels: int = 80
    mel_fmax_hz: float = 8000.0
    vocoder: str | None = Field(
        None, description="Hub id or folder of a transformers SpeechT5HifiGan, for the mel front end"
    )
    dim: int = 256
    depth: int = 6
    heads: int = 4
    ff_mult: int = 2
    conv_pos_kernel: int = 31
    conv_pos_groups: int = 16
    head: Literal["linear", "mask"] = Field(
        "mask",
        description="linear: the network writes the spectrum; mask: complex masks on input and state plus a residual",
    )
    prediction: Literal["velocity", "clean"] = Field(
        "clean",
        description="what the network predicts; a trunk narrower than its input cannot pass white noise through, so small models predict the clean spectrum",
    )
    prior: Literal["standard", "noisy"] = Field(
        "standard", description="x_0 ~ N(0, I) as in FlowSE-GRPO, or N(y, sigma^2) as in the STFT FlowSE"
    )
    prior_sigma: float = Field(0.487, description="sigma of the noisy prior")
    time_power: Positive = Field(
        1.0,
        description="pretraining draws t = u**time_power; above 1 samples more early times, where the input decides",
    )
    condition_drop: Share = Field(
        0.1, description="probability of dropping the condition in pretraining, for classifier-free guidance"
    )
    level_dbfs: float = Field(-25.0, description="inputs are scaled to this RMS before the network, and back after it")
    nfe: Count = Field(8, description="Euler steps at inference")
    guidance: NonNegative = Field(0.0, description="classifier-free guidance strength at inference; 0 is off")


class AvseModel(Strict):
    """The audio-visual enhancer (``models/avse.py``); the defaults are the AVSEC-4 baseline's, 22.3 M parameters."""

    variant: Literal["own", "avse4"] = Field(
        "own", description="avse4: the details of the challenge's code that its weights need"
    )
    sample_rate: int = 16000
    channels: Literal[1, 2] = Field(1, description="2: binaural, one mask a channel")
    filters: int = Field(256, description="number of filters of the time-domain encoder")
    kernel: int = Field(40, description="length of a filter in samples")
    stride: int = Field(20, description="hop between frames in samples")
    bottleneck: int = 256
    hidden: int = 512
    conv_kernel: int = 3
    blocks: Count = Field(8, description="dilated blocks in a repeat, dilation 2**x")
    repeats: Count = Field(4, description="the video joins before each")
    mask: Literal["relu", "softplus"] = Field(
        "relu", description="relu as published; a mask that is exactly 0 passes no gradient"
    )
    video_crop: int = Field(112, description="size of the centre that is cut from the stored frames, in pixels")
    video_size: int = Field(112, description="size of the network's input, reduced by area from the crop")
    video_stem: int = Field(64, description="channels of the 3-D convolution")
    video_channels: list[int] = Field([64, 128, 256, 512], description="channels of the residual stages")
    video_layers: list[int] = Field([2, 2, 2, 2], description="residual blocks in a stage")
    visual_blocks: int = Field(5, ge=0, description="residual blocks over time")
    video_mean: float = Field(0.4161, description="mean of grey levels in [0, 1]")
    video_std: Positive = 0.1688
    video_drop: Share = Field(
        0.1, description="probability of dropping the video in pretraining, so that a clip without one can be enhanced"
    )
    level_dbfs: float | None = Field(
        -25.0,
        description="inputs are scaled to this RMS before the network and back after it; null: unscaled, as published",
    )
    floor_db: float = Field(
        -30.0, description="a clip whose SI-SNR is below this has no gradient: silence, a wrong target"
    )
    cap_db: float = Field(30.0, description="a clip whose SI-SNR is above this has no gradient, as published")


class ListenerModel(Strict):
    """The embedded listener: a small configuration of transformers' Qwen2-Audio (``models/listener.py``)."""

    mels: int = 80
    max_s: Positive = Field(6.0, description="longest audio in one pass; longer audio is split")
    audio_dim: int = 128
    audio_layers: int = 4
    audio_heads: int = 4
    text_dim: int = 128
    text_layers: int = 3
    text_heads: int = 4


class RecogniserModel(Strict):
    """The embedded recogniser: a small configuration of transformers' Fun-ASR-Nano (``models/recogniser.py``)."""

    mels: int = 80
    audio_dim: int = 192
    audio_layers: Count = Field(8, description="SAN-M blocks on frames of 60 ms")
    audio_heads: int = 4
    audio_ff: int = 768
    fsmn_kernel: int = Field(11, description="receptive field of the memory block in each audio layer, in frames")
    adaptor_layers: int = 1
    text_dim: int = 192
    text_layers: int = 4
    text_heads: int = 4
    text_ff: int = 512
    vocabulary: int = Field(
        512, ge=270, description="size of the byte-level BPE tokenizer, trained on the training texts"
    )
    dropout: float = Field(
        0.0,
        ge=0,
        lt=1,
        description="in the encoder; SpecAugment and speed perturbation do the same in a fifth less time",
    )
    max_s: Positive = Field(20.0, description="longest audio in one pass; longer audio is split at pauses")


class CodecModel(Strict):
    """The embedded speech codec (``models/codec/codec.py``)."""

    sample_rate: int = 16000
    n_fft: int = 640
    hop: int = 160
    mels: int = 80
    stride: Count = Field(4, description="spectral frames per token: 4 x 10 ms is 25 tokens a second")
    dim: int = 192
    blocks: Count = Field(4, description="convolution blocks in encoder and decoder each")
    kernel: int = 7
    levels: list[int] = Field(
        [8, 5, 5, 5],
        description="values of each dimension of the finite scalar quantisation; their product is the size of the vocabulary",
    )
    voice_dim: int = Field(
        64,
        ge=0,
        description="size of the voice vector, pooled from prompt speech; 0: no prompt, the tokens carry the voice too",
    )


class CodecLMModel(Strict):
    """The embedded synthesis policy: a small causal language model over text and codec tokens (``models/codec/load.py``)."""

    codec: str = Field(
        "embedded",
        description="checkpoint of `pretrain --task codec`, or a transformers codec: xcodec2, neucodec, mimi or dac with Hub id or folder",
    )
    dim: int = 256
    layers: int = 6
    heads: int = 4
    ff: int = 768
    vocabulary: int = Field(300, ge=270, description="pieces of text (byte-level BPE), without the codec's ids")
    prompt_s: NonNegative = Field(3.0, description="longest prompt speech that is put before the answer; 0: none")
    max_s: Positive = Field(12.0, description="longest speech, in seconds")


class TokenRewardModel(Strict):
    """The token-to-text reward (``models/token_reward.py``; DiffRO, arXiv 2507.05911)."""

    codec: str = Field("embedded", description="codec whose tokens it reads")
    dim: int = 160
    layers: int = Field(4, description="layers of the encoder")
    text_layers: int = Field(2, description="layers of the text decoder")
    heads: int = 4
    vocabulary: int = Field(300, ge=270)
    levels: int = Field(5, ge=2, description="classes of the quality head")
