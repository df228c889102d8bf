"""Recognisers: they transcribe waveforms; audio language models also say how likely a text is given a waveform.

An audio language model (Whisper is one) is decoded by ``Recogniser``, whether it transcribes, is evaluated or judges: greedily, unless
beams are asked for, and cut at pauses where a recording is longer than the model takes at once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from rlspeech.config_parts import Sampling
from rlspeech.data.audio import resample
from rlspeech.data.long import cut
from rlspeech.data.text import written_in_characters
from rlspeech.files import read_object
from rlspeech.parallel import one_by_one
from rlspeech.plugins import load_function
from rlspeech.rewards.base import FOLDER_HINT, wave_problem
from rlspeech.types import Sample, UserError

if TYPE_CHECKING:
    from rlspeech.models.audio_lm.model import AudioLM

# waveforms (T,) and their rate -> transcripts, or why there is none
Transcribe = Callable[[Sequence[np.ndarray], int], Sequence[str | Exception]]
AUDIBLE_S = 0.1  # shorter waveforms are not given to a recogniser
SHORTEST_S = 0.1  # shorter input is padded with silence: a front end needs a few frames
FEWEST_TOKENS = 16


def load_recogniser(
    name: str, /, device: str = "cpu", language: str | None = None, batch: int = 8, **more: Any
) -> Transcribe:
    """A recogniser by name.

    Args:
        name: ``embedded``, Hub id, folder or run folder of an audio language model, Hub id or folder of another transformers model (CTC or
            sequence-to-sequence), ``pocketsphinx``, ``http(s)://host/v1#model``, or ``package.module:function`` with
            ``function(wavs, sample_rate) -> list[str]``.
        device: where it runs.
        language: given to those that take one.
        batch: waveforms at once.
        more: ``name``, ``prompt``, ``timeout_s``, ``retries``, ``concurrency`` of one at an address; ``beams`` of a model, 1 is greedy.

    Raises:
        UserError: it cannot be loaded.
    """
    if re.match(r"https?://", name, re.IGNORECASE):
        from rlspeech.rewards.llm.endpoint import ServedRecogniser

        return ServedRecogniser(name, language, **more)
    own = ":" in name and not Path(name).exists()
    beams = 1 if own or name == "pocketsphinx" else more.pop("beams", 1)
    if more:
        raise UserError(f"{name} takes no {', '.join(more)}", "it is no recogniser that does", "leave it out")
    if name == "pocketsphinx":
        return _pocketsphinx()
    if own:
        function = load_function(name, "recogniser", "def f(wavs, sample_rate) -> list[str]")
        return lambda wavs, rate: [str(t) for t in function(list(wavs), rate)]
    if is_audio_lm(name):
        from rlspeech.models.audio_lm.model import load_audio_lm

        lm, how = load_audio_lm(name, device)[0], Sampling(language=language)
        return Recogniser(lm, sampling=how, beams=beams, batch=batch, name=name)
    return _transformers(name, device, language, batch, beams)


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


def _transformers(name: str, device: str, language: str | None, batch: int, beams: int) -> Transcribe:
    import transformers

    from rlspeech.models.folder import loading, pretrained

    with loading(f"the recogniser {name!r}", FOLDER_HINT):
        pretrained(transformers.AutoConfig, name)
        pipe: Any = transformers.pipeline("automatic-speech-recognition", model=name, device=device)
    options: dict[str, Any] = {"batch_size": batch}
    if pipe.model.can_generate():
        options["generate_kwargs"] = {"num_beams": beams, **({"language": language} if language else {})}
    elif beams != 1:
        raise UserError(f"{name} searches no beams", "it is a CTC model", "leave them out")

    def recognise(wavs: Sequence[np.ndarray], rate: int) -> list[str]:
        order = sorted(range(len(wavs)), key=lambda i: len(wavs[i]))  # like lengths together: less padding
        answers = pipe([{"raw": wavs[i], "sampling_rate": rate} for i in order], **options)
        texts = dict(zip(order, (str(a["text"]) for a in answers), strict=True))
        return [texts[i] for i in range(len(wavs))]

    return recognise


def is_audio_lm(name: str) -> bool:
    """Whether 'embedded', a folder, a run folder or a Hub id is that of an audio language model. Raises ``UserError``: no model there."""
    from rlspeech.models.audio_lm.families import FAMILIES
    from rlspeech.models.folder import snapshot
    from rlspeech.models.hub import find_checkpoint

    folder = find_checkpoint(name, "asr") or snapshot(name)
    return folder is not None and read_object(folder / "config.json").get("model_type") in FAMILIES


@dataclass(frozen=True, slots=True)
class Transcript:
    """One recording's raw decode, and how many of its pieces ran into the limit of tokens."""

    text: str
    pieces: int = 1
    truncated: int = 0


