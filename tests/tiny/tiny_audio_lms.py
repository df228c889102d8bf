"""Audio LLMs of every family with random weights, small enough for a test: the real classes, a byte-level tokenizer, short windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as tf

from rlspeech.models.audio_lm.model import AudioLM

END, PAD, START, AUDIO, ASR = "<|im_end|>", "<|pad|>", "<|im_start|>", "<|AUDIO|>", "<asr_text>"
BOS, EOS = "<|audio_bos|>", "<|audio_eos|>"
MISTRAL = ("<s>", "[INST]", "[BEGIN_AUDIO]", "[/INST]", "[TRANSCRIBE]")
WHISPER = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")
MARKS = (END, PAD, START, AUDIO, BOS, EOS, *MISTRAL, *WHISPER)
TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}<|audio_bos|><|AUDIO|><|audio_eos|>"
    "{% elif c['type'] == 'keywords' %}{{ c['keywords'] | join(', ') }}: "
    "{% elif c['type'] == 'language' %}{{ c['language'] }}: {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] != 'assistant' %}<|im_end|>\n{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def sizes(layers: int, ff: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": 16, "intermediate_size": ff, "num_hidden_layers": layers, "num_attention_heads": 2, **more}


TEXT = sizes(2, 32, num_key_value_heads=1, max_position_embeddings=2048, head_dim=8, tie_word_embeddings=False)
ENCODER: dict[str, Any] = {"d_model": 16, "encoder_layers": 2, "encoder_attention_heads": 2, "encoder_ffn_dim": 32}
ENCODER["num_mel_bins"] = 8


def tokenizer(**more: Any) -> Any:
    """One token a byte, and the marks; <asr_text> is a token that ``skip_special_tokens`` leaves, as in Qwen3-ASR."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    inner = Tokenizer(models.BPE({c: i for i, c in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}, []))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens([AddedToken(m, special=True) for m in MARKS])
    inner.add_tokens([AddedToken(ASR, special=False)])
    return tf.PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=PAD, eos_token=END, padding_side="left", chat_template=TEMPLATE, **more
    )


def _given(tok: Any, text: str, audio: dict[str, Any]) -> dict[str, Any]:
    """What most configs take: the parts, and the id of the audio token."""
    at = tok.convert_tokens_to_ids
    ids = {"vocab_size": len(tok), "pad_token_id": at(PAD), "eos_token_id": at(END), "bos_token_id": None}
    return {"audio_config": audio, "text_config": TEXT | ids | {"model_type": text}, "audio_token_id": at(AUDIO)}


def _ear() -> Any:
    return tf.WhisperFeatureExtractor(feature_size=8, chunk_length=2)


def _fun_asr_nano() -> tuple[Any, ...]:
    tok = tokenizer()
    audio = sizes(3, 32, model_type="fun_asr_nano_encoder", num_timestamp_prediction_layers=1, fsmn_kernel_size=3)
    given = _given(tok, "qwen3", audio | {"max_position_embeddings": 256})
    config = tf.FunAsrNanoConfig(
        adaptor_config=sizes(1, 4, projector_hidden_size=16), tie_word_embeddings=False, **given
    )
    return tf.FunAsrNanoForConditionalGeneration(config), tok, None, None


def _qwen2_audio() -> tuple[Any, ...]:
    tok, ear = tokenizer(), _ear()
    given = _given(tok, "qwen2", ENCODER | {"model_type": "qwen2_audio_encoder", "max_source_positions": 100})
    config = tf.Qwen2AudioConfig(audio_token_index=given.pop("audio_token_id"), **given)
    marks = {"audio_token": AUDIO, "audio_bos_token": BOS, "audio_eos_token": EOS}
    words = tf.Qwen2AudioProcessor(ear, tok, chat_template=TEMPLATE, **marks)
    return tf.Qwen2AudioForConditionalGeneration(config), tok, words, ear


def _qwen3_asr() -> tuple[Any, ...]:
    tok = tokenizer(extra_special_tokens={"audio_token": AUDIO, "audio_bos_token": BOS, "audio_eos_token": EOS})
    more = {"downsample_hidden_size": 4, "output_dim": 16, "max_position_embeddings": 64}
    config = tf.Qwen3ASRConfig(**_given(tok, "qwen3", ENCODER | {"model_type": "qwen3_asr_encoder"} | more))
    ear = tf.Qwen3ASRFeatureExtractor(feature_size=8)
    return tf.Qwen3ASRForConditionalGeneration(config), tok, tf.Qwen3ASRProcessor(ear, tok, chat_template=TEMPLATE), ear


