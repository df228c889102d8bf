"""Runs as their folders hold them: settings, curves, scores by item and kept audio, whole or torn, read and never written.

What a report knows of a run is what lies on disk: no lock is taken, nothing is computed again, a run may still be going on. A file that is
missing or torn leaves its part empty and a note; what is read is someone else's text.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlspeech.data.batches import columns_of
from rlspeech.data.inputs import collect
from rlspeech.data.manifest import find_manifest, read_manifest
from rlspeech.files import object_or_reason, read_jsonl, safe_name
from rlspeech.log import several
from rlspeech.rewards.base import column_of
from rlspeech.scores import objects, read_scores
from rlspeech.stats import Interval
from rlspeech.tracking import read_metrics
from rlspeech.types import UserError

STAGES = ("rl", "eval", "reward", "pretrain")
# a folder with one of them holds, or held, a run
MARKS = ("config.resolved.json", "metrics.jsonl", "scores.jsonl", "env.json")
INPUT = "input"  # system of an evaluation: the unprocessed recordings
STEP = re.compile(r"step_\d{1,12}")
Row = dict[str, Any]
Scores = dict[str, dict[str, Row]]  # system -> key -> row


@dataclass(frozen=True, slots=True)
class Sound:
    """A stretch of an audio file; ``duration_s`` None is all of it."""

    path: Path
    offset_s: float = 0.0
    duration_s: float | None = None


@dataclass(frozen=True, slots=True)
class Origin:
    """What an item was made from: name of a player -> sound, and the columns of its row."""

    before: Mapping[str, Sound] = field(default_factory=dict)
    reference: Sound | None = None
    own: Sound | None = None
    columns: Mapping[str, Any] = field(default_factory=dict)


@dataclass(slots=True)
class RunRecord:
    """One run."""

    name: str  # what it is called beside others
    path: Path  # its folder
    stage: str  # rl, eval, reward or pretrain
    config: Row = field(default_factory=dict)  # as resolved; of ``reward`` the settings that it noted
    env: Row = field(default_factory=dict)  # versions, device, when it started
    metrics: list[Row] = field(default_factory=list)  # rows of ``metrics.jsonl``
    # system -> key -> row of ``scores.jsonl``; of ``rl`` the systems are its validations, ``step_000020``
    scores: Scores = field(default_factory=dict)
    meta: Row = field(default_factory=dict)  # ``scores.meta.json``
    summary: Row = field(default_factory=dict)  # ``metrics.json`` of an evaluation
    notes: list[str] = field(default_factory=list)  # what is missing or torn
    scores_path: Path = Path("scores.jsonl")  # the file that ``scores`` come from
    _origins: dict[str, dict[str, Origin]] = field(default_factory=dict)

    @property
    def seed(self) -> int:
        """Seed of the run, for resampling."""
        seed = self.config.get("seed")
        return seed if isinstance(seed, int) and seed >= 0 else 0

    @property
    def method(self) -> str:
        """The algorithm, or control where the policy's loss has no weight; empty where nothing is tuned."""
        return str(self.config.get("algo") or "") if self.config.get("policy_weight", 1) else "control"

    @property
    def step(self) -> int:
        """The last step that left a row."""
        return max((int(r["step"]) for r in self.metrics), default=0)

    @property
    def page(self) -> Path:
        """The run's own page: ``report.html``, ``NAME.report.html`` beside ``NAME.scores.jsonl``."""
        if self.stage != "reward":
            return self.path / "report.html"
        stem = self.scores_path.stem
        own = stem.removesuffix("scores") + "report" if stem.endswith("scores") else f"{stem}.report"
        return self.scores_path.with_name(f"{own}.html")

    def state(self) -> str:
        """How far the run came, in words."""
        if self.stage == "reward":
            return f"{several(sum(map(len, self.scores.values())), 'file')} scored"
        if self.stage == "eval":
            models = self.config.get("models")
            missing = [m for m in models if m not in self.scores] if isinstance(models, dict) else []
            return f"without {', '.join(missing)}" if missing else "done" if self.summary else "not finished"
        steps, why = self.config.get("steps"), self.env.get("stopped")
        reached = f"step {self.step} of {steps}" if isinstance(steps, int) else f"step {self.step}"
        return f"{reached}: {why}" if isinstance(why, str) and why else reached

    def kept(self, folder: str) -> dict[str, dict[str, Path]]:
        """Kept audio: name of a folder under ``samples`` or ``audio`` -> stem -> file."""
        try:
            places = sorted(p for p in (self.path / folder).iterdir() if p.is_dir() and not p.is_symlink())
        except OSError:
            return {}
        return {p.name: {f.stem: f for f in sorted(p.glob("[!.]*.flac")) if not f.is_symlink()} for p in places}

    def pointer(self, name: str) -> str:
        """The checkpoint that ``checkpoints/best`` or ``latest`` names; empty where there is none."""
        try:
            return (self.path / "checkpoints" / name).read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError):
            return ""

    def transcripts(self, step: str) -> dict[str, Row]:
        """What a validation of ``pretrain`` wrote: key -> ``text`` and ``hypothesis``."""
        path, names = self.path / "samples" / step / "said.jsonl", ("text", "hypothesis")
        rows = read_jsonl(path) if path.is_file() else []
        whole = [r for r in rows if "id" in r and all(isinstance(r.get(k), str) for k in names)]
        return {str(r["id"]): {k: r[k] for k in names} for r in whole}

    def steps(self) -> list[int]:
        """The validations of ``rl`` that have scores by item, rising."""
        return [int(name.removeprefix("step_")) for name in self.scores] if self.stage == "rl" else []

    def means(self, step: int | None = None) -> dict[str, Interval]:
        """Means of the last validation, or of that at ``step``, as ``metrics.jsonl`` has them."""
        found: dict[str, Interval] = {}
        for row in self.metrics:
            for name, value in row.items() if step is None or row["step"] == step else ():
                head, _, metric = name.partition("/")
                end = name[-3:] in ("_lo", "_hi") and name[:-3] in row
                if head == "valid" and not end and (mean := number(value)) is not None:
                    lo, hi = (math.nan if (v := number(row.get(name + e))) is None else v for e in ("_lo", "_hi"))
                    found[metric] = Interval(mean, lo, hi, 2 if math.isfinite(lo) else 1)
        return found

    def metas(self, system: str) -> dict[str, Row]:
        """What ``scores.meta.json`` says of the metrics of a system, by their names."""
        part = at(self.meta, "systems", system, "metrics") if self.stage == "reward" else self.meta.get("metrics")
        return objects(part)

    def higher_is_better(self, metric: str) -> bool:
        """Direction of a metric: as the run noted it, else the registry's, else up."""
        noted = {
            "eval": [at(self.summary, "higher_is_better", metric)],
            "reward": [at(self.metas(s), metric, "higher_is_better") for s in self.scores],
            "rl": [at(self.env, "rewards", metric, "higher_is_better")],
        }
        known = next((v for v in noted.get(self.stage, ()) if isinstance(v, bool)), None)
        try:
            return column_of(metric).higher_is_better if known is None else known
        except UserError:  # a function that is not here, or a name of the run's own
            return True

    def origins(self, system: str) -> dict[str, Origin]:
        """What the items of a system were made from, by key, where it still is where it was; of ``reward`` what was scored."""
        read = {"eval": self._rows_of_manifest, "reward": lambda: self._scored(system)}.get(self.stage, self._samples)
        system = system if self.stage == "reward" else ""
        if system not in self._origins:
            try:
                self._origins[system] = read()
            except UserError as error:
                self.notes.append(f"no players: {error.what}")
                self._origins[system] = {}
        return self._origins[system]

    def _samples(self) -> dict[str, Origin]:
        """Inputs and references that a run that trains has kept, by the stems of their files."""
        kept = {name: self.kept("samples").get(name, {}) for name in ("input", "recording", "original", "reference")}
        references = kept.pop("reference")
        found = {}
        for stem in dict.fromkeys(stem for files in (*kept.values(), references) for stem in files):
            before = {name: Sound(files[stem]) for name, files in kept.items() if stem in files}
            found[stem] = Origin(before, Sound(references[stem]) if stem in references else None)
        return found

    def _scored(self, system: str) -> dict[str, Origin]:
        """The files of ``reward``; transcripts and references that are gone are left out."""
        path, *more = (at(self.meta, "systems", system, "settings", k) for k in ("path", "target", "text"))
        if not (isinstance(path, str) or isinstance(path, list) and path and all(isinstance(p, str) for p in path)):
            return {}
        found = {}
        given = [m if isinstance(m, str) and Path(m).exists() else None for m in more]
        for i in collect(path, *given, texts_only=True):
            sounds = [None if p is None else Sound(Path(p), i.offset_s, i.duration_s) for p in (i.audio, i.target)]
            found[i.key] = Origin({}, sounds[1], sounds[0], {"text": i.text, **i.columns})
        return found

    def _rows_of_manifest(self) -> dict[str, Origin]:
        """Rows of the manifest: the recording is played where no system kept audio, else what the systems were given and the reference."""
        data, found = self.env.get("manifest") or self.config.get("data"), {}
        audible = bool(self.kept("audio"))
        for u in read_manifest(find_manifest(data, recipe=False)) if isinstance(data, str) else ():
            paths = (u.audio_filepath, u.target_filepath)
            recording, target = (Sound(Path(p), u.offset, u.duration) if p else None for p in paths)
            prompt = Sound(Path(u.prompt_filepath)) if u.prompt_filepath else None
            name, sound = ("prompt", prompt) if audible else ("recording", recording)
            columns = {"text": u.text, **columns_of(u)}
            found[u.id] = Origin({name: sound} if sound else {}, target if audible else None, None, columns)
        return found


