"""What a task is to the stages: how its model is built, loaded, saved, trained with supervision, checked, and made to act."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Protocol

import numpy as np
import torch
from torch import Tensor

from rlspeech.config import DPO, RL, Evaluate, Exploration, Pretrain, RewardSpec
from rlspeech.data import batches
from rlspeech.data.audio import save_audio
from rlspeech.data.batches import Clip, ClipSource, Keys, Videos
from rlspeech.files import dumps, safe_name, write_text
from rlspeech.models.hub import load_model, save_model
from rlspeech.rewards.base import resolve
from rlspeech.rewards.catalogue import ALIASES, SOFT
from rlspeech.run import Run
from rlspeech.scores import step_name
from rlspeech.stats import Interval, mean_interval
from rlspeech.types import Sample, Score, SoftReward, UserError

Numbers = dict[str, float | Interval]
Weights = dict[str, Tensor] | None


class Enhancer(Protocol):
    """A model at inference: waveforms in, waveforms of the same lengths out."""

    sample_rate: int
    channels: int
    uses_video: bool

    def infer(self, wavs: Sequence[np.ndarray], keys: Keys = None, lips: Videos = None) -> list[np.ndarray]:
        """Enhance B waveforms (T_i,) float32 at ``sample_rate``, or (C, T_i) where ``channels`` is 2, at the inputs' levels.

        The B ids ``keys`` seed what is drawn; ``lips`` are B arrays (F_i, H, W) uint8 at 25 frames a second, None where there is no video.
        """


class Task:
    """What the stages ask of a task: the attributes and methods are what differs between tasks, and no stage knows a task by name.

    A task of one's own need not be derived from it and may leave out what has a default, or what the stages in use do not ask for.
    """

    name: str  # of the task, as ``--task`` takes it
    # columns of the manifest; with "text" and without "target_filepath" rows are recordings and their transcripts
    required: ClassVar[frozenset[str]] = frozenset({"audio_filepath", "target_filepath"})
    uses_video: ClassVar[bool] = False  # True where clips have a video
    settings: ClassVar[frozenset[str]] = frozenset()  # those of the settings in ``owners.TASKED`` that this task has
    valid_metrics: ClassVar[tuple[str, ...]] = ()  # what the scorer of ``pretrain`` computes for ``validate``
    next_command: ClassVar[str] = "rlspeech rl --help"  # what to type after pretraining; {run} is the run folder
    part: ClassVar[str]  # of ``Pretrain``: the settings of the ``network``
    network: ClassVar[Any]
    soft: ClassVar[frozenset[str]] = frozenset()  # those that weights do not depend on
    default_rewards: ClassVar[tuple[RewardSpec, ...]] = ()  # where none are given, as the next two
    default_guards: ClassVar[tuple[str, ...]] = ()
    default_metrics: ClassVar[tuple[str, ...]] = ()
    guard_limits: ClassVar[dict[str, float]] = {}  # how far a default guard may drop before the run is stopped
    rl_defaults: ClassVar[dict[str, Any]] = {}  # settings of ``RL`` that are this task's where none are given
    relaxes: ClassVar[bool] = False  # True where the output can be differentiated, so that DiffRO can train it
    climbs: ClassVar[tuple[str, ...]] = ()  # what metrics begin with that are what DiffRO climbs, as it is measured
    diffro_defaults: ClassVar[dict[str, Any]] = {}  # of DiffRO alone
    dpo_defaults: ClassVar[dict[str, Any]] = {}  # of DPO alone
    diffro_guards: ClassVar[dict[str, float | None]] = {}  # of DiffRO, beside the others, with how far they may drop
    published: ClassVar[Exploration | None] = None  # the paper's, for ``rl --probe``; None: tokens are sampled

    # -- model and data ------------------------------------------------------------------------------------------------

    def build(self, config: Pretrain) -> Any:
        """A model with fresh weights, or ``config.init``'s: there only settings that fit its weights may be given anew."""
        settings = getattr(config, self.part)
        if config.init is None:
            return self.network(settings)
        model, _ = self.load(config.init)
        model.cfg = model.cfg.model_copy(update=set_anew(config.init, settings, model.cfg, self.soft))
        return model

    def load(self, name: str, device: torch.device | str = "cpu") -> tuple[Any, dict[str, Any]]:
        """A checkpoint's model in evaluation mode and its ``config.json``. Raises ``UserError``."""
        return load_model(name, self.name, device)

    def reload(self, name: str) -> tuple[Any, dict[str, Any]]:
        """A checkpoint of ``pretrain`` as the model that is trained, where ``load`` gives another one."""
        return self.load(name)

    def load_options(self, config: RL) -> dict[str, Any]:
        """What ``load`` takes beyond the checkpoint and the device."""
        options = {"dtype": "precision", **{k: k for k in ("train_encoder", "suppress", "encoder_cache_mib")}}
        return {option: getattr(config, key) for option, key in options.items() if key in self.settings}

    def save(self, folder: Path, model: Any, *, facts: dict[str, Any], weights: Weights = None) -> None:
        """Write a checkpoint folder; ``weights`` in place of the model's own."""
        save_model(folder, model, self.name, facts=facts, weights=weights)

    def sample_rate_of(self, model: Any) -> int:
        """Sampling rate in Hz of the clips that the model takes."""
        return int(model.sample_rate)

    def channels_of(self, model: Any) -> int:
        """Channels of the clips that the model takes."""
        return 1

    @property
    def transcribed(self) -> bool:
        """True where a text belongs to the whole of its recording: nothing is cut off."""
        return "text" in self.required

    def demo(self, part: Literal["train", "valid", "test"]) -> Path:
        """The embedded data: a manifest, or a mixture recipe to train on."""
        from rlspeech.corpora import demo

        if "target_filepath" not in self.required:
            return demo.demo_commands_clean(part)
        made = {"train": demo.demo_recipe, "valid": demo.demo_valid, "test": demo.demo_test}[part]
        return made(faces=self.uses_video)

    def data(self, config: Pretrain | RL, model: Any) -> tuple[ClipSource, list[Clip]]:
        """The clips to train on, and up to ``valid_items`` whole ones to validate on, which the first do not contain.

        Without ``data`` the embedded ones; without ``valid`` utterances are held back from the data. Left out, with a warning: for
        ``pretrain`` rows whose text has not been recorded; where rows are transcribed those without a text or longer than the
        model takes. Raises ``UserError``: no row can be used.
        """
        data, valid = config.data, config.valid
        if data is None:
            data, valid = str(self.demo("train")), valid or str(self.demo("valid"))

        rate, paired = self.sample_rate_of(model), "target_filepath" in self.required
        form: dict[str, Any] = {"seed": config.seed, "channels": self.channels_of(model), "paired": paired}

        def opened(path: str, mixing: Any = None) -> ClipSource:
            source = batches.open_clips(path, rate, mixing=mixing, **form)
            if isinstance(config, Pretrain):
                source = batches.recorded_clips(source, path)
            longest = getattr(model, "max_s", None)
            return batches.transcribed_clips(source, path, longest) if self.transcribed else source

        source = opened(data, getattr(config, "mixing", None))
        source, held = batches.hold_back(source, config.valid_items) if valid is None else (source, opened(valid))
        if isinstance(config, RL) and config.reference_in_group:  # the others' groups would have no winner
            source = batches.recorded_clips(source, data)
        return source, batches.whole_clips(held, config.valid_items, max_s=math.inf if self.transcribed else 8.0)

    # -- supervised training -------------------------------------------------------------------------------------------

    def collate(self, clips: Sequence[Clip], model: Any, device: torch.device | str = "cpu") -> Any:
        """Clips as a batch of tensors."""
        raise NotImplementedError

    def pretrain_loss(self, model: Any, batch: Any, config: Pretrain) -> dict[str, Tensor]:
        """The loss in named parts; ``loss`` is the one to minimise."""
        raise NotImplementedError

    def validate(self, model: Any, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0) -> Numbers:
        """Numbers of a model on held-out clips, with their intervals where known; a few outputs are kept under ``samples/``."""
        raise NotImplementedError

    # -- reinforcement -------------------------------------------------------------------------------------------------

    def defaults(self, algo: str) -> dict[str, Any]:
        """Settings of ``RL`` that are the task's own under an algorithm where none are given."""
        return self.rl_defaults | {"diffro": self.diffro_defaults, "dpo": self.dpo_defaults}.get(algo, {})

    def policy(self, adapted: Any, config: RL, explore: Any = None) -> Any:
        """The model as a policy (``types.Policy``)."""
        raise NotImplementedError

    def climbed(self, config: RL) -> str:
        """What DiffRO follows the gradient of, in a few words."""
        return config.diffro.reward

    def climbed_rewards(self, config: RL) -> list[RewardSpec]:
        """The same as it is measured at validations, where no rewards are given."""
        return list(self.default_rewards)

    def soft_reward(self, config: RL, device: torch.device | str = "cpu") -> SoftReward:
        """What DiffRO follows the gradient of, frozen. Raises ``UserError``: the task has none of the configured name."""
        raise NotImplementedError

    def outputs(self, policy: Any, clips: list[Clip], *, seed: int = 0) -> list[Sample]:
        """What the policy makes of whole clips when it does not explore, as samples to score; the same ``seed``, the same outputs."""
        raise NotImplementedError

    def enhancer(self, model: Any, *, seed: int = 0, config: Evaluate | None = None) -> Enhancer:
        """The model at inference; a task whose outputs are not sound has none."""
        raise NotImplementedError

    # -- evaluation ----------------------------------------------------------------------------------------------------

    def evaluation(self, config: Evaluate) -> Any:
        """How ``eval`` compares systems (``tasks/evaluation.py``): as enhancers."""
        from rlspeech.tasks.avse.evaluate import Enhancement

        return Enhancement(self, config)


