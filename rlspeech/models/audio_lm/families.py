"""What differs between transformers' audio LLMs: the prompt's format, how audio becomes vectors, how a transcript is written.

A family turns waveforms into prompt ids, in which one audio token stands for each audio vector, and into the encoder's features; then it
runs encoder and projector and hands out each clip's vectors. Everything after that (prompts, generation, log-probabilities) is the same
for all and lives in ``model.py``. Where a model's own processor can format the request it does.

Transcripts are scored as they were written: a family takes off the frame that its model puts around a transcript ("language
English<asr_text>"), and nothing else. The processors' own parsers also remove repetitions, and a loop that is removed is never punished.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rlspeech.models.spectra import FRAME_S, fbank_lfr
from rlspeech.types import UserError


@dataclass(frozen=True, slots=True)
class Request:
    """What a request says about one clip beside its audio."""

    language: str | None = None
    prompt: str | None = None


@dataclass(slots=True)
class Prepared:
    """Prompt ids (L_i,) a clip, with as many audio tokens as ``counts`` says, and the features that the encoder takes."""

    ids: list[Tensor]
    features: dict[str, Tensor]
    counts: list[int]


class Family:
    """A model whose processor formats a transcription request (Qwen3-ASR, GLM-ASR, Audio Flamingo 3); the base of the others.

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
    fixed_window = False  # the encoder runs over whole windows, however short a clip is

    def __init__(self, net: Any, tokenizer: Any, processor: Any = None, extractor: Any = None) -> None:
        self.net, self.tokenizer, self.processor, self.extractor = net, tokenizer, processor, extractor
        self.audio_token = int(getattr(net.config, "audio_token_id", -1))
        if self.one_window and extractor is not None:
            self.max_s = float(extractor.chunk_length)
        if processor is None and self.needs_processor:
            what = f"the processor of this {net.config.model_type} model does not load"
            why = "it formats the request"
            raise UserError(what, why, "a folder with the processor's files, as the model's publisher ships it")

    @property
    def sample_rate(self) -> int:
        """Hz."""
        return int(getattr(self.extractor, "sampling_rate", 16000))

    def prepare(self, wavs: Sequence[np.ndarray], requests: Sequence[Request]) -> Prepared:
        """Prompts and features of waveforms (T_i,)."""
        takes = inspect.signature(self.processor.apply_transcription_request).parameters
        texts: list[str] = []
        for wav, a in zip(wavs, requests, strict=True):
            asked = {"language": a.language, "prompt": a.prompt}
            given = {k: v for k, v in asked.items() if v is not None and k in takes}
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

    def complete(self, ids: Sequence[Tensor], audio: Sequence[Tensor]) -> list[Tensor]:
        """Prompt ids with what only the trained part of the model can tell of the audio."""
        return list(ids)

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
            why = "its folder holds no chat_template.jinja"
            raise UserError("the model has no chat template", why, "add the template that the model was trained with")
        turns, how = [{"role": "user", "content": content}], {"tokenize": False, "add_generation_prompt": True}
        return str(self.tokenizer.apply_chat_template(turns, chat_template=template, **how))

    def format(self, request: Request) -> str:
        """The prompt of a request, with one audio token."""
        raise NotImplementedError

    def prompts(self, requests: Sequence[Request], counts: Sequence[int]) -> list[Tensor]:
        """Prompts' ids (L_i,), the one audio token of each repeated as often as ``counts`` says.

        A request's own prompt is taken as it stands where it says itself where the audio goes. Raises ``UserError``: not one audio token.
        """
        token, out = str(self.tokenizer.convert_ids_to_tokens(self.audio_token)), list[Tensor]()
        for request, count in zip(requests, counts, strict=True):
            text = request.prompt if request.prompt and token in request.prompt else self.format(request)
            ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
            at = [i for i, found in enumerate(ids) if found == self.audio_token]
            if len(at) != 1:
                why, hint = f"{text!r} has {len(at)}", f"name {token!r} once, or leave the prompt to the model"
                raise UserError("a prompt needs one audio token", why, hint)
            out.append(torch.tensor([*ids[: at[0]], *[self.audio_token] * count, *ids[at[0] + 1 :]]))
        return out


