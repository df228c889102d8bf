"""Any audio language model of transformers as a describer, the embedded listener among them.

The textbook use is one conversation a clip through the processor's chat template. Here clips of like length share a batch, padded on
the left so that every answer begins where its question ends; models with a voice of their own (Qwen omni) are loaded without it; a
model whose processor has no chat template gets its audio token and the prompt. Decoding is greedy unless a temperature is given: a
reward should answer the same clip with the same number. Code that comes with a checkpoint is never run.
"""

from __future__ import annotations

import base64
import copy
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlspeech import log
from rlspeech.data.audio import resample
from rlspeech.files import digest_of, read_object
from rlspeech.models.folder import loading, pretrained, quietly
from rlspeech.models.hub import embedded_path
from rlspeech.rewards.client import wav_bytes
from rlspeech.rewards.llm.describe import EMBEDDED, SAMPLE_RATE, Description, clean_answer, read_prompts
from rlspeech.types import UserError

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_THINKERS = (("qwen2_5_omni", "Qwen2_5Omni"), ("qwen3_omni_moe", "Qwen3OmniMoe"))
TEXT_ONLY = {kind: f"{name}ThinkerForConditionalGeneration" for kind, name in _THINKERS}
OWN_WINDOWS = frozenset({"voxtral", "voxtral_realtime"})  # cut long audio themselves
HINT = "give a folder with config.json, weights and processor, or a Hub id with the network at hand"
HEAD = 1 << 20
MAX_NEW = 200  # tokens of an answer by default