class EnhancementTask(Task):
    """What enhancers share: paired clips, explorations, and the gradients of rewards of waveforms."""

    settings = frozenset("change_weight clip_s diffro.smooth explore probe_settings ratio reduction systems".split())
    valid_metrics = ("estoi", "si_sdr", "dnsmos_ovrl")
    relaxes = True
    climbs = SOFT
    diffro_defaults: ClassVar[dict[str, Any]] = {"group": 1, "kl_beta": 0.1, "lr": 3e-4}
    # likelihoods are squared errors of so many elements that their sum would decide every pair at once
    dpo_defaults: ClassVar[dict[str, Any]] = {"dpo": DPO(beta=100.0, length_normalised=True)}
    diffro_guards: ClassVar[dict[str, float | None]] = {
        **{"pesq_wb": 0.1, "estoi": 0.02},
        **{"dnsmos_p808": None, "lsd": None, "speaker_similarity": None},  # beside what is not climbed
    }

    def climbed(self, config: RL) -> str:
        names = ", ".join(r.name for r in self.climbed_rewards(config))
        return f"{names}, {config.diffro.smooth} altered copies" if "mos" in names or "squim" in names else names

    def climbed_rewards(self, config: RL) -> list[RewardSpec]:
        """The rewards with a gradient; beside GRPO where others are left to it. Otherwise the one that ``diffro.reward`` names."""
        given, name = [r for r in config.rewards if r.weight], config.diffro.reward.replace("embedded", "dnsmos")
        soft = [r for r in given if resolve(r.name).column in SOFT]
        if name == "dnsmos" and soft and (config.algo == "diffro" or len(soft) < len(given)):
            return soft
        name = ALIASES.get(name, name)
        return [RewardSpec(name=name if config.policy_weight or name in SOFT else "dnsmos_ovrl", scale="none")]

    def soft_reward(self, config: RL, device: torch.device | str = "cpu") -> SoftReward:
        from rlspeech.rewards.soft import SoftMix

        return SoftMix(self.climbed_rewards(config), config.diffro.smooth, device)

    def validate(self, model: Any, clips: list[Clip], folder: Run, step: int, scorer: Any, seed: int = 0) -> Numbers:
        samples = enhance_clips(self.enhancer(model, seed=seed), clips)
        keep_samples(folder.path / "samples" / step_name(step), samples, 2)
        return means_of(scorer.score(samples))

    def outputs(self, policy: Any, clips: list[Clip], *, seed: int = 0) -> list[Sample]:
        return enhance_clips(self.enhancer(policy.model, seed=seed), clips)