# -------------------------------------------------------------------------------------------------------- the families
#
# Three cannot use their own processors everywhere: Fun-ASR-Nano's and Granite's extractors ask for torchaudio, Voxtral's processor for
# mistral-common. Their requests are built here from the tokenizer, to the same ids and features.


class FunAsrNano(Family):
    """Fun-ASR-Nano: Kaldi features stacked to 60 ms, SAN-M encoder, transformer adaptor, Qwen3.

    transformers 5.23 leaves the adaptor's attention without an implementation. It falls back to one that adds its mask, and is handed a
    boolean mask: padding is attended to, and a clip is encoded differently beside a longer one. It gets the encoder's here.
    """

    architecture = "FunAsrNanoForConditionalGeneration"
    needs_processor = False

    def __init__(self, net: Any, tokenizer: Any, processor: Any = None, extractor: Any = None) -> None:
        super().__init__(net, tokenizer, processor, extractor)
        self.max_s = min(self.max_s, FRAME_S * (net.config.audio_config.max_position_embeddings - 2))
        if net.config.adaptor_config._attn_implementation is None:
            net.config.adaptor_config._attn_implementation = net.config.audio_config._attn_implementation

    def prepare(self, wavs: Sequence[np.ndarray], requests: Sequence[Request]) -> Prepared:
        """See ``Family``; the content parts are those of transformers' processor."""
        stacked = [fbank_lfr(torch.as_tensor(w, dtype=torch.float32)) for w in wavs]
        counts = [len(f) for f in stacked]
        mask = torch.arange(max(counts)) < torch.tensor(counts)[:, None]
        features = {
            "input_features": torch.nn.utils.rnn.pad_sequence(stacked, batch_first=True),
            "input_features_mask": mask.long(),
        }
        return Prepared(self.prompts(requests, counts), features, counts)

    def format(self, request: Request) -> str:
        from transformers.audio_utils import prepare_language_inputs
        from transformers.models.fun_asr_nano.processing_fun_asr_nano import LANGUAGE_CODE_TO_NAME

        content: list[dict[str, Any]] = [{"type": "audio"}]
        if request.prompt:
            content.append({"type": "text", "text": request.prompt})
        if request.language:
            try:
                named = prepare_language_inputs(request.language, 1, LANGUAGE_CODE_TO_NAME, return_code=False)[0]
            except ValueError as error:
                what = f"Fun-ASR-Nano does not take the language {request.language!r}"
                raise UserError(what, str(error), "leave it out") from error
            content.append({"type": "language", "language": named})
        return self.chat(content)


