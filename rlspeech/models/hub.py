"""Checkpoints by name, as Hub-shaped folders: ``config.json``, ``model.safetensors``, ``README.md``. No pickles."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rlspeech.files import digest_of, named_by, object_or_reason, read_object
from rlspeech.models.card import Card, write_card
from rlspeech.names import refuse_pointers
from rlspeech.plugins import load
from rlspeech.types import UserError

if TYPE_CHECKING:
    import torch


class Kind(NamedTuple):
    """What the checkpoints of one task are."""

    title: str  # a noun, "flow enhancer"
    use: str  # command that takes one, {0} is its folder
    # of its ``config.json``; "" for a folder in transformers' own layout, which has ``rlspeech.json`` beside
    model_type: str = ""
    module: str = ""  # class of the model (module:name) and of its settings; "" where the model loads itself
    settings: str = ""
    tags: tuple[str, ...] = ()  # for the Hub
    pipeline: str = "audio-to-audio"  # the Hub's name for the task; "" for none
    tuned: bool = False  # whether ``rl`` and ``eval`` take it
    instead: str = "name a checkpoint of your own"  # what to do where none came with the package


KINDS = {
    "flowse": Kind(
        "flow enhancer",
        "rlspeech enhance noisy.wav --model {0} --out enhanced",
        *("rlspeech-flow", "rlspeech.models.flow:FlowEnhancer", "FlowModel"),
        tags=("speech-enhancement", "flow-matching"),
        tuned=True,
    ),
    "avse": Kind(
        "audio-visual enhancer",
        "rlspeech enhance noisy.wav --task avse --model {0} --out enhanced",
        *("rlspeech-avse", "rlspeech.models.avse:AvseEnhancer", "AvseModel"),
        tags=("speech-enhancement", "audio-visual"),
        tuned=True,
    ),
    "asr": Kind(
        "recogniser", "rlspeech transcribe speech.wav --model {0}", pipeline="automatic-speech-recognition", tuned=True
    ),
    "tts": Kind(
        "synthesiser",
        'rlspeech speak "some words" --model {0}',
        pipeline="text-to-speech",
        tuned=True,
        instead="rlspeech pretrain --task tts --out runs/tts, then --model runs/tts; or a codec language model by Hub id",
    ),
    "listener": Kind(
        "listener",
        "rlspeech reward recordings/ --reward llm --llm {0}",
        tags=("reward-model",),
        pipeline="audio-text-to-text",
    ),
    "codec": Kind(
        "speech codec",
        "rlspeech pretrain --task tts --set tts.codec={0}",
        *("rlspeech-codec", "rlspeech.models.codec.net:CodecNet", "CodecModel"),
        tags=("speech-codec", "speech-synthesis"),
        instead="rlspeech pretrain --task codec --out runs/codec, then --set tts.codec=runs/codec; or mimi, dac, xcodec2, neucodec",
    ),
    "token-reward": Kind(
        "token-to-text reward",
        "rlspeech rl --task tts --algo diffro --set diffro.reward={0}",
        "rlspeech-token-reward",
        tags=("text-to-speech", "reward-model"),
        pipeline="",
        instead="rlspeech pretrain --task token-reward --out runs/token-reward, then --set diffro.reward=runs/token-reward",
    ),
}


# ---------------------------------------------------------------------------------------------------------------- folders


# published in their authors' layout; transformers' own is that name with -hf
ORIGINALS = {"Qwen/Qwen3-ASR-1.7B", "Qwen/Qwen3-ASR-0.6B", "FunAudioLLM/Fun-ASR-Nano-2512", "nvidia/audio-flamingo-3"}
ORIGINALS |= {"HKUSTAudio/xcodec2"}
WRITTEN = "a folder written by `rlspeech pretrain` or `rlspeech rl`"


def embedded_path(task: str) -> Path:
    """Folder of the checkpoint that ships with the package."""
    return Path(str(resources.files("rlspeech") / "assets" / task))


def resolve(name: str, task: str = "flowse") -> Path:
    """A checkpoint's folder: 'embedded', a checkpoint folder, or a run folder (its best, else its latest checkpoint).

    Raises:
        UserError: nothing usable there, or 'embedded' where the package came without.
    """
    if name in {"embedded", "tiny"}:
        packaged, kind = embedded_path(task), KINDS.get(task, Kind(task, ""))
        if not (packaged / "config.json").is_file():
            why = f"{packaged} holds no checkpoint"
            raise UserError(f"no {kind.title} came with this installation", why, kind.instead)
        return packaged
    path = Path(name)
    refuse_pointers(path)
    if (path / "config.json").is_file():
        return path
    for pointer in ("best", "latest"):
        found = named_by(path / "checkpoints" / pointer)
        if found and (found / "config.json").is_file():
            return found
    if (path / "adapter_config.json").is_file():
        why = "it says what changes in the model that it was trained on"
        try_this = f"rlspeech convert lora {name} --to merged FOLDER, then --model FOLDER"
        raise UserError(f"{name} is an adapter, not a model", why, try_this)
    if (path / "metrics.jsonl").is_file():  # what training leaves, and no other stage
        try_this = "the command that made it, once more; --set save_every=STEPS writes them more often"
        raise UserError(f"no checkpoint in {name} yet", "this run was ended before it wrote its first", try_this)
    why = "neither a folder with config.json nor a run folder with checkpoints"
    raise UserError(f"no checkpoint at {name}", why, f"{WRITTEN}, or 'embedded'")


def find_checkpoint(name: str, task: str) -> Path | None:
    """The folder of a checkpoint in transformers' layout; None where the name is one of the Hub's.

    Raises:
        UserError: nothing usable there, or another task's checkpoint.
    """
    if name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists():
        refuse_originals(name)
        return None
    folder = resolve(name, task)
    refuse_other(folder, task)
    return folder


def refuse_originals(name: str) -> None:
    """Raise ``UserError`` for a model of the Hub in another layout than transformers', with the name of the one that loads."""
    known = f"{name}-hf" if name in ORIGINALS else re.sub("^Systran/faster-", "openai/", name)
    if known != name:
        raise UserError(f"{name} is not in transformers' layout", "its authors' own code loads it", known)


