"""What ``rlspeech eval`` asks a task: which systems there are, which rows count, and what a system answers.

``Evaluation`` and ``Answers`` hold what tasks share; ``Task.evaluation`` gives a task's own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rlspeech.config import Evaluate
from rlspeech.data.audio import AudioError
from rlspeech.files import JsonlWriter, dumps, read_jsonl, safe_name, write_text
from rlspeech.rewards import base
from rlspeech.scores import Row, ScoreTable
from rlspeech.types import Sample, Score, UserError, Utterance


@dataclass(frozen=True, slots=True)
class System:
    """A column of the table."""

    name: str  # of the column and of its folders
    # of its model; None where the rows themselves are the outputs, or the files of a folder
    checkpoint: str | None = None
    variant: str = ""  # what else tells its outputs from those of the same weights
    compared: bool = True  # False for a bound that is shown beside the systems and has the rows that it has
    folder: str | None = None  # of the outputs of another program


class Evaluation:
    """How a task is evaluated; the class attributes are what differs between tasks.

    Args:
        task: a ``tasks.base.Task``.
        config: the evaluation's settings.

    Raises:
        UserError: a setting of another task, or a model's name that cannot be used.
    """

    reserved: ClassVar[tuple[str, ...]] = ()  # names that no model can have
    neutral: ClassVar[tuple[str, ...]] = ()  # settings of the task that a run that goes on may change
    noted: ClassVar[tuple[str, ...]] = ()  # settings that scores.meta.json repeats
    rates: ClassVar[tuple[str, ...]] = ()  # corpus rates that stand before the means; rows then hold a hypothesis
    rated: ClassVar[tuple[str, ...]] = ()  # metrics in the rows whose place in the table the rates take
    recounted: ClassVar[bool] = False  # rows are made anew from the answers; metrics stand apart from the rates
    interval: ClassVar[str] = "bootstrap over utterances, 95 %"

    def __init__(self, task: Any, config: Evaluate) -> None:
        self.task, self.config = task, config
        self.device: Any = "cpu"
        self.summary: dict[str, Any] = {}  # further keys of metrics.json
        self.meta: dict[str, Any] = {}  # and of scores.meta.json
        self._loaded: tuple[str, Any, dict[str, Any]] | None = None
        for name in (*config.models, *config.systems):
            if name in config.models and name in config.systems:
                hint = "another name for one of them"
                raise UserError(f"two systems are called {name!r}", "--model and --system", hint)
            if name in self.reserved or safe_name(name) != name:
                taken = f"; {', '.join(self.reserved)} are taken" if self.reserved else ""
                why = f"the name becomes a file or folder{taken}"
                raise UserError(f"a system cannot be called {name!r}", why, "--model NAME=PATH, --system NAME=PATH")

    def rows(self, utts: Sequence[Utterance]) -> tuple[list[Utterance], list[str]]:
        """The rows that can be evaluated, and remarks. Raises ``UserError`` where there is none."""
        return list(utts), []

    def systems(self, utts: Sequence[Utterance]) -> list[System]:
        """Systems in the order in which they answer. Raises ``UserError`` for what cannot be used.

        ``utts``: all rows of the manifest, whatever the limit.
        """
        models = self.config.models or {"embedded": "embedded"}
        return [System(name, checkpoint) for name, checkpoint in models.items()]

    def metrics(self) -> tuple[list[str], list[str]]:
        """Columns to compute, and remarks on those that cannot be computed here. Raises ``UserError`` where none can."""
        return (base.named(self.config.metrics), []) if self.config.metrics else usable(self.task.default_metrics)

    def scoring(self) -> dict[str, dict[str, Any]]:
        """Options of reward families that follow from the evaluation's settings."""
        return {}

    def load(self, checkpoint: str) -> tuple[Any, dict[str, Any]]:
        """A model and what is known of it; the last one is kept."""
        if self._loaded is None or self._loaded[0] != checkpoint:
            self._loaded = None
            self._loaded = (checkpoint, *self.task.load(checkpoint, self.device))
        return self._loaded[1:]

    def answers(self, system: System, table: ScoreTable, fingerprint: str) -> Answers:
        """A system's outputs."""
        raise NotImplementedError

    def remarks(self, table: ScoreTable, systems: Sequence[str], keys: Sequence[str]) -> list[str]:
        """What is worth knowing of the compared rows."""
        return []


class Answers(AbstractContextManager["Answers"]):
    """One system's outputs, kept under the run's folder; what is there is not made again. A context manager.

    Args:
        evaluation: whose settings hold.
        system: the system.
        table: rows of all systems.
        fingerprint: of the system.
    """

    replaced: tuple[str, ...] = ()  # columns of an earlier row that do not stay beside new facts

    def __init__(self, evaluation: Any, system: System, table: ScoreTable, fingerprint: str) -> None:
        self.evaluation, self.config, self.system = evaluation, evaluation.config, system
        self.table, self.name, self.fingerprint = table, system.name, fingerprint
        self.journal: JsonlWriter | None = None

    def __exit__(self, *_: object) -> None:
        """Close files."""
        if self.journal is not None:
            self.journal.close()

    def journal_of(self, folder: str, is_whole: Callable[[Row], bool]) -> JsonlWriter:
        """The system's rows in FOLDER/NAME.jsonl, less those that are not whole."""
        path = self.table.folder / folder / f"{self.name}.jsonl"
        write_text(path, "".join(dumps(r) + "\n" for r in [*read_jsonl(path)] if is_whole(r)))
        self.journal = JsonlWriter(path, key="key")
        return self.journal

    def todo(self, utts: Sequence[Utterance]) -> list[Utterance]:
        """Rows without scores, in the order in which they are answered: long ones last, when trouble with memory costs least."""
        return sorted((u for u in utts if not self.table.done(self.name, u.id)), key=lambda u: u.duration)

    def of(self, utts: Sequence[Utterance]) -> list[Sample | Exception]:
        """Outputs of a batch, to be scored, or why there is none."""
        raise NotImplementedError

    def facts(self, sample: Sample, scores: Mapping[str, Score]) -> Row:
        """Further columns of an output's row."""
        return {}

    def file(self, key: str) -> Path:
        """Where an output's audio is kept."""
        return self.table.folder / "audio" / self.name / f"{key}.flac"


def reason_of(error: Exception) -> str:
    """Why there is no output, short enough for a row."""
    if isinstance(error, AudioError):
        return f"audio: {error.reason}"
    return f"{type(error).__name__}: {error}"[:300]


def usable(names: Sequence[str]) -> tuple[list[str], list[str]]:
    """The columns that can be computed here, and a remark for each that cannot. Raises ``UserError``: none."""
    good, notes = list[str](), list[str]()
    for column in base.named(names):
        try:
            base.resolve(column)
            good.append(column)
        except UserError as error:
            notes.append(f"{column} is left out: {error.why or error.what}")
    if not good:
        raise UserError("no metric can be computed here", "; ".join(notes), "rlspeech doctor")
    return good, notes


def grouped(reasons: Mapping[tuple[str, str], Sequence[str]], what: str, most: int = 20) -> list[str]:
    """A remark for each (system, reason): how many utterances, ``what`` became of them, some of the keys, the reason."""
    found = [(system, f"{len(keys)} {what} ({', '.join(keys[:3])})", why) for (system, why), keys in reasons.items()]
    return [": ".join(parts) for parts in found[:most]]
