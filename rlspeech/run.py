"""The run folder: who owns it, what was asked, what happened, and where to go on from.

    config.yaml  config.resolved.json  env.json  metrics.jsonl  logs/  checkpoints/step_000200/  checkpoints/{latest,best}

A checkpoint is written under a temporary name, fsynced and renamed, so a reader sees it whole or not at all; trainer state is
safetensors and JSON, never a pickle. Under several processes only rank 0 writes.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, suppress
from importlib import metadata
from pathlib import Path
from typing import IO, Any

from pydantic import BaseModel, ValidationError

from rlspeech import log
from rlspeech.files import is_full, named_by, parse_json, read_object, remove_parts, sync, write_error, write_text
from rlspeech.scores import step_name, write_json
from rlspeech.state import load_state, save_state
from rlspeech.tracking import MetricsLog, check_trackers
from rlspeech.types import UserError

KEEP = 2  # checkpoints besides the best one
# files of a run that has not begun
SETTINGS = {"config.yaml", "config.resolved.json", "env.json", ".lock", "report.html", "shard.json", "wandb-id"}
# Keys that may differ when a run goes on: they change where, how fast and how often it looks, not what is computed.
NEUTRAL = frozenset(
    "out shard device workers save_every valid_every max_minutes micro_batch micro_tokens rollout_tokens gradient_checkpointing "
    "attn_implementation sharding probe_batches players timeout_s tracker".split()
)
PACKAGES = (
    *("rlspeech", "torch", "numpy", "transformers", "peft", "accelerate", "safetensors", "soundfile"),
    *("onnxruntime", "speechmos", "distillmos", "resemblyzer", "pesq", "pystoi", "jiwer", "librosa"),
)
Keys = Iterable[str]  # of settings, at the top level
_held: dict[str, Run] = {}  # POSIX locks do not exclude their own process, so that is done here


class Run(AbstractContextManager["Run"]):
    """One run folder, held by this process until ``close``. Make it with ``Run.create``."""

    def __init__(self, path: Path, stage: str, config: BaseModel) -> None:
        self.path, self.stage, self.config = path, stage, config
        self.main = log.is_main()
        self.checkpoints = Checkpoints(path / "checkpoints", writable=self.main)
        self.resumed = False  # True where the folder held an earlier attempt of the same run
        # settings that an earlier attempt had otherwise and that may grow: key -> its value then
        self.grown: dict[str, Any] = {}
        self._lock: IO[str] | None = None
        self._metrics = MetricsLog(path, getattr(config, "tracker", ()))
        self._found: tuple[Path, dict[str, Any]] | None = None

    @classmethod
    def create(
        cls, out: str | Path | None, stage: str, config: BaseModel, *, neutral: Keys = (), growing: Keys = ()
    ) -> Run:
        """Make the folder, or take up the run that it holds.

        Args:
            out: the folder; None: ``runs/<stage>-<task>-<algo>-<hash of the config>``, so the same command finds its run again.
            neutral: further top-level keys that may differ on resume.
            growing: counts of steps that may be raised, or lowered to what is done: to train a finished run for longer.

        Raises:
            UserError: another process holds the folder; it holds another run; it cannot be written; a tracker is missing.
        """
        check_trackers(getattr(config, "tracker", ()))
        path = Path(out) if out else Path("runs") / _default_name(stage, config)
        run = cls(path.absolute(), stage, config)
        if not run.main:
            return run
        try:
            (run.path / "checkpoints").mkdir(parents=True, exist_ok=True)
            run._take_lock()
            run._open(NEUTRAL | set(neutral), frozenset(growing))
        except BaseException as error:
            run.close()
            if isinstance(error, OSError):
                raise write_error(run.path, error, "no run was started") from error
            raise
        return run

    def _open(self, neutral: frozenset[str], growing: frozenset[str]) -> None:
        resolved = self.path / "config.resolved.json"
        if resolved.exists() and self._begun():
            self._compare(resolved, neutral, growing)
            self.resumed = True
        self.checkpoints.clean()
        remove_parts(self.path)
        self._found = self.checkpoints.latest()
        self._metrics.trim(self._found[1]["step"] if self._found else -1)
        import yaml

        sparse = self.config.model_dump(mode="json", exclude_defaults=True)
        write_text(self.path / "config.yaml", yaml.safe_dump(sparse, sort_keys=False, allow_unicode=True))
        write_json(resolved, self.config.model_dump(mode="json"))
        self.note(**_environment(self.stage), restart=True)
        log.to_file(self.path / "logs" / "run.log")
        self._metrics.begin(self.config.model_dump(mode="json"))

    def _begun(self) -> bool:
        """True where the folder holds more than settings: a run that failed before its first result leaves nothing to go on with."""
        return any(
            p.is_file() and p.stat().st_size
            for p in self.path.rglob("*")
            if p.name not in SETTINGS and p.relative_to(self.path).parts[0] not in {"logs", "tensorboard", "wandb"}
        )

    def note(self, *, restart: bool = False, **facts: Any) -> None:
        """Add facts to ``env.json`` (``device="cuda: H200"``). ``restart`` moves what is there to ``earlier`` first."""
        if not self.main:
            return
        path = self.path / "env.json"
        env = read_object(path)
        if restart and env:
            earlier = env.pop("earlier", [])
            env = {"earlier": [*earlier, env]}
        write_json(path, {**facts, **env} if restart else {**env, **facts})

    def log(self, step: int, **metrics: Any) -> None:
        """Append one row to ``metrics.jsonl`` and feed the installed trackers. nan and infinities are written as null."""
        if self.main:
            self._metrics.log(step, metrics)

    def latest(self, agree: Callable[[Any], Any] = lambda own: own) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to go on from and its state (with ``step``), or None. A damaged one is passed over with a warning.

        ``agree`` gives every process what rank 0 has: the others read what that has found whole.
        """
        found, self._found = (self._found or self.checkpoints.latest()) if self.main else None, None
        path = agree(found and found[0])
        return found if self.main or path is None else (path, load_state(path))

    # ---- owning the folder

    def _take_lock(self) -> None:
        name = str(self.path.resolve())
        if name in _held:
            raise UserError(f"{self.path} is in use", f"this process (pid {os.getpid()}) holds it already", "--out NEW")
        self._lock = (self.path / ".lock").open("a+", encoding="utf-8")
        try:  # lockf, not flock: the lock dies with this process even when a forked worker outlives it
            import fcntl

            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except ImportError:
            pass  # not POSIX
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EAGAIN):
                self._lock.seek(0)
                pid = self._lock.read().strip() or "unknown"
                try_this = f"wait for it, end it (kill {pid}), or --out NEW"
                raise UserError(f"{self.path} is in use", f"process {pid} is writing there", try_this) from None
            log.warn(f"{self.path} cannot be locked ({error}); see to it that no other process writes there")
        self._lock.truncate(0)
        self._lock.write(str(os.getpid()))
        self._lock.flush()
        _held[name] = self

    def _compare(self, resolved: Path, neutral: frozenset[str], growing: frozenset[str]) -> None:
        try:
            before, env = parse_json(resolved.read_bytes()), read_object(self.path / "env.json")
        except ValueError as error:
            try_this = f"--out NEW, or delete it: rm -r {self.path}"
            raise UserError(f"{resolved} cannot be read", str(error), try_this) from None
        if env.get("stage", self.stage) != self.stage:
            why = f"{env['stage']}, not {self.stage}"
            raise UserError(f"{self.path} holds a run of another stage", why, "--out NEW")
        with suppress(ValidationError):  # a key that is younger than the run takes its default
            before = type(self.config).model_validate(before).model_dump(mode="json")
        old, new = flat(before), flat(self.config.model_dump(mode="json"))
        changed = [k for k in sorted({*old, *new}) if old.get(k) != new.get(k) and k.split(".")[0] not in neutral]
        differences = "; ".join(f"{k}: {old.get(k)!r} then, {new.get(k)!r} now" for k in changed)
        done = self.checkpoints.last_step()
        if len(changed) == 1 and (key := changed[0]) in growing:
            if new[key] < done:
                try_this = f"--{key} {done} or more to go on, --out NEW for a shorter run"
                raise UserError(f"{self.path} is at step {done} already", differences, try_this)
            self.grown[key] = old[key]
        elif changed:
            try_this = f"--out NEW for the new settings, the old settings to go on, or delete it: rm -r {self.path}"
            raise UserError(f"{self.path} holds a run with other settings", differences, try_this)

    def close(self) -> None:
        """Flush everything and let go of the folder."""
        self._metrics.close()
        if self._lock is not None:
            self._lock.close()
            self._lock = None
        if _held.get(str(self.path.resolve())) is self:
            del _held[str(self.path.resolve())]
            log.to_file(None)

    def __exit__(self, *exc: object) -> None:
        self.close()


