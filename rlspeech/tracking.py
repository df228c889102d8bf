"""The numbers of a run over its steps: ``metrics.jsonl``, and the trackers that people watch it in.

``tracker: auto`` feeds TensorBoard where it is installed; ``tracker: wandb`` asks for Weights & Biases, which sends what it gets to its
server unless ``WANDB_MODE=offline``, and finds project, entity and name in its own variables (``WANDB_PROJECT`` ...). A tracker gets the
run's settings, every row, and of a validation the first few outputs. One that is missing or does not start is said before anything is
trained; one that breaks later costs a warning.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import IO, Any

from rlspeech import log
from rlspeech.files import read_jsonl, write_error, write_text
from rlspeech.scores import step_name
from rlspeech.types import UserError

PACKAGES = ("tensorboard", "wandb")  # trackers that are packages of their name
SOUND = frozenset({".wav", ".flac", ".ogg"})
GIVEN = ("input", "reference")  # folders beside those of the steps, where a stage keeps what was put in
# of one validation: clips and texts that a tracker gets, and of a clip at most so many seconds
CLIPS, ROWS, CLIP_S = 4, 8, 12.0
Texts = Sequence[tuple[str, str, str]]  # id, reference and hypothesis


class MetricsLog:
    """Appends rows to a run's ``metrics.jsonl`` and hands them to the trackers ``wanted`` (see ``check_trackers``)."""

    def __init__(self, folder: Path, wanted: Sequence[str] = ("auto",)) -> None:
        self.folder, self.path, self.wanted = folder, folder / "metrics.jsonl", frozenset(wanted)
        self._file: IO[str] | None = None
        self._trackers: dict[str, _TensorBoard | _Wandb] = {}
        self._config: Mapping[str, Any] = {}
        self._after, self._shown = -1, False

    def begin(self, config: Mapping[str, Any]) -> None:
        """Start the trackers that were asked for by name, which show the settings; TensorBoard waits for the first row.

        Raises:
            UserError: one of them is not installed, or does not start.
        """
        self._config = config
        if "wandb" in self.wanted:
            try:
                self._trackers["wandb"] = _Wandb(self.folder, config)
            except Exception as error:
                try_this = "wandb login, or WANDB_MODE=offline, or --set tracker=auto"
                raise UserError("the tracker wandb does not start", _first(error), try_this) from error

    def log(self, step: int, metrics: dict[str, Any]) -> None:
        """Write one row at once, nan and infinities as null. Raises ``UserError`` where the disk is full."""
        row = log.plain({"step": int(step), "time": round(time.time(), 3), **metrics})
        first = self._file is None
        try:
            self._file = self._file or self.path.open("a", encoding="utf-8")
            self._file.write(json.dumps(row, ensure_ascii=False, allow_nan=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise write_error(self.path, error, "the run goes on from its last checkpoint") from error
        wanted = first and self.wanted & {"auto", "tensorboard"} and "torch" in sys.modules  # which it needs
        if wanted and importlib.util.find_spec("tensorboard") is not None:
            self._trackers["tensorboard"] = _TensorBoard(self.folder / "tensorboard", self._config, self._after)
        self._each(lambda tracker: tracker.log(step, row))
        if self._trackers and any(name.startswith("valid/") for name in row):
            self._outputs(step)

    def _each(self, work: Callable[[_TensorBoard | _Wandb], None]) -> None:
        """Do something with every tracker. One that breaks costs a warning and the tracker, not the run."""
        for name, tracker in [*self._trackers.items()]:
            try:
                work(tracker)
            except Exception as error:
                del self._trackers[name]
                log.warn(f"the tracker {name} broke and gets no more ({_first(error)}); metrics.jsonl has everything")

    def _outputs(self, step: int) -> None:
        """What the validation of a step has left under ``samples/``: some sound, some texts; at the first one also what was put in."""
        folder = self.folder / "samples" / step_name(step)
        made = _sound(folder)[:CLIPS]
        stems = {path.stem for path in made}
        given = [] if self._shown else [p for name in GIVEN for p in _sound(folder.parent / name) if p.stem in stems]
        sounds = [(path, "output") for path in made] + [(path, path.parent.name) for path in given]

        def show(tracker: _TensorBoard | _Wandb) -> None:
            for path, what in sounds:
                tracker.sound(f"samples/{path.stem}/{what}", path, step)
            if texts := _texts(folder / "said.jsonl"):
                tracker.texts("samples/said", texts, step)

        self._each(show)
        self._shown = self._shown or bool(made)

    def trim(self, last_step: int) -> None:
        """Drop torn lines, and rows after a step: what a resumed run is going to do again."""
        self._after = last_step
        if self.path.exists():
            rows = [row for row in read_metrics(self.path) if row["step"] <= last_step]
            write_text(self.path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def close(self) -> None:
        """Close the file and flush the trackers."""
        if self._file is not None:
            self._file.close()
            self._file = None
        self._each(lambda tracker: tracker.close())
        self._trackers = {}


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Rows of a ``metrics.jsonl``; a torn line (the process died while writing) is left out."""
    return [row for row in read_jsonl(path) if isinstance(row.get("step"), int)]


def _sound(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if p.suffix.lower() in SOUND) if folder.is_dir() else []


def _texts(path: Path) -> list[tuple[str, str, str]]:
    """Id, reference and hypothesis of the first rows of a recogniser's validation."""
    rows = read_jsonl(path)[:ROWS]
    return [(str(r.get("id", "")), str(r.get("text") or ""), str(r.get("hypothesis") or "")) for r in rows]


def check_trackers(names: Sequence[str]) -> None:
    """Raise ``UserError`` where the package of a tracker that was asked for by name is missing.

    ``names``: "auto" (TensorBoard where it is installed), "none", "tensorboard", "wandb".
    """
    for name in names:
        if name in PACKAGES and importlib.util.find_spec(name) is None:
            try_this = f"pip install {name}, or --set tracker=none"
            raise UserError(f"the tracker {name} is not installed", f"there is no package {name} here", try_this)


class _TensorBoard:
    def __init__(self, folder: Path, config: Mapping[str, Any], after: int) -> None:
        self.folder, self.config, self.after = folder, config, after

    @cached_property
    def writer(self) -> Any:
        """TensorBoard's writer, opened at the first row."""
        from torch.utils.tensorboard import SummaryWriter

        # steps that a resumed run does again replace those of the attempt that died
        writer = SummaryWriter(str(self.folder), purge_step=self.after + 1 if self.after >= 0 else None)
        if self.config:
            writer.add_text("config", _quoted(json.dumps(self.config, indent=2, ensure_ascii=False)))
        return writer

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        for name, value in _numbers(row, but="step").items():
            self.writer.add_scalar(name, value, step)

    def sound(self, name: str, path: Path, step: int) -> None:
        import soundfile as sf
        import torch

        with sf.SoundFile(path) as file:
            wav = file.read(int(CLIP_S * file.samplerate), dtype="float32", always_2d=True).mean(1)
            if len(wav):
                self.writer.add_audio(name, torch.from_numpy(wav)[None].clamp(-1, 1), step, sample_rate=file.samplerate)

    def texts(self, name: str, rows: Texts, step: int) -> None:
        lines = (f"{key}\n  text  {text}\n  said  {hypothesis}" for key, text, hypothesis in rows)
        self.writer.add_text(name, _quoted("\n".join(lines)), step)

    def close(self) -> None:
        self.writer.close()


class _Wandb:
    """One run at Weights & Biases; a resumed folder goes on with the run that it began, whose id is in the file ``wandb-id``."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        import wandb

        mark = folder / "wandb-id"
        name = mark.read_text(encoding="utf-8").strip() if mark.is_file() else secrets.token_hex(4)
        write_text(mark, name + "\n")
        self.wandb = wandb
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT") or "rlspeech",
            name=os.environ.get("WANDB_NAME") or folder.name,
            dir=str(folder),
            id=name,
            resume="allow",
            config=dict(config),
            settings=wandb.Settings(console="off"),  # stdout is the stage's own
        )
        self.run.define_metric("*", step_metric="step")  # a step may come twice: a resumed run does some again

    def log(self, step: int, row: Mapping[str, Any]) -> None:
        self.run.log({**_numbers(row, but="time"), "step": step})

    def sound(self, name: str, path: Path, step: int) -> None:
        self.run.log({name: self.wandb.Audio(str(path), caption=f"{path.stem}, step {step}"), "step": step})

    def texts(self, name: str, rows: Texts, step: int) -> None:
        table = self.wandb.Table(columns=["id", "text", "said"], data=[list(row) for row in rows])
        self.run.log({name: table, "step": step})

    def close(self) -> None:
        self.run.finish()


def _numbers(row: Mapping[str, Any], but: str) -> dict[str, float]:
    return {k: v for k, v in row.items() if isinstance(v, int | float) and not isinstance(v, bool) and k != but}


def _first(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['no message'])[0]}"


def _quoted(text: str) -> str:
    """Text that Markdown shows as it is."""
    return "".join(f"    {line}\n" for line in text.splitlines())
