"""``rlspeech convert``: checkpoints, manifests, scores and adapters from and to the formats of other toolkits.

    rlspeech convert avse4 pretrained.ckpt --out runs/avse4-baseline      # weights of the fourth AVSE challenge's baseline
    rlspeech convert manifest data/train.jsonl --to kaldi data/kaldi      # or nemo, lhotse, webdataset, shar
    rlspeech convert scores scores/scores.jsonl --to versa scores.versa   # and back: --to rlspeech
    rlspeech convert lora runs/asr --to adapter runs/asr-adapter          # a few MB; peft puts them onto the model it was trained on
    rlspeech convert lora runs/asr --to merged runs/asr-merged            # a plain checkpoint, without trainer state
    rlspeech convert lora runs/asr-adapter --to merged merged             # the way back
    rlspeech convert hub runs/asr --push user/name                        # weights and model card to the Hugging Face Hub
    rlspeech convert ct2 faster-whisper-tiny.en whisper-tiny.en           # a Whisper of faster-whisper, for transformers
    rlspeech convert average runs/seed0 runs/seed1 --step 1.5 --out mean  # the runs' mean weights, half as far again from their start

Outputs are written whole or not at all, and existing files are never overwritten. A run with LoRA keeps its checkpoints merged, with the
adapter in ``adapter/``, whose names are those of this project's wrapper around a language model; what is written here has the names of
the transformers model itself, which is what peft takes elsewhere.
"""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from rlspeech import log
from rlspeech.files import read_object
from rlspeech.models.card import HUB_ID, Card, write_card
from rlspeech.models.hub import KINDS, card_of, hub_client, resolve, task_of
from rlspeech.names import refuse_pointers
from rlspeech.types import UserError

CONFIG, WEIGHTS, ABOUT = "adapter_config.json", "adapter_model.safetensors", "rlspeech.json"
STATE = frozenset({"adapter", "state.json", "state.safetensors"})  # what a checkpoint of a run has beside the model
# weights, settings, tokenizers, the card
PUBLISHED = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model", ".md"})
ABSOLUTE = re.compile(r"(?<![\w/:.])(?:/[^/\s\"'`<>|,;()\[\]]+){2,}")  # a path; what stands behind an address is none
# tasks whose model holds a transformers model under the name ``net``
WRAPPED = frozenset(task for task, kind in KINDS.items() if kind.tuned and not kind.model_type)
# of a config: what two checkpoints of one architecture may differ in
INCIDENTAL = frozenset({"facts", "dtype", "torch_dtype", "transformers_version", "_name_or_path"})
OWN_FACTS = frozenset({"rl", "validation"})  # facts of one run
DRIFT = 2e-3  # of the largest weight: a half-precision copy is nearer than that


@contextmanager
def new_place(out: str | None, *, folder: bool = True, suffix: str = "") -> Iterator[tuple[Path, Path]]:
    """A place to write to that takes its name, ``out``, when everything is there; yields both.

    Args:
        folder: a folder, else a file.
        suffix: that a file to write to ends in, where that matters to its writer.

    Raises:
        UserError: no name, something of that name that is not an empty folder, or a disk that does not take it.
    """
    kind = "folder" if folder else "file"
    if not out:
        raise UserError(f"no output {kind}", "", f"--out {kind.upper()}")
    final = Path(out).absolute()
    if final.exists() and not (folder and final.is_dir() and not any(final.iterdir())):
        raise UserError(f"{final} already exists", "", f"name another {kind}")
    work: Path | None = None
    try:
        final.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix=f".{final.name}.", dir=final.parent))
        place = work if folder else work / f"new{suffix}"
        yield place, final
        if folder:
            work.chmod(0o755)  # what is made is as readable as any folder
        os.replace(place, final)
    except OSError as error:
        raise UserError(f"cannot write {final}", error.strerror or str(error)) from error
    finally:
        if work is not None:
            shutil.rmtree(work, ignore_errors=True)


def avse4(source: str, out: str | None) -> dict[str, Any]:
    """Read the weights of the fourth AVSE challenge's baseline, write a checkpoint folder; returns its size and the inferred settings.

    Raises:
        UserError: a file that cannot be read or does not fit, a folder that exists.
    """
    from rlspeech.models.avse_import import TASK, convert_avse4, read_avse4
    from rlspeech.models.hub import save_model

    with new_place(out) as (place, folder):
        model = convert_avse4(read_avse4(source))
        save_model(place, model, TASK, facts={"stage": "convert", "layout": "avse4", "source": Path(source).name})
    parameters, cfg = sum(p.numel() for p in model.parameters()), model.cfg
    log.say(f"{parameters / 1e6:.2f} M parameters, {cfg.channels} channel{'s' if cfg.channels > 1 else ''}, {folder}")
    log.say(f"next: rlspeech eval --task {TASK} --model {folder} --data test.jsonl")
    return {"checkpoint": str(folder), "parameters": parameters, "model": cfg.model_dump()}


