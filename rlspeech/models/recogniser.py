"""The embedded recogniser: a tiny configuration of transformers' Fun-ASR-Nano, trained from nothing.

The original (Fun-ASR-Nano-2512) is SenseVoice's encoder (70 SAN-M blocks of 512 on windows of 60 ms), a transformer adaptor and Qwen3-0.6B.
This one keeps the classes, so that ``FunAsrNanoForConditionalGeneration`` loads its folder as it loads the original's and everything that
works on one works on the other, and changes sizes and three things:

* a byte-level BPE of a few hundred pieces, trained on the training texts: any text can be written, few words are one piece;
* the prompt is the audio between two marks; there is no instruction, the model knows one;
* in training a linear CTC head on the encoder's output says which pieces are heard where (original: the head that finds hotwords). Without
  it a model of this size needs ten times as long to find out that the text is in the sound. It is not kept in what is shipped.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from rlspeech.config_parts import RecogniserModel
from rlspeech.models.audio_lm.generate import left_padded, with_answers
from rlspeech.models.folder import loading, pretrained, read_about, read_weights, save_net, sizes, write_about
from rlspeech.models.hub import card_of, resolve
from rlspeech.models.spectra import fbank, stack_frames

SAMPLE_RATE, STACK, STRIDE = 16000, 7, 6
PAD, START, END, AUDIO = "<|pad|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>"
MARKS = (PAD, START, END, AUDIO)
TEMPLATE = (
    "{% for message in messages %}{% if message['role'] == 'user' %}{% for part in message['content'] %}"
    "{% if part['type'] == 'audio' %}" + START + AUDIO + "{% endif %}{% endfor %}"
    "{% else %}{{ message['content'] }}" + END + "{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}" + START + "{% endif %}"
)


def make_tokenizer(texts: Iterable[str], size: int) -> Any:
    """A byte-level BPE of ``size`` pieces, as transformers' fast tokenizer, trained on normalised texts."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    inner.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[AddedToken(m, special=True) for m in MARKS],
        show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    inner.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token=PAD,
        eos_token=END,
        padding_side="left",
        chat_template=TEMPLATE,
        additional_special_tokens=[START, AUDIO],
        clean_up_tokenization_spaces=False,
    )


