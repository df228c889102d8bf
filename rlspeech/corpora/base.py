"""What the sources of ``rlspeech prepare`` share: candidates (rows that may enter a manifest), their checks, and the sets that come out.

A source is a settings class with a method ``make``: it finds candidates, has their files checked (``data/checks.py``) and gives back
``Sets``, which ``stages/prepare.py`` writes. Measurements go to ``checks.jsonl`` in the output folder as they come, keyed by path, size and
time of change: a run that was stopped, or is repeated with other limits, reads them there instead of reading the audio.
"""

from __future__ import annotations

import os
import re
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from rlspeech import log
from rlspeech.config_parts import SHARD, Mixing, Shard, ShardText, Strict, conf
from rlspeech.data.checks import FileFacts, Limits, Verdict, file_stamp, judge, judge_pair, measure
from rlspeech.data.inputs import audio_files
from rlspeech.files import SHARD_FOLDER, JsonlWriter, dumps, read_jsonl, read_text, safe_name, write_text
from rlspeech.names import nfc, on_disk
from rlspeech.parallel import parallel_map, physical_cores
from rlspeech.types import UserError, Utterance

FILE_ID = re.compile(r"fileid_(\d+)")
FILE_TIMEOUT_S = 900.0
CHECKS = "checks.jsonl"
KINDS = {"clean": "speech", "noise": "noise", "rir": "rir", "real": "noisy"}
# of two equal recordings the one in such a split stays: training must not contain it
HELD_OUT = ("test", "valid", "dev", "blind", "real", "v5_dev")
Rendered = tuple[list[Utterance], list[dict[str, Any]]]  # rows, and those that could not be made (``dropped_row``)


class Candidate(NamedTuple):
    """A row that may enter a manifest."""

    split: str  # name of the manifest it belongs to (``clean``, ``noise``, ``test`` ...)
    utt: Utterance  # the row; ``duration`` and ``sample_rate`` are 0 where only the file knows them
    problem: str | None = None  # why it cannot be used, where that is known without opening it


def dropped_row(split: str, name: str, path: str | Path | None, reason: str, detail: str) -> dict[str, Any]:
    """A row of ``dropped.jsonl``: what was left out, the reason to count by, and the whole message."""
    return {"split": split, "id": name, "path": None if path is None else str(path), "reason": reason, "detail": detail}


@dataclass
class Sets:
    """The result of a source."""

    rows: dict[str, list[Utterance]] = field(default_factory=dict)  # name of a manifest -> its rows in order
    dropped: list[dict[str, Any]] = field(default_factory=list)  # rows that were left out of them (``dropped_row``)
    # rows that could not be rendered or drawn, listed with ``dropped`` but counted for no manifest of ``rows``
    failed: list[dict[str, Any]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)  # further keys of the summary
    notes: list[str] = field(default_factory=list)  # lines under the table
    # what every manifest's ``.meta.json`` says beside source, counts, seed and settings
    meta: dict[str, Any] = field(default_factory=dict)
    # column names and rows to print; by default the manifests with their counts
    table: tuple[list[str], list[list[Any]]] | None = None
    following: str | None = None  # the command that goes on from here; by default it follows from the rows
    # how rows named ``clean`` and ``noise``, where there are both, are mixed: a recipe stands beside them
    mixing: Mixing | None = None
    # makes the rows of ``manifest.jsonl`` of what was written to ``OUT/sources``, and dropped rows
    render: Callable[[], Rendered] | None = None
    written: bool = False  # manifests and recipe are on disk already

    def write_dropped(self, out: Path) -> None:
        """Write ``OUT/dropped.jsonl``, empty where nothing was left out."""
        write_text(out / "dropped.jsonl", "".join(dumps(row) + "\n" for row in self.dropped + self.failed))

    def require(self, out: Path, splits: Sequence[str] = ()) -> Sets:
        """Return self; raises ``UserError`` where nothing is left, or nothing of one of ``splits``."""
        lacking = [split for split in splits if not self.rows.get(split)]
        if self.rows and not lacking:
            return self
        self.write_dropped(out)
        what = f"nothing is left of {' and '.join(lacking)}" if self.rows else "nothing is left"
        reasons = ", ".join(f"{n} {reason}" for reason, n in counted(self.dropped).items()) or "no files were found"
        try_this = f"see {out / 'dropped.jsonl'}; limits can be changed (rlspeech prepare --help)"
        raise UserError(what, f"dropped: {reasons}", try_this)


def counted(dropped: Iterable[dict[str, Any]], split: str | None = None) -> dict[str, int]:
    """Reason -> how many rows (of a split) were dropped for it, most frequent first; a row without a split counts for each."""
    counts = Counter(row["reason"] for row in dropped if split is None or row.get("split", split) == split)
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