def fingerprint(name: str, task: str) -> str:
    """What tells one checkpoint from another: a digest of its folder's content, or the name where it is one of the Hub's.

    Raises:
        UserError: no checkpoint there, or one of another task.
    """
    kind = KINDS.get(task)
    if kind is not None and not kind.model_type:
        folder = find_checkpoint(name, task)
        return name if folder is None else digest_of(folder)
    folder = resolve(name, task)
    if kind is not None:
        read_config(folder, task)
    return digest_of(folder)


def task_of(folder: Path) -> str | None:
    """The task that a checkpoint folder is for, as its files say; None of a folder that was not made here."""
    for name in ("rlspeech.json", "config.json"):
        found = read_object(folder / name)
        task, kind = found.get("task"), found.get("model_type")
        if isinstance(task, str) and task in KINDS and (name == "rlspeech.json" or kind == KINDS[task].model_type):
            return task
    return None


def refuse_other(folder: Path, task: str) -> None:
    """Stop at another task's checkpoint. Raises ``UserError`` with the command that takes it."""
    found = task_of(folder)
    if found is not None and found != task:
        why = f"it belongs to another task ({KINDS[found].title}); --task {found} takes it"
        raise UserError(f"{folder} is not {_a(KINDS[task].title)}", why, KINDS[found].use.format(folder))


def _a(noun: str) -> str:
    return f"a{'n' * (noun[0] in 'aeiou')} {noun}"


def read_config(folder: Path, task: str = "flowse") -> dict[str, Any]:
    """The checkpoint's ``config.json``. Raises ``UserError`` where it is not one of that task's."""
    kind = KINDS[task]
    config, why = object_or_reason(folder / "config.json")
    if why:
        raise UserError(f"cannot read {folder / 'config.json'}", why, WRITTEN)
    what = f"{folder} is not {_a(kind.title)}"
    if config.get("model_type") != kind.model_type:
        refuse_other(folder, task)
        raise UserError(what, f"model_type is {config.get('model_type')!r}, not {kind.model_type!r}")
    return config


