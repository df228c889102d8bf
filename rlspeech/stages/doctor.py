"""``rlspeech doctor``: what is installed, which devices and rewards can be used here, and why the others cannot.

It repairs nothing, and a part that is missing or broken is a line of its table, never an exception.
"""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import sys
import sysconfig
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from rlspeech import __version__, log
from rlspeech.data.text import NORMALISERS
from rlspeech.parallel import physical_cores
from rlspeech.rewards.catalogue import SOFT, TORCHAUDIO
from rlspeech.run import versions_of
from rlspeech.tasks import NEEDS, TRANSFORMERS, VIDEOS

PACKAGES = (
    "torch numpy scipy soundfile soxr transformers peft accelerate safetensors pydantic typer rich jinja2 matplotlib jiwer onnx "
    "onnxruntime speechmos av opencv-python-headless"
).split()
MODEL = ("config.json", "model.safetensors")
# folder below assets/ -> (what it must hold, what it is for), beside the checkpoints of ``models.hub.KINDS``
ASSETS = {
    "speaker": (MODEL, "encoder of speaker_similarity"),
    "speech_encoder": (MODEL, "encoder of speech_bert_score"),
    "sentiment": ((*MODEL, "tokenizer.json"), "rates descriptions from 1 to 5, for the reward llm"),
    "demo": (("mix.json", "clean.jsonl", "noise.jsonl"), "the embedded corpus of noisy speech"),
    "demo_commands": (("train.jsonl", "valid.jsonl", "test.jsonl"), "the embedded corpus of texts and recordings"),
}


def run() -> dict[str, Any]:
    """Look at the installation.

    Returns:
        ``ok`` (the main job can run), ``problems``, ``python``, ``packages``, ``optional``, ``torch``, ``devices``, ``threads``,
        ``rewards``, ``recognisers``, ``codecs``, ``normalisers``, ``torchaudio``, ``compiler``, ``assets``, ``features``.
    """
    summary: dict[str, Any] = {"rlspeech": __version__, "python": platform.python_version()}
    summary |= {"platform": platform.platform(), "executable": sys.executable}
    summary |= {"packages": versions_of(PACKAGES), "optional": versions_of(OPTIONAL), "normalisers": list(NORMALISERS)}
    parts: dict[str, Callable[[], Any]] = {"torch": _torch, "devices": _devices, "threads": _threads}
    parts |= {"rewards": _rewards, "recognisers": _recognisers, "codecs": _codecs}
    parts |= {"torchaudio": _torchaudio, "compiler": _compiler, "assets": _assets}
    parts["features"] = lambda: usable_features(summary["rewards"])
    with log.progress(len(parts), "looking", "parts", brief=True) as bar:
        for name, inspect in parts.items():
            try:
                summary[name] = inspect()
            except Exception as error:  # one broken part must not hide the others
                summary[name] = {"error": _line(error)}
            bar.advance()
    summary["problems"] = _problems(summary)
    summary["ok"] = not summary["problems"]
    _print(summary)
    return summary


def _entry(name: str, what: str, why_not: str, **more: Any) -> dict[str, Any]:
    """Return a line of a table: something that can be used, or why it cannot."""
    return {"name": name, "usable": not why_not, "what": what, "why_not": why_not, **more}


def _line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0][:160]}"


def _torch() -> dict[str, Any]:
    import torch

    build = f"ROCm {torch.version.hip}" if torch.version.hip else "CPU"
    build = f"CUDA {torch.version.cuda}" if torch.version.cuda else build
    return {"version": torch.__version__, "build": build, "threads": torch.get_num_threads()}


