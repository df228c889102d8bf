"""Checkpoints as Hub-shaped folders: ``config.json``, ``model.safetensors``, ``README.md``. No pickles, no network."""

from __future__ import annotations

import importlib
import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from rlspeech.models.card import Card, write_card
from rlspeech.types import UserError

if TYPE_CHECKING:
    import torch
    from torch import nn

    from rlspeech.models.avse import AvseEnhancer
    from rlspeech.models.flow import FlowEnhancer

__all__ = [
    "Kind",
    "KINDS",
    "embedded_path",
    "load_avse",
    "load_flow",
    "load_model",
    "read_config",
    "refuse_other",
    "save_avse",
    "save_flow",
    "save_model",
    "task_of",
]


class Kind(NamedTuple):
    """A kind of checkpoint: what ``config.json`` calls it, and the classes behind it (module:name)."""

    model_type: str
    title: str
    settings: str
    module: str
    tags: str
    use: str = "enhance noisy.wav --task {task} --model THIS_FOLDER --out enhanced"  # a command, for the model card


KINDS = {
    "flowse": Kind(
        "rlspeech-flow",
        "flow enhancer",
        "FlowModel",
        "rlspeech.models.flow:FlowEnhancer",
        "speech-enhancement, flow-matching",
    ),
    "avse": Kind(
        "rlspeech-avse",
        "audio-visual enhancer",
        "AvseModel",
        "rlspeech.models.avse:AvseEnhancer",
        "speech-enhancement, audio-visual",
    ),
    "codec": Kind(
        "rlspeech-codec",
        "speech codec",
        "CodecModel",
        "rlspeech.models.codec.net:CodecNet",
        "speech-codec, speech-synthesis",
        "pretrain --task tts --set tts.codec=THIS_FOLDER",
    ),
    "token-reward": Kind(
        "rlspeech-token-reward",
        "token-to-text reward",
        "TokenRewardModel",
        "rlspeech.models.token_reward:TokenReward",
        "text-to-speech, reward-model",
    ),
}
MODEL_TYPE = KINDS["flowse"].model_type
TITLES = {"tts": "synthesiser", "asr": "recogniser", "listener": "listener"}  # checkpoints in transformers' own layout
INSTEAD = {  # of packaged weights
    "tts": "rlspeech pretrain --task tts --out runs/tts, then --model runs/tts; or a codec language model by Hub id",
    "codec": "rlspeech pretrain --task codec --out runs/codec, then --set tts.codec=runs/codec; or mimi, dac, xcodec2, neucodec",
    "token-reward": "rlspeech pretrain --task token-reward --out runs/token-reward, then --set diffro.reward=runs/token-reward",
}

COMMANDS = {  # what to do with a checkpoint of each task
    "flowse": "rlspeech enhance noisy.wav --model {0} --out enhanced",
    "avse": "rlspeech enhance noisy.wav --task avse --model {0} --out enhanced",
    "asr": "rlspeech transcribe speech.wav --model {0}",
    "tts": 'rlspeech speak "some words" --model {0}',
    "listener": "rlspeech reward recordings/ --reward llm --llm {0}",
    "codec": "rlspeech pretrain --task tts --set tts.codec={0}",
    "token-reward": "rlspeech rl --task tts --algo diffro --set diffro.reward={0}",
}


def embedded_path(task: str) -> Path:
    """Folder of the checkpoint that ships with the package."""
    return Path(str(resources.files("rlspeech") / "assets" / task))


def resolve(name: str, task: str = "flowse") -> Path:
    """A checkpoint's folder: 'embedded', a checkpoint folder, or a run folder (its best, else its latest checkpoint).

    Raises:
        UserError: nothing usable there, or 'embedded' where the package came without.
    """
    if name in {"embedded", "tiny"}:
        packaged = embedded_path(task)
        if not (packaged / "config.json").is_file():
            title = TITLES.get(task, KINDS[task].title if task in KINDS else task)
            raise UserError(
                f"no {title} came with this installation",
                f"{packaged} holds no checkpoint",
                INSTEAD.get(task, "name a checkpoint of your own"),
            )
        return packaged
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    for pointer in ("best", "latest"):
        mark = path / "checkpoints" / pointer
        if mark.is_file():
            found = path / "checkpoints" / Path(mark.read_text().strip()).name
            if (found / "config.json").is_file():
                return found
    if (path / "adapter_config.json").is_file():
        raise UserError(
            f"{name} is an adapter, not a model",
            "it says what changes in the model that it was trained on",
            f"rlspeech convert lora {name} --to merged FOLDER, then --model FOLDER",
        )
    if (path / "metrics.jsonl").is_file():  # what training leaves, and no other stage
        raise UserError(
            f"no checkpoint in {name} yet",
            "this run was ended before it wrote its first",
            "the command that made it, once more; --set save_every=STEPS writes them more often",
        )
    raise UserError(
        f"no checkpoint at {name}",
        "neither a folder with config.json nor a run folder with checkpoints",
        "a folder written by `rlspeech pretrain` or `rlspeech rl`, or 'embedded'",
    )