@contextmanager
def hub_client(what: str) -> Iterator[Any]:
    """``huggingface_hub``, which finds the token itself; its errors, the network's and the server's become a ``UserError`` of ``what``."""
    import huggingface_hub

    try:
        yield huggingface_hub
    except Exception as error:  # they have no class in common
        why = f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0][:200]}"
        hint = "is the name right, the network there, and HF_TOKEN set for what is private or written?"
        raise UserError(what, why, hint) from error


# ----------------------------------------------------------------------------------------------------- our own layout


def load_model(
    name: str, task: str, device: torch.device | str = "cpu", make: Callable[[Path, dict[str, Any]], Any] | None = None
) -> tuple[Any, dict[str, Any]]:
    """Load a checkpoint in fp32 and evaluation mode.

    Args:
        name: 'embedded', a checkpoint folder or a run folder.
        task: its kind.
        make: (folder, ``config.json``) -> the model without its weights; None: by ``KINDS``.

    Returns:
        the model and its ``config.json``.

    Raises:
        UserError: missing, of another kind, or weights that do not fit the config.
    """
    from rlspeech.models.folder import loading, read_weights

    folder = resolve(name, task)
    config = read_config(folder, task)
    with loading(f"the checkpoint {folder}", "rlspeech check on its run folder"):
        model = make(folder, config) if make is not None else _make(KINDS[task], config["model"])
        model.load_state_dict(read_weights(folder))
    return model.to(device).eval(), config


def _make(kind: Kind, sizes: Mapping[str, Any]) -> Any:
    from rlspeech import config as settings

    return load(kind.module)(getattr(settings, kind.settings)(**sizes))


def save_model(
    folder: Path,
    model: Any,
    task: str,
    *,
    facts: dict[str, Any],
    weights: dict[str, torch.Tensor] | None = None,
    half: bool = False,
    more: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint into an existing or new folder; the caller makes it atomic.

    Args:
        model: gives the config (``cfg``, ``sample_rate``) and, unless ``weights`` are given, the weights.
        task: its kind.
        facts: how it came to be (data, steps, reward, numbers), for ``config.json`` and the model card.
        weights: other weights of the same shape, an average for instance.
        half: store fp16, half the size, for shipping.
        more: further keys of ``config.json``.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    state = {k: v.detach().cpu().contiguous() for k, v in (weights or model.state_dict()).items()}
    if half:
        state = {k: v.half() if v.is_floating_point() else v for k, v in state.items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    # safetensors makes it private; a checkpoint is as readable as its config
    (folder / "model.safetensors").chmod(0o644)
    head = {"model_type": KINDS[task].model_type, "task": task, "sample_rate": model.sample_rate}
    config = {**head, **(more or {}), "model": model.cfg.model_dump(), "facts": facts}
    (folder / "config.json").write_text(json.dumps(config, indent=2, default=str) + "\n")
    write_card(folder, card_of(task, sum(v.numel() for v in state.values()), model.sample_rate), facts)


def card_of(
    task: str, parameters: int, rate: int | None, *, title: str | None = None, details: Sequence[str] = ()
) -> Card:
    """What the card of a task's checkpoint says of its kind; ``title`` in place of the kind's."""
    kind = KINDS[task]
    uses = [kind.use.removeprefix("rlspeech ").format("THIS_FOLDER")]
    if kind.tuned:
        uses += [f"rl --task {task} --model THIS_FOLDER", f"eval --task {task} --model this=THIS_FOLDER"]
    if not kind.model_type:
        details = [*details, "transformers loads this folder by itself."]
    library = "rlspeech" if kind.model_type else "transformers"
    return Card(title or kind.title, task, parameters, rate, library, kind.pipeline, kind.tags, uses, details)
