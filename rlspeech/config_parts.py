"""Settings below those of a stage: mixtures, augmentation, sampling, sizes of the models.

``rlspeech.config`` builds on them; code that needs no stage's settings imports these alone, which is quicker.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationInfo, field_validator

MOST = 2**32 - 1  # no number is larger: generators take no larger seed, and anything else of that size is a slip
Count = Annotated[int, Field(ge=1)]
Whole = Annotated[int, Field(ge=0)]
Size = Annotated[int, Field(ge=1, le=65_536)]  # channels, bands, samples of a window
Layers = Annotated[int, Field(ge=1, le=1000)]
EulerSteps = Annotated[int, Field(ge=1, le=1000)]
Rate = Annotated[int, Field(ge=1000, le=768_000)]  # of sampling, in Hz
Vocabulary = Annotated[int, Field(ge=270, le=10_000_000)]  # bytes and the signs of the tokenizer at least
Workers = Annotated[int, Field(ge=0, le=1024)]
Positive = Annotated[float, Field(gt=0)]
Share = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Speed = Annotated[float, Field(ge=0.1, le=10)]
Decibels = Annotated[float, Field(ge=-200, le=200)]
_UNFIT = re.compile(r"[\x00\ud800-\udc7f\udd00-\udfff]")  # in no file's name; what is left out are bytes of one
SPEAKING = 0.6  # temperature of synthesised speech where it is used, and so where it is trained, validated and compared


def conf(default: Any, description: str, **limits: Any) -> Any:
    """A setting: its default, its help text, and the limits of its value as pydantic's ``Field`` takes them (``ge=0``)."""
    return Field(default, description=description, **limits)


def _parts(value: Any) -> list[Any]:
    """What a setting's value is made of, one level deep."""
    if isinstance(value, Mapping):
        return [*value.keys(), *value.values()]
    return list(value) if isinstance(value, list | tuple) else [value]


class Strict(BaseModel):
    """Base of every config: unknown keys are an error, assignments are checked, numbers are finite and not beyond ``MOST``."""

    model_config = ConfigDict(extra="forbid", validate_assignment=True, allow_inf_nan=False)

    @field_validator("*", mode="before")
    @classmethod
    def _no_truth(cls, value: Any, info: ValidationInfo) -> Any:
        kind = str(cls.model_fields[str(info.field_name)].annotation)
        numeric = re.search(r"\b(int|float)\b", kind) and "bool" not in kind
        if numeric and any(isinstance(part, bool) for part in _parts(value)):
            raise ValueError("true and false are no numbers")  # to Python they are
        return value

    @field_validator("*")
    @classmethod
    def _fit(cls, value: Any) -> Any:
        for part in _parts(value):
            if isinstance(part, int | float) and abs(part) > MOST:
                raise ValueError(f"numbers go up to {MOST}")
            if isinstance(part, str) and _UNFIT.search(part):
                raise ValueError("it holds a NUL or half a character")
        return value


class Shard(NamedTuple):
    """Parts of all items. An item is in one of them by a checksum of its id: no part has to know the others, nor all items."""

    numbers: frozenset[int]  # from 1
    total: int
    own: bool  # whether it writes beside OUT; False of all items, and of parts that are being joined

    @classmethod
    def of(cls, text: str | None) -> Shard:
        """The shard I/N; None is all items; I,J/N (and I,/N) are parts that are being joined."""
        left, _, count = (text or "1,/1").partition("/")
        return cls(frozenset(int(n) for n in left.split(",") if n), int(count), "," not in left)

    def has(self, key: str) -> bool:
        """Whether the item of this id is in it."""
        if self.total == 1:
            return True
        digest = hashlib.blake2b(key.encode(errors="surrogatepass"), digest_size=8).digest()
        return int.from_bytes(digest) % self.total + 1 in self.numbers

    def place(self, out: str | Path) -> Path:
        """Where it writes: OUT.shard-3-of-8, of X.jsonl X.shard-3-of-8/X.jsonl. It lies as deep as OUT: ways to audio are the same."""
        if not self.own:
            return Path(out)
        real = Path(os.path.realpath(out))
        folder = real.with_name(f"{real.name.removesuffix('.jsonl')}.shard-{min(self.numbers)}-of-{self.total}")
        return folder / real.name if real.suffix == ".jsonl" else folder


