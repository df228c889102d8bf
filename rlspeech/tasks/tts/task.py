"""Synthesis: transcribed recordings become batches for ``pretrain``, and a codec language model becomes a policy for ``rl``.

``pretrain`` trains the small model of ``models/codec/lm.py`` from nothing: cross-entropy of a recording's codec ids, half of the time
with another recording of the same speaker (and its text) before them, as a voice prompt will be. ``rl``, ``eval`` and ``speak`` take any
causal language model with a codec in its vocabulary.

Whose voice it is belongs to the row, never to chance at scoring time: ``prompt_filepath`` and ``prompt_text`` of the manifest. A row
without a prompt lends its own recording's voice to the codec, and the language model begins with nothing.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import RL, Evaluate, Pretrain, RewardSpec
from rlspeech.config_parts import SPEAKING, Sampling
from rlspeech.data.audio import AudioError, load_audio
from rlspeech.data.batches import Clip, seed_of
from rlspeech.data.manifest import recordings
from rlspeech.log import warn
from rlspeech.models.codec.lm import CodecLM, Line, build_codec_lm, load_codec_lm, save_codec_lm
from rlspeech.run import Run
from rlspeech.scores import step_name
from rlspeech.stats import mean_interval
from rlspeech.tasks.base import Numbers, Task, keep_samples, means_of, set_anew
from rlspeech.tasks.token_policy import RL_DEFAULTS, ROWS, TOKEN_SETTINGS, check_texts, rows_of, token_logp
from rlspeech.tasks.tts.best import BestOf
from rlspeech.tasks.tts.policy import SLOWEST, TtsPolicy, longest
from rlspeech.types import Sample, SoftReward, Utterance

PROMPTED = 0.5  # share of training rows with a prompt, where the speaker has another recording
REPLACED = 0.1  # of a training row's ids, at most: what the model goes on from will be its own, and not always right
BATCH = 32


@dataclass
class TtsBatch:
    """B recordings as rows."""

    lines: list[Line]  # what is before the answer
    ids: Tensor  # (B, S) long, ids of the slice, with the stop
    inputs: Tensor  # (B, S) long, the same as the model sees them, some replaced
    mask: Tensor  # (B, S) bool


class Tts(Task):
    """The task ``tts``. Codes of recordings and prompts are kept: a codec costs more than a training step."""

    name = "tts"
    required = frozenset({"audio_filepath", "text"})
    settings = TOKEN_SETTINGS | {
        *(f"diffro.{key}" for key in "tau tau_end hard mode noise content_weight attribute_weights reduction".split()),
        *("sampling.temperature", "sampling.top_p", "sampling.top_k"),
        *("valid_draws", "tts", "recogniser", "anchors", "best_of", "judge"),
    }
    climbs = ("token_",)
    diffro_guards: ClassVar[dict[str, float | None]] = {"tts_accuracy": None}
    valid_metrics = ("tts_cer",)
    next_command = "rlspeech rl --task tts --model {run}, or rlspeech speak TEXT --model {run}"
    relaxes = True
    default_rewards = tuple(RewardSpec(name=name, scale="none") for name in ("tts_accuracy", "tts_duration"))
    guard_limits: ClassVar[dict[str, float]] = {  # content rewards are known to spoil these
        "tts_cer": 0.05,
        "tts_stopped": 0.05,
        "tts_duration_drift": 0.15,
        "speaker_similarity": 0.05,
        "tts_pitch_std": 0.08,
        "dnsmos_ovrl": 0.2,
    }
    default_guards = (*guard_limits, "tts_duration_ratio")  # the ratio has no worse side: it is watched
    default_metrics = (
        *("tts_cer", "tts_wer", "speaker_similarity", "dnsmos", "tts_pitch_std"),
        *("tts_duration_ratio", "tts_duration_drift", "tts_stopped"),
    )
    rl_defaults: ClassVar[dict[str, Any]] = {**RL_DEFAULTS, "kl_beta": 0.1, "sampling": Sampling(temperature=SPEAKING)}

    def climbed_rewards(self, config: RL) -> list[RewardSpec]:
        model = "" if config.diffro.reward == "embedded" else f"[model={config.diffro.reward}]"
        return [RewardSpec(name=f"token_posterior{model}", scale="none")]

    def soft_reward(self, config: RL, device: torch.device | str = "cpu") -> SoftReward:
        from rlspeech.rewards.soft import SoftTokenReward

        cfg = config.diffro
        return SoftTokenReward(cfg.reward, cfg.content_weight, cfg.attribute_weights, device, cfg.reduction == "sum")

    def __init__(self) -> None:
        self._crowded, self._codes = False, dict[tuple[str, str], np.ndarray]()
        self._voices: dict[tuple[str, int], np.ndarray] = {}
        self._speakers: dict[str, list[Utterance]] = {}
        self._prompts: dict[tuple[str, float], list[Utterance]] = {}

    # -- supervised training -------------------------------------------------------------------------------------------

    def build(self, config: Pretrain) -> CodecLM:
        """Fresh weights with a tokenizer trained on the data's texts, or ``init``'s. Raises ``UserError``: no texts, no codec."""
        rows = recordings(rows_of(config.data), config.data or "the embedded corpus")
        for u in rows:
            if u.speaker_id is not None and u.text:
                self._speakers.setdefault(u.speaker_id, []).append(u)
        if config.init is None:
            return build_codec_lm(config.tts, [u.text for u in rows if u.text])
        model, _ = load_codec_lm(config.init)
        model.layout = replace(model.layout, **set_anew(config.init, config.tts, model.cfg, {"prompt_s", "max_s"}))
        model.max_s = model.layout.max_s
        return model

    load, save = staticmethod(load_codec_lm), staticmethod(save_codec_lm)

    def collate(
        self, clips: Sequence[Clip], model: CodecLM, device: torch.device | str = "cpu", *, train: bool = True
    ) -> TtsBatch:
        """Ids of clips and what is before them; with ``train`` some rows get a prompt. Draws from torch's generator.

        Raises:
            UserError: a clip has no text.
        """
        check_texts(clips, "a synthesiser")
        codes = self.recorded(clips, model)
        if train:
            draws = torch.rand(2, len(clips)).T.tolist()
            lines = [self._prompted(c, model, *draw) for c, draw in zip(clips, draws, strict=True)]
        else:
            lines = [self.line(c, model) for c in clips]
        lines = [x if model.fits(x, len(c) + 1) else Line(x.text) for x, c in zip(lines, codes, strict=True)]
        ids, mask = model.references(codes)
        inputs = ids
        if train:
            share = REPLACED * torch.rand(len(ids), 1)
            other = torch.randint(model.size, ids.shape)
            inputs = torch.where((torch.rand(ids.shape) < share) & (ids < model.size), other, ids)
        return TtsBatch(lines, ids.to(device), inputs.to(device), mask.to(device))

    def _prompted(self, clip: Clip, model: CodecLM, share: float, which: float) -> Line:
        """The clip's line with its own prompt, or with another recording of the speaker's before it."""
        if share >= PROMPTED:
            return Line(clip.text or "")
        line = self.line(clip, model)
        if model.fits(line):
            return line
        others = self._short(str(clip.columns.get("speaker_id")), model.layout.prompt_s)
        at = int(which * len(others))
        if others and others[at].id == clip.key:
            at = (at + 1) % len(others)
        if not others or others[at].id == clip.key:
            return line
        other = others[at]
        try:
            return Line(clip.text or "", other.text, self._recorded(other, model))
        except AudioError:  # reported by check; training goes on without this prompt
            return line

    def _short(self, speaker: str, prompt_s: float) -> list[Utterance]:
        """A speaker's recordings that can be prompts, looked for once: a speaker may have tens of thousands."""
        if (speaker, prompt_s) not in self._prompts:
            self._prompts[speaker, prompt_s] = [u for u in self._speakers.get(speaker, ()) if u.duration <= prompt_s]
        return self._prompts[speaker, prompt_s]

    def _recorded(self, utt: Utterance, model: CodecLM) -> Tensor:
        name, wav = f"file {utt.audio_filepath} {utt.offset}", np.zeros(0, np.float32)
        if (model.layout.codec, name) not in self._codes:
            wav = load_audio(utt.audio_filepath, model.sample_rate, utt.offset, utt.duration)
        return self.codes([(name, wav)], model)[0]

    def pretrain_loss(self, model: CodecLM, batch: TtsBatch, config: Pretrain) -> dict[str, Tensor]:
        """``loss`` = cross-entropy of the ids among codes and stop; ``right``: share guessed right; ``stop``: its part at the stops."""
        prompts = model.encode(batch.lines)
        logits = model.head(model.forward_states(prompts, range(len(prompts)), batch.inputs)[batch.mask]).float()
        truth = batch.ids[batch.mask]
        each = torch.nn.functional.cross_entropy(logits, truth, reduction="none")
        return {
            "loss": each.mean(),
            "right": (logits.detach().argmax(-1) == truth).float().mean(),
            "stop": each.detach()[truth == model.stop].mean(),
        }

    @torch.no_grad()
    def validate(
        self, model: CodecLM, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0
    ) -> Numbers:
        """Cross-entropy on recordings, and speech of their texts: stop rate, length against the recording's, scores."""
        batch = self.collate(clips, model, model.device, train=False)
        nll, count = 0.0, 0
        for at in range(0, len(clips), BATCH):
            part = slice(at, at + BATCH)
            ids, mask = batch.ids[part], batch.mask[part]
            logits = model.forward_logits(model.encode(batch.lines[part]), range(len(ids)), ids)
            nll, count = nll - float(token_logp(logits, ids)[mask].sum()), count + int(mask.sum())
        samples = self.synthesise(model, clips, seed=seed)
        keep_samples(folder.path / "samples" / step_name(step), samples, 4)
        known = [(s.tokens, c) for s, c in zip(samples, clips, strict=True) if s.tokens is not None and len(c.target)]
        ratios = [len(t) / (len(c.target) / c.sample_rate / model.layout.frame_s) for t, c in known]
        return {
            "nll": nll / max(count, 1),
            "stopped": mean_interval([s.finished for s in samples]),
            "length_ratio": mean_interval(ratios),
            **means_of(scorer.score(samples)),
        }

    # -- speech ----------------------------------------------------------------------------------------------------------

    def codes(self, wavs: Sequence[tuple[str, np.ndarray]], model: CodecLM) -> list[Tensor]:
        """Codec ids (T_i,) long of named waveforms at the model's rate; a name is encoded once, and an empty waveform has none."""
        codec = model.layout.codec
        new = {key: wav for key, wav in wavs if (codec, key) not in self._codes}
        sound = [k for k, w in new.items() if len(w)]
        self._codes |= {(codec, k): np.zeros(0, np.int32) for k in new.keys() - set(sound)}
        if sound:
            for key, ids in zip(sound, model.codec.encode([new[k] for k in sound]), strict=True):
                self._codes[codec, key] = ids.cpu().numpy().astype(np.int32)
        return [torch.from_numpy(self._codes[codec, key].astype(np.int64)) for key, _ in wavs]

    def recorded(self, clips: Sequence[Clip], model: CodecLM) -> list[Tensor]:
        """Codec ids (T_i,) of clips' recordings."""
        return self.codes([(f"clip {c.key} {len(c.target)}", c.target) for c in clips], model)

    def line(self, clip: Clip, model: CodecLM) -> Line:
        """The line of a clip, after its prompt where the row has one that can be read and leaves room. Raises ``UserError``: no codec."""
        path, text = clip.columns.get("prompt_filepath"), clip.columns.get("prompt_text")
        if not path or not text or model.layout.prompt_s == 0:
            return Line(clip.text or "")
        voice = self._prompt(str(path), model.sample_rate)
        if not len(voice) or len(voice) > model.layout.prompt_s * model.sample_rate:
            return Line(clip.text or "")
        line = Line(clip.text or "", str(text), self.codes([(f"prompt {path}", voice)], model)[0])
        needed_s = max(len(clip.target) / clip.sample_rate, len(line.text.encode()) / (3 * SLOWEST))
        if model.fits(line, int(needed_s / model.layout.frame_s) + 1):
            return line
        if not self._crowded:
            warn(f"{path} lends its voice alone: with it, {needed_s:.1f} s do not fit {model.positions} positions")
        self._crowded = True
        return Line(line.text)

    def voice(self, clip: Clip, model: CodecLM) -> np.ndarray | None:
        """Speech (T,) at the model's rate in the voice that is wanted: the row's prompt, else its recording, else None."""
        path = clip.columns.get("prompt_filepath")
        found = self._prompt(str(path), model.sample_rate) if path else clip.target
        return found if len(found) else None

    def _prompt(self, path: str, rate: int) -> np.ndarray:
        """A prompt's waveform, read once; empty where it cannot be read, with one warning."""
        if (path, rate) not in self._voices:
            try:
                self._voices[path, rate] = load_audio(path, rate)
            except AudioError as error:
                warn(f"the prompt {path} cannot be used: {error.reason}")
                self._voices[path, rate] = np.zeros(0, np.float32)
        return self._voices[path, rate]

    def synthesise(
        self,
        model: CodecLM,
        clips: Sequence[Clip],
        *,
        sampling: Sampling | None = None,
        seed: int = 0,
        wavs: bool = True,
        group: int = 1,
    ) -> list[Sample]:
        """Speech of clips' texts, in order. A clip's draws depend on its key and the seed alone, and the first of them not on ``group``.

        Args:
            model: any codec language model.
            clips: with ``text``, and a prompt in their columns or a recording in ``target``; both may be missing.
            sampling: how tokens are drawn, as ``speak`` draws them by default. They are always drawn: the likeliest ones run in loops.
            seed: of the draws.
            wavs: decode the tokens; without, samples have no waveform.
            group: samples a clip; they stand next to each other.
        """
        sampling = sampling or Sampling(temperature=SPEAKING)
        out, size = list[Sample | None]([None] * len(clips) * group), max(1, min(BATCH, ROWS // group))
        order = sorted(range(len(clips)), key=lambda i: longest(clips[i].text, model, sampling))
        for at in range(0, len(order), size):
            part = order[at : at + size]
            some = [clips[i] for i in part]
            room = [longest(c.text, model, sampling) for c in some]
            prompts, seeds = model.encode([self.line(c, model) for c in some]), [seed_of(seed, c.key) for c in some]
            generated = model.generate(prompts, group=group, sampling=sampling, max_new_tokens=room, seed=seeds)
            codes, each = model.codes(generated.ids, generated.mask), [c for c in some for _ in range(group)]
            for n, s in enumerate(self.samples(model, each, codes, generated.finished, wavs=wavs)):
                out[part[n // group] * group + n % group] = s
        return cast(list[Sample], out)

    def best_of(self, *given: Any, **how: Any) -> BestOf:
        """Synthesis that keeps the best of several draws."""
        return BestOf(self, *given, **how)

    def samples(
        self, model: CodecLM, clips: Sequence[Clip], codes: Sequence[Tensor], finished: Tensor, *, wavs: bool = True
    ) -> list[Sample]:
        """Samples of codec ids (T_i,), one clip each; their target is the speech whose voice was wanted."""
        voices = [self.voice(c, model) for c in clips]
        made = model.codec.decode(codes, voices) if wavs else [np.zeros(0, np.float32)] * len(clips)
        rate, out = model.sample_rate, list[Sample]()
        for c, wav, voice, ids, done in zip(clips, made, voices, codes, finished, strict=True):
            how: dict[str, Any] = {"tokens": ids.numpy(), "finished": bool(done), "token_s": model.layout.frame_s}
            out.append(Sample(c.key, wav, rate, voice, c.text, c.columns, **how))
        return out

    # -- reinforcement -------------------------------------------------------------------------------------------------

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        return TtsPolicy(self, adapted, config)

    def climbed(self, config: RL) -> str:
        return f"the token reward {config.diffro.reward}"

    def evaluation(self, config: Evaluate) -> Any:
        from rlspeech.tasks.tts.evaluate import Synthesis

        return Synthesis(self, config)

    def outputs(self, policy: Any, clips: list[Clip], *, seed: int = 0) -> list[Sample]:
        policy.enter("rollout")
        return self.synthesise(policy.model, clips, sampling=policy.sampling, seed=seed)