def manifest(source: str, to: str, out: str | None) -> dict[str, Any]:
    """Write a manifest, or the one that a folder holds, in another toolkit's format; returns how many rows went and why others did not.

    Args:
        source: manifest, or a folder that holds one.
        to: one of ``exports.FORMATS``.
        out: file to write, or a folder (``exports.FOLDERS``).

    Raises:
        UserError: an unknown format, a manifest of which no row can be written, a place that is taken.
    """
    from rlspeech.data.exports import FOLDERS, FORMATS, write_manifest_as
    from rlspeech.data.manifest import find_manifest, scan_manifest

    if to not in FORMATS:
        raise UserError(f"no manifests are called {to!r}", f"there are: {', '.join(FORMATS)}", "--to nemo")
    utts, problems = scan_manifest(find_manifest(source, recipe=False))
    suffix = ".gz" if to == "lhotse" and str(out).endswith(".gz") else ""
    with new_place(out, folder=to in FOLDERS, suffix=suffix) as (place, final):
        done = write_manifest_as(utts, to, place, final)
        why = Counter([reason for _, reason in done.left_out] + ["bad line in the manifest"] * len(problems))
        if not done.rows:
            reasons = "; ".join(f"{reason}: {n}" for reason, n in why.most_common(3)) or "it is empty"
            raise UserError(f"no row of {source} can be written for {to}", reasons, f"rlspeech check {source}")
    for name, reason in [(f"line {number}", reason) for number, reason in problems] + done.left_out:
        log.say(f"left out: {name}: {reason}")
    notes = [*(f"left out: {reason}: {n}" for reason, n in why.most_common()), *done.notes]
    log.table(f"{to}: {final}", ["", "rows"], [["written", done.rows], ["left out", sum(why.values())]], notes)
    if to != "nemo":
        reader = {"webdataset": "folder", "shar": "lhotse"}.get(to, to)
        log.say(f"back: rlspeech prepare {reader} {final} --out data/again")
    return {"out": str(final), "to": to, "rows": done.rows, "left_out": dict(why), "notes": done.notes}


def scores(source: str, to: str, out: str | None, *, system: str | None = None) -> dict[str, Any]:
    """Rows of scores in VERSA's form, or VERSA's rows in ours; returns how many, their metrics' names there and here, and what is missing.

    Args:
        source: ``scores.jsonl``, or a file that VERSA's scorer wrote.
        to: "versa" or "rlspeech".
        out: file to write; ours gets its ``.meta.json`` beside it.
        system: which system of a file with several; of rows from VERSA, the label that they get.

    Raises:
        UserError: an unknown direction, nothing that can be read, several systems and none named, a place that is taken.
    """
    from rlspeech.rewards import versa

    if to not in ("versa", "rlspeech"):
        raise UserError(f"no scores are called {to!r}", "there are: versa, rlspeech", "--to versa")
    with new_place(out, folder=False) as (place, final):
        if to == "versa":
            done = versa.export(Path(source), place, system)
        else:
            done = versa.take(Path(source), place, system or "system")
            aside = final.with_suffix(".meta.json")
            if aside.exists():
                raise UserError(f"{aside} already exists", "", "name another file")
            os.replace(place.with_suffix(".meta.json"), aside)
    rows = [list(metric) for metric in done.metrics]  # theirs, ours, values, missing
    log.table(f"{done.rows} rows: {final}", ["VERSA's name", "our name", "values", "missing"], rows, done.notes)
    if to == "rlspeech":
        log.say(f"next: rlspeech check {final}")
    names = ("versa", "rlspeech", "values", "missing")
    facts = {"rows": done.rows, "bad_lines": done.bad_lines, "notes": done.notes}
    return {"out": str(final), "to": to, **facts, "metrics": [dict(zip(names, row, strict=True)) for row in rows]}