def _devices() -> list[dict[str, Any]]:
    import torch

    found = [_entry("cpu", f"{physical_cores()} cores", "")]
    if torch.cuda.is_available():
        for i in range(torch.cuda.device_count()):
            memory = torch.cuda.get_device_properties(i).total_memory / 2**30
            found.append(_entry(f"cuda:{i}", f"{torch.cuda.get_device_name(i)}, {memory:.0f} GiB", ""))
    else:
        why = "torch sees no device: is the driver installed, and new enough for this torch?"
        if torch.version.cuda is None and torch.version.hip is None:
            why = "this torch is a CPU build"
            if shutil.which("nvidia-smi"):
                why += ", and there is an NVIDIA driver: pip install --force-reinstall torch"
        found.append(_entry("cuda", "", why))
    mps = getattr(torch.backends, "mps", None)
    if mps is not None and mps.is_built():
        why = _mps_differs() if mps.is_available() else "this Mac has no Metal device that torch can use"
        found.append(_entry("mps", "Metal", why))
    return found


def _mps_differs() -> str:
    """Metal is allowed where it computes what the CPU computes: there are reports of garbled audio without any error."""
    import torch

    x = torch.linspace(-1.0, 1.0, 4096).reshape(1, 1, -1)
    kernel = torch.linspace(0.5, -0.5, 64).reshape(1, 1, -1)

    def work(device: str) -> torch.Tensor:
        y = torch.nn.functional.conv1d(x.to(device), kernel.to(device))[0]
        spectrum = torch.stft(y, 512, 256, window=torch.hann_window(512, device=device), return_complex=True)
        return spectrum.abs().cpu()

    try:
        gap = float((work("mps") - work("cpu")).abs().max())
    except (RuntimeError, NotImplementedError) as error:
        return _line(error)
    differs = f"it computes something else than the CPU (largest difference {gap:.3g}): use --device cpu"
    return "" if gap < 1e-2 else differs


def _threads() -> dict[str, Any]:
    names = ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "KMP_BLOCKTIME", "MKL_NUM_THREADS")
    return {"cores": physical_cores(), "logical": os.cpu_count(), "environment": {n: os.environ.get(n) for n in names}}


def _rewards() -> list[dict[str, Any]]:
    from rlspeech.rewards.base import available

    return [
        {"name": e.family, "usable": not why_not, "why_not": why_not, "where": e.where}
        | {"help": next(iter(e.columns.values())).help, "columns": list(e.columns), "needs": sorted(e.needs)}
        | {"differentiable": {*e.columns} <= {*SOFT}}
        for e, why_not in available()
    ]


def _recognisers() -> list[dict[str, Any]]:
    """The kinds of audio language models that can recognise, and whether this transformers knows them."""
    from rlspeech.models.audio_lm.families import FAMILIES

    return [_entry(name, f.architecture, _too_old(name, f.architecture)) for name, f in FAMILIES.items()]


def _codecs() -> list[dict[str, Any]]:
    """The codecs of transformers that a synthesiser can write, with the licences of their weights."""
    from rlspeech.models.codec.codec import FAMILIES

    return [_entry(n, f"{f.hub}, licence {f.licence}", _too_old(n, f.cls)) for n, f in FAMILIES.items()]


def _too_old(name: str, cls: str) -> str:
    """Why this transformers does not load a kind of model, or ""."""
    import transformers

    from rlspeech.models.folder import SINCE

    old = f"transformers {transformers.__version__} has no {cls}: pip install -U 'transformers>={SINCE.get(name, 5)}'"
    return "" if not cls or cls in dir(transformers) else old  # asking for the attribute would import it


def _torchaudio() -> dict[str, Any]:
    if importlib.util.find_spec("torchaudio") is None:
        why = f"not installed, and not needed: pip install {TORCHAUDIO['torchaudio']} adds SQUIM"
        return {"installed": False, "usable": False, "why_not": why}
    from rlspeech.models.folder import torchaudio_problem

    if reason := torchaudio_problem():
        reason += ". While it is there, transformers cannot load its audio classes either"
    return {"installed": True, "usable": not reason, "why_not": reason}