class Recogniser(nn.Module):
    """A Fun-ASR-Nano with its tokenizer, which has the marks of this module, and the CTC head that only training uses."""

    sample_rate = SAMPLE_RATE

    def __init__(self, cfg: RecogniserModel, tokenizer: Any) -> None:
        super().__init__()
        from transformers import FunAsrNanoConfig, FunAsrNanoForConditionalGeneration

        self.cfg, self.tokenizer, self.max_s = cfg, tokenizer, cfg.max_s
        self.marks = {m: int(tokenizer.convert_tokens_to_ids(m)) for m in MARKS}
        ends = {"pad_token_id": self.marks[PAD], "eos_token_id": self.marks[END], "tie_word_embeddings": True}
        audio = sizes(cfg.audio_dim, cfg.audio_layers, cfg.audio_heads, cfg.audio_ff, num_mel_bins=cfg.mels)
        audio |= {"model_type": "fun_asr_nano_encoder", "num_timestamp_prediction_layers": 0}
        audio |= {"fsmn_kernel_size": cfg.fsmn_kernel, "num_stacked_frames": STACK}
        audio |= {"hidden_dropout": cfg.dropout, "attention_dropout": cfg.dropout}
        adaptor = sizes(cfg.text_dim, cfg.adaptor_layers, cfg.text_heads, cfg.text_dim // 4)
        adaptor |= {"projector_hidden_size": 2 * cfg.text_dim}
        text = sizes(cfg.text_dim, cfg.text_layers, cfg.text_heads, cfg.text_ff, vocab_size=len(tokenizer))
        text |= {"model_type": "qwen3", "num_key_value_heads": cfg.text_heads, "bos_token_id": None, **ends}
        text |= {"head_dim": cfg.text_dim // cfg.text_heads, "max_position_embeddings": 4096}
        parts: dict[str, Any] = {"audio_config": audio, "adaptor_config": adaptor, "text_config": text, **ends}
        config: Any = FunAsrNanoConfig(audio_token_id=self.marks[AUDIO], **parts)
        # transformers hands its choice of attention on to the models inside, not to the adaptor, whose mask then would not mask
        config.adaptor_config._attn_implementation = "sdpa"
        self.net: Any = FunAsrNanoForConditionalGeneration(config)
        generation = self.net.generation_config
        generation.do_sample, generation.pad_token_id, generation.eos_token_id = False, self.marks[PAD], self.marks[END]
        self.head = nn.Linear(cfg.audio_dim, len(tokenizer))  # the pad mark is CTC's blank

    def features(self, wavs: Sequence[Tensor], mask: Any = lambda frames: frames) -> tuple[Tensor, Tensor]:
        """Stacked log-mel windows (B, L, 560) of waveforms (T_i,), padded, and which are real, (B, L) long.

        ``mask`` may hide parts of the frames (L_i, mels) before they are stacked.
        """
        rows = [stack_frames(mask(fbank(w, self.cfg.mels, SAMPLE_RATE)), STACK, STRIDE) for w in wavs]
        real = [torch.ones(len(r), dtype=torch.long) for r in rows]
        return pad_sequence(rows, batch_first=True), pad_sequence(real, batch_first=True)

    def encode(self, features: Tensor, real: Tensor) -> Tensor:
        """The encoder's output (B, L, D) for what ``features`` gives."""
        return self.net.model.audio_tower(input_features=features, input_features_mask=real).last_hidden_state

    @torch.no_grad()
    def ctc_transcribe(self, wavs: Sequence[Tensor]) -> list[str]:
        """What the CTC head alone reads out of waveforms (T_i,): the best piece of every window, repeats joined, blanks left out."""
        features, real = self.features(wavs)
        device = self.head.weight.device
        best = self.head(self.encode(features.to(device), real.to(device))).argmax(-1).cpu()
        rows = [torch.unique_consecutive(b[: int(r.sum())]).tolist() for b, r in zip(best, real, strict=True)]
        kept = [[i for i in row if i != self.marks[PAD]] for row in rows]
        return [self.tokenizer.decode(row, skip_special_tokens=True).strip() for row in kept]

    def forward(self, features: Tensor, real: Tensor, ids: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """Teacher-forced logits of the text and CTC's of the sound.

        Args:
            features, real: from ``features``.
            ids: (B, S) long, prompt with audio marks and text, padded behind.
            mask: (B, S) long, 1 on real tokens.

        Returns:
            (B, S, V) and (B, L, V).
        """
        model = self.net.model
        states = self.encode(features, real)
        audio = model.multi_modal_projector(states, real)[real.bool()]
        embeds = model.language_model.embed_tokens(ids)
        embeds = embeds.masked_scatter((ids == self.marks[AUDIO])[..., None], audio.to(embeds.dtype))
        out = model.language_model(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state
        return self.net.lm_head(out), self.head(states)

    @torch.no_grad()
    def transcribe(self, wavs: Sequence[Tensor], max_new_tokens: int = 200) -> list[str]:
        """Greedy transcripts of waveforms (T_i,), to check it while it is being trained; the stages use ``models.audio_lm``."""
        device = self.head.weight.device
        features, real = self.features(wavs)
        ids, mask, answer = self.tokens(real.sum(1).tolist(), [""] * len(wavs))
        prompts, visible = left_padded([i[m.bool() & ~a] for i, m, a in zip(ids, mask, answer, strict=True)])
        given = {"input_ids": prompts.masked_fill(~visible, self.marks[PAD]), "attention_mask": visible.long()}
        given |= {"input_features": features, "input_features_mask": real}
        made = self.net.generate(**{k: v.to(device) for k, v in given.items()}, max_new_tokens=max_new_tokens)
        written = made[:, prompts.shape[1] :]
        return [t.strip() for t in self.tokenizer.batch_decode(written, skip_special_tokens=True)]

    def pieces(self, text: str) -> list[int]:
        """Ids of a text; what looks like a mark in it is spelt out: a text gives no instructions."""
        return list(self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids)

    def tokens(self, frames: Sequence[int], texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Ids, mask (B, S) long and answer marks (B, S) bool: start, audio marks, start, text, end; padded behind."""
        rows = []
        for n, text in zip(frames, texts, strict=True):
            before = [self.marks[START], *[self.marks[AUDIO]] * n, self.marks[START]]
            rows.append((before, [*self.pieces(text), self.marks[END]]))
        return with_answers(rows, self.marks[PAD])


def save_recogniser(folder: Path, model: Recogniser, *, facts: dict[str, Any], **how: Any) -> None:
    """Write a folder that transformers loads by itself; arguments as in ``folder.save_net``, ``facts`` for ``rlspeech.json``."""
    parameters = save_net(folder, model, **how, leave_out={"lm_head.weight"})  # it is the table of embeddings
    model.tokenizer.save_pretrained(folder)
    extractor: dict[str, Any] = {
        "feature_extractor_type": "FunAsrNanoFeatureExtractor",
        "processor_class": "FunAsrNanoProcessor",
    }
    extractor |= {"feature_size": model.cfg.mels, "sampling_rate": SAMPLE_RATE, "frame_length": 25, "frame_shift": 10}
    extractor |= {"num_frames_lfr": STACK, "stride_lfr": STRIDE, "window": "hamming", "padding_value": 0.0}
    extractor |= {"return_attention_mask": True}
    processor = {"processor_class": "FunAsrNanoProcessor", "audio_token": AUDIO}
    for name, content in (("preprocessor_config.json", extractor), ("processor_config.json", processor)):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    about = {"task": "asr", "model": model.cfg.model_dump(), "facts": facts, "max_s": model.cfg.max_s}
    title = f"recogniser ({model.net.config.model_type})"
    write_about(folder, about, card_of("asr", parameters, SAMPLE_RATE, title=title))


def load_recogniser(name: str, device: torch.device | str = "cpu") -> tuple[Recogniser, dict[str, Any]]:
    """A recogniser to go on training, of a folder that ``save_recogniser`` wrote, or ``embedded``; its CTC head is new where none was kept.

    Raises:
        UserError: no such folder, or one that holds something else.
    """
    from safetensors.torch import load_file
    from transformers import PreTrainedTokenizerFast

    folder = resolve(name, "asr")
    hint = "the folder that `rlspeech pretrain --task asr` wrote, or embedded"
    with loading(f"{folder} as a recogniser to go on training", hint):
        about = read_about(folder, "asr", must=True)
        tokenizer = pretrained(PreTrainedTokenizerFast, folder, local_files_only=True)
        model = Recogniser(RecogniserModel(**about["model"]), tokenizer)
        weights = {f"net.{k}": v for k, v in read_weights(folder).items()}
        weights["net.lm_head.weight"] = weights["net.model.language_model.embed_tokens.weight"]
        kept = (folder / "head.safetensors").is_file()
        head = load_file(folder / "head.safetensors") if kept else model.head.state_dict()
        model.load_state_dict(weights | {f"head.{k}": v for k, v in head.items()})
    return model.to(device).eval(), about