class Source(Strict):
    """Settings of one ``rlspeech prepare NAME``; subclasses add their own and say in ``make`` what comes of them."""

    name: ClassVar[str] = ""
    needed: ClassVar[tuple[str, ...]] = ()  # settings that have to be given
    out: str | None = conf(None, "folder for manifests; none: data/SOURCE")

    def chosen(self) -> Source:
        """Return the source itself, for a class that stands for several."""
        return self

    def record(self) -> dict[str, Any]:
        """What a manifest's ``.meta.json`` keeps: the settings that its rows depend on."""
        return self.model_dump(exclude={"out", "workers", "device", "batch", "shard"})

    @property
    def part(self) -> Shard:
        """The rows that are asked for; the journals of a shard are kept in its place."""
        return Shard.of(getattr(self, "shard", None))

    def make(self, out: Path) -> Sets:
        """Find, check and render the rows; audio goes below ``out``. Raises ``UserError`` where nothing can be made."""
        raise NotImplementedError


class Layout(Source):
    """Settings that every corpus on disk has."""

    needed: ClassVar[tuple[str, ...]] = ("root",)
    judged: ClassVar[str | None] = None  # what rows without a reference are held to (``vet``)
    root: str | None = conf(None, "the corpus, or a file of it")
    mixing: Mixing = conf(Mixing(), "how mixtures are made, where there are clean speech and noise")
    limits: Limits = conf(Limits(), "what is dropped")
    seed: int = conf(0, "of rendered mixtures", ge=0)
    workers: int | None = conf(None, "worker processes; none: one a core; 0: none besides this one", ge=0)
    shard: ShardText | None = conf(None, SHARD)

    def mine(self, row: Candidate) -> bool:
        """Whether a candidate is one of its rows."""
        return self.part.has(row.utt.id)

    def processes(self) -> int:
        """Return the number of worker processes."""
        return physical_cores() if self.workers is None else self.workers

    def find(self, out: Path) -> Iterator[Candidate]:
        """Candidates in the order of their rows; what lies below ``out`` is left out. Raises ``UserError`` where there are none."""
        raise NotImplementedError

    def make(self, out: Path) -> Sets:
        """Return the candidates whose files pass the checks, a set for each split."""
        return self.vetted(self.find(out), out, self.judged)

    def vetted(
        self, candidates: Iterable[Candidate], out: Path, kind: str | None = None, splits: Sequence[str] = ()
    ) -> Sets:
        """The candidates whose files pass the checks (``vet``). Raises ``UserError`` where nothing is left of one of ``splits``."""
        rows = list(filter(self.mine, candidates))
        sets = vet(rows, self.part.place(out), self.limits, self.processes(), kind)
        sets = sets if self.part.own else sets.require(out, splits)
        sets.mixing = self.mixing
        return sets


def shown(out: Path) -> str:
    """A folder as a person would type it."""
    return os.path.relpath(out) if out.is_relative_to(Path.cwd()) else str(out)


def next_command(out: Path, rows: dict[str, list[Utterance]], recipe: bool) -> str:
    """The command that goes on from manifests in ``out``: by their names, and by what the first row of one of them has."""
    folder = shown(out)
    valid = f" --valid {folder}/valid.jsonl" if "valid" in rows else ""
    if recipe:
        task = " --task avse" if rows["clean"][0].lips_filepath else ""
        return f"rlspeech pretrain{task} --data {folder}/mix.json{valid}"
    name = next(s for s in ("train", "manifest", *rows) if s in rows)
    first, data, training = rows[name][0], f"{folder}/{name}.jsonl", name in ("train", "manifest")
    if first.video_filepath and not first.lips_filepath:
        return f"rlspeech prepare lips {folder} --out {folder}-lips"
    if first.text is not None and not (first.target_filepath or first.lips_filepath or "rung" in first.extra):
        stage = "eval" if name.startswith(("test", "dev", "valid")) else "rl"
        return f"rlspeech {stage} --task asr --data {data}"
    if training and first.lips_filepath and first.target_filepath:
        return f"rlspeech pretrain --task avse --data {data}{valid}"
    if training and "rung" in first.extra:
        return f"rlspeech reward {data} --reward llm --reward dnsmos --reward pesq"
    if training and first.target_filepath:
        return f"rlspeech pretrain --data {data}{valid}"
    return f"rlspeech eval --data {data}" if name.startswith("test") else f"rlspeech reward {data} --reward dnsmos"


# ---------------------------------------------------------------------------------------------------------- candidates


def check_folder(path: str | Path | None, what: str) -> Path:
    """The folder as an absolute path. Raises ``UserError`` where it is none."""
    folder = Path(os.path.abspath(path or ""))
    if not folder.is_dir():
        why = "it is a file" if folder.exists() else "it does not exist"
        raise UserError(f"{what} {path} is not a folder", why, "check the path")
    return folder