def _compiler() -> dict[str, Any]:
    """What compiling PESQ takes: a C compiler and Python's headers."""
    own = os.environ.get("CC", "").split(" ")[0] or "cc"
    compiler = next((path for name in (own, "gcc", "clang") if (path := shutil.which(name))), None)
    headers = (Path(sysconfig.get_path("include")) / "Python.h").is_file()
    lacking = [what for what, there in (("a C compiler", compiler), ("Python's headers", headers)) if not there]
    return {"path": compiler, "usable": not lacking, "why_not": f"{' and '.join(lacking)} not found" if lacking else ""}


def _assets() -> list[dict[str, Any]]:
    from rlspeech.models.hub import KINDS

    root = Path(str(resources.files("rlspeech"))) / "assets"
    models = {task: (MODEL, f"{kind.title}: {kind.use.format('embedded')}") for task, kind in KINDS.items()}
    found = []
    for name, (needed, what) in {**models, **ASSETS}.items():
        folder = root / name
        missing = [n for n in needed if not (folder / n).is_file()]
        size = sum(f.stat().st_size for f in folder.rglob("*") if f.is_file()) if folder.is_dir() else 0
        found.append(_entry(name, what, f"{', '.join(missing)} missing in {folder}" if missing else "", bytes=size))
    return found


def _problems(summary: dict[str, Any]) -> list[str]:
    """What stops the main job, with what to do about it."""
    broken = {part: v["error"] for part, v in summary.items() if isinstance(v, dict) and set(v) == {"error"}}
    problems = [f"{part} could not be inspected: {error}" for part, error in broken.items()]
    absent = [name for name, found in summary["packages"].items() if found is None]
    problems += [f"{name} is not installed: pip install {name}" for name in absent]
    if isinstance(summary["assets"], list):
        problems += [f"{a['why_not']}: install again" for a in summary["assets"] if not a["usable"]]
    if summary["torchaudio"].get("installed") and not summary["torchaudio"]["usable"]:
        problems.append(f"torchaudio: {summary['torchaudio']['why_not']}")
    if isinstance(summary["devices"], list):
        problems += [f"mps: {d['why_not']}" for d in summary["devices"] if not d["usable"] and d["name"] == "mps"]
    return problems


def _print(summary: dict[str, Any]) -> None:
    torch = summary["torch"]
    rows = [["rlspeech", summary["rlspeech"], ""], ["python", summary["python"], summary["executable"]]]
    for name, found in summary["packages"].items():
        note = f"{torch.get('build')} build" if name == "torch" and "build" in torch else ""
        rows.append([name, found or "missing", note])
    for name, use in OPTIONAL.items():
        rows.append([f"{name} (optional)", summary["optional"][name] or "-", use])
    log.table("Installed", ["package", "version", ""], rows)
    threads, notes = summary["threads"], []
    if "cores" in threads:
        named = ", ".join(f"{k}={v}" for k, v in threads["environment"].items() if v)
        notes = [f"{threads['cores']} cores, {threads['logical']} logical; {named}"]
    _usable("Devices", summary["devices"], notes)
    compiler = summary["compiler"]
    word = "there" if compiler.get("usable") else compiler.get("why_not", compiler.get("error"))
    audio = "usable" if summary["torchaudio"].get("usable") else summary["torchaudio"].get("why_not", "-")
    _usable("Rewards and metrics", summary["rewards"], [f"C compiler, for PESQ: {word}", f"torchaudio: {audio}"])
    notes = [f"text normalisers: {', '.join(summary['normalisers'])}"]
    _usable("Recognisers (rl, eval and transcribe, by model_type)", summary["recognisers"], notes)
    _usable("Codecs (pretrain and rl, by name)", summary["codecs"], [])
    _usable("Embedded", summary["assets"], [])
    _usable("What can be done here", summary["features"], [])
    if summary["ok"]:
        log.say("next: rlspeech rl --algo grpo --task flowse")
    else:
        for problem in summary["problems"]:
            log.error(problem)