def _voxtral() -> tuple[Any, ...]:
    tok = tokenizer()
    audio = sizes(2, 64, model_type="voxtral_encoder", num_mel_bins=8, max_source_positions=100, vocab_size=8)
    return tf.VoxtralForConditionalGeneration(tf.VoxtralConfig(**_given(tok, "llama", audio))), tok, None, _ear()


def _glmasr() -> tuple[Any, ...]:
    tok, ear = tokenizer(), _ear()
    audio = sizes(2, 64, model_type="glmasr_encoder", num_key_value_heads=2, head_dim=8, num_mel_bins=8)
    config = tf.GlmAsrConfig(**_given(tok, "llama", audio | {"max_position_embeddings": 100}))
    words = tf.GlmAsrProcessor(ear, tok, chat_template=TEMPLATE, audio_token=AUDIO)
    return tf.GlmAsrForConditionalGeneration(config), tok, words, ear


def _granite_speech() -> tuple[Any, ...]:
    tok = tokenizer()
    encoder = {"input_dim": 160, "num_layers": 2, "hidden_dim": 16, "feedforward_mult": 2, "num_heads": 2}
    encoder |= {"dim_head": 8, "output_dim": 6, "context_size": 20, "max_pos_emb": 20, "conv_kernel_size": 3}
    bridge = sizes(1, 32, model_type="blip_2_qformer", encoder_hidden_size=16, vocab_size=8)
    given = _given(tok, "granite", encoder)
    given["encoder_config"] = given.pop("audio_config")
    how = {"has_lora_adapter": False, "window_size": 15, "downsample_rate": 5}
    config = tf.GraniteSpeechConfig(projector_config=bridge, **given, **how)
    return tf.GraniteSpeechForConditionalGeneration(config), tok, None, None


WHISPER_SIZES = {"layers": 2, "attention_heads": 2, "ffn_dim": 32}


def _whisper() -> tuple[Any, ...]:
    tok = tokenizer()
    at = tok.convert_tokens_to_ids
    parts = {f"{part}_{key}": value for part in ("encoder", "decoder") for key, value in WHISPER_SIZES.items()}
    ids = {"pad_token_id": at(PAD), "eos_token_id": at(END), "bos_token_id": at(END), "vocab_size": len(tok)}
    ends = {"max_source_positions": 100, "max_target_positions": 64, "decoder_start_token_id": at(WHISPER[0])}
    free = {"suppress_tokens": None, "begin_suppress_tokens": None}
    config = tf.WhisperConfig(num_mel_bins=8, d_model=16, **parts, **ids, **ends, **free)
    net = tf.WhisperForConditionalGeneration(config)
    given = net.generation_config
    given.is_multilingual, given.lang_to_id = True, {m: at(m) for m in WHISPER[1:3]}
    given.task_to_id, given.no_timestamps_token_id = {"transcribe": at(WHISPER[3])}, at(WHISPER[4])
    return net, tok, None, _ear()


_ALL = (_fun_asr_nano, _qwen2_audio, _qwen3_asr, _voxtral, _glmasr, _granite_speech, _whisper)
BUILDERS = {build.__name__[1:]: build for build in _ALL}
ALL = tuple(BUILDERS)


def tiny(model_type: str, *, seed: int = 0, spread: float = 0.15, **how: Any) -> AudioLM:
    """A model with random weights wide enough that its distributions are neither flat nor certain."""
    torch.manual_seed(seed)
    net, tok, processor, extractor = BUILDERS[model_type]()
    for p in net.parameters():
        if p.ndim > 1 and p.requires_grad:
            torch.nn.init.normal_(p, std=spread)
    torch.nn.init.normal_(net.get_output_embeddings().weight, std=0.5)
    given = net.generation_config
    given._from_model_config = False  # otherwise it is made anew from the config on loading, as no real checkpoint's is
    given.eos_token_id, given.pad_token_id = tok.convert_tokens_to_ids(END), tok.convert_tokens_to_ids(PAD)
    return AudioLM(net, tok, processor, extractor, **how).eval()


def parameters_of(lm: AudioLM, part: Any) -> list[torch.nn.Parameter]:
    """The parameters of a part, tied ones once."""
    return list({id(p): p for m in lm.modules_of(part) for p in m.parameters()}.values())


def clips(*seconds: float, seed: int = 0, rate: int = 16000) -> list[np.ndarray]:
    """Noise of these lengths, each of another colour and level."""
    draw = np.random.default_rng(seed)
    made = []
    for i, s in enumerate(seconds):
        noise = draw.standard_normal(int(s * rate) + 8)
        coloured = np.convolve(noise, np.hanning(3 + 2 * i), "same")[: int(s * rate)]
        made.append((0.05 * (i + 1) * coloured).astype(np.float32))
    return made