def recordings_below(source: str | Path, skip: Path | None = None) -> tuple[Path, list[Path]]:
    """The folder as an absolute path and the audio files below it. Raises ``UserError``: no folder, or no audio in it."""
    folder = check_folder(source, "the source")
    paths = audio_files(folder, skip)
    if not paths:
        why = "no file with a known suffix (.wav .flac .ogg .mp3 ...) below it"
        raise UserError(f"no audio in {source}", why, "check the path")
    return folder, paths


def file_id(path: Path, root: Path) -> str:
    """An id from a file's place below ``root``: folders and stem joined by underscores."""
    return safe_name("_".join(path.relative_to(root).with_suffix("").parts))


def located(name: str, *folders: Path) -> Path:
    """The file that a list names, relative to the first of the folders (at last the working one) that holds it; absolute."""
    places = [Path(name)] if os.path.isabs(name) else [*(f / name for f in folders), Path(name).absolute()]
    return Path(on_disk(os.path.abspath(next((p for p in places if os.path.isfile(on_disk(str(p)))), places[0]))))


def candidate(
    split: str,
    path: Path,
    name: str,
    problem: str | None = None,
    *,
    target: Path | None = None,
    snr_db: float | None = None,
    text: str | Path | None = None,
    speaker: str | None = None,
    language: str | None = None,
    **extra: Any,
) -> Candidate:
    """A candidate whose duration and rate are still to be measured; ``extra`` columns that are None are left out.

    ``text`` may be the file that holds it: one that is missing or empty is no text, one that cannot be read is a problem.
    """
    if isinstance(text, Path):
        try:
            text = read_text(text).strip() or None if text.is_file() else None
        except UserError as error:
            text, problem = None, problem or f"text: {error.why}"
    utt = Utterance(name, str(path), 0.0, 0, text=text, speaker_id=speaker, language=language, snr_db=snr_db)
    utt.target_filepath = str(target) if target else None
    utt.extra = {k: v for k, v in extra.items() if v is not None}
    return Candidate(split, utt, problem)


def numbered(path: Path) -> str | None:
    """The integer behind ``fileid_`` in a name, without leading zeros; None where there is none."""
    found = FILE_ID.findall(path.stem)
    return str(int(found[-1])) if found else None


def pair(
    split: str, noisy: Path, clean: Path, key: Callable[[Path], str | None], **columns: Callable[[Path], Any]
) -> Iterator[Candidate]:
    """Candidates of two folders, matched by a key: every noisy file, then every clean file that no noisy one asked for.

    ``columns`` are functions of the noisy file's path (``snr_db``, ``text``, ``speaker`` or any other).
    """
    targets: dict[str, list[Path]] = {}
    for path in audio_files(clean, noisy if clean in noisy.parents else None):
        targets.setdefault(nfc(key(path) or f"?{path}"), []).append(path)
    used: set[str] = set()
    for path in audio_files(noisy, clean if noisy in clean.parents else None):  # noisy/clean inside noisy/
        name = key(path)
        partners = targets.get(nfc(name), []) if name is not None else []
        used.add(nfc(name or ""))
        problem, found = None, {}
        if name is None:
            problem = "no number after fileid_ in the name"
        elif len(partners) != 1:
            problem = f"{len(partners) or 'no'} clean partner{'s' * (len(partners) > 1)}"
        else:
            found = {"target": partners[0]} | {k: f(path) for k, f in columns.items()}
        yield candidate(split, path, file_id(path, noisy), problem, **found)
    for path in (p for name, paths in targets.items() if name not in used for p in paths):
        yield candidate(split, path, file_id(path, clean), "no noisy partner")


# ------------------------------------------------------------------------------------------------------------- vetting