def ct2(source: str, out: str | None) -> dict[str, Any]:
    """Write a Whisper of CTranslate2 for transformers. Raises ``UserError``: no such model, or a damaged one; a folder that exists."""
    from rlspeech.models.ct2 import convert_whisper

    with new_place(out) as (place, final):
        refuse_pointers(Path(source))
        try:
            parameters = convert_whisper(Path(source), place)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            why = f"there is no {error}" if isinstance(error, KeyError) else str(error)
            hint = "a folder of faster-whisper: model.bin, config.json, tokenizer.json, all of one model"
            raise UserError(f"{source} cannot be converted", why, hint) from error
    log.say(f"{parameters / 1e6:.1f} M parameters; next: rlspeech transcribe talk.wav --model {final}")
    return {"checkpoint": str(final), "parameters": parameters}


def merge_lora(source: str, to: str, out: str | None, *, device: str = "cpu") -> dict[str, Any]:
    """Write an adapter or a merged checkpoint; returns the task, what it started from, and the size of the adapter.

    Args:
        source: run folder of ``rlspeech rl``, one of its checkpoints, or an adapter that this command wrote.
        to: "adapter" or "merged".
        device: where an adapter is merged.

    Raises:
        UserError: no run or adapter, a run that trained every weight, or a model that the adapter was not trained on.
    """
    if to not in ("adapter", "merged"):
        raise UserError(f"LoRA cannot be written as {to!r}", "there are: adapter, merged", "--to adapter")
    given = Path(source)
    exported = _exported(given)
    if exported and to == "adapter":
        raise UserError(f"{source} is an adapter already", "", "--to merged")
    with new_place(out) as (place, final):
        if exported:
            facts = _merge(given, place, device)
        else:
            checkpoint = resolve(source)
            facts = _copy(checkpoint, place) if to == "merged" else _adapter(checkpoint, place)
    log.say(f"{final}: {to}, {facts['parameters'] / 1e6:.3f} M parameters in the adapter, for {facts['base']}")
    back = f"rlspeech convert lora {final} --to merged FOLDER, or peft.PeftModel.from_pretrained(model, {str(final)!r})"
    log.say(f"next: {KINDS[facts['task']].use.format(final) if to == 'merged' else back}")
    return {"out": str(final), "to": to, **facts}


def _copy(checkpoint: Path, place: Path) -> dict[str, Any]:
    """Copy the model of a checkpoint, which is merged already, without its adapter and trainer state."""
    facts = _facts(checkpoint)
    for path in _model_files(checkpoint):
        shutil.copyfile(path, place / path.name)
    return facts


def _model_files(checkpoint: Path) -> list[Path]:
    return [path for path in sorted(checkpoint.iterdir()) if path.is_file() and path.name not in STATE]


def _facts(checkpoint: Path) -> dict[str, Any]:
    """Task, base and size of a checkpoint with an adapter. Raises ``UserError``: it has none."""
    task, rl = task_of(checkpoint), _noted(checkpoint).get("rl")
    if task is None or not isinstance(rl, dict):
        why, try_this = "only its runs have adapters", "a run folder of `rlspeech rl`"
        raise UserError(f"{checkpoint} was not tuned by rlspeech rl", why, try_this)
    if not (checkpoint / "adapter" / CONFIG).is_file():
        why = "the run trained every weight (lora: null): it is a plain checkpoint as it is"
        raise UserError(f"{checkpoint} has no adapter", why, KINDS[task].use.format(checkpoint))
    size = sum(t.numel() for t in _read_adapter(checkpoint / "adapter").values())
    return {"task": task, "base": str(rl.get("from", "")), "parameters": size}