def at(tree: Any, *path: str) -> Any:
    """The value at a path of keys; None where there is none."""
    for name in path:
        tree = tree.get(name) if isinstance(tree, Mapping) else None
    return tree


def open_runs(given: Sequence[str]) -> list[RunRecord]:
    """Read run folders, each as PATH or NAME=PATH.

    Returns one run a folder, with names that differ. Raises ``UserError``: something that is no run folder, or the same one twice.
    """
    runs = [_open(text) for text in given]
    places = [p.scores_path if p.stage == "reward" else p.path for p in runs]
    if double := next((str(p) for i, p in enumerate(places) if p in places[:i]), None):
        raise UserError(f"{double} is given twice", "a run cannot be compared with itself", "name each run once")
    for depth in range(2, 5):  # runs/a/rl and runs/b/rl are a/rl and b/rl
        names = [p.name for p in runs]
        for p in runs:
            if names.count(p.name) > 1 and f"={p.path}" not in given:
                p.name = "/".join(p.path.parts[-depth:])
    for i, p in enumerate(runs):
        if p.name in [q.name for q in runs[:i]]:
            p.name = f"{p.name} ({i + 1})"
    return runs


def _open(text: str) -> RunRecord:
    label, equals, rest = text.partition("=")
    named = equals == "=" and bool(label and rest) and not Path(text).exists()
    path = Path(os.path.abspath(rest if named else text))
    single = path.is_file() and path.name.endswith("scores.jsonl")
    folder = path.parent if single else path
    scores = path if single else folder / "scores.jsonl"
    if not single and not (folder.is_dir() and any((folder / n).is_file() for n in MARKS)):
        raise UserError(f"{text} is not a run folder", *_why_not(path))
    notes: list[str] = []
    config, env = (_json_file(folder / n, notes) for n in ("config.resolved.json", "env.json"))
    run = RunRecord("", folder, "", config, env, notes=notes, scores_path=scores)
    run.metrics = [] if single else read_metrics(folder / "metrics.jsonl")
    run.scores = read_scores(scores, notes)
    run.meta = _json_file(scores.with_suffix(".meta.json"), notes)
    run.summary = {} if single else _json_file(folder / "metrics.json", notes)
    run.stage = "reward" if single else _stage(run, text)
    if run.stage == "reward":
        noted = (at(run.meta, "systems", name, "settings") for name in run.scores)
        run.config = next((dict(s) for s in noted if isinstance(s, dict)), {})
    elif not run.config:
        notes.append("config.resolved.json is missing or torn: its settings are not known")
    if run.stage == "rl":
        steps = sorted(filter(STEP.fullmatch, run.scores), key=lambda s: int(s[5:]))
        run.scores = {s: run.scores[s] for s in steps}
    own = scores.name.removesuffix("scores.jsonl").rstrip(".") if single else ""
    run.name = label if named else own or folder.name
    return run