def _is_shard(text: str) -> str:
    found = re.fullmatch(r"([1-9]\d*)/([1-9]\d*)", text)
    if not found or int(found[1]) > int(found[2]):
        raise ValueError("not I/N, with I from 1 to N")
    return text


ALL = Shard.of(None)
ShardText = Annotated[str, AfterValidator(_is_shard)]
SHARD = "do only part I (from 1) of N, beside OUT; rlspeech merge OUT joins them"


class Mixing(Strict):
    """How clean speech and noise become a mixture (``data/mixing.py``)."""

    snr_db: tuple[Decibels, Decibels] = conf((-5.0, 15.0), "range of signal-to-noise ratios")
    level_dbfs: tuple[Decibels, Decibels] = conf((-35.0, -15.0), "range of RMS levels of the mixture")
    reverb: Share = conf(0.0, "share of mixtures that pass through an impulse response")
    early_ms: NonNegative | None = conf(50.0, "reflections up to this late stay in the target; null: all")
    clip_s: NonNegative = conf(2.0, "length of a mixture; 0 keeps whole utterances, batched by similar length")
    talker: Share = conf(0.0, "share of mixtures with a competing talker, with the noise or in its place")
    talker_snr_db: tuple[Decibels, Decibels] = conf((-5.0, 5.0), "range of ratios between target and competing talker")
    clean: Share = conf(0.0, "share of mixtures without noise: an enhancer must leave clean speech as it is")
    coloured: Share = conf(0.0, "share of noises that are synthetic: white to brown, swelling")
    babble: Share = conf(0.0, "share of noises that are three to seven voices of the clean speech at once")
    second: Share = conf(0.0, "share of noises with another one beside")
    speed: tuple[Speed, Speed] = conf((1.0, 1.0), "range of playing speeds of speech without video, and of noise")
    eq_db: NonNegative = conf(0.0, "deviation of a random smooth filter over half of speech and noises; 0: none")


class Augment(Strict):
    """How ``pretrain --task asr`` changes a recording before the model gets it."""

    speed: tuple[Speed, Speed] = conf((0.85, 1.15), "range of playing speeds; pitch and formants change with them")
    time_masks: Whole = conf(2, "number of masked stretches of frames (SpecAugment)")
    time_share: Share = conf(0.08, "longest masked stretch, as a share of the recording")
    mel_masks: Whole = conf(2, "number of masked mel bands (SpecAugment)")
    mel_width: Whole = conf(12, "widest masked band, in mel channels")


class Sampling(Strict):
    """How the tokens of a language model are sampled."""

    temperature: Positive = conf(1.0, f"sampling temperature; lower is steadier (tts: {SPEAKING:g})")
    top_p: Annotated[Positive, Field(le=1)] = conf(1.0, "nucleus sampling; below 1 it is not the trained distribution")
    top_k: Whole = conf(0, "sample from the k most likely tokens; 0: no truncation; see top_p")
    max_new_tokens: Count | None = conf(None, "most tokens; null: tokens_per_s times the longest audio, at least 16")
    tokens_per_s: Positive = conf(12.0, "most tokens of a transcript per second of audio; longer ones are truncated")
    language: str | None = conf(None, "language of the speech, for models that take one")
    prompt: str | None = conf(None, "instruction or context, for models that take one (default: the model's own)")


def _no_server(name: Any) -> Any:
    if str(name).startswith(("http://", "https://")):
        why = "a server's weights cannot follow the policy's: vLLM's takes them over NCCL or CUDA IPC alone, in its development mode"
        raise ValueError(
            f"{why}, and the policy's own vocabulary not at all; rollouts.engine=vllm runs one in this process"
        )
    return name