def vet(candidates: Sequence[Candidate], out: Path, limits: Limits, workers: int, kind: str | None = None) -> Sets:
    """Check the files of candidates and sort the rows, in their order, into kept and dropped.

    Args:
        out: folder for the measurements, ``checks.jsonl``, continued where it is there; a shard's knows those of the whole, too.
        workers: processes; 0 checks in this one.
        kind: what rows without a target are held to (``speech``, ``noisy``, ``noise``, ``rir``); by default their split decides.

    Returns:
        rows and dropped rows, and in ``facts`` how many files were read (``checked``), ``known`` from a former run, and ``multichannel``.

    Raises:
        UserError: the measurements cannot be written.
    """
    sets = Sets()
    facts = _measure_all(candidates, out, limits, workers, sets)
    passed: list[Candidate] = []
    for row in candidates:
        verdict = Verdict(row.problem, row.problem) if row.problem else _judge_row(row, facts, limits, kind)
        if verdict:
            path, detail = row.utt.audio_filepath, verdict.detail
            sets.dropped.append(dropped_row(row.split, row.utt.id, path, verdict.reason, detail))
        else:
            passed.append(_filled(row, facts[row.utt.audio_filepath]))
    copies, taken, multichannel = _duplicates(passed, facts), dict[str, set[str]](), 0
    for index, (split, utt, _) in enumerate(passed):
        if index in copies:
            detail = f"same samples as {copies[index]}"
            sets.dropped.append(dropped_row(split, utt.id, utt.audio_filepath, "duplicate", detail))
            continue
        ids = taken.setdefault(split, set())
        if utt.id in ids:  # x.wav and x.flac, a/b and a_b
            utt = replace(utt, id=f"{utt.id}-{zlib.crc32(os.fsencode(utt.audio_filepath)):08x}")
        ids.add(utt.id)
        sets.rows.setdefault(split, []).append(utt)
        multichannel += facts[utt.audio_filepath].channels > 1
    sets.facts["multichannel"] = multichannel
    if multichannel:
        sets.notes.append(f"{multichannel} recordings have several channels; they are averaged when they are read")
    return sets


def _measure_all(
    candidates: Sequence[Candidate], out: Path, limits: Limits, workers: int, sets: Sets
) -> dict[str, FileFacts]:
    utts = [row.utt for row in candidates if not row.problem]
    paths = dict.fromkeys(p for utt in utts for p in (utt.audio_filepath, utt.target_filepath) if p)
    floor = f"|{limits.bandwidth_floor_db:g}" + "|pauses" * bool(limits.pause_db)  # older journals do not know them
    keys = {path: (stamp := file_stamp(path)) and stamp + floor for path in paths}
    facts: dict[str, FileFacts] = {}
    with JsonlWriter(out / CHECKS, "key") as writer:
        whole = Path(SHARD_FOLDER.sub("", str(out)))
        before = writer.rows if whole == out else {r["key"]: r for r in read_jsonl(whole / CHECKS)} | writer.rows
        for path, key in keys.items():
            if key and key in before:
                facts[path] = FileFacts(**{k: v for k, v in before[key].items() if k != "key"})
        todo = [path for path in paths if path not in facts]
        sets.facts |= {"checked": len(todo), "known": len(facts)}
        if facts:
            log.say(f"{len(facts)} of {len(paths)} files were checked before")
        work = partial(measure, floor_db=limits.bandwidth_floor_db)
        desc = "checking" if todo else None
        try:
            for path, result in parallel_map(work, todo, workers, FILE_TIMEOUT_S, desc, "files"):
                if isinstance(result, Exception):  # its process crashed or hung: this file only, and not remembered
                    facts[path] = FileFacts(error=f"unreadable: {result}")
                    continue
                facts[path] = result
                if key := keys[path]:
                    writer.write({"key": key} | asdict(result))
        except KeyboardInterrupt:
            log.say(f"stopped: {len(facts)} of {len(paths)} files are checked; the same command goes on from there")
            raise
    return facts


def _judge_row(row: Candidate, facts: dict[str, FileFacts], limits: Limits, kind: str | None) -> Verdict | None:
    utt, audio = row.utt, facts[row.utt.audio_filepath]
    if utt.target_filepath is None:
        return judge(audio, limits, kind=kind or KINDS.get(row.split, "speech"), utt=utt)
    if verdict := judge(audio, limits, kind="noisy", utt=utt):
        return verdict
    target = facts[utt.target_filepath]
    if verdict := judge(target, limits, kind="speech"):
        return Verdict(f"target: {verdict.reason}", verdict.detail)
    return judge_pair(audio, target, limits)


def _filled(row: Candidate, facts: FileFacts) -> Candidate:
    utt = row.utt
    duration = utt.duration or round(facts.duration - utt.offset, 6)
    extra = utt.extra | ({"channels": facts.channels} if facts.channels > 1 else {})
    return row._replace(utt=replace(utt, duration=duration, sample_rate=facts.sample_rate, extra=extra))


def _duplicates(rows: Sequence[Candidate], facts: dict[str, FileFacts]) -> dict[int, str]:
    """Index of every later copy -> path of the one that stays."""
    first: dict[tuple[str, float, float], tuple[int, str]] = {}
    copies: dict[int, str] = {}
    for index in sorted(range(len(rows)), key=lambda i: (not rows[i].split.lower().startswith(HELD_OUT), i)):
        utt = rows[index].utt
        identity = (facts[utt.audio_filepath].digest, utt.offset, utt.duration)
        kept, path = first.setdefault(identity, (index, utt.audio_filepath))
        if kept != index:
            copies[index] = path
    return copies
