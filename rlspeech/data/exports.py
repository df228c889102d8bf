"""Manifests for other toolkits: NeMo's JSON lines, Kaldi data folders, lhotse cuts and shar, WebDataset's tars. Needs none of them.

    nemo    one file; paths relative to it; language and speaker under NeMo's names, every further column kept
    kaldi   wav.scp, utt2spk, spk2utt and, where the rows have them, text, segments, utt2lang; sorted by bytes, as Kaldi demands
    lhotse  one file of cuts, gzipped where its name says so; a target becomes ``target_recording``, further columns ``custom``
    webdataset  000000.tar ...: key.flac with key.json and key.txt, and key.target.flac, key.prompt.flac where rows have them
    shar    lhotse's: cuts.000000.jsonl.gz ... beside recording.000000.tar, target_recording.000000.tar

Tars hold the files as they are, and of a stretch of one its samples. A row that a format cannot hold is left out with its reason. Kaldi
reads some names as commands to run or as offsets into archives: a file of such a name never gets into a wav.scp.
"""

from __future__ import annotations

import gzip
import io
import json
import os
import re
import tarfile
import zlib
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

from rlspeech.data.decode import AUDIO_SUFFIXES, AudioError, read_audio, sound_info
from rlspeech.data.manifest import PATH_KEYS, to_row
from rlspeech.data.tars import add_file, packed
from rlspeech.files import dumps, safe_name
from rlspeech.types import UserError, Utterance

FORMATS = ("nemo", "kaldi", "lhotse", "webdataset", "shar")
FOLDERS = ("kaldi", "webdataset", "shar")
PER_TAR = 1000  # rows, as lhotse has it
NEMO = {"language": "lang", "speaker_id": "speaker"}
OWN = frozenset({"segment", "original_id", "recording_id", "channels"})  # columns of our own importers
IN_KALDI = frozenset("id audio_filepath duration sample_rate offset text speaker_id language".split())
LOW = re.compile(r"[!-\-]")  # what sorts before or with the "-" between speaker and utterance
SLACK_S = 0.05


@dataclass
class Written:
    """Counts of a manifest's rows after its export."""

    rows: int = 0
    left_out: list[tuple[str, str]] = field(default_factory=list)  # id, reason
    notes: list[str] = field(default_factory=list)  # what a person should know of the rest


def write_manifest_as(utts: Sequence[Utterance], to: str, out: Path, final: Path | None = None) -> Written:
    """Write rows, whose paths are absolute, in another toolkit's format, one of ``FORMATS``.

    Args:
        out: file to write (nemo, lhotse), or an existing, empty folder (``FOLDERS``).
        final: where it will lie, for paths relative to it; none: ``out``.
    """
    if to == "nemo":
        return _nemo(utts, out, (final or out).parent)
    if to in ("webdataset", "shar"):
        return _tars(utts, to, out, final or out)
    return _kaldi(utts, out) if to == "kaldi" else _lhotse(utts, out)


def _original(utt: Utterance) -> str:
    """The id that a row had before it became a file name."""
    given = utt.extra.get("original_id")
    return given if isinstance(given, str) and given else utt.id


def _is_piece(utt: Utterance) -> bool:
    """Whether the row is a piece of its file."""
    return bool(utt.offset) or utt.extra.get("segment") is True


# ----------------------------------------------------------------------------------------------------------------- NeMo


def _nemo(utts: Sequence[Utterance], out: Path, base: Path) -> Written:
    done, lines = Written(), []
    for utt in utts:
        row = to_row(utt, base)
        row = {k: row[k] for k in ("audio_filepath", "duration", *row)} | {"id": _original(utt)}
        for ours, theirs in NEMO.items():
            if ours in row:
                row.setdefault(theirs, row[ours])
                del row[ours]
        if _is_piece(utt):
            row["offset"] = utt.offset
        try:
            lines.append(dumps({k: v for k, v in row.items() if k not in OWN}) + "\n")
        except UserError as error:
            done.left_out.append((utt.id, error.why))
    out.write_text("".join(lines), encoding="utf-8", newline="\n")
    done.rows = len(lines)
    if silent := sum(u.text is None for u in utts):
        done.notes.append(f"{silent} rows have no text, which NeMo's recognisers want")
    return done


# ---------------------------------------------------------------------------------------------------------------- Kaldi


class _Entry(NamedTuple):
    """One line of every file of a data folder."""

    key: str
    speaker: str | None
    recording: str
    utt: Utterance