class Rollouts(Strict):
    """What samples the tokens of rollouts (``models/audio_lm/vllm.py``)."""

    engine: Annotated[Literal["own", "vllm"], BeforeValidator(_no_server)] = conf(
        "own", "vllm: vLLM in the same process, which gets the policy's weights before every collection (extra vllm)"
    )
    weight_cap: Positive | None = conf(2.0, "vllm: most that a token's importance weight may be; null: no correction")
    cache_gib: Positive = conf(4.0, "vllm: memory of its key-value cache, in GiB; it bounds the longest row too")


class FlowModel(Strict):
    """The flow-matching enhancer (``models/flow.py``)."""

    front_end: Literal["stft", "mel"] = conf("stft", "compressed complex STFT (invertible), or log-mel with a vocoder")
    sample_rate: Rate = 16000
    n_fft: Size = 512
    hop: Size = 256
    compress: Positive = conf(0.5, "exponent on the STFT magnitude")
    scale: Positive = conf(1.0, "stft: multiplies the spectrum; speech should have a spread near 1, the prior's")
    n_mels: Size = 80
    mel_fmax_hz: Positive = 8000.0
    vocoder: str | None = conf(None, "Hub id or folder of a transformers SpeechT5HifiGan, for the mel front end")
    dim: Size = 256
    depth: Layers = 6
    heads: Size = 4
    ff_mult: Size = 2
    conv_pos_kernel: Size = 31
    conv_pos_groups: Size = 16
    head: Literal["linear", "mask"] = conf("mask", "linear: a spectrum; mask: masks on input and state, and residual")
    prediction: Literal["velocity", "clean"] = conf("clean", "clean: for small models, which cannot carry white noise")
    objective: Literal["matching", "regression"] = conf("matching", "regression: by the predictor's loss, for one step")
    predictor: Annotated[int, Field(ge=0, le=65_536)] = conf(
        0, "width of a recurrent predictor in front, whose output conditions the flow; 0: none"
    )
    predictor_layers: Layers = 2
    prior: Literal["standard", "noisy", "predicted"] = conf(
        "standard", "N(0, I) as in FlowSE-GRPO, N(y, sigma^2) (STFT FlowSE), or the predictor's output in place of y"
    )
    prior_sigma: Positive = conf(0.487, "sigma of the noisy and the predicted prior")
    time_power: Positive = conf(1.0, "pretraining draws t = u**time_power; above 1: more early times")
    condition_drop: Share = conf(0.1, "chance of dropping the condition in pretraining, for classifier-free guidance")
    level_dbfs: Decibels = conf(-25.0, "inputs are scaled to this RMS before the network, and back after it")
    nfe: EulerSteps = conf(8, "Euler steps at inference")
    guidance: NonNegative = conf(0.0, "classifier-free guidance strength at inference; 0 is off")


class AvseModel(Strict):
    """The audio-visual enhancer (``models/avse.py``); the defaults are the AVSEC-4 baseline's, 22.3 M parameters."""

    variant: Literal["own", "avse4"] = conf("own", "avse4: the details of the challenge's code that its weights need")
    sample_rate: Rate = 16000
    channels: Literal[1, 2] = conf(1, "2: binaural, one mask a channel")
    filters: Size = conf(256, "number of filters of the time-domain encoder")
    kernel: Size = conf(40, "length of a filter in samples")
    stride: Size = conf(20, "hop between frames in samples")
    bottleneck: Size = 256
    hidden: Size = 512
    conv_kernel: Size = 3
    blocks: Layers = conf(8, "dilated blocks in a repeat, dilation 2**x")
    repeats: Layers = conf(4, "the video joins before each")
    mask: Literal["relu", "softplus"] = conf("relu", "relu as published; a mask that is exactly 0 passes no gradient")
    video_crop: Size = conf(112, "size of the centre that is cut from the stored frames, in pixels")
    video_size: Size = conf(112, "size of the network's input, reduced by area from the crop")
    video_stem: Size = conf(64, "channels of the 3-D convolution")
    video_channels: list[Size] = conf([64, 128, 256, 512], "channels of the residual stages")
    video_layers: list[Layers] = conf([2, 2, 2, 2], "residual blocks in a stage")
    visual_blocks: Annotated[int, Field(ge=0, le=1000)] = conf(5, "residual blocks over time")
    video_mean: Share = conf(0.4161, "mean of grey levels in [0, 1]")
    video_std: Positive = 0.1688
    video_drop: Share = conf(0.1, "chance of dropping the video in pretraining, for inputs that have none")
    level_dbfs: Decibels | None = conf(-25.0, "inputs are scaled to this RMS, outputs back; null: unscaled")
    floor_db: Decibels = conf(-30.0, "a clip whose SI-SNR is below this has no gradient: silence, a wrong target")
    cap_db: Decibels = conf(30.0, "a clip whose SI-SNR is above this has no gradient, as published")