def _why_not(path: Path) -> tuple[str, str]:
    """The reason, and what may have been meant."""
    if not path.exists():
        return "there is no such path", "check the path"
    if path.is_file():
        return "it is a file", "the folder that --out named"
    if path.parent.name == "checkpoints":
        return "it is a checkpoint", f"rlspeech report {shown_path(path.parent.parent)}"
    if (path / "probe.json").is_file():
        return "it holds a probe, whose table is in probe.json", "rlspeech rl without --probe makes a run"
    inside = sorted(p for p in path.iterdir() if p.is_dir() and any((p / n).is_file() for n in MARKS))
    if inside:
        some = " ".join(str(shown_path(p)) for p in inside[:3])
        return f"it holds {len(inside)} of them", f"rlspeech report {some}{' ...' if len(inside) > 3 else ''}"
    return f"it has none of {', '.join(MARKS)}", "a folder that rlspeech pretrain, rl, eval or reward has written"


def _stage(run: RunRecord, text: str) -> str:
    """The stage that the run names, or by the settings that only one stage has."""
    noted = run.env.get("stage")
    if noted in STAGES:
        return str(noted)
    if isinstance(noted, str):
        what = f"{text} cannot be reported on"
        raise UserError(what, f"it holds a run of {noted}", f"runs of {', '.join(STAGES)} can")
    for key, stage in (("algo", "rl"), ("models", "eval"), ("ema", "pretrain")):
        if key in run.config:
            return stage
    if run.meta.get("systems") is not None and not run.metrics or not (run.config or run.metrics):
        return "reward"
    return "rl" if any("reward" in r or any(k.startswith("delta/") for k in r) for r in run.metrics) else "pretrain"


def _json_file(path: Path, notes: list[str]) -> Row:
    """An object of a JSON file; empty where it is missing, with a note where it is torn."""
    found, why = object_or_reason(path)
    if why:
        notes.append(f"{path.name} cannot be read: {why[:200]}")
    return found


def number(value: Any) -> float | None:
    """A finite number, or None."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:
        return None


def find(files: Mapping[str, Any], keys: Iterable[str]) -> dict[str, Any]:
    """The file of each item, by key, where there is one; stems are keys made safe."""
    folded: dict[str, Any] = {}
    for stem, path in files.items():
        folded.setdefault(_folded(stem), path)
    found = {k: files.get(k) or files.get(safe_name(k)) or folded.get(_folded(k)) for k in keys}
    return {k: path for k, path in found.items() if path is not None}


def _folded(name: str) -> str:
    return re.sub(r"\W", "_", name)[:110]


def shown_path(path: Path) -> Path:
    """A path as it is typed here: relative below the working directory."""
    try:
        return path.relative_to(Path.cwd())
    except (ValueError, OSError):
        return path