def _kaldi(utts: Sequence[Utterance], out: Path) -> Written:
    done, kept = Written(), list[Utterance]()
    texts = any(u.text is not None for u in utts)
    pieces = any(map(_is_piece, utts)) or len({u.audio_filepath for u in utts}) < len(utts)
    for utt in utts:
        reason = _not_for_kaldi(utt, texts, pieces)
        if reason:
            done.left_out.append((utt.id, reason))
        else:
            kept.append(utt)
    entries = _sorted_entries(kept, pieces, done)
    files: dict[str, dict[str, str]] = {"utt2spk": {e.key: e.speaker or e.key for e in entries}}
    files["wav.scp"] = {e.recording: e.utt.audio_filepath for e in entries}
    if texts:
        files["text"] = {e.key: " ".join((e.utt.text or "").split()) for e in entries}
    if pieces:
        spans = [(_seconds(e.utt.offset), _seconds(e.utt.offset + e.utt.duration)) for e in entries]
        files["segments"] = {e.key: f"{e.recording} {a} {b}" for e, (a, b) in zip(entries, spans, strict=True)}
    if entries and all(e.utt.language for e in entries):
        files["utt2lang"] = {e.key: "_".join((e.utt.language or "").split()) for e in entries}
    speakers: dict[str, list[str]] = {}
    for key, speaker in files["utt2spk"].items():
        speakers.setdefault(speaker, []).append(key)
    files["spk2utt"] = {speaker: " ".join(sorted(keys, key=str.encode)) for speaker, keys in speakers.items()}
    for name, lines in files.items():
        content = "".join(f"{key} {lines[key]}".rstrip() + "\n" for key in sorted(lines, key=str.encode))
        (out / name).write_text(content, encoding="utf-8", newline="\n")
    done.rows = len(entries)
    _kaldi_notes(kept, done)
    return done


def _not_for_kaldi(utt: Utterance, texts: bool, pieces: bool) -> str | None:
    path = utt.audio_filepath
    try:
        for part in (path, _original(utt), utt.text or "", utt.speaker_id or "", utt.language or ""):
            part.encode()
    except UnicodeEncodeError:
        return "a name or text that is not UTF-8"
    if path != path.strip() or path.startswith("|") or path.endswith("|") or re.search(r"[\n\r]|:\d+$", path):
        return "Kaldi would take the file's name for something else than a file"
    if texts and utt.text is None:
        return "no text"
    if pieces and utt.duration <= 0:
        return "no duration"
    return None


def _sorted_entries(utts: Sequence[Utterance], pieces: bool, done: Written) -> list[_Entry]:
    """Rows under keys that sort the same by utterance and by speaker, as Kaldi's programs want them."""
    keys = _unique([_word(_original(u)) for u in utts], [u.id for u in utts])
    plain = [_word(u.speaker_id) if u.speaker_id and u.speaker_id.strip() else None for u in utts]
    lone = [k if s else _calm(k) for k, s in zip(keys, plain, strict=True)]  # who has no speaker is one
    calm = [_calm(s) if s else None for s in plain]
    tries = [(keys, plain), (_prefixed(keys, plain), plain), (_prefixed(lone, calm), calm)]
    for names, speakers in tries:
        order = [i for _, i in sorted((name.encode(), i) for i, name in enumerate(names))]
        owners = [(speakers[i] or names[i]).encode() for i in order]
        if owners == sorted(owners):
            break
    else:
        done.notes.append("ids sort otherwise than speakers: Kaldi's programs want utils/fix_data_dir.sh")
    if names is not keys:
        done.notes.append("ids got their speaker in front, as Kaldi's programs want it")
    recordings = _recordings(utts) if pieces else {u.audio_filepath: k for u, k in zip(utts, names, strict=True)}
    return [_Entry(names[i], speakers[i], recordings[utts[i].audio_filepath], utts[i]) for i in order]


def _calm(name: str) -> str:
    """A name in which nothing sorts before or with the "-" behind it."""
    return f"{LOW.sub('_', name)}_{zlib.crc32(name.encode()):08x}" if LOW.search(name) else name


def _prefixed(keys: Sequence[str], speakers: Sequence[str | None]) -> list[str]:
    names = [k if s is None or k.startswith(f"{s}-") else f"{s}-{k}" for k, s in zip(keys, speakers, strict=True)]
    return _unique(names, [f"{n}-{zlib.crc32(k.encode()):08x}" for n, k in zip(names, keys, strict=True)])


def _recordings(utts: Iterable[Utterance]) -> dict[str, str]:
    """File -> name: the one that it had, or its stem; with a checksum where two files would share one."""
    wanted: dict[str, str] = {}
    for utt in utts:
        given = utt.extra.get("recording_id")
        name = given if isinstance(given, str) and given else Path(utt.audio_filepath).stem
        wanted.setdefault(utt.audio_filepath, _word(name))
    longer = [f"{name}-{zlib.crc32(path.encode()):08x}" for path, name in wanted.items()]
    return dict(zip(wanted, _unique(list(wanted.values()), longer), strict=True))