class Recogniser:
    """Greedy or beam decoding with an audio language model; called with waveforms and their rate it is a ``Transcribe``.

    Args:
        model: as ``load_audio_lm`` gives it.
        sampling: language, prompt and length; temperature and truncation are not used.
        beams: of the search; 1 is greedy.
        batch: pieces at once.
        name: what the model was loaded as.
    """

    def __init__(self, model: AudioLM, *, sampling: Sampling, beams: int = 1, batch: int = 8, name: str = "") -> None:
        self.model, self.sampling, self.beams, self.batch = model, sampling, beams, max(1, batch)
        greedy = ", greedy" if getattr(model, "model_type", "") == "whisper" else ""  # it once had its config's beams
        self.version = name + (f", {beams} beams" if beams > 1 else greedy)
        self.sample_rate, self.max_s = int(model.sample_rate), float(model.max_s)

    def whole(self, wavs: Sequence[np.ndarray]) -> list[Transcript | Exception]:
        """Recordings (T_i,) float32 at ``sample_rate``; those longer than the model's limit are cut at pauses and joined."""
        cuts = [cut(w, self.sample_rate, self.max_s) for w in wavs]
        parts = self.short([w[a:b] for w, places in zip(wavs, cuts, strict=True) for a, b in places])
        made, at = list[Transcript | Exception](), 0
        for places in cuts:
            own, at = parts[at : at + len(places)], at + len(places)
            failed = next((p for p in own if isinstance(p, Exception)), None)
            good = [p for p in own if isinstance(p, Transcript)]
            text, truncated = join_texts([p.text for p in good]), sum(p.truncated for p in good)
            made.append(failed or Transcript(text, len(own), truncated))
        return made

    def short(self, wavs: Sequence[np.ndarray]) -> list[Transcript | Exception]:
        """Pieces that are no longer than the model's limit, like lengths together, in their order."""
        made: dict[int, Transcript | Exception] = {}
        for part in self._batches(wavs):
            made.update(zip(part, one_by_one(self._decode, [wavs[i] for i in part], raised=()), strict=True))
        return [made[i] for i in range(len(wavs))]

    def _batches(self, wavs: Sequence[np.ndarray]) -> list[list[int]]:
        order = sorted(range(len(wavs)), key=lambda i: len(wavs[i]))
        return [order[at : at + self.batch] for at in range(0, len(order), self.batch)]

    def _decode(self, wavs: Sequence[np.ndarray]) -> list[Transcript]:
        import torch

        how, shortest = self.sampling, int(SHORTEST_S * self.sample_rate)
        padded = [np.pad(w, (0, max(0, shortest - len(w)))) for w in wavs]
        seconds = max(len(w) for w in padded) / self.sample_rate
        tokens = how.max_new_tokens or max(FEWEST_TOKENS, math.ceil(how.tokens_per_s * seconds))
        given: dict[str, Any] = {k: v for k, v in (("language", how.language), ("prompt", how.prompt)) if v is not None}
        with torch.no_grad():
            encoded = self.model.encode(padded, **given)
            generated = self.model.generate(encoded, max_new_tokens=tokens, beams=self.beams)
            texts = self.model.text(generated.ids, generated.mask)
        return [Transcript(t, 1, int(not f)) for t, f in zip(texts, generated.finished.tolist(), strict=True)]

    @property
    def guess_nll(self) -> float:
        """NLL a piece of a text that nothing is known of: every piece as likely as any other."""
        return math.log(self.model.net.get_output_embeddings().weight.shape[0])

    def __call__(self, wavs: Sequence[np.ndarray], rate: int) -> list[str | Exception]:
        """Transcripts, as the model writes them, or why there is none. Raises ``UserError``: a language that the model does not take."""
        made = self.whole([resample(w, rate, self.sample_rate) for w in wavs])
        if wrong := [m for m in made if isinstance(m, UserError)]:
            raise wrong[0]
        return [m.text.strip() if isinstance(m, Transcript) else m for m in made]

    def nll(self, wavs: Sequence[np.ndarray], rate: int, texts: Sequence[str]) -> list[float]:
        """Mean NLL in nats of each text's pieces, the stop among them, given its waveform; of a long one, given what the model takes."""
        import torch

        out = [0.0] * len(wavs)
        whole = [resample(w, rate, self.sample_rate) for w in wavs]
        for part in self._batches(whole):
            with torch.no_grad():
                prompts = self.model.encode([whole[k] for k in part], language=self.sampling.language)
                ids, mask = self.model.references([texts[k] for k in part], self.sampling.language)
                logp = self.model.forward_logits(prompts, range(len(part)), ids, restricted=False).log_softmax(-1).cpu()
            logp_of = logp.gather(-1, ids[..., None])[..., 0].masked_fill(~mask, 0.0)
            for k, value in zip(part, (-logp_of.sum(1) / mask.sum(1)).tolist(), strict=True):
                out[k] = value
        return out


def join_texts(texts: Sequence[str]) -> str:
    """Texts of neighbouring pieces as one: with a space between them where their writing has spaces. A single one comes back as it is."""
    if len(texts) <= 1:
        return "".join(texts)
    joined = ""
    for text in (t.strip() for t in texts):
        spaced = not (joined and text and written_in_characters(joined[-1]) and written_in_characters(text[0]))
        joined += (" " if joined and text and spaced else "") + text
    return joined
