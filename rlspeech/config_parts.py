"""Settings below those of a stage: mixtures, augmentation, sampling, sizes of the models.

``rlspeech.config`` builds on them; code that needs no stage's settings imports these alone, which is quicker.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
SPEAKING = 0.6  # temperature of synthesised speech where it is used, and so where it is trained, validated and compared


def conf(default: Any, description: str, **limits: Any) -> Any:
    """A setting: its default, its help text, and the limits of its value as pydantic's ``Field`` takes them (``ge=0``)."""
    return Field(default, description=description, **limits)


class Strict(BaseModel):
    """Base of every config: unknown keys are an error, assignments are checked."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True)


class Mixing(Strict):
    """How clean speech and noise become a mixture (``data/mixing.py``)."""

    snr_db: tuple[float, float] = conf((-5.0, 15.0), "range of signal-to-noise ratios")
    level_dbfs: tuple[float, float] = conf((-35.0, -15.0), "range of RMS levels of the mixture")
    reverb: Share = conf(0.0, "share of mixtures that pass through an impulse response")
    early_ms: float | None = conf(50.0, "the target keeps reflections this long after the direct sound; null: all")
    clip_s: NonNegative = conf(2.0, "length of a mixture; 0 keeps whole utterances, batched by similar length")
    talker: Share = conf(0.0, "share of mixtures with a competing talker, with the noise or in its place")
    talker_snr_db: tuple[float, float] = conf((-5.0, 5.0), "range of ratios between target and competing talker")


class Augment(Strict):
    """How ``pretrain --task asr`` changes a recording before the model gets it."""

    speed: tuple[float, float] = conf((0.85, 1.15), "range of playing speeds; pitch and formants change with them")
    time_masks: int = conf(2, "number of masked stretches of frames (SpecAugment)", ge=0)
    time_share: Share = conf(0.08, "longest masked stretch, as a share of the recording")
    mel_masks: int = conf(2, "number of masked mel bands (SpecAugment)", ge=0)
    mel_width: int = conf(12, "widest masked band, in mel channels", ge=0)


class Sampling(Strict):
    """How the tokens of a language model are sampled."""

    temperature: Positive = conf(1.0, f"sampling temperature; lower is steadier (tts: {SPEAKING:g})")
    top_p: Annotated[Positive, Field(le=1)] = conf(
        1.0, "nucleus sampling; below 1 the sampled distribution is not the trained one; the ratio is reported"
    )
    top_k: int = conf(0, "sample from the k most likely tokens; 0: no truncation; see top_p", ge=0)
    max_new_tokens: int | None = conf(
        None, "most tokens of an answer; null: tokens_per_s times the batch's longest audio, at least 16", ge=1
    )
    tokens_per_s: Positive = conf(12.0, "most tokens of a transcript per second of audio; longer ones are truncated")
    language: str | None = conf(None, "language of the speech, for models that take one")
    prompt: str | None = conf(None, "instruction or context, for models that take one (default: the model's own)")


class FlowModel(Strict):
    """The flow-matching enhancer (``models/flow.py``)."""

    front_end: Literal["stft", "mel"] = conf("stft", "compressed complex STFT (invertible), or log-mel with a vocoder")
    sample_rate: int = 16000
    n_fft: int = 512
    hop: int = 256
    compress: float = conf(0.5, "exponent on the STFT magnitude")
    scale: Positive = conf(1.0, "stft: multiplies the spectrum; speech should have a spread near 1, the prior's")
    n_mels: int = 80
    mel_fmax_hz: float = 8000.0
    vocoder: str | None = conf(None, "Hub id or folder of a transformers SpeechT5HifiGan, for the mel front end")
    dim: int = 256
    depth: int = 6
    heads: int = 4
    ff_mult: int = 2
    conv_pos_kernel: int = 31
    conv_pos_groups: int = 16
    head: Literal["linear", "mask"] = conf(
        "mask", "linear: it writes the spectrum; mask: complex masks on input and state, and a residual"
    )
    prediction: Literal["velocity", "clean"] = conf(
        "clean", "clean suits small models: a trunk narrower than its input cannot pass white noise through"
    )
    prior: Literal["standard", "noisy"] = conf("standard", "N(0, I) as in FlowSE-GRPO, or N(y, sigma^2) (STFT FlowSE)")
    prior_sigma: float = conf(0.487, "sigma of the noisy prior")
    time_power: Positive = conf(1.0, "pretraining draws t = u**time_power; above 1: more early times")
    condition_drop: Share = conf(0.1, "chance of dropping the condition in pretraining, for classifier-free guidance")
    level_dbfs: float = conf(-25.0, "inputs are scaled to this RMS before the network, and back after it")
    nfe: Count = conf(8, "Euler steps at inference")
    guidance: NonNegative = conf(0.0, "classifier-free guidance strength at inference; 0 is off")


class AvseModel(Strict):
    """The audio-visual enhancer (``models/avse.py``); the defaults are the AVSEC-4 baseline's, 22.3 M parameters."""

    variant: Literal["own", "avse4"] = conf("own", "avse4: the details of the challenge's code that its weights need")
    sample_rate: int = 16000
    channels: Literal[1, 2] = conf(1, "2: binaural, one mask a channel")
    filters: int = conf(256, "number of filters of the time-domain encoder")
    kernel: int = conf(40, "length of a filter in samples")
    stride: int = conf(20, "hop between frames in samples")
    bottleneck: int = 256
    hidden: int = 512
    conv_kernel: int = 3
    blocks: Count = conf(8, "dilated blocks in a repeat, dilation 2**x")
    repeats: Count = conf(4, "the video joins before each")
    mask: Literal["relu", "softplus"] = conf("relu", "relu as published; a mask that is exactly 0 passes no gradient")
    video_crop: int = conf(112, "size of the centre that is cut from the stored frames, in pixels")
    video_size: int = conf(112, "size of the network's input, reduced by area from the crop")
    video_stem: int = conf(64, "channels of the 3-D convolution")
    video_channels: list[int] = conf([64, 128, 256, 512], "channels of the residual stages")
    video_layers: list[int] = conf([2, 2, 2, 2], "residual blocks in a stage")
    visual_blocks: int = conf(5, "residual blocks over time", ge=0)
    video_mean: float = conf(0.4161, "mean of grey levels in [0, 1]")
    video_std: Positive = 0.1688
    video_drop: Share = conf(0.1, "chance of dropping the video in pretraining, for inputs that have none")
    level_dbfs: float | None = conf(-25.0, "inputs are scaled to this RMS, outputs back; null: unscaled, as published")
    floor_db: float = conf(-30.0, "a clip whose SI-SNR is below this has no gradient: silence, a wrong target")
    cap_db: float = conf(30.0, "a clip whose SI-SNR is above this has no gradient, as published")