def task_of(folder: Path) -> str | None:
    """The task that a checkpoint folder is for, as its files say; None of a folder that was not made here."""
    for name in ("rlspeech.json", "config.json"):
        try:
            found = json.loads((folder / name).read_text(encoding="utf-8"))
            task = found.get("task")
        except (OSError, ValueError, AttributeError):
            continue
        if (
            isinstance(task, str)
            and task in COMMANDS
            and (name == "rlspeech.json" or found.get("model_type") == KINDS[task].model_type)
        ):
            return task
    return None


def refuse_other(folder: Path, task: str) -> None:
    """Stop at another task's checkpoint. Raises ``UserError`` with the command that takes it."""
    found = task_of(folder)
    if found is not None and found != task:
        wanted, given = (TITLES.get(t) or KINDS[t].title for t in (task, found))
        why = f"it belongs to another task ({given}); --task {found} takes it"
        raise UserError(f"{folder} is not {_a(wanted)}", why, COMMANDS[found].format(folder))


def _a(noun: str) -> str:
    return f"a{'n' * (noun[0] in 'aeiou')} {noun}"


def read_config(folder: Path, task: str = "flowse") -> dict[str, Any]:
    """The checkpoint's ``config.json``. Raises ``UserError`` where it is not one of that task's."""
    kind = KINDS[task]
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(
            f"cannot read {folder / 'config.json'}",
            str(error),
            "a folder written by `rlspeech pretrain` or `rlspeech rl`",
        ) from error
    if not isinstance(config, dict):
        raise UserError(
            f"{folder} is not {_a(kind.title)}", f"its config.json holds no object but {type(config).__name__}"
        )
    if config.get("model_type") != kind.model_type:
        refuse_other(folder, task)
        raise UserError(
            f"{folder} is not {_a(kind.title)}", f"model_type is {config.get('model_type')!r}, not {kind.model_type!r}"
        )
    return config


def load_model(name: str, task: str, device: torch.device | str = "cpu") -> tuple[nn.Module, dict[str, Any]]:
    """Load a checkpoint in fp32 and evaluation mode.

    Returns:
        the model and its ``config.json``.

    Raises:
        UserError: missing, of another kind, or weights that do not fit the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from rlspeech import config as settings

    kind, folder = KINDS[task], resolve(name, task)
    config = read_config(folder, task)
    module, _, cls = kind.module.partition(":")
    try:
        model = getattr(importlib.import_module(module), cls)(getattr(settings, kind.settings)(**config["model"]))
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(
            f"cannot load the checkpoint {folder}", str(error).splitlines()[0], "rlspeech check on its run folder"
        ) from error
    return model.to(device).eval(), config


def save_model(
    folder: Path,
    model: Any,
    task: str,
    *,
    facts: dict[str, Any],
    weights: dict[str, torch.Tensor] | None = None,
    half: bool = False,
) -> None:
    """Write a checkpoint into an existing or new folder; the caller makes it atomic.

    Args:
        folder: where to.
        model: gives the config (``cfg``, ``sample_rate``) and, unless ``weights`` are given, the weights.
        task: its kind.
        facts: how it came to be (data, steps, reward, numbers), for ``config.json`` and the model card.
        weights: other weights of the same shape, an average for instance.
        half: store fp16, half the size, for shipping.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in (weights or model.state_dict()).items()}
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(
        0o644
    )  # safetensors makes it private; a checkpoint is as readable as its config
    config = {
        "model_type": KINDS[task].model_type,
        "task": task,
        "sample_rate": model.sample_rate,
        "model": model.cfg.model_dump(),
        "facts": facts,
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    write_card(folder, card_of(config, sum(v.numel() for v in state.values())), facts)


def load_flow(name: str, device: torch.device | str = "cpu") -> tuple[FlowEnhancer, dict[str, Any]]:
    """``load_model`` for ``flowse``."""
    model, config = load_model(name, "flowse", device)
    return cast("FlowEnhancer", model), config


def save_flow(folder: Path, model: FlowEnhancer, **how: Any) -> None:
    """``save_model`` for ``flowse``."""
    save_model(folder, model, "flowse", **how)


def load_avse(name: str, device: torch.device | str = "cpu") -> tuple[AvseEnhancer, dict[str, Any]]:
    """``load_model`` for ``avse``."""
    model, config = load_model(name, "avse", device)
    return cast("AvseEnhancer", model), config


def save_avse(folder: Path, model: AvseEnhancer, **how: Any) -> None:
    """``save_model`` for ``avse``."""
    save_model(folder, model, "avse", **how)


def card_of(config: dict[str, Any], parameters: int) -> Card:
    """What a checkpoint's card says of its kind of model."""
    task, kind = config["task"], KINDS[config["task"]]
    more = (
        [f"rl --task {task} --model THIS_FOLDER", f"eval --task {task} --model this=THIS_FOLDER"]
        if task in ("flowse", "avse")
        else []
    )
    pipeline = "" if task == "token-reward" else "audio-to-audio"
    return Card(
        kind.title,
        task,
        parameters,
        config["sample_rate"],
        "rlspeech",
        pipeline,
        kind.tags.split(", "),
        [kind.use.format(task=task), *more],
    )
