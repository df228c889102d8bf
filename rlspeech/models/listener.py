"""The embedded listener: a tiny configuration of transformers' Qwen2-Audio, trained to say how a recording sounds.

The original (arXiv 2407.10759) is Whisper's encoder (640 M parameters), a linear map and a 7-B language model. This one keeps the
classes, so that ``AutoProcessor`` and ``Qwen2AudioForConditionalGeneration`` load its folder as they load the original's, and changes sizes
and five things:

* frames every 20 ms instead of 10, under a window of 32 ms: half the work, and quality needs no finer ones;
* chunks of ``max_s`` instead of 30 s;
* the encoder's position table holds zeros: noise sounds the same wherever it is, and a length that training never saw stays known. The
  convolutions still see order nearby;
* words are tokens; the vocabulary is that of the sentences plus a few marks. The chat template passes on the audio alone: the listener
  answers one question only, whatever it is asked;
* in training a linear head on the mean of the encoder's output predicts the labels themselves. It teaches the encoder faster than
  words do, and is not kept.

Whisper's log-mel values are clamped to 80 dB below a clip's maximum but not divided by it, so the level survives and can be spoken of.
Training runs the encoder on the real frames only, where transformers' own forward pads to the whole chunk and masks; both give the
same numbers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from rlspeech.config_parts import ListenerModel
from rlspeech.files import parse_json
from rlspeech.models.audio_lm.generate import with_answers
from rlspeech.models.folder import load_net, loading, read_about, save_net, sizes, write_about
from rlspeech.models.hub import card_of, resolve

SAMPLE_RATE, HOP, N_FFT = 16000, 320, 512
AUDIO, BOS, EOS = "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>"
START, END, PAD, UNKNOWN = "<|im_start|>", "<|im_end|>", "<|pad|>", "<|unk|>"
MARKS = (PAD, UNKNOWN, AUDIO, BOS, EOS, START, END)
TEMPLATE = (
    "{% for message in messages %}{% if message['content'] is not string %}{% for part in message['content'] %}"
    "{% if 'audio' in part or 'audio_url' in part or part['type'] == 'audio' %}" + BOS + AUDIO + EOS + "{% endif %}"
    "{% endfor %}{% elif message['role'] == 'assistant' %}" + START + "{{ message['content'] }}" + END + "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}" + START + "{% endif %}"
)
MAX_NEW_TOKENS = 72


def make_processor(cfg: ListenerModel, words: list[str]) -> Any:
    """A Qwen2AudioProcessor: feature extractor with the short chunk, one token a word, the chat template."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, Qwen2AudioProcessor, WhisperFeatureExtractor

    known = {word: i for i, word in enumerate([*MARKS, *(w for w in words if w not in MARKS)])}
    inner = Tokenizer(models.WordLevel(known, unk_token=UNKNOWN))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.decoder = decoders.WordPiece(prefix="##", cleanup=True)  # joins words with blanks and sets marks close
    inner.add_special_tokens([AddedToken(m, special=True) for m in MARKS])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        unk_token=UNKNOWN,
        eos_token=END,
        padding_side="left",
        additional_special_tokens=[AUDIO, BOS, EOS, START],
    )
    sizes = {"feature_size": cfg.mels, "sampling_rate": SAMPLE_RATE, "hop_length": HOP, "n_fft": N_FFT}
    extractor = WhisperFeatureExtractor(**sizes, chunk_length=math.ceil(cfg.max_s))  # an int: it counts samples with it
    marks = {"audio_token": AUDIO, "audio_bos_token": BOS, "audio_eos_token": EOS}
    return Qwen2AudioProcessor(extractor, tokenizer, chat_template=TEMPLATE, **marks)