class AudioLlm:
    """A local audio language model.

    Args:
        name: 'embedded', Hub id or folder.
        prompt: what is asked; None takes the prompt that the folder's ``rlspeech.json`` names, else the first of the shipped list.
        device: where it runs, unless ``device_map`` says otherwise.
        temperature: 0 always takes the likeliest word.
        dtype: auto (bf16 on a GPU that has it, else fp16; fp32 on a CPU), bf16, fp16 or fp32.
        device_map: as in transformers ("auto" spreads a large model over all GPUs and memory).
        max_new_tokens: longest answer; None takes 200, or less where the checkpoint says so.
        batch: clips at once; halved when memory runs out.
        max_s: longest stretch taken at once; None asks the processor.
        seed: of sampled answers.

    Raises:
        UserError: not found, not loadable, or not a model that takes audio and answers in text.
    """

    def __init__(
        self,
        name: str,
        *,
        prompt: str | None = None,
        device: str = "cpu",
        temperature: float = 0.0,
        dtype: str = "auto",
        device_map: str | None = None,
        max_new_tokens: int | None = None,
        batch: int = 8,
        max_s: float | None = None,
        seed: int = 0,
    ) -> None:
        if dtype not in ("auto", *DTYPES):
            raise UserError(f"no precision is called {dtype!r}", "", f"dtype=auto, {', '.join(DTYPES)}")
        tokens, longest_s = (1 if v is None else v for v in (max_new_tokens, max_s))
        if batch < 1 or tokens < 1 or temperature < 0 or longest_s <= 0:
            what = "the describer's batch, max_new_tokens, temperature or max_s cannot be used"
            raise UserError(what, "one of them is too small")
        path = str(embedded_path("listener")) if name == EMBEDDED else name
        own = read_object(Path(path) / "rlspeech.json").get("prompt")  # the question that a listener was trained on
        self.prompt = prompt or (own if isinstance(own, str) else "") or read_prompts()[0]
        self.batch, self.temperature, self.seed = batch, temperature, seed
        with quietly(name == EMBEDDED or log.quiet):
            self._processor, self._model, kind = _load(path, _dtype(dtype, device), device, device_map)
        self._tokenizer = getattr(self._processor, "tokenizer", self._processor)
        self._tokenizer.padding_side = "left"
        if self._tokenizer.pad_token_id is None and self._tokenizer.eos_token is not None:
            self._tokenizer.pad_token = self._tokenizer.eos_token
        extractor = getattr(self._processor, "feature_extractor", None)
        self._rate = int(getattr(extractor, "sampling_rate", SAMPLE_RATE))
        self.max_s = max_s
        if max_s is None and kind not in OWN_WINDOWS:
            self.max_s = _longest_s(self._processor, extractor, self._rate)
        self._text = None
        if not _only_templates(self._processor):
            self._text = _question(self._processor, self._tokenizer, self.prompt, name)
        if self._text is not None and self.prompt not in self._text:
            self.prompt = "none, its template takes no question"
        own_limit = self._model.generation_config.max_new_tokens or MAX_NEW
        max_new_tokens = min(own_limit, MAX_NEW) if max_new_tokens is None else max_new_tokens
        self._decoding = _decoding(self._model, self._tokenizer, temperature, max_new_tokens)
        how = "greedy" if temperature == 0 else f"temperature {temperature:g}, seed {seed}"
        weights = f"{weights_id(path, self._model.config)} ({str(self._model.dtype).removeprefix('torch.')})"
        self.version = f"{name} {weights}, {how}, at most {max_new_tokens} tokens, prompt: {self.prompt}"

    def describe(self, wavs: Sequence[np.ndarray]) -> list[Description]:
        order = sorted(range(len(wavs)), key=lambda i: len(wavs[i]))
        answers: list[Description] = [Description(None, "not asked")] * len(wavs)
        at = 0
        while at < len(order):
            part = order[at : at + self.batch]
            try:
                texts = self._generate([wavs[i] for i in part], at)
            except (torch.OutOfMemoryError, MemoryError):
                if torch.cuda.is_available():
                    torch.cuda.empty_cache()
                if len(part) > 1:
                    self.batch = max(1, len(part) // 2)
                    continue
                answers[part[0]] = Description(None, "out of memory")
                at += 1
                continue
            for i, text in zip(part, texts, strict=True):
                answers[i] = clean_answer(text)
            at += len(part)
        return answers

    def _generate(self, wavs: list[np.ndarray], at: int) -> list[str]:
        if self._rate != SAMPLE_RATE:
            wavs = [resample(w, SAMPLE_RATE, self._rate) for w in wavs]
        inputs = self._inputs([np.ascontiguousarray(w, dtype=np.float32) for w in wavs])
        device, dtype = self._model.device, self._model.dtype
        tensors = {k: v.to(device) for k, v in inputs.items() if isinstance(v, torch.Tensor)}
        ready = {k: v.to(dtype) if v.is_floating_point() else v for k, v in tensors.items()}
        devices = [device] if device.type == "cuda" else []
        with torch.inference_mode(), torch.random.fork_rng(devices, enabled=self.temperature > 0):
            if self.temperature > 0:
                torch.manual_seed(self.seed + at)
            out = self._model.generate(**ready, generation_config=copy.deepcopy(self._decoding))
        ids = out[0] if isinstance(out, tuple) else getattr(out, "sequences", out)
        ids = ids[:, ready["input_ids"].shape[1] :]
        return [str(t) for t in self._tokenizer.batch_decode(ids, skip_special_tokens=True)]

    def _inputs(self, wavs: list[np.ndarray]) -> dict[str, Any]:
        if self._text is not None:
            start = self._tokenizer.bos_token
            options: dict[str, Any] = {"sampling_rate": self._rate, "padding": True, "return_tensors": "pt"}
            if start and self._text.startswith(start):  # written by the template: not twice
                options["add_special_tokens"] = False
            return dict(self._processor(text=[self._text] * len(wavs), audio=wavs, **options))
        talks = []
        for wav in wavs:
            sound = {"type": "audio", "base64": base64.b64encode(wav_bytes(wav, self._rate)).decode("ascii")}
            talks.append([{"role": "user", "content": [sound, {"type": "text", "text": self.prompt}]}])
        return dict(self._processor.apply_chat_template(talks))


def weights_id(path: str, config: Any) -> str:
    """Short identity of a checkpoint: the commit of a Hub model, else a digest of config, sizes and the ends of the weight files."""
    folder = Path(path)
    if not folder.is_dir():
        commit = getattr(config, "_commit_hash", None)
        return f"@{str(commit)[:8]}" if commit else ""
    return f"@{digest_of(folder, HEAD)[:8]}"


def _dtype(name: str, device: str) -> torch.dtype:
    if name != "auto":
        return DTYPES[name]
    if device.startswith("cuda") and torch.cuda.is_available():
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.float32


def _load(path: str, dtype: torch.dtype, device: str, device_map: str | None) -> tuple[Any, Any, str]:
    """Processor, model in evaluation mode, model type."""
    import transformers

    with loading(f"the describer {path!r}", HINT):
        config = pretrained(transformers.AutoConfig, path)
        processor: Any = pretrained(transformers.AutoProcessor, path)
        kind = str(config.model_type)
        placed = {"device_map": device_map} if device_map else {}
        model, problem = None, ValueError(f"transformers {transformers.__version__} has no class for {kind}")
        for cls in _classes(transformers, config):
            try:
                model = pretrained(cls, path, dtype=dtype, **placed)
                break
            except ValueError as error:  # an auto class that does not know this config
                problem = error
        if model is None:
            raise problem
    if not hasattr(model, "generate") or getattr(processor, "feature_extractor", None) is None:
        why = f"{type(model).__name__} does not take audio and answer in text"
        raise UserError(f"{path!r} is no describer", why, HINT)
    model.requires_grad_(False)
    return processor, (model.eval() if device_map else model.eval().to(device)), kind


def _classes(transformers: Any, config: Any) -> list[Any]:
    """Classes to try, the best first."""
    auto = getattr(transformers, "AutoModelForMultimodalLM", None)
    named = [TEXT_ONLY[config.model_type]] if config.model_type in TEXT_ONLY else []
    found = [c for n in (*named, *(config.architectures or [])) if (c := getattr(transformers, n, None)) is not None]
    return [c for c in (*found[: len(named)], auto, *found[len(named) :]) if c is not None]


def _longest_s(processor: Any, extractor: Any, rate: int) -> float | None:
    """Longest stretch in seconds: the processor's own limit (Audio Flamingo), else the extractor's window."""
    for owner, name in ((processor, "max_audio_len"), (extractor, "chunk_length")):
        value = getattr(owner, name, None)
        if isinstance(value, int | float) and value > 0:
            return float(value)
    samples = getattr(extractor, "n_samples", None)
    return samples / rate if isinstance(samples, int) and samples > 0 else None


def _only_templates(processor: Any) -> bool:
    """Whether a processor takes audio through its chat template alone (Voxtral)."""
    return "audio" not in inspect.signature(type(processor).__call__).parameters


def _question(processor: Any, tokenizer: Any, prompt: str, name: str) -> str:
    """The text that is tokenised, with one audio token; without the prompt where the template knows one question only."""
    token = getattr(processor, "audio_token", None) or getattr(tokenizer, "audio_token", None)
    token = str(token) if token else None
    if token and token in prompt:
        raise UserError(f"the prompt holds {token!r}", f"for {name} this word stands for the audio", "another prompt")
    template = getattr(processor, "chat_template", None) or getattr(tokenizer, "chat_template", None)
    if template:
        owner = processor if getattr(processor, "chat_template", None) else tokenizer
        mute = ""
        for content in ([{"type": "audio"}, {"type": "text", "text": prompt}], f"{token or ''}{prompt}"):
            talk = [{"role": "user", "content": content}]
            try:
                text = owner.apply_chat_template(talk, add_generation_prompt=True, tokenize=False)
            except Exception:  # jinja's errors: a template for plain strings given parts, or the other way round
                continue
            if isinstance(text, str) and (token is None or text.count(token) == 1):
                if prompt in text:
                    return text
                mute = mute or (text if token else "")
        if mute:
            return mute
    if token:
        marks = [str(getattr(processor, m, "") or "") for m in ("audio_bos_token", "audio_eos_token")]
        known = tokenizer.get_vocab()
        first, last = (m if m in known else "" for m in marks)
        return f"{first}{token}{last}{prompt}"
    why = "its processor has neither a chat template that takes audio nor an audio token"
    raise UserError(f"cannot ask {name}", why, HINT)


def _decoding(model: Any, tokenizer: Any, temperature: float, max_new_tokens: int) -> Any:
    """The model's own generation config (its stop tokens count), with our choice of greedy or sampled."""
    config = copy.deepcopy(model.generation_config)
    config.max_new_tokens, config.max_length, config.num_beams, config.num_return_sequences = max_new_tokens, None, 1, 1
    config.do_sample = temperature > 0
    if temperature > 0:
        config.temperature = temperature
    else:
        config.temperature = config.top_p = config.top_k = None
    if config.pad_token_id is None:
        config.pad_token_id = tokenizer.pad_token_id
    return config
