"""Runs of ``rlspeech rl`` as they lie on disk, one a task, with a LoRA that says something; nothing is trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tiny_avse
import tiny_recognisers
import tiny_speech
import tiny_tts
import torch
from tiny_flow import disturb

from rlspeech.config import Lora
from rlspeech.models.adapters import Adapted
from rlspeech.run import Checkpoints
from rlspeech.tasks import get_task

TASKS = ("flowse", "avse", "asr", "tts")


def base(task: str, folder: Path) -> Path:
    if task == "tts":
        return Path(tiny_tts.write_tts(folder)["model"])
    make: dict[str, Callable[[Path], Path]] = {"flowse": tiny_speech.write_model, "avse": tiny_avse.checkpoint}
    return {**make, "asr": tiny_recognisers.write_model}[task](folder / "model")


@dataclass
class Run:
    """A run folder, the checkpoint that it started from, and what its model answers while the adapter is beside the weights."""

    task: str
    folder: Path
    base: Path
    answer: torch.Tensor
    before: torch.Tensor


def tuned(task: str, folder: Path, lora: Lora | None) -> Run:
    """A run with a checkpoint of step 3."""
    start, work = base(task, folder / "base"), get_task(task)
    model, about = work.load(str(start))
    before = answer(task, model)
    adapted = Adapted(model, lora)
    disturb(adapted.parameters(), 0.1, seed=1)
    facts = {**about.get("facts", {}), "rl": {"algo": "grpo", "step": 3, "from": str(start), "rewards": {"estoi": 1.0}}}

    def write(path: Path) -> None:
        work.save(path, adapted.model, facts=facts, weights=adapted.merged())
        adapted.save_adapter(str(path / "adapter"), adapted.trained())

    checkpoints = Checkpoints(folder / "run" / "checkpoints")
    checkpoints.save(3, write, {"trained": adapted.trained(), "history": []}, best=True)
    return Run(task, folder / "run", start, answer(task, adapted.model), before)


@torch.no_grad()
def answer(task: str, model: Any) -> torch.Tensor:
    """What a model makes of a fixed input, as far as weights that LoRA reaches are concerned."""
    if task in ("asr", "tts"):
        return language(task, model.net)
    noisy, _, mouth = tiny_avse.clip(0, 8000)
    return torch.from_numpy(np.asarray(get_task(task).enhancer(model).infer([noisy], ["clip"], [mouth])[0]))


@torch.no_grad()
def language(task: str, net: Any) -> torch.Tensor:
    """Logits of the language model inside a transformers model."""
    size = net.get_input_embeddings().weight.shape
    ids = torch.randint(0, size[0], (2, 5), generator=torch.Generator().manual_seed(2))
    embeds = net.get_input_embeddings()(ids)
    inner = net.model.language_model if task == "asr" else net.model
    return net.get_output_embeddings()(inner(inputs_embeds=embeds, use_cache=False).last_hidden_state)  # type: ignore[no-any-return]