def audio_tokens(frames: int) -> int:
    """How many audio tokens stand for so many mel frames."""
    return ((frames - 1) // 2 + 1 - 2) // 2 + 1


class Listener(nn.Module):
    """A Qwen2-Audio with its processor, and the head that only training uses.

    Args:
        cfg: sizes.
        words: the vocabulary, without the marks.
        labels: how many numbers the training head predicts.
    """

    sample_rate = SAMPLE_RATE

    def __init__(self, cfg: ListenerModel, words: list[str], labels: int = 9) -> None:
        super().__init__()
        from transformers import Qwen2AudioConfig, Qwen2AudioForConditionalGeneration

        self.cfg = cfg
        self.processor = make_processor(cfg, words)
        token = self.processor.tokenizer.convert_tokens_to_ids
        marks: dict[str, Any] = {"pad_token_id": token(PAD), "eos_token_id": token(END), "tie_word_embeddings": False}
        audio = {
            "model_type": "qwen2_audio_encoder",
            "num_mel_bins": cfg.mels,
            "d_model": cfg.audio_dim,
            "encoder_layers": cfg.audio_layers,
            "encoder_attention_heads": cfg.audio_heads,
            "encoder_ffn_dim": 4 * cfg.audio_dim,
            "max_source_positions": math.ceil(cfg.max_s) * SAMPLE_RATE // HOP // 2,
        }
        text = sizes(cfg.text_dim, cfg.text_layers, cfg.text_heads, 3 * cfg.text_dim, model_type="qwen2", **marks)
        text |= {"vocab_size": len(self.processor.tokenizer), "num_key_value_heads": cfg.text_heads}
        text |= {"max_position_embeddings": 1024, "bos_token_id": None}
        config = Qwen2AudioConfig(audio_config=audio, text_config=text, audio_token_index=token(AUDIO), **marks)
        self.net: Any = Qwen2AudioForConditionalGeneration(config)
        nn.init.zeros_(self.net.model.audio_tower.embed_positions.weight)
        generation = self.net.generation_config
        generation.do_sample, generation.max_new_tokens = False, MAX_NEW_TOKENS
        generation.pad_token_id, generation.eos_token_id = token(PAD), token(END)
        self.head = nn.Linear(cfg.audio_dim, labels)

    def features(self, wavs: list[np.ndarray]) -> tuple[Tensor, Tensor]:
        """Log-mel (B, mels, L) of waveforms (T_i,), cut at ``max_s`` and padded to the longest, and the real frames (B,).

        The extractor sees each clip padded with zeros to the whole chunk, as in the processor: the padding takes part in its clamping.
        """
        extractor = self.processor.feature_extractor
        how: dict[str, Any] = {"padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}
        made = extractor(wavs, sampling_rate=SAMPLE_RATE, **how)
        frames = made["attention_mask"].sum(1)
        longest = int(frames.max()) + int(frames.max()) % 2
        # one more than there are: the convolution looks ahead
        return made["input_features"][:, :, : longest + 1], frames

    def encode(self, features: Tensor, frames: Tensor) -> Tensor:
        """Audio vectors (B, A, D) of log-mel features (B, mels, L), of which ``frames`` (B,) are real."""
        tower = self.net.model.audio_tower
        counts = (frames - 1) // 2 + 1
        x = nn.functional.gelu(tower.conv2(nn.functional.gelu(tower.conv1(features))))
        x = x[:, :, : int(counts.max())].transpose(1, 2)
        x = x + tower.embed_positions.weight[: x.shape[1]]
        mask = None
        if int(counts.min()) < x.shape[1]:
            real = torch.arange(x.shape[1], device=x.device) < counts[:, None].to(x.device)
            mask = torch.zeros_like(real, dtype=x.dtype).masked_fill(~real, torch.finfo(x.dtype).min)
            mask = mask[:, None, None, :].expand(-1, 1, x.shape[1], -1)
        for layer in tower.layers:
            x = layer(x, mask)
        return tower.layer_norm(tower.avg_pooler(x.transpose(1, 2)).transpose(1, 2))

    def forward(self, features: Tensor, frames: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Logits (B, S, V) for token ids (B, S) under ``mask``, and the label head's (B, labels)."""
        states = self.encode(features, frames)
        tokens = torch.div((frames - 1) // 2 - 1, 2, rounding_mode="floor") + 1
        real = torch.arange(states.shape[1], device=states.device) < tokens[:, None].to(states.device)
        mean = (states * real[..., None]).sum(1) / real.sum(1, keepdim=True).clamp_min(1)
        model = self.net.model
        embeds = model.language_model.embed_tokens(ids)
        place = (ids == self.net.config.audio_token_id)[..., None]
        embeds = embeds.masked_scatter(place, model.multi_modal_projector(states)[real].to(embeds.dtype))
        out = model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        return self.net.lm_head(out), self.head(mean)

    @torch.no_grad()
    def generate(self, wavs: list[np.ndarray]) -> list[str]:
        """Greedy answers for waveforms (T_i,), through transformers' own processor and generate."""
        prompt = f"{BOS}{AUDIO}{EOS}{START}"
        how: dict[str, Any] = {"sampling_rate": SAMPLE_RATE, "return_tensors": "pt", "padding": True}
        given = self.processor(text=[prompt] * len(wavs), audio=wavs, **how)
        device = next(self.net.parameters()).device
        made = self.net.generate(**{k: v.to(device) for k, v in given.items()})
        return list(self.processor.batch_decode(made[:, given["input_ids"].shape[1] :], skip_special_tokens=True))

    def tokens(
        self, frames: Sequence[int], answers: Sequence[str], question: str = ""
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask and answer marks, all (B, S): audio marks, an optional question, the answer and its end, padded behind."""
        tokenizer, rows = self.processor.tokenizer, []
        for n, text in zip(frames, answers, strict=True):
            before = tokenizer(f"{BOS}{AUDIO * audio_tokens(n)}{EOS}{question}{START}").input_ids
            rows.append((before, tokenizer(f"{text}{END}").input_ids))
        return with_answers(rows, tokenizer.pad_token_id)


def save_listener(folder: Path, model: Listener, *, facts: dict[str, Any], **how: Any) -> None:
    """Write a folder that transformers loads by itself; arguments as in ``folder.save_net``, ``facts`` for ``rlspeech.json``."""
    parameters = save_net(folder, model, **how)
    model.processor.save_pretrained(folder)
    about = {"task": "listener", "model": model.cfg.model_dump(), "facts": facts}
    write_about(folder, about, card_of("listener", parameters, SAMPLE_RATE))


def load_listener(name: str, device: torch.device | str = "cpu") -> tuple[Listener, dict[str, Any]]:
    """A listener of a folder that ``save_listener`` wrote, or ``embedded``; the training head is new where the folder holds none.

    Raises:
        UserError: no such folder, or one that holds something else.
    """
    folder = resolve(name, "listener")
    with loading(f"the listener {folder}", "the folder that `rlspeech pretrain --task listener` wrote, or embedded"):
        about = read_about(folder, "listener", must=True)
        tokens = parse_json((folder / "tokenizer.json").read_bytes())["model"]["vocab"]
        words = [w for w in sorted(tokens, key=tokens.__getitem__) if w not in MARKS]
        model = Listener(ListenerModel(**about["model"]), words)
        net = load_net(type(model.net), folder, strict=True, dtype=torch.float32, local_files_only=True)
        model.net.load_state_dict(net.state_dict())
        if (folder / "head.safetensors").is_file():
            model.head.load_state_dict(load_file(folder / "head.safetensors"))
    return model.to(device).eval(), about