def _unique(names: Sequence[str], instead: Sequence[str]) -> list[str]:
    """Names, but for those that occur twice, which become others."""
    counts = Counter(names)
    return [n if counts[n] == 1 else other for n, other in zip(names, instead, strict=True)]


def _word(name: str) -> str:
    """A name without spaces of any kind, which Kaldi would cut it at."""
    return name if name and name == "".join(name.split()) and name.isprintable() else safe_name(name)


def _seconds(value: float) -> str:
    return f"{value:.6f}".rstrip("0").rstrip(".")


def _kaldi_notes(utts: Sequence[Utterance], done: Written) -> None:
    other = sum(not u.audio_filepath.lower().endswith(".wav") for u in utts)
    if other:
        done.notes.append(f"{other} files are no .wav: toolkits on soundfile read them, Kaldi's own programs do not")
    lost = sorted({k for u in utts for k in to_row(u, Path("/"))} - OWN - IN_KALDI)
    if lost:
        done.notes.append(f"Kaldi has no file for these columns: {', '.join(lost)}")


# --------------------------------------------------------------------------------------------------------------- lhotse


def _lhotse(utts: Sequence[Utterance], out: Path) -> Written:
    done, lines = Written(), []
    for utt in utts:
        try:
            lines.append(json.dumps(_cut(utt), ensure_ascii=False, allow_nan=False).encode() + b"\n")
        except UnicodeEncodeError:
            done.left_out.append((utt.id, "a name or text that is not UTF-8"))
        except ValueError as error:
            done.left_out.append((utt.id, str(error)))
    with out.open("wb") as file:
        if out.suffix == ".gz":
            with gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed:  # the same rows, the same bytes
                packed.writelines(lines)
        else:
            file.writelines(lines)
    done.rows = len(lines)
    return done


def _cut(utt: Utterance) -> dict[str, Any]:
    """One cut. Raises ``ValueError``: a row that cannot be one."""
    recording = _recording(utt.audio_filepath)
    if recording is None:
        raise ValueError("the file cannot be read")
    left = recording["duration"] - utt.offset
    length = min(utt.duration or left, left)
    if length <= 0 or (utt.duration or 0.0) - left > SLACK_S:
        raise ValueError("the row ends behind its file")
    name, channels = _original(utt), recording["channel_ids"]
    channel = channels if len(channels) > 1 else channels[0]
    columns = {k: v for k, v in utt.extra.items() if k not in OWN}
    columns |= {k: v for k in ("snr_db", "prompt_text") if (v := getattr(utt, k)) is not None}
    custom: dict[str, Any] = {k: v for k in PATH_KEYS[2:] if (v := getattr(utt, k)) is not None}
    if utt.target_filepath is not None:
        target = _recording(utt.target_filepath)
        custom |= {"target_filepath": utt.target_filepath} if target is None else {"target_recording": target}
    spoken = {"language": utt.language, "speaker": utt.speaker_id}
    cut: dict[str, Any] = {"id": name, "start": utt.offset, "duration": length, "channel": channel, "supervisions": []}
    if utt.text is not None:
        place = {"id": name, "recording_id": recording["id"], "start": 0.0, "duration": length, "channel": channel}
        facts = {"text": utt.text, **spoken, "custom": columns or None}
        cut["supervisions"] = [place | {k: v for k, v in facts.items() if v is not None}]
    else:
        custom |= columns | {k: v for k, v in spoken.items() if v is not None}
    cut["recording"] = recording
    return cut | ({"custom": custom} if custom else {}) | {"type": "MultiCut" if len(channels) > 1 else "MonoCut"}


def _recording(path: str) -> dict[str, Any] | None:
    """A file as lhotse describes it; None where it cannot be read."""
    try:
        info = sound_info(path)
    except AudioError:
        return None
    channels = list(range(info.channels))
    name = f"{Path(path).stem}-{zlib.crc32(os.fsencode(path)):08x}"  # stems are often the same in several folders
    return {
        "id": name,
        "sources": [{"type": "file", "channels": channels, "source": path}],
        "channel_ids": channels,
        "sampling_rate": info.sample_rate,
        "num_samples": round(info.seconds * info.sample_rate),
        "duration": info.seconds,
    }


# ----------------------------------------------------------------------------------------------------------------- tars


