"""Audio LLMs of every family with random weights, small enough for a test: the real classes, a byte-level tokenizer, short windows."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import transformers as tf

from rlspeech.models.audio_lm.model import AudioLM

ALL = ("fun_asr_nano", "qwen2_audio", "qwen3_asr", "voxtral", "glmasr", "granite_speech", "whisper")
SPLICED = tuple(m for m in ALL if m != "whisper")
END, PAD, START, AUDIO, ASR = "<|im_end|>", "<|pad|>", "<|im_start|>", "<|AUDIO|>", "<asr_text>"
BOS, EOS = "<|audio_bos|>", "<|audio_eos|>"
MISTRAL = ("<s>", "[INST]", "[BEGIN_AUDIO]", "[/INST]", "[TRANSCRIBE]")
WHISPER = ("<|startoftranscript|>", "<|en|>", "<|de|>", "<|transcribe|>", "<|notimestamps|>")
MARKS = (END, PAD, START, AUDIO, BOS, EOS, *MISTRAL, *WHISPER)
TEMPLATE = (
    "{% for m in messages %}"
    + START
    + "{{ m['role'] }}\n{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'audio' %}"
    + BOS
    + AUDIO
    + EOS
    + "{% elif c['type'] == 'keywords' %}{{ c['keywords'] | join(', ') }}: "
    "{% elif c['type'] == 'language' %}{{ c['language'] }}: {% else %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}"
    "{% if m['role'] != 'assistant' %}"
    + END
    + "\n{% endif %}{% endfor %}{% if add_generation_prompt %}"
    + START
    + "assistant\n{% endif %}"
)
TEXT: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 2048,
    "head_dim": 8,
    "tie_word_embeddings": False,
}
ENCODER: dict[str, Any] = {
    "d_model": 16,
    "encoder_layers": 2,
    "encoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "num_mel_bins": 8,
}


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


def _settings(tok: Any) -> dict[str, Any]:
    ids = {
        "pad_token_id": tok.convert_tokens_to_ids(PAD),
        "eos_token_id": tok.convert_tokens_to_ids(END),
        "bos_token_id": None,
    }
    return {"text": TEXT | {"vocab_size": len(tok)} | ids, "audio_token_id": tok.convert_tokens_to_ids(AUDIO)}


def _fun_asr_nano() -> tuple[Any, ...]:
    tok = tokenizer()
    given = _settings(tok)
    audio = {
        "model_type": "fun_asr_nano_encoder",
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_hidden_layers": 3,
        "num_timestamp_prediction_layers": 1,
        "fsmn_kernel_size": 3,
        "max_position_embeddings": 256,
    }
    adaptor = {
        "hidden_size": 16,
        "num_attention_heads": 2,
        "intermediate_size": 4,
        "num_hidden_layers": 1,
        "projector_hidden_size": 16,
    }
    config = tf.FunAsrNanoConfig(
        audio_config=audio,
        adaptor_config=adaptor,
        text_config=given["text"] | {"model_type": "qwen3"},
        audio_token_id=given["audio_token_id"],
        tie_word_embeddings=False,
    )
    return tf.FunAsrNanoForConditionalGeneration(config), tok, None, None


def _qwen2_audio() -> tuple[Any, ...]:
    tok = tokenizer()
    given = _settings(tok)
    audio = ENCODER | {"model_type": "qwen2_audio_encoder", "max_source_positions": 100}
    config = tf.Qwen2AudioConfig(
        audio_config=audio,
        text_config=given["text"] | {"model_type": "qwen2"},
        audio_token_index=given["audio_token_id"],
    )
    ear = tf.WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    words = tf.Qwen2AudioProcessor(
        ear, tok, chat_template=TEMPLATE, audio_token=AUDIO, audio_bos_token=BOS, audio_eos_token=EOS
    )
    return tf.Qwen2AudioForConditionalGeneration(config), tok, words, ear


def _qwen3_asr() -> tuple[Any, ...]:
    tok = tokenizer(extra_special_tokens={"audio_token": AUDIO, "audio_bos_token": BOS, "audio_eos_token": EOS})
    given = _settings(tok)
    audio = ENCODER | {
        "model_type": "qwen3_asr_encoder",
        "downsample_hidden_size": 4,
        "output_dim": 16,
        "max_position_embeddings": 64,
    }
    config = tf.Qwen3ASRConfig(
        audio_config=audio, text_config=given["text"] | {"model_type": "qwen3"}, audio_token_id=given["audio_token_id"]
    )
    ear = tf.Qwen3ASRFeatureExtractor(feature_size=8)
    return tf.Qwen3ASRForConditionalGeneration(config), tok, tf.Qwen3ASRProcessor(ear, tok, chat_template=TEMPLATE), ear


def _voxtral() -> tuple[Any, ...]:
    tok = tokenizer()
    given = _settings(tok)
    audio = {
        "model_type": "voxtral_encoder",
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_mel_bins": 8,
        "max_source_positions": 100,
        "vocab_size": 8,
    }
    config = tf.VoxtralConfig(
        audio_config=audio, text_config=given["text"] | {"model_type": "llama"}, audio_token_id=given["audio_token_id"]
    )
    return (
        tf.VoxtralForConditionalGeneration(config),
        tok,
        None,
        tf.WhisperFeatureExtractor(feature_size=8, chunk_length=2),
    )


def _glmasr() -> tuple[Any, ...]:
    tok = tokenizer()
    given = _settings(tok)
    audio = {
        "model_type": "glmasr_encoder",
        "hidden_size": 16,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "num_mel_bins": 8,
        "max_position_embeddings": 100,
    }
    config = tf.GlmAsrConfig(
        audio_config=audio, text_config=given["text"] | {"model_type": "llama"}, audio_token_id=given["audio_token_id"]
    )
    ear = tf.WhisperFeatureExtractor(feature_size=8, chunk_length=2)
    return (
        tf.GlmAsrForConditionalGeneration(config),
        tok,
        tf.GlmAsrProcessor(ear, tok, chat_template=TEMPLATE, audio_token=AUDIO),
        ear,
    )


def _granite_speech() -> tuple[Any, ...]:
    tok = tokenizer()
    given = _settings(tok)
    encoder = {
        "input_dim": 160,
        "num_layers": 2,
        "hidden_dim": 16,
        "feedforward_mult": 2,
        "num_heads": 2,
        "dim_head": 8,
        "output_dim": 6,
        "context_size": 20,
        "max_pos_emb": 20,
        "conv_kernel_size": 3,
    }
    bridge = {
        "model_type": "blip_2_qformer",
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "encoder_hidden_size": 16,
        "vocab_size": 8,
    }
    config = tf.GraniteSpeechConfig(
        encoder_config=encoder,
        projector_config=bridge,
        text_config=given["text"] | {"model_type": "granite"},
        audio_token_id=given["audio_token_id"],
        has_lora_adapter=False,
        window_size=15,
        downsample_rate=5,
    )
    return tf.GraniteSpeechForConditionalGeneration(config), tok, None, None


def _whisper() -> tuple[Any, ...]:
    tok = tokenizer()
    at = tok.convert_tokens_to_ids
    config = tf.WhisperConfig(
        vocab_size=len(tok),
        num_mel_bins=8,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=32,
        decoder_ffn_dim=32,
        max_source_positions=100,
        max_target_positions=64,
        pad_token_id=at(PAD),
        eos_token_id=at(END),
        bos_token_id=at(END),
        decoder_start_token_id=at(WHISPER[0]),
        suppress_tokens=None,
        begin_suppress_tokens=None,
    )
    net = tf.WhisperForConditionalGeneration(config)
    given = net.generation_config
    given.is_multilingual, given.lang_to_id = True, {m: at(m) for m in WHISPER[1:3]}
    given.task_to_id, given.no_timestamps_token_id = {"transcribe": at(WHISPER[3])}, at(WHISPER[4])
    return net, tok, None, tf.WhisperFeatureExtractor(feature_size=8, chunk_length=2)


BUILDERS = {
    "fun_asr_nano": _fun_asr_nano,
    "qwen2_audio": _qwen2_audio,
    "qwen3_asr": _qwen3_asr,
    "voxtral": _voxtral,
    "glmasr": _glmasr,
    "granite_speech": _granite_speech,
    "whisper": _whisper,
}


def tiny(
    model_type: str, *, seed: int = 0, spread: float = 0.15, train_encoder: bool = False, max_s: float | None = None
) -> AudioLM:
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
    return AudioLM(net, tok, processor, extractor, max_s=max_s, train_encoder=train_encoder).eval()


def clips(*seconds: float, seed: int = 0, rate: int = 16000) -> list[np.ndarray]:
    """Noise of these lengths, each of another colour and level."""
    draw = np.random.default_rng(seed)
    made = []
    for i, s in enumerate(seconds):
        noise = draw.standard_normal(int(s * rate) + 8)
        made.append(
            (0.05 * (i + 1) * np.convolve(noise, np.hanning(3 + 2 * i), "same")[: int(s * rate)]).astype(np.float32)
        )
    return made
