"""What differs between transformers' audio LLMs: how a prompt is worded, how audio becomes vectors, how a transcript is written.

A family turns waveforms into prompt ids, in which one audio token stands for each audio vector, and into the encoder's features; then it
runs encoder and projector and hands out each clip's vectors. Everything after that (prompts, generation, log-probabilities) is the same
for all and lives in ``audio_lm``. Where a model's own processor can word the request it does.

Transcripts are scored as they were written: a family takes off the frame that its model puts around a transcript ("language
English<asr_text>"), and nothing else. The processors' own parsers also remove repetitions, and a loop that is removed is never punished.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlspeech.types import UserError

__all__ = ["Asked", "Family", "Prepared"]


@dataclass(frozen=True, slots=True)
class Asked:
    """What a request says about one clip beside its audio."""

    language: str | None = None
    prompt: str | None = None
    keywords: Sequence[str] | None = None


@dataclass(slots=True)
class Prepared:
    """Prompt ids (L_i,) a clip, with as many audio tokens as ``counts`` says, and the features that the encoder takes."""

    ids: list[Tensor]
    features: dict[str, Tensor]
    counts: list[int]


class Family:
    """A model whose processor words a transcription request (Qwen3-ASR, GLM-ASR, Audio Flamingo 3); the base of the others.

    Args:
        net: the transformers model.
        tokenizer: its tokenizer.
        processor: its processor, or None where that does not load.
        extractor: its feature extractor, or None.
    """

    architecture = ""  # class of transformers; empty: the config's
    seq2seq = False
    encoder: tuple[str, ...] = ("model.audio_tower",)
    projector: tuple[str, ...] = ("model.multi_modal_projector",)
    language: tuple[str, ...] = ("model.language_model", "lm_head")
    min_s = 0.1  # shorter clips are filled up with silence: encoders have a shortest input
    max_s = 30.0
    needs_processor = True
    one_window = False  # a clip is one window of the extractor

    def __init__(self, net: Any, tokenizer: Any, processor: Any = None, extractor: Any = None) -> None:
        self.net, self.tokenizer, self.processor, self.extractor = net, tokenizer, processor, extractor
        self.audio_token = int(getattr(net.config, "audio_token_id", -1))
        if self.one_window and extractor is not None:
            self.max_s = float(extractor.chunk_length)
        if processor is None and self.needs_processor:
            raise UserError(
                f"the processor of this {net.config.model_type} model does not load",
                "it words the request",
                "a folder with the processor's files, as the model's publisher ships it",
            )

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(getattr(self.extractor, "sampling_rate", 16000))

    def prepare(self, wavs: Sequence[np.ndarray], asked: Sequence[Asked]) -> Prepared:
        """Prompts and features of waveforms (T_i,)."""
        takes = inspect.signature(self.processor.apply_transcription_request).parameters
        texts: list[str] = []
        for wav, a in zip(wavs, asked, strict=True):
            said = {"language": a.language, "prompt": a.prompt, "keywords": list(a.keywords) if a.keywords else None}
            given = {k: v for k, v in said.items() if v is not None and k in takes}
            texts += self.processor.apply_transcription_request([wav], tokenize=False, **given)
        made = dict(self.processor(text=texts, audio=list(wavs), return_tensors="pt"))
        real = made.pop("attention_mask").bool()
        ids = [row[keep] for row, keep in zip(made.pop("input_ids"), real, strict=True)]
        return Prepared(ids, made, [int((row == self.audio_token).sum()) for row in ids])

    def encode(self, prepared: Prepared) -> list[Tensor]:
        """Projected vectors (A_i, D) of each clip, by one pass of the encoder over all."""
        takes = inspect.signature(self.net.model.get_audio_features).parameters
        given = {k: self.place(v) for k, v in prepared.features.items() if k in takes}
        flat = self.net.model.get_audio_features(**given, return_dict=True).pooler_output
        return list(flat.reshape(-1, flat.shape[-1]).split(prepared.counts))

    def place(self, x: Tensor) -> Tensor:
        """To the encoder's device, and to its precision where it is a float."""
        weight = next(self.net.get_submodule(self.encoder[0]).parameters())
        return x.to(weight.device, weight.dtype) if x.is_floating_point() else x.to(weight.device)

    def reference(self, text: str, language: str | None = None) -> str:
        """The transcript as the model would write it, without the stop token."""
        return text

    def transcript(self, written: str) -> str:
        """The transcript in what the model wrote; nothing but the frame is taken off."""
        return written

    def chat(self, content: list[dict[str, Any]] | str) -> str:
        """The prompt that the tokenizer's chat template makes of one user turn. Raises ``UserError`` where there is none."""
        template = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        if not template:
            raise UserError(
                "the model has no chat template",
                "its folder holds no chat_template.jinja",
                "add the template that the model was trained with",
            )
        turns = [{"role": "user", "content": content}]
        return str(
            self.tokenizer.apply_chat_template(
                turns, chat_template=template, tokenize=False, add_generation_prompt=True
            )
        )

    def spread(self, text: str, count: int) -> Tensor:
        """Ids (L,) of a prompt whose one audio token is repeated ``count`` times. Raises ``UserError`` where it has another number."""
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        at = [i for i, token in enumerate(ids) if token == self.audio_token]
        if len(at) != 1:
            raise UserError(
                "a prompt needs one audio token",
                f"{text!r} has {len(at)}",
                f"name {self.tokenizer.convert_ids_to_tokens(self.audio_token)!r} once, or leave the wording to the model",
            )
        return torch.tensor([*ids[: at[0]], *[self.audio_token] * count, *ids[at[0] + 1 :]])

    def verbatim(self, prompt: str | None) -> bool:
        """Whether a prompt is a whole one: it says itself where the audio goes."""
        return bool(prompt) and str(self.tokenizer.convert_ids_to_tokens(self.audio_token)) in str(prompt)
