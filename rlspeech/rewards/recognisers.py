"""Recognisers for rewards: they transcribe waveforms; audio language models also say how likely a text is given a waveform."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.audio import resample
from rlspeech.data.long import cut
from rlspeech.files import parse_json
from rlspeech.plugins import load_function
from rlspeech.rewards.base import FOLDER_HINT, wave_problem
from rlspeech.types import Sample, UserError

# waveforms (T,) and their rate -> transcripts, or why there is none
Transcribe = Callable[[Sequence[np.ndarray], int], Sequence[str | Exception]]
AUDIBLE_S = 0.1  # shorter waveforms are not given to a recogniser
TOKENS_PER_S, LEAST_TOKENS = 12.0, 16  # bound on a transcript
# of the families, those that transformers' pipeline transcribes too, long clips included
OTHERWISE = frozenset({"whisper"})


def load_recogniser(
    name: str, /, device: str = "cpu", language: str | None = None, batch: int = 8, **served: Any
) -> Transcribe:
    """A recogniser by name.

    Args:
        name: ``embedded``, Hub id or folder of an audio language model or of another transformers model (CTC or sequence-to-sequence),
            ``pocketsphinx``, ``http(s)://host/v1#model``, or ``package.module:function`` with ``function(wavs, sample_rate) -> list[str]``.
        device: where it runs.
        language: given to those that take one.
        batch: waveforms at once.
        served: ``name``, ``prompt``, ``timeout_s``, ``retries``, ``concurrency`` of one at an address.

    Raises:
        UserError: it cannot be loaded.
    """
    if re.match(r"https?://", name, re.IGNORECASE):
        from rlspeech.rewards.llm.endpoint import ServedRecogniser

        return ServedRecogniser(name, language, **served)
    if served:
        raise UserError(f"{name} takes no {', '.join(served)}", "only a recogniser at an address does")
    if name == "pocketsphinx":
        return _pocketsphinx()
    if ":" in name and not Path(name).exists():
        function = load_function(name, "recogniser", "def f(wavs, sample_rate) -> list[str]")
        return lambda wavs, rate: [str(t) for t in function(list(wavs), rate)]
    if is_audio_lm(name):
        return AudioRecogniser(name, device, language, batch)
    return _transformers(name, device, language, batch)


def audible(samples: Sequence[Sample]) -> list[int]:
    """Indices of the samples that hold a signal."""
    return [i for i, s in enumerate(samples) if wave_problem(s.wav, s.sample_rate, AUDIBLE_S) is None]


def transcribe_audible(recognise: Transcribe, samples: Sequence[Sample]) -> list[str | Exception]:
    """Transcripts of samples of one rate; "" where there is no signal."""
    texts, rows = list[str | Exception]([""] * len(samples)), audible(samples)
    if rows:
        for i, text in zip(rows, recognise([samples[i].wav for i in rows], samples[0].sample_rate), strict=True):
            texts[i] = text
    return texts


def _pocketsphinx() -> Transcribe:
    try:
        from pocketsphinx import Decoder  # type: ignore[import-not-found, unused-ignore]
    except ImportError as error:
        raise UserError("pocketsphinx is not installed", str(error), "pip install pocketsphinx") from error
    decoder: Any = Decoder(loglevel="FATAL")

    def recognise(wavs: Sequence[np.ndarray], rate: int) -> list[str]:
        texts = []
        for wav in wavs:
            decoder.start_utt()
            decoder.process_raw((np.clip(wav, -1, 1) * 32767).astype(np.int16).tobytes(), full_utt=True)
            decoder.end_utt()
            found = decoder.hyp()
            texts.append(found.hypstr if found else "")
        return texts

    return recognise


def _transformers(name: str, device: str, language: str | None, batch: int) -> Transcribe:
    import transformers

    from rlspeech.models.folder import loading

    with loading(f"the recogniser {name!r}", FOLDER_HINT):
        pipe: Any = transformers.pipeline("automatic-speech-recognition", model=name, device=device)
    options: dict[str, Any] = {"batch_size": batch}
    if language and pipe.model.can_generate():
        options["generate_kwargs"] = {"language": language}

    def recognise(wavs: Sequence[np.ndarray], rate: int) -> list[str]:
        order = sorted(range(len(wavs)), key=lambda i: len(wavs[i]))  # like lengths together: less padding
        answers = pipe([{"raw": wavs[i], "sampling_rate": rate} for i in order], **options)
        texts = dict(zip(order, (str(a["text"]) for a in answers), strict=True))
        return [texts[i] for i in range(len(wavs))]

    return recognise


def is_audio_lm(name: str, whisper: bool = False) -> bool:
    """Whether a recogniser's name is that of an audio language model: 'embedded', a folder or run folder of one, or a Hub id.

    Args:
        name: the recogniser's.
        whisper: count what transformers' pipeline takes too.
    """
    from rlspeech.models.audio_lm.families import FAMILIES
    from rlspeech.models.folder import snapshot

    if name in {"embedded", "tiny"}:
        return True
    path = Path(name)
    found = path / "config.json" if (path / "config.json").is_file() else None
    if found is None and path.is_dir():
        found = next(iter(sorted(path.glob("checkpoints/*/config.json"))), None)
    elif found is None and name.count("/") == 1 and (cached := snapshot(name)):
        found = cached / "config.json"
    try:
        kind = parse_json(found.read_bytes()).get("model_type") if found else None
    except (OSError, ValueError, AttributeError):
        return False  # whoever loads it says what is wrong with it
    return kind in FAMILIES and (whisper or kind not in OTHERWISE)


class AudioRecogniser:
    """An ``AudioLM`` as a recogniser; called with waveforms and their rate it transcribes greedily.

    Args:
        name: as ``models.audio_lm.load_audio_lm`` takes it.
        device: where it runs.
        language: of all waveforms; None lets the model find out.
        batch: waveforms, or pieces of long ones, at once.

    Raises:
        UserError: no such model.
    """

    def __init__(self, name: str, device: str = "cpu", language: str | None = None, batch: int = 8) -> None:
        from rlspeech.models.audio_lm.model import load_audio_lm

        self.lm: Any = load_audio_lm(name, device)[0]
        self._language, self._batch = language, max(1, batch)

    @property
    def guess_nll(self) -> float:
        """NLL a piece of a text that nothing is known of: every piece as likely as any other."""
        return math.log(self.lm.net.get_output_embeddings().weight.shape[0])

    def __call__(self, wavs: Sequence[np.ndarray], rate: int) -> list[str]:
        """Transcripts, as the model writes them; what is longer than it takes at once is cut at pauses."""
        whole = [resample(w, rate, self.lm.sample_rate) for w in wavs]
        pieces = [(i, w[a:b]) for i, w in enumerate(whole) for a, b in cut(w, self.lm.sample_rate, self.lm.max_s)]
        made = [""] * len(pieces)
        for part in _by_length([len(p) for _, p in pieces], self._batch):
            prompts = self.lm.encode([pieces[k][1] for k in part], language=self._language)
            longest = max(len(pieces[k][1]) for k in part) / self.lm.sample_rate
            generated = self.lm.generate(prompts, max_new_tokens=max(LEAST_TOKENS, math.ceil(TOKENS_PER_S * longest)))
            for k, text in zip(part, self.lm.text(generated.ids, generated.mask), strict=True):
                made[k] = text
        texts = [""] * len(wavs)
        for (i, _), text in zip(pieces, made, strict=True):
            texts[i] = f"{texts[i]} {text}".strip()
        return texts

    def nll(self, wavs: Sequence[np.ndarray], rate: int, texts: Sequence[str]) -> list[float]:
        """Mean NLL in nats of each text's pieces, the stop among them, given its waveform; of a long one, given what the model takes."""
        import torch

        out = [0.0] * len(wavs)
        whole = [resample(w, rate, self.lm.sample_rate) for w in wavs]
        for part in _by_length([len(w) for w in whole], self._batch):
            with torch.no_grad():
                prompts = self.lm.encode([whole[k] for k in part], language=self._language)
                ids, mask = self.lm.references([texts[k] for k in part], self._language)
                logp = self.lm.forward_logits(prompts, range(len(part)), ids, restricted=False).log_softmax(-1).cpu()
            logp_of = logp.gather(-1, ids[..., None])[..., 0].masked_fill(~mask, 0.0)
            for k, value in zip(part, (-logp_of.sum(1) / mask.sum(1)).tolist(), strict=True):
                out[k] = value
        return out


def _by_length(lengths: Sequence[int], batch: int) -> list[list[int]]:
    """Batches of indices, like lengths together."""
    order = sorted(range(len(lengths)), key=lengths.__getitem__)
    return [order[i : i + batch] for i in range(0, len(order), batch)]