def settings_of(folder: str | Path | None) -> dict[str, Any]:
    """The settings with which the run or evaluation in a folder was begun; {} of a folder without, or whose file cannot be read."""
    return read_object(Path(folder or "") / "config.resolved.json")


def _default_name(stage: str, config: BaseModel) -> str:
    settings = {k: v for k, v in flat(config.model_dump(mode="json")).items() if k.split(".")[0] not in NEUTRAL}
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:6]
    return "-".join(filter(None, (stage, getattr(config, "task", None), getattr(config, "algo", None), digest)))


def flat(tree: Any, prefix: str = "", *, by_name: bool = False) -> dict[str, Any]:
    """Dotted key -> value; ``by_name``: entries of a list that have names are found by them, so that their order does not matter."""
    if by_name and isinstance(tree, list) and all(isinstance(v, dict) and isinstance(v.get("name"), str) for v in tree):
        if tree and len({v["name"] for v in tree}) == len(tree):
            tree = {v["name"]: {k: x for k, x in v.items() if k != "name"} for v in tree}
    if not isinstance(tree, dict) or not tree:
        return {prefix: tree}
    parts = (flat(sub, f"{prefix}.{name}" if prefix else str(name), by_name=by_name) for name, sub in tree.items())
    return {k: v for part in parts for k, v in part.items()}