def set_anew(name: str, settings: Any, own: Any, soft: Collection[str]) -> dict[str, Any]:
    """What was set in a task's part of ``Pretrain`` beside ``--init name``, for the checkpoint's settings, ``own``.

    Weights do not depend on the ``soft`` settings; the others must be those of the checkpoint.

    Raises ``UserError``: a setting that does not fit the weights.
    """
    given = {k: getattr(settings, k) for k in settings.model_fields_set}
    misfits = [k for k, v in given.items() if k not in soft and v != getattr(own, k, None)]
    if misfits:
        what = f"{name} has another {', '.join(sorted(misfits))}"
        why = f"with --init only {', '.join(sorted(soft))} can be set"
        raise UserError(what, why, "leave them out, or train from random weights without --init")
    return {k: v for k, v in given.items() if k in soft}


def means_of(scores: Mapping[str, Sequence[Score]]) -> Numbers:
    """Mean of every metric over the clips, with its interval."""
    return {name: mean_interval([s.value for s in column]) for name, column in scores.items()}


def enhance_clips(enhancer: Any, clips: list[Clip]) -> list[Sample]:
    """Outputs of whole clips, one at a time, as samples to score."""
    return [c.sample(enhancer.infer([c.noisy], [c.key], [c.lips])[0], enhancer.sample_rate) for c in clips]


def keep_samples(folder: Path, samples: Sequence[Sample], players: int) -> None:
    """Keep outputs under ``folder``: references and hypotheses in ``said.jsonl``, or the sound of the first ``players``."""
    if any(s.hypothesis is not None for s in samples):
        rows = ({"id": s.key, "text": s.text, "hypothesis": s.hypothesis} for s in samples)
        write_text(folder / "said.jsonl", (dumps(row) + "\n" for row in rows))
        return
    for s in samples[:players]:
        if len(s.wav):
            save_audio(folder / f"{safe_name(s.key)}.flac", s.wav, s.sample_rate)