class ListenerModel(Strict):
    """The embedded listener: a small configuration of transformers' Qwen2-Audio (``models/listener.py``)."""

    mels: int = 80
    max_s: Positive = conf(6.0, "longest audio in one pass; longer audio is split")
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
    audio_layers: Count = conf(8, "SAN-M blocks on frames of 60 ms")
    audio_heads: int = 4
    audio_ff: int = 768
    fsmn_kernel: int = conf(11, "receptive field of the memory block in each audio layer, in frames")
    adaptor_layers: int = 1
    text_dim: int = 192
    text_layers: int = 4
    text_heads: int = 4
    text_ff: int = 512
    vocabulary: int = conf(512, "size of the byte-level BPE tokenizer, trained on the training texts", ge=270)
    dropout: float = conf(0.0, "in the encoder; SpecAugment and speed perturbation do the same faster", ge=0, lt=1)
    max_s: Positive = conf(20.0, "longest audio in one pass; longer audio is split at pauses")


class CodecModel(Strict):
    """The embedded speech codec (``models/codec/codec.py``)."""

    sample_rate: int = 16000
    n_fft: int = 640
    hop: int = 160
    mels: int = 80
    stride: Count = conf(4, "spectral frames per token: 4 x 10 ms is 25 tokens a second")
    dim: int = 192
    blocks: Count = conf(4, "convolution blocks in encoder and decoder each")
    kernel: int = 7
    levels: list[int] = conf([8, 5, 5, 5], "values per dimension of the quantiser; their product is the vocabulary")
    voice_dim: int = conf(64, "size of the voice vector, from prompt speech; 0: the tokens carry the voice", ge=0)


class CodecLMModel(Strict):
    """The embedded synthesis policy: a small causal language model over text and codec tokens (``models/codec/load.py``)."""

    codec: str = conf(
        "embedded", "run of `pretrain --task codec`, or a transformers codec: xcodec2, neucodec, mimi, dac"
    )
    dim: int = 256
    layers: int = 6
    heads: int = 4
    ff: int = 768
    vocabulary: int = conf(300, "pieces of text (byte-level BPE), without the codec's ids", ge=270)
    prompt_s: NonNegative = conf(3.0, "longest prompt speech that is put before the answer; 0: none")
    max_s: Positive = conf(12.0, "longest speech, in seconds")


class TokenRewardModel(Strict):
    """The token-to-text reward (``models/token_reward.py``; DiffRO, arXiv 2507.05911)."""

    codec: str = conf("embedded", "codec whose tokens it reads")
    dim: int = 160
    layers: int = conf(4, "layers of the encoder")
    text_layers: int = conf(2, "layers of the text decoder")
    heads: int = 4
    vocabulary: int = Field(300, ge=270)
    levels: int = conf(5, "classes of the quality head", ge=2)