def push(source: str, name: str, *, public: bool = False) -> dict[str, Any]:
    """Upload weights and card of a checkpoint, or of a folder that ``merge_lora`` wrote, to the repository USER/NAME of the Hub.

    Trainer state stays, and of absolute paths no more than the last two parts goes.

    Returns ``url``, ``files``, ``left_out``, and ``shortened``: files that held absolute paths.
    Raises ``UserError``: no checkpoint, no card, a name that is none, or what the network and the Hub raise.
    """
    folder = Path(source) if _exported(Path(source)) else resolve(source)
    every = sorted(folder.iterdir())
    files = [p.name for p in every if p.is_file() and p.suffix in PUBLISHED and p.name not in STATE]
    left, shortened = [p.name for p in every if p.name not in files], []
    if not HUB_ID.fullmatch(name):
        raise UserError(f"{name!r} is no name of a repository", "", "--push USER/NAME")
    if "README.md" not in files:
        raise UserError(f"{folder} has no model card, README.md", "", "a checkpoint of rlspeech rl or pretrain")
    with tempfile.TemporaryDirectory() as place:
        for file in files:
            target = Path(shutil.copyfile(folder / file, Path(place, file)))
            if file in ("README.md", "config.json", ABOUT, CONFIG):
                text, n = ABSOLUTE.subn(lambda m: "/".join(m[0].split("/")[-2:]), target.read_text(encoding="utf-8"))
                target.write_text(text, encoding="utf-8")
                shortened += [file] if n else []
        notes = [f"left out: {', '.join(left)}", f"absolute paths are shortened in: {', '.join(shortened)}"]
        rows = [[file, f"{(folder / file).stat().st_size / 1e6:.2f}"] for file in files]
        heading = f"{folder} to {name} ({'public' if public else 'private'}, if it is new)"
        log.table(heading, ["file", "MB"], rows, notes)
        with hub_client(f"cannot upload {folder} to {name}") as hub, log.waiting("uploading"):
            api = hub.HfApi()
            api.create_repo(name, private=not public, exist_ok=True)
            address = str(api.upload_folder(repo_id=name, folder_path=place, commit_message="Checkpoint of rlspeech"))
    log.say(f"uploaded: {address}")
    return {"url": address, "files": files, "left_out": left, "shortened": shortened}


def _exported(folder: Path) -> bool:
    return (folder / CONFIG).is_file() and not (folder / "config.json").is_file()


def _about(folder: Path) -> dict[str, Any]:
    return read_object(folder / ABOUT) or read_object(folder / "config.json")


def _noted(folder: Path) -> dict[str, Any]:
    facts = _about(folder).get("facts")
    return facts if isinstance(facts, dict) else {}