class ListenerModel(Strict):
    """The embedded listener: a small configuration of transformers' Qwen2-Audio (``models/listener.py``)."""

    mels: Size = 80
    max_s: Positive = conf(6.0, "longest audio in one pass; longer audio is split")
    audio_dim: Size = 128
    audio_layers: Layers = 4
    audio_heads: Size = 4
    text_dim: Size = 128
    text_layers: Layers = 3
    text_heads: Size = 4


class RecogniserModel(Strict):
    """The embedded recogniser: a small configuration of transformers' Fun-ASR-Nano (``models/recogniser.py``)."""

    mels: Size = 80
    audio_dim: Size = 192
    audio_layers: Layers = conf(8, "SAN-M blocks on frames of 60 ms")
    audio_heads: Size = 4
    audio_ff: Size = 768
    fsmn_kernel: Size = conf(11, "receptive field of the memory block in each audio layer, in frames")
    adaptor_layers: Layers = 1
    text_dim: Size = 192
    text_layers: Layers = 4
    text_heads: Size = 4
    text_ff: Size = 512
    vocabulary: Vocabulary = conf(512, "size of the byte-level BPE tokenizer, trained on the training texts")
    dropout: float = conf(0.0, "in the encoder; SpecAugment and speed perturbation do the same faster", ge=0, lt=1)
    max_s: Positive = conf(20.0, "longest audio in one pass; longer audio is split at pauses")


class CodecModel(Strict):
    """The embedded speech codec (``models/codec/codec.py``)."""

    sample_rate: Rate = 16000
    n_fft: Size = 640
    hop: Size = 160
    mels: Size = 80
    stride: Size = conf(4, "spectral frames per token: 4 x 10 ms is 25 tokens a second")
    dim: Size = 192
    blocks: Layers = conf(4, "convolution blocks in encoder and decoder each")
    kernel: Size = 7
    levels: list[Size] = conf([8, 5, 5, 5], "values per dimension of the quantiser; their product is the vocabulary")
    voice_dim: Annotated[int, Field(ge=0, le=65_536)] = conf(64, "size of the voice vector; 0: tokens carry the voice")


class CodecLMModel(Strict):
    """The embedded synthesis policy: a small causal language model over text and codec tokens (``models/codec/lm.py``)."""

    codec: str = conf("embedded", "run of `pretrain --task codec`, or of transformers: xcodec2, neucodec, mimi, dac")
    dim: Size = 256
    layers: Layers = 6
    heads: Size = 4
    ff: Size = 768
    vocabulary: Vocabulary = conf(300, "pieces of text (byte-level BPE), without the codec's ids")
    prompt_s: NonNegative = conf(3.0, "longest prompt speech that is put before the answer; 0: none")
    max_s: Positive = conf(12.0, "longest speech, in seconds")


class TokenRewardModel(Strict):
    """The token-to-text reward (``models/token_reward.py``; DiffRO, arXiv 2507.05911)."""

    codec: str = conf("embedded", "codec whose tokens it reads")
    dim: Size = 160
    layers: Layers = conf(4, "layers of the encoder")
    text_layers: Layers = conf(2, "layers of the text decoder")
    heads: Size = 4
    vocabulary: Vocabulary = 300
    levels: int = conf(5, "classes of the quality head", ge=2, le=1000)