def _tars(utts: Sequence[Utterance], to: str, out: Path, final: Path) -> Written:
    done = Written()
    fields = [k for k in ("audio", "target", "prompt") if any(getattr(u, f"{k}_filepath") for u in utts)]
    names = {k: "recording" if k == "audio" else f"{k}_recording" for k in fields} if to == "shar" else {"": ""}
    for number, start in enumerate(range(0, len(utts), PER_TAR)):
        with ExitStack() as stack:
            places = {k: out / f"{name}.{number:06d}.tar".lstrip(".") for k, name in names.items()}
            tars = {k: stack.enter_context(tarfile.open(place, "w")) for k, place in places.items()}
            lines = list[bytes]()
            for utt in utts[start : start + PER_TAR]:
                try:
                    sounds = {k: _sound(path, utt) for k in fields if (path := getattr(utt, f"{k}_filepath"))}
                    if to == "shar":
                        lines.append(_shar(utt, tars, sounds))
                    else:
                        _sample(utt, tars[""], sounds, final)
                    done.rows += 1
                except (AudioError, OSError, ValueError, UserError) as error:
                    reason = getattr(error, "reason", None) or getattr(error, "why", None) or str(error)
                    done.left_out.append((utt.id, str(reason)))
            if to == "shar":
                content = gzip.compress(b"".join(lines), mtime=0)
                (out / f"cuts.{number:06d}.jsonl.gz").write_bytes(content)
    return done


def _sound(path: str, utt: Utterance) -> tuple[str, bytes]:
    """Suffix and content of a recording; of a stretch, or of a video, its samples averaged over channels. Raises ``AudioError``."""
    import soundfile as sf

    suffix = Path(path).suffix.lower()
    if path == utt.prompt_filepath or (not _is_piece(utt) and suffix in AUDIO_SUFFIXES):
        sound_info(path)
        return suffix, packed(path) or Path(path).read_bytes()
    wav, rate = read_audio(path, utt.offset, utt.duration or None, slack_s=SLACK_S)
    loud, stream = bool(abs(wav).max(initial=0.0) >= 1.0), io.BytesIO()
    sf.write(stream, wav, rate, format="WAV" if loud else "FLAC", subtype="FLOAT" if loud else "PCM_24")
    return ".wav" if loud else ".flac", stream.getvalue()


def _sample(utt: Utterance, tar: tarfile.TarFile, sounds: dict[str, tuple[str, bytes]], base: Path) -> None:
    """Add a row's files to WebDataset's tar; a key ends at its first dot there."""
    key = f"{utt.id.replace('.', '_')}-{zlib.crc32(utt.id.encode()):08x}" if "." in utt.id else utt.id
    row = to_row(replace(utt, offset=0.0), base)
    row |= {"original_id": _original(utt)} if _original(utt) != key else {}
    drop = ("id", "segment", *(f"{k}_filepath" for k in sounds))
    files = [(f"{key}{f'.{k}' * (k != 'audio')}{suffix}", content) for k, (suffix, content) in sounds.items()]
    files.append((f"{key}.json", dumps({k: v for k, v in row.items() if k not in drop}).encode()))
    for name, content in files + ([(f"{key}.txt", utt.text.encode())] if utt.text is not None else []):
        add_file(tar, name, content)


def _shar(utt: Utterance, tars: dict[str, tarfile.TarFile], sounds: dict[str, tuple[str, bytes]]) -> bytes:
    """Add a row's recordings to lhotse's tars, or that there is none; its cut as a line. Raises ``ValueError`` as ``_cut``."""
    cut, facts = _cut(replace(utt, target_filepath=None, prompt_filepath=None)), dict[str, Any]()
    custom = {"original_id": _original(utt)} if _original(utt) != utt.id else {}
    for k in sounds:
        whole = _recording(getattr(utt, f"{k}_filepath"))
        if whole is None:
            raise ValueError("the file cannot be read")
        if k != "prompt" and _is_piece(utt):
            frames = round(cut["duration"] * whole["sampling_rate"])
            whole |= {"duration": cut["duration"], "num_samples": frames, "channel_ids": [0]}
        facts[k] = whole | {"sources": [{"type": "shar", "channels": whole["channel_ids"], "source": ""}]}
    one = {"channel": 0, "type": "MonoCut"} if _is_piece(utt) else {}
    cut |= {"id": utt.id, "start": 0.0, "recording": facts["audio"], "custom": cut.get("custom", {}) | custom} | one
    for part in cut["supervisions"]:
        part |= {"id": utt.id} | ({"channel": 0} if one else {})
    cut["custom"] |= {f"{k}_recording": value for k, value in facts.items() if k != "audio"}
    line = json.dumps(cut, ensure_ascii=False, allow_nan=False).encode() + b"\n"
    for k, tar in tars.items():  # as many files in each as there are cuts
        add_file(tar, f"{utt.id}{sounds[k][0] if k in sounds else '.nodata'}", sounds[k][1] if k in sounds else b"")
        add_file(
            tar, f"{utt.id}{'.json' if k in facts else '.nometa'}", json.dumps(facts[k]).encode() if k in facts else b""
        )
    return line