def _read_adapter(folder: Path) -> dict[str, Any]:
    """Tensors of an adapter. Raises ``UserError``."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS)
    except (OSError, SafetensorError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"cannot read {folder / WEIGHTS}", why, "another checkpoint of the run") from error


# -------------------------------------------------------------------------------------------------------------- adapter


def _adapter(checkpoint: Path, place: Path) -> dict[str, Any]:
    from safetensors.torch import save_file

    facts, about = _facts(checkpoint), _about(checkpoint)
    task = facts["task"]
    tensors = _read_adapter(checkpoint / "adapter")
    config = read_object(checkpoint / "adapter" / CONFIG)
    targets = config.get("target_modules")
    if not targets:
        what = f"cannot read {checkpoint / 'adapter' / CONFIG}"
        raise UserError(what, "it names no target_modules", "another checkpoint of the run")
    if task in WRAPPED:
        tensors = {re.sub(r"^base_model\.model\.net\.", "base_model.model.", k): v for k, v in tensors.items()}
        config["target_modules"] = re.sub(r"^net\\\.", "", targets) if isinstance(targets, str) else targets
        names = read_object(checkpoint / "config.json").get("architectures")
        config["auto_mapping"] = {"base_model_class": names[0], "parent_library": "transformers"} if names else None
    base = _base_folder(facts["base"], task)
    if base is not None:
        _check_base(base, checkpoint, tensors, config)
    config["base_model_name_or_path"] = facts["base"] if base is None else str(base)
    (place / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({k: v.contiguous() for k, v in tensors.items()}, place / WEIGHTS, metadata={"format": "pt"})
    (place / WEIGHTS).chmod(0o644)
    row = {"task": task, "base": facts["base"], "facts": about.get("facts", {})}
    (place / ABOUT).write_text(json.dumps(row, indent=2, default=str) + "\n", encoding="utf-8")
    write_card(place, _card(task, facts, about), row["facts"])
    return facts


def _base_folder(base: str, task: str) -> Path | None:
    """Where the model is that the run started from; None of a Hub id, or where it is gone."""
    if HUB_ID.fullmatch(base) and not Path(base).exists():
        return None
    try:
        return resolve(base, task).absolute()
    except UserError:
        log.warn(f"the model that the run started from, {base}, is not there any more: the adapter fits no other")
        return None


def _check_base(base: Path, checkpoint: Path, tensors: dict[str, Any], config: dict[str, Any]) -> None:
    """Say where base and adapter do not make the checkpoint: the base has changed since."""
    from safetensors import SafetensorError, safe_open

    scale = config.get("lora_alpha", 1) / max(1, config.get("r", 1))
    try:
        old, new = (folder / "model.safetensors" for folder in (base, checkpoint))
        with safe_open(old, "pt") as before, safe_open(new, "pt") as after:
            known = set(before.keys()) & set(after.keys())
            for key in [k for k in tensors if k.endswith(".lora_A.weight")][:8]:
                name = key.removeprefix("base_model.model.").removesuffix(".lora_A.weight") + ".weight"
                a, b = tensors[key], tensors[key.replace(".lora_A.", ".lora_B.")]
                if name not in known or a.ndim != 2:
                    continue
                made = before.get_tensor(name).float() + scale * (b.float() @ a.float())
                wanted = after.get_tensor(name).float()
                if made.shape != wanted.shape or float((made - wanted).abs().max()) > DRIFT * float(wanted.abs().max()):
                    changed = f"{base} is not what the run started from any more ({name} differs)"
                    log.warn(f"{changed}: this adapter does not fit it")
                    return
    except (OSError, SafetensorError):
        return  # in several files, or none: nothing to compare


def _card(task: str, facts: dict[str, Any], about: dict[str, Any]) -> Card:
    kind, whose = KINDS[task], "the transformers model" if task in WRAPPED else "the model of rlspeech"
    uses = ["convert lora THIS_FOLDER --to merged FOLDER", kind.use.removeprefix("rlspeech ").format("FOLDER")]
    says = [f"It changes {whose} that it was trained on: `peft.PeftModel.from_pretrained(model, THIS_FOLDER)`."]
    of = (task, facts["parameters"], about.get("sample_rate"), "peft", kind.pipeline, ["lora"])
    return Card(f"LoRA adapter of a {kind.title}", *of, uses, says)


# --------------------------------------------------------------------------------------------------------------- merged


def _merge(folder: Path, place: Path, device: str) -> dict[str, Any]:
    """Put an exported adapter onto its base and fold it in."""
    from peft import PeftModel

    from rlspeech.engine import Engine
    from rlspeech.tasks import get_task

    about = _about(folder)
    if about.get("task") not in KINDS or not isinstance(about.get("base"), str):
        why = f"it has no {ABOUT} of `rlspeech convert lora --to adapter`"
        try_this = "peft.PeftModel.from_pretrained(model, FOLDER).merge_and_unload()"
        raise UserError(f"{folder} does not say what it belongs to", why, try_this)
    tensors = _read_adapter(folder)
    task, base = get_task(about["task"]), about["base"]
    if base not in ("embedded", "tiny"):
        where = str(read_object(folder / CONFIG).get("base_model_name_or_path"))
        base = where if Path(where).exists() else base
    model, _ = task.load(base, Engine(device, "fp32").device)
    inner = model.net if about["task"] in WRAPPED else model
    try:
        adapted = PeftModel.from_pretrained(inner, str(folder))
        there = {k.replace(".default.", ".") for k in adapted.state_dict() if ".default." in k}
        if there != set(tensors):
            raise ValueError(f"it changes layers that the model does not have: {sorted(set(tensors) ^ there)[0]}")
        adapted.merge_and_unload()
    except (OSError, ValueError, KeyError, RuntimeError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{folder} does not fit {base}", why, "the model that it was trained on") from error
    task.save(place, model, facts=about.get("facts", {}))
    return {"task": about["task"], "base": about["base"], "parameters": sum(t.numel() for t in tensors.values())}


# -------------------------------------------------------------------------------------------------------------- average


def average(sources: Sequence[str], out: str | None, *, step: float = 1.0, base: str | None = None) -> dict[str, Any]:
    """Write a checkpoint of the weights ``base + step * (mean of sources - base)``; returns task, parts, base and size.

    Step 1 is the mean (model soups, Wortsman et al. 2022, arXiv 2203.05482), 0 the base, and more goes on in the direction in which
    the mean has left it (task vectors, Ilharco et al. 2023, arXiv 2212.04089). Computed in fp64, stored in the first source's types.

    Args:
        sources: run folders or checkpoints of one architecture, which started from one model.
        out: folder to write.
        base: where they started; None: what they themselves say. Weights of different starts have no mean that is a model.

    Raises:
        UserError: no checkpoint, another task, architecture or start, a step that is not finite, a folder that exists.
    """
    if not math.isfinite(step):
        raise UserError(f"--step {step} is no number of steps", "", "--step 1.5")
    folders = [resolve(source) for source in sources]
    task, start = _same_start(folders, base)
    with new_place(out) as (place, final), tempfile.TemporaryDirectory(dir=final.parent) as scratch:
        if step != 1:  # loaded and saved, its weights have the names of what was tuned, wherever they come from
            from rlspeech.tasks import get_task

            get_task(task).save(Path(scratch), get_task(task).load(start)[0], facts={})
        parameters, old = 0, [Path(scratch)] if step != 1 else []
        for path in _model_files(folders[0]):
            if path.suffix == ".safetensors":
                parameters += _mean(path.name, folders, old, step, place)
            else:
                shutil.copyfile(path, place / path.name)
        about, facts = _about(place), [_noted(folder) for folder in folders]
        same = {k: v for k, v in facts[0].items() if k not in OWN_FACTS and all(f.get(k) == v for f in facts)}
        parts = [str(folder) for folder in folders]
        row = {"stage": "convert", "parts": parts, "base": start, "step": step}
        file = place / (ABOUT if (place / ABOUT).is_file() else "config.json")
        file.write_text(json.dumps({**about, "facts": same | row}, indent=2, default=str) + "\n", encoding="utf-8")
        *ends, origin = ("/".join(Path(name).parts[-3:]) for name in (*parts, start))  # RUN/checkpoints/STEP
        says = [f"Its weights are {step:g} times as far from the base as the mean of the parts."]
        card = card_of(task, parameters, about.get("sample_rate"), details=says)
        write_card(place, card, same | row | {"parts": ends, "base": origin})
    log.say(f"{final}: the mean of {len(folders)}, {step:g} times as far from {start}")
    log.say(f"next: {KINDS[task].use.format(final)}")
    return {"out": str(final), "task": task, **row, "parameters": parameters}


def _same_start(folders: Sequence[Path], base: str | None) -> tuple[str, str]:
    """The task of checkpoints and the model that they started from, or ``base``. Raises ``UserError``: they differ."""
    tasks, starts = [task_of(folder) for folder in folders], list[str]()
    files = (ABOUT, "config.json")
    configs = [[read_object(folder / file) for file in files] for folder in folders]
    for folder, task, config in zip(folders, tasks, configs, strict=True):
        if task is None or task != tasks[0]:
            why = f"{folders[0]} is one of {tasks[0]}" if task else "no file in it says so"
            raise UserError(f"{folder} is no checkpoint of {tasks[0] or 'rlspeech'}", why, "checkpoints of one task")
        facts = _noted(folder)
        origin = rl.get("from") if isinstance(rl := facts.get("rl"), dict) else facts.get("base")
        starts.append(str(origin or folder.parent))  # of a run that started from nothing: one of its own checkpoints
        for file, first, other in zip(files, configs[0], config, strict=True):
            keys = (set(first) | set(other)) - INCIDENTAL
            if differ := sorted(k for k in keys if first.get(k) != other.get(k)):
                what, why = f"{folder} is of another architecture than {folders[0]}", f"{file}: {', '.join(differ)}"
                raise UserError(what, why, "checkpoints that started from one model")
    if base is None and len(set(starts)) > 1:
        why = "they say: " + ", ".join(f"{f}: {s}" for f, s in zip(folders, starts, strict=True))
        raise UserError("the checkpoints did not start from one model", why, "--base NAME, if these are copies of it")
    return str(tasks[0]), base or starts[0]


def _mean(file: str, folders: Sequence[Path], old: Sequence[Path], step: float, place: Path) -> int:
    """Write one file of weights; returns how many numbers are in it. Raises ``UserError``: the files do not fit together."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file

    made = {}
    try:
        with ExitStack() as stack:
            opened = [stack.enter_context(safe_open(folder / file, "pt")) for folder in [*folders, *old]]
            for name in opened[0].keys():
                first, *others = (weights.get_tensor(name) for weights in opened)
                if any(other.shape != first.shape for other in others):
                    raise ValueError(f"{name} has different shapes")
                if first.is_floating_point():
                    parts = [t.double() for t in (first, *others)]
                    start = parts.pop() if old else parts[0]
                    mean = sum(parts[1:], parts[0]) / len(parts)
                    first = (start + step * (mean - start) if old else mean).to(first.dtype)
                made[name] = first.contiguous()
            if more := [name for weights in opened[1:] for name in weights.keys() if name not in made]:
                raise ValueError(f"{more[0]} is not in {folders[0]}")
    except (OSError, SafetensorError, ValueError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"{file}: the weights have no mean", why, "checkpoints that started from one model") from error
    save_file(made, place / file, metadata={"format": "pt"})
    (place / file).chmod(0o644)
    return sum(t.numel() for t in made.values())