def _usable(title: str, entries: Any, notes: list[str]) -> None:
    if isinstance(entries, dict):
        log.table(title, ["", ""], [["cannot be inspected", entries["error"]]])
        return
    rows = []
    for e in entries:
        about = e.get("what") or e.get("help") or ""
        if "bytes" in e:
            about = f"{e['bytes'] / 1e6:.1f} MB, {about}"
        if e.get("needs"):
            about += f" (needs {' and '.join(e['needs'])})"
        about += ", differentiable" if e.get("differentiable") else ""
        names = textwrap.wrap(", ".join(e.get("columns", [])) or e["name"], 60)
        rows.append([names[0], "yes" if e["usable"] else "no", about if e["usable"] else e["why_not"]])
        rows += [[more, "", ""] for more in names[1:]]
    log.table(title, ["", "usable", ""], rows, notes)


@dataclass(frozen=True, slots=True)
class Feature:
    """Something to do, with what it needs beyond the packages that are always installed."""

    name: str  # what it is
    how: str  # the command or option that asks for it
    modules: dict[str, str] = field(default_factory=dict)  # module -> what to give to ``pip install``
    assets: tuple[str, ...] = ()  # folders below ``rlspeech/assets``


FEATURES = (
    *(Feature(n.title, f"--task {task}", n.modules, n.assets) for task, n in NEEDS.items()),
    Feature("an audio LLM as the judge", "--reward llm", TRANSFORMERS, ("listener", "sentiment")),
    Feature("mouth crops of videos", "prepare lips", VIDEOS),
    Feature("mouths tracked by MediaPipe", "prepare lips --landmarks FILE", {"mediapipe": "mediapipe"}),
    Feature("PESQ", "--reward pesq", {"pesq": "'rlspeech[pesq]'"}),
    Feature("SQUIM", "--reward squim", TORCHAUDIO),
    Feature("DistillMOS", "--reward distillmos", {"distillmos": "--no-deps distillmos"}),
    Feature("Resemblyzer", "--reward spk_sim[encoder=resemblyzer]", {"resemblyzer": "--no-deps resemblyzer"}),
    Feature("a second recogniser", "--recogniser pocketsphinx", {"pocketsphinx": "'rlspeech[asr]'"}),
    Feature("rewards over HTTP", "serve", dict.fromkeys(("fastapi", "uvicorn"), "'rlspeech[serve]'")),
    Feature("shards on a cluster", "--engine ray", {"ray": "'rlspeech[ray]'"}),
    Feature("rollouts in vLLM", "--set rollouts.engine=vllm", {"vllm": "'rlspeech[vllm]'"}),
    Feature("curves in TensorBoard", "--set tracker=tensorboard", {"tensorboard": "'rlspeech[tracking]'"}),
    Feature("curves in Weights & Biases", "--set tracker=wandb", {"wandb": "wandb"}),
)
ALWAYS = {*PACKAGES, *TRANSFORMERS, *VIDEOS, *(m for n in NEEDS.values() for m in n.modules)}
OPTIONAL = {module: f.name for f in FEATURES for module in f.modules if module not in ALWAYS}


def usable_features(rewards: Any = None) -> list[dict[str, Any]]:
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
        if reward and not lacking:
            lacking = [next((why for name, why in reasons.items() if name.startswith(reward)), "")]
        found.append(_entry(feature.name, feature.how, "; ".join(lacking)))
    return [*found, _formats()]


def _lacking(feature: Feature) -> list[str]:
    absent = {module: hint for module, hint in feature.modules.items() if not _there(module)}
    lacking = [f"{module} is not installed: pip install {hint}" for module, hint in absent.items()]
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
    old = f"libsndfile {sf.__libsndfile_version__} reads no {' and no '.join(lacking)}: pip install -U soundfile"
    return _entry("FLAC, OGG and MP3 files", "any command", old if lacking else "")
