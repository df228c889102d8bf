"""Checkpoints as Hub-shaped folders: ``config.json``, ``model.safetensors``, ``README.md``. No pickles, no network."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlspeech.types import UserError

if TYPE_CHECKING:
    import torch

    from rlspeech.models.flow import FlowEnhancer

__all__ = ["embedded_path", "load_flow", "read_config", "save_flow"]

MODEL_TYPE = "rlspeech-flow"


def embedded_path(task: str) -> Path:
    """Folder of the checkpoint that ships with the package."""
    return Path(str(resources.files("rlspeech") / "assets" / task))


def resolve(name: str, task: str = "flowse") -> Path:
    """A checkpoint's folder: 'embedded', a checkpoint folder, or a run folder (its best, else its latest checkpoint).

    Raises:
        UserError: nothing usable there.
    """
    if name in {"embedded", "tiny"}:
        return embedded_path(task)
    path = Path(name)
    if (path / "config.json").is_file():
        return path
    for pointer in ("best", "latest"):
        mark = path / "checkpoints" / pointer
        if mark.is_file():
            found = path / "checkpoints" / Path(mark.read_text().strip()).name
            if (found / "config.json").is_file():
                return found
    raise UserError(f"no checkpoint at {name}", "neither a folder with config.json nor a run folder with checkpoints",
                    "a folder written by `rlspeech pretrain` or `rlspeech rl`, or 'embedded'")


def read_config(folder: Path) -> dict[str, Any]:
    """The checkpoint's ``config.json``. Raises ``UserError`` where it is not one of ours."""
    try:
        config: dict[str, Any] = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"cannot read {folder / 'config.json'}", str(error),
                        "a folder written by `rlspeech pretrain` or `rlspeech rl`") from error
    if not isinstance(config, dict):
        raise UserError(f"{folder} is not a flow enhancer", f"its config.json holds no object but {type(config).__name__}")
    if config.get("model_type") != MODEL_TYPE:
        raise UserError(f"{folder} is not a flow enhancer", f"model_type is {config.get('model_type')!r}, not {MODEL_TYPE!r}")
    return config


def load_flow(name: str, device: torch.device | str = "cpu") -> tuple[FlowEnhancer, dict[str, Any]]:
    """Load an enhancer in fp32 and evaluation mode.

    Returns:
        the model and its ``config.json``.

    Raises:
        UserError: missing, of another kind, or weights that do not fit the config.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from rlspeech.config import FlowModel
    from rlspeech.models.flow import FlowEnhancer

    folder = resolve(name)
    config = read_config(folder)
    try:
        model = FlowEnhancer(FlowModel(**config["model"]))
        weights = load_file(folder / "model.safetensors")
        model.load_state_dict({k: v.float() for k, v in weights.items()})
    except (ValueError, TypeError, KeyError, RuntimeError, OSError, SafetensorError) as error:
        raise UserError(f"cannot load the checkpoint {folder}", str(error).splitlines()[0], "rlspeech check on its run folder") from error
    return model.to(device).eval(), config


def save_flow(folder: Path, model: FlowEnhancer, *, facts: dict[str, Any], weights: dict[str, torch.Tensor] | None = None,
              half: bool = False) -> None:
    """Write a checkpoint into an existing or new folder; the caller makes it atomic.

    Args:
        folder: where to.
        model: gives the config and, unless ``weights`` are given, the weights.
        facts: how it came to be (data, steps, reward, numbers), for ``config.json`` and the model card.
        weights: other weights of the same shape, an average for instance.
        half: store fp16, half the size, for shipping.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in (weights or model.state_dict()).items()}
    if half:
        state = {k: v.half() for k, v in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors makes it private; a checkpoint is as readable as its config
    config = {"model_type": MODEL_TYPE, "task": "flowse", "sample_rate": model.sample_rate, "model": model.cfg.model_dump(), "facts": facts}
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    (folder / "README.md").write_text(model_card(config, sum(v.numel() for v in state.values())))


def model_card(config: dict[str, Any], parameters: int) -> str:
    """Markdown card of a checkpoint."""
    lines = ["---", "library_name: rlspeech", "tags: [speech-enhancement, flow-matching]", "license: apache-2.0", "---", "",
             f"# {config['task']} enhancer, {parameters / 1e6:.2f} M parameters, {config['sample_rate']} Hz", ""]
    lines += [f"- **{key}**: {value}" for key, value in config["facts"].items()]
    return "\n".join([*lines, "", "Use it: `rlspeech enhance noisy.wav --model THIS_FOLDER --out enhanced`", ""])
