"""What each thing that this project can do needs, and which of it is missing here."""

from __future__ import annotations

import importlib.util
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

__all__ = ["FEATURES", "Feature", "look"]


@dataclass(frozen=True, slots=True)
class Feature:
    """Something to do, with what it needs beyond the packages that are always installed.

    Args:
        name: what it is.
        how: the command or option that asks for it.
        modules: module -> what to give to ``pip install``.
        assets: folders below ``rlspeech/assets``.
    """

    name: str
    how: str
    modules: dict[str, str] = field(default_factory=dict)
    assets: tuple[str, ...] = ()


FEATURES = (
    Feature("enhancement", "--task flowse", assets=("flowse", "demo", "speaker", "speech_encoder")),
    Feature(
        "audio-visual enhancement", "--task avse", {"av": "av", "cv2": "'opencv-python-headless<5'"}, ("avse", "demo")
    ),
    Feature("recognition", "--task asr", {"transformers": "transformers"}, ("asr", "demo_commands")),
    Feature("synthesis", "--task tts", {"transformers": "transformers"}, ("tts", "codec", "token-reward")),
    Feature("an audio LLM as the judge", "--reward llm", {"transformers": "transformers"}, ("listener", "sentiment")),
    Feature("mouth crops of videos", "prepare lips", {"av": "av", "cv2": "'opencv-python-headless<5'"}),
    Feature("mouths tracked by MediaPipe", "prepare lips --landmarks FILE", {"mediapipe": "mediapipe"}),
    Feature("PESQ", "--reward pesq", {"pesq": "'rlspeech[pesq]'"}),
    Feature("SQUIM", "--reward squim", {"torchaudio": "'rlspeech[torchaudio]'"}),
    Feature("a second recogniser", "--recogniser pocketsphinx", {"pocketsphinx": "'rlspeech[asr]'"}),
    Feature("curves in TensorBoard", "--set tracker=tensorboard", {"tensorboard": "'rlspeech[tracking]'"}),
    Feature("curves in Weights & Biases", "--set tracker=wandb", {"wandb": "wandb"}),
)


def look(rewards: Any = None) -> list[dict[str, Any]]:
    """Each feature with what is missing for it.

    Args:
        rewards: what ``rewards.base.available`` says, as ``doctor`` keeps it; a reward that cannot be used has its own reason.

    Returns:
        ``name``, ``usable``, ``what`` (how it is asked for), ``why_not``.
    """
    reasons = {r["name"]: r["why_not"] for r in rewards} if isinstance(rewards, list) else {}
    found = []
    for feature in FEATURES:
        lacking = _lacking(feature)
        reward = feature.how.removeprefix("--reward ") if feature.how.startswith("--reward ") else ""
        if not lacking and (
            why := next((w for name, w in reasons.items() if name.startswith(reward)), "") if reward else ""
        ):
            lacking = [why]
        found.append({"name": feature.name, "usable": not lacking, "what": feature.how, "why_not": "; ".join(lacking)})
    return [*found, _formats()]


def _lacking(feature: Feature) -> list[str]:
    lacking = [
        f"{module} is not installed: pip install {hint}"
        for module, hint in feature.modules.items()
        if not _there(module)
    ]
    root = Path(str(resources.files("rlspeech"))) / "assets"
    bare = [name for name in feature.assets if not (root / name).is_dir()]
    if bare:
        lacking.append(f"this package has no embedded {', '.join(bare)}: name your own with --model FOLDER")
    return lacking


def _there(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except (ImportError, ValueError):  # half an installation
        return False


def _formats() -> dict[str, Any]:
    """Compressed audio: old builds of libsndfile cannot read it."""
    import soundfile as sf

    lacking = [name for name in ("FLAC", "OGG", "MP3") if name not in sf.available_formats()]
    why = (
        f"libsndfile {sf.__libsndfile_version__} reads no {' and no '.join(lacking)}: pip install -U soundfile"
        if lacking
        else ""
    )
    return {"name": "FLAC, OGG and MP3 files", "usable": not lacking, "what": "any command", "why_not": why}