def _environment(stage: str) -> dict[str, Any]:
    return {
        "stage": stage,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "argv": list(sys.argv),
        "pid": os.getpid(),
        "git_commit": _commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions_of(PACKAGES),
    }


def versions_of(packages: Iterable[str]) -> dict[str, str | None]:
    """Installed versions by package, None where it is not installed."""
    found: dict[str, str | None] = dict.fromkeys(packages)
    for name in found:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _commit() -> str | None:
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=5, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None


def _not_finite(state: Any, name: str = "") -> str | None:
    """Name of a tensor or array below ``state`` that holds nan or an infinity, or None."""
    if isinstance(state, dict | list | tuple):
        parts = state.items() if isinstance(state, dict) else enumerate(state)
        return next((f for k, v in parts if (f := _not_finite(v, f"{name}.{k}" if name else str(k)))), None)
    torch = sys.modules.get("torch")
    if torch is not None and torch.is_tensor(state) and state.is_floating_point():
        return None if bool(torch.isfinite(state).all()) else name
    return None


class Checkpoints:
    """``step_000200/`` folders and the text files ``latest`` and ``best`` beside them, each of which names one.

    Whatever moment the process dies at, a start finds the last complete checkpoint and removes the rest. Besides the best one the
    last ``KEEP`` are kept. ``writable`` is False in processes other than rank 0: saving does nothing.
    """

    def __init__(self, folder: Path, writable: bool = True) -> None:
        self.folder, self.writable = folder, writable

    def save(self, step: int, write: Callable[[Path], Any], state: dict[str, Any], *, best: bool = False) -> Path:
        """Write a checkpoint whole or not at all, point ``latest`` at it, and drop the oldest ones.

        Args:
            write: writes the model files into the folder it is given.
            state: nested dict of tensors, arrays, numbers, strings; ``step`` is added.
            best: point ``best`` at it too. That comes first: who dies in between does this step once more.

        Raises:
            UserError: weights that are not finite, or a full disk; the earlier checkpoints are intact.
        """
        if broken := _not_finite(state):
            why = f"{broken} holds values that are not finite; the earlier checkpoints are intact"
            raise UserError(f"step {step} is not saved", why, "a lower lr or grad_clip, and --out NEW")
        folder = self.folder
        final = folder / step_name(step)
        if not self.writable:
            return final
        temporary = folder / f".tmp-{final.name}-{os.getpid()}"
        try:
            shutil.rmtree(temporary, ignore_errors=True)
            temporary.mkdir(parents=True)
            write(temporary)
            save_state(temporary, {**state, "step": int(step)})
            for path in [*temporary.rglob("*"), temporary]:
                sync(path)
            aside = folder / f".old-{final.name}"
            if final.exists():  # cannot be renamed onto; ``clean`` puts this back if we die in between
                os.rename(final, aside)
            os.rename(temporary, final)
            sync(folder)
            shutil.rmtree(aside, ignore_errors=True)
            for pointer in ("best", "latest") if best else ("latest",):
                write_text(folder / pointer, final.name + "\n")
        except BaseException as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if is_full(error):
                raise write_error(self.folder, error, "the earlier checkpoints are intact") from error
            raise
        keep = {self.pointed("latest"), self.pointed("best")}
        for path in self._steps()[:-KEEP]:
            if path not in keep:
                shutil.rmtree(path, ignore_errors=True)
        return final

    def pointed(self, name: str) -> Path | None:
        """The folder that ``latest`` or ``best`` names, or None."""
        return named_by(self.folder / name)

    def last_step(self) -> int:
        """The step that ``latest`` names; 0 where there is none."""
        folder = self.pointed("latest")
        digits = folder.name.removeprefix("step_") if folder else ""
        return int(digits) if digits.isdecimal() else 0

    def latest(self) -> tuple[Path, dict[str, Any]] | None:
        """The checkpoint to go on from and its state (with ``step``), or None. A damaged one is passed over with a warning."""
        first = self.pointed("latest")
        for path in [*([first] if first else []), *(p for p in reversed(self._steps()) if p != first)]:
            try:
                return path, load_state(path)
            except Exception as error:  # whatever is wrong with the files, an older checkpoint is better than none
                log.warn(f"{path} cannot be read ({error}); looking for an earlier one")
        return None

    def _steps(self) -> list[Path]:
        return sorted((p for p in self.folder.glob("step_*") if p.is_dir()), key=lambda p: (len(p.name), p.name))

    def clean(self) -> None:
        """Remove what a process that died has left half-written."""
        for path in self.folder.glob(".tmp-*"):
            shutil.rmtree(path, ignore_errors=True)
        for path in self.folder.glob(".old-*"):
            final = path.with_name(path.name.removeprefix(".old-"))
            shutil.rmtree(path, ignore_errors=True) if final.exists() else os.rename(path, final)