class Qwen2Audio(Family):
    """Qwen2-Audio: Whisper's encoder pooled to 40 ms, a linear map, Qwen2.

    The instruction-tuned model gets a request in its chat template. The pretrained one wants a tag instead; a prompt that holds the
    audio token is taken as it stands: ``<|audio_bos|><|AUDIO|><|audio_eos|>Detect the language and recognize the speech: <|en|>``.
    """

    architecture = "Qwen2AudioForConditionalGeneration"
    needs_processor, one_window, fixed_window = False, True, True

    def prepare(self, wavs: Sequence[np.ndarray], requests: Sequence[Request]) -> Prepared:
        how: dict[str, Any] = {"padding": "max_length", "return_attention_mask": True, "return_tensors": "pt"}
        made = self.extractor(list(wavs), sampling_rate=self.sample_rate, **how)
        frames = made["attention_mask"].sum(1)
        counts = ((torch.div(frames - 1, 2, rounding_mode="floor") - 1) // 2 + 1).tolist()
        features = {"input_features": made["input_features"], "frames": frames}
        return Prepared(self.prompts(requests, counts), features, counts)

    def format(self, request: Request) -> str:
        words = request.prompt or (
            f"Transcribe the speech in {request.language}." if request.language else "Transcribe the speech."
        )
        return self.chat([{"type": "audio", "audio_url": ""}, {"type": "text", "text": words}])

    def encode(self, prepared: Prepared) -> list[Tensor]:
        """Encode as transformers' forward does: encoder on whole windows with the padding masked, projector on what is real."""
        from transformers.masking_utils import create_bidirectional_mask

        tower = self.net.model.audio_tower
        features, frames = self.place(prepared.features["input_features"]), prepared.features["frames"]
        steps = (features.shape[-1] - 2) // 2 + 1
        real = (torch.arange(steps) < ((frames - 1) // 2 + 1)[:, None]).long().to(features.device)
        like = torch.zeros(len(features), steps, 1, dtype=features.dtype, device=features.device)
        mask = create_bidirectional_mask(config=tower.config, inputs_embeds=like, attention_mask=real)
        states = tower(features, attention_mask=mask).last_hidden_state
        rows = [row[:n] for row, n in zip(states, prepared.counts, strict=True)]
        return list(self.net.model.multi_modal_projector(torch.cat(rows)).split(prepared.counts))


class Qwen3Asr(Family):
    """Qwen3-ASR: writes ``language English<asr_text>`` before the transcript, unless the request fixed the language."""

    architecture = "Qwen3ASRForConditionalGeneration"
    max_s = 60.0
    marker = "<asr_text>"

    def prepare(self, wavs: Sequence[np.ndarray], requests: Sequence[Request]) -> Prepared:
        """See ``Family``. What pads a clip to a longer one is set to zero, as what pads a lone clip to the encoder's window is."""
        made = super().prepare(wavs, requests)
        features, mask = made.features["input_features"], made.features["input_features_mask"]
        made.features["input_features"] = features * mask[:, None]
        return made

    def reference(self, text: str, language: str | None = None) -> str:
        """The text with its frame where the request does not hold it already; a clip without words is ``language None<asr_text>``."""
        if language is not None:
            return text
        return f"language {'English' if text else 'None'}{self.marker}{text}"

    def transcript(self, written: str) -> str:
        """What follows the marker; all of it where there is none."""
        head, mark, tail = written.partition(self.marker)
        return tail if mark else head


class GlmAsr(Family):
    """GLM-ASR: windows of 30 s, several to a clip where it is longer; Llama."""

    architecture = "GlmAsrForConditionalGeneration"
    max_s = 60.0


class Voxtral(Family):
    """Voxtral: whole windows of 30 s, 375 vectors each, several to a clip; Llama with Mistral's control tokens.

    The prompt is the one that mistral-common writes for a transcription:
    ``<s>[INST][BEGIN_AUDIO][AUDIO]...[/INST]lang:en[TRANSCRIBE]``.
    """

    architecture = "VoxtralForConditionalGeneration"
    needs_processor, fixed_window = False, True
    max_s = 120.0
    marks = ("<s>", "[INST]", "[BEGIN_AUDIO]", "[/INST]", "[TRANSCRIBE]")

    def prepare(self, wavs: Sequence[np.ndarray], requests: Sequence[Request]) -> Prepared:
        """See ``Family``; the chunks of all clips stand one after another."""
        window = int(self.extractor.n_samples)
        chunks = [np.pad(w, (0, -len(w) % window)).reshape(-1, window) for w in wavs]
        made = self.extractor(
            list(np.concatenate(chunks)), sampling_rate=self.sample_rate, padding="max_length", return_tensors="pt"
        )
        audio = self.net.config.audio_config
        each = audio.max_source_positions * audio.hidden_size // audio.intermediate_size  # vectors of one chunk
        counts = [len(c) * each for c in chunks]
        ids = [self._ids(a, n) for a, n in zip(requests, counts, strict=True)]
        return Prepared(ids, {"input_features": made["input_features"]}, counts)

    def _ids(self, a: Request, count: int) -> Tensor:
        start, inst, begin, end, transcribe = (int(self.tokenizer.convert_tokens_to_ids(m)) for m in self.marks)
        lang = self.tokenizer.encode(f"lang:{a.language}", add_special_tokens=False) if a.language else []
        return torch.tensor([start, inst, begin, *[self.audio_token] * count, end, *lang, transcribe])


class GraniteSpeech(Family):
    """Granite Speech: conformer with a CTC head inside, windowed Q-Former, Granite.

    Its encoder knows no padding: convolutions and the last block of attention see it. So that a clip is encoded the same whatever stands
    beside it, only clips of one length go through it together.
    """

    architecture = "GraniteSpeechForConditionalGeneration"
    needs_processor = False
    encoder = ("model.encoder",)
    projector = ("model.projector",)
    max_s = 60.0
    request = "can you transcribe the speech into a written format?"

    def prepare(self, wavs: Sequence[np.ndarray], requests: Sequence[Request]) -> Prepared:
        config = self.net.config
        per_block = config.window_size // config.downsample_rate
        made = [granite_mel(torch.as_tensor(w, dtype=torch.float32)) for w in wavs]
        counts = [math.ceil(len(m) / config.window_size) * per_block for m in made]
        return Prepared(self.prompts(requests, counts), {str(i): m for i, m in enumerate(made)}, counts)

    def format(self, request: Request) -> str:
        words = self.tokenizer.convert_ids_to_tokens(self.audio_token) + (request.prompt or self.request)
        has = getattr(self.processor, "chat_template", None) or self.tokenizer.chat_template
        return self.chat(words) if has else f"USER: {words}\n ASSISTANT:"

    def encode(self, prepared: Prepared) -> list[Tensor]:
        """One pass for each length."""
        made = [prepared.features[str(i)] for i in range(len(prepared.counts))]
        out: dict[int, Tensor] = {}
        for length in sorted({len(m) for m in made}):
            rows = [i for i, m in enumerate(made) if len(m) == length]
            stacked = self.place(torch.stack([made[i] for i in rows]))
            states = self.net.model.get_audio_features(stacked, return_dict=True).pooler_output
            out |= dict(zip(rows, states, strict=True))
        return [out[i][:n] for i, n in enumerate(prepared.counts)]


def granite_mel(wav: Tensor, sample_rate: int = 16000) -> Tensor:
    """Stacked log-mel frames (L, 160) of a waveform (T,), as transformers' extractor makes them with torchaudio's ``MelSpectrogram``."""
    from transformers.audio_utils import mel_filter_bank

    bank = mel_filter_bank(257, 80, 0.0, sample_rate / 2, sample_rate, norm=None, mel_scale="htk")
    window = torch.nn.functional.pad(torch.hann_window(400), (56, 56))
    power = torch.stft(wav, 512, 160, 512, window, center=True, pad_mode="reflect", return_complex=True).abs().square()
    mel = (power.T @ torch.as_tensor(bank, dtype=torch.float32)).clamp_min(1e-10).log10()
    mel = torch.maximum(mel, mel.max() - 8.0) / 4 + 1
    return mel[: len(mel) // 2 * 2].reshape(-1, 160)


class Whisper(Family):
    """Whisper: encoder and decoder; the audio is attended to, not spliced in.

    The decoder's prompt (language, task, no timestamps) is written into the generation config, in place of the forced ids of older ones.
    """

    architecture = "WhisperForConditionalGeneration"
    seq2seq = True
    needs_processor, one_window, fixed_window = False, True, True
    encoder, projector, language = ("model.encoder",), (), ("model.decoder", "proj_out")

    def __init__(self, net: Any, tokenizer: Any, processor: Any = None, extractor: Any = None) -> None:
        super().__init__(net, tokenizer, processor, extractor)
        given = net.generation_config
        pairs = getattr(given, "forced_decoder_ids", None) or getattr(net.config, "forced_decoder_ids", None) or []
        self.forced = [int(i) for _, i in pairs if i is not None]
        self.languages, tasks = getattr(given, "lang_to_id", None) or {}, getattr(given, "task_to_id", None) or {}
        self.multilingual = bool(getattr(given, "is_multilingual", False) and self.languages and tasks)
        if self.multilingual:
            named = [m.strip("<|>") for m, i in self.languages.items() if i in self.forced]
            given.language = getattr(given, "language", None) or next(iter(named), None)
            given.task, given.forced_decoder_ids = "transcribe", None
            self.forced = [tasks["transcribe"]]

    def prepare(self, wavs: Sequence[np.ndarray], requests: Sequence[Request]) -> Prepared:
        """Features, and the decoder's prompts; a language that is not named is filled in by ``complete``."""
        made = self.extractor(list(wavs), sampling_rate=self.sample_rate, padding="max_length", return_tensors="pt")
        return Prepared([self._ids(a) for a in requests], {"input_features": made["input_features"]}, [0] * len(wavs))

    def _ids(self, a: Request) -> Tensor:
        given = self.net.generation_config
        start = given.decoder_start_token_id or self.net.config.decoder_start_token_id
        before: list[int] = list(self.tokenizer.get_prompt_ids(a.prompt)) if a.prompt else []
        middle = list(self.forced)
        if self.multilingual:
            language = a.language or given.language
            middle = [self._language_id(language, self.languages) if language else -1, *middle]
        elif a.language and not re.match(r"(?i)en(glish)?\b", a.language):
            hint = "a model for several languages (without .en), or no language"
            raise UserError("this Whisper writes English alone", f"it was asked for {a.language!r}", hint)
        quiet = getattr(given, "no_timestamps_token_id", None)
        return torch.tensor([*before, start, *middle, *([quiet] if quiet is not None and quiet not in middle else [])])

    @staticmethod
    def _language_id(language: str, known: dict[str, int]) -> int:
        from transformers.models.whisper.tokenization_whisper import TO_LANGUAGE_CODE

        code = TO_LANGUAGE_CODE.get(language.lower(), language.lower())
        if f"<|{code}|>" not in known:
            what = f"Whisper does not know the language {language!r}"
            raise UserError(what, "", "a name or ISO code such as en, or none")
        return known[f"<|{code}|>"]

    def encode(self, prepared: Prepared) -> list[Tensor]:
        """The encoder's output (1500, D) of each clip."""
        return list(self.net.model.encoder(self.place(prepared.features["input_features"])).last_hidden_state)

    def complete(self, ids: Sequence[Tensor], audio: Sequence[Tensor]) -> list[Tensor]:
        """Prompts with the language that the decoder hears, where none was named."""
        made = list(ids)
        if unknown := [i for i, row in enumerate(made) if bool((row < 0).any())]:
            found = self._detect(torch.stack([audio[i].detach() for i in unknown]))
            for i, language in zip(unknown, found, strict=True):
                made[i] = torch.where(made[i] < 0, language, made[i])
        return made

    @torch.no_grad()
    def _detect(self, states: Tensor) -> Tensor:
        """The likeliest language's id (n,): transformers' ``detect_language`` wants encoder and decoder on one device."""
        home, given = self.net.proj_out.weight.device, self.net.generation_config
        start = torch.full((len(states), 1), given.decoder_start_token_id, device=home)
        out = self.net.model.decoder(input_ids=start, encoder_hidden_states=states.to(home), use_cache=False)
        known = torch.tensor(sorted(given.lang_to_id.values()), device=home)
        return known[self.net.proj_out(out.last_hidden_state[:, -1])[:, known].argmax(-1)].cpu()

    def reference(self, text: str, language: str | None = None) -> str:
        """The text with the blank that Whisper writes first."""
        return f" {text}" if text else text


FAMILIES: dict[str, type[Family]] = {
    "fun_asr_nano": FunAsrNano,
    "qwen2_audio": Qwen2Audio,
    "qwen3_asr": Qwen3Asr,
    "voxtral": Voxtral,
    "glmasr": GlmAsr,
    "granite_speech": GraniteSpeech,
    "granite_speech_plus": GraniteSpeech,
    "whisper": Whisper,
    "audioflamingo3": Family,
}


def family_of(model_type: str) -> type[Family]:
    """The family by the config's ``model_type``. Raises ``UserError`` for a model that is none of them."""
    if model_type not in FAMILIES:
        what = f"a model of type {model_type!r} is no recogniser known here"
        raise UserError(what, "its config.json says so", f"a model of type {', '.join(FAMILIES)}")
    return FAMILIES[model_type]
