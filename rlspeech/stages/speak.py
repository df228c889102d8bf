"""``rlspeech speak``: text in, speech out. A text that cannot be synthesised is one failure in the summary.

    rlspeech speak "some words" --out said.wav
    rlspeech speak "some words" --prompt voice.wav --prompt-text "what is said in it" --model runs/rl
    rlspeech speak lines.txt --out folder                        # a file a line, and folder/manifest.jsonl
    rlspeech speak test.jsonl --out folder                       # texts and voices of a manifest
    rlspeech speak lines.txt --out folder --best-of 8            # the best of eight draws, by the token reward

A long text is cut at the ends of sentences, else at commas, else between words, into pieces that the model can say; all pieces have one
voice. In a folder, results that the same model has made of the same text in the same voice are kept (``--overwrite`` makes them anew).
"""

from __future__ import annotations

import contextlib
import hashlib
import re
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech import log
from rlspeech.config_parts import SPEAKING, Count, NonNegative, Positive, Sampling, Strict, Whole, conf
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.decode import sound_info
from rlspeech.data.manifest import holds_rows, read_manifest, write_manifest
from rlspeech.data.text import normalise_basic
from rlspeech.files import JsonlWriter, dumps, held, read_jsonl, read_text, safe_name, write_text
from rlspeech.parallel import one_by_one
from rlspeech.stages.jobs import Job, summarise
from rlspeech.tasks.owners import check_owners
from rlspeech.types import UserError, Utterance

BYTES_PER_S = 12.0  # of text in a piece, to the second that the model can say: slow speech
SOUND = (".wav", ".flac", ".ogg")
ENDS = (r"(?<=[.!?;])\s+|(?<=[。！？；])|\n+", r"(?<=[,:])\s+|(?<=[，、：])|\s+[-\u2013\u2014]\s+", r"\s+")
LINES = (".txt", ".text")
KNOWN = "said.jsonl"  # in a folder of results: what each was made of


class SteadySampling(Sampling):
    """How tokens are sampled for listeners, and therefore wherever speech is judged."""

    temperature: Positive = conf(SPEAKING, "sampling temperature; lower is steadier")


class Speak(Strict):
    """``rlspeech speak``."""

    inputs: list[str] = conf([], "texts; .txt files, a line a text; manifests; '-': lines on stdin")
    out: str | None = conf(None, "x.wav for one text, or a folder for several (default: speech.wav or speech/)")
    model: str = conf("embedded", "Hub id, checkpoint or run folder, or 'embedded'")
    prompt: str | None = conf(None, "recording of the voice, a few seconds (default: a manifest's, else the model's)")
    prompt_text: str | None = conf(None, "transcript of the prompt (default: only the voice of the prompt is used)")
    sampling: SteadySampling = conf(SteadySampling(), "how tokens are drawn, and how many")
    best_of: Count = conf(1, "draw every piece of text this often, and keep the draw that the judge scores best")
    judge: str | None = conf(None, "reward that chooses (default: the token reward of the model's run, else embedded)")
    pause_s: NonNegative = conf(0.15, "between the pieces of a long text")
    batch: Count = conf(16, "pieces of text in one batch")
    overwrite: bool = conf(False, "write results that already exist again")
    seed: Whole = conf(0, "same seed, same speech")
    device: str = "auto"


@dataclass(slots=True)
class _Job(Job):
    """One text, and its result."""

    key: str
    text: str
    path: Path = Path()
    voice: Path | None = None  # a recording of a manifest's row; its prompt comes first
    stretch: tuple[float, float | None] = (0.0, None)  # of that recording: offset and duration
    prompt: str | None = None
    prompt_text: str | None = None
    row: dict[str, Any] = field(default_factory=dict)
    pieces: list[np.ndarray] = field(default_factory=list)
    choices: list[dict[str, Any]] = field(default_factory=list)  # of every piece, where there were several draws
    unstopped: int = 0

    @property
    def name(self) -> str:
        return self.key


def run(config: Speak) -> dict[str, Any]:
    """Synthesise everything that can be synthesised.

    Returns counts, seconds, the files, and the reason of each failure.
    Raises ``UserError``: no text, a checkpoint or a prompt that cannot be used, or not one text could be synthesised.
    """
    from rlspeech.tasks import SYNTHESIS, get_task

    check_owners(config, get_task(SYNTHESIS))
    began_s, jobs = time.monotonic(), _jobs(config)
    folder = _places(config, jobs)
    for job in jobs:
        if not normalise_basic(job.text):
            job.fail("there are no words in it")
    known = {} if folder is None or config.overwrite else {str(r.get("key")): r for r in read_jsonl(folder / KNOWN)}
    kept = {j.key for j in jobs if known.get(j.key, {}).get("of") == _digest(config, j) and j.path.is_file()}
    todo = [j for j in jobs if j.error is None and j.key not in kept]
    if todo:
        with held(folder), contextlib.ExitStack() as stack:
            journal = None
            if folder is not None:  # a result that is made anew is not known until it exists
                anew = {j.key for j in todo}
                write_text(folder / KNOWN, "".join(dumps(r) + "\n" for k, r in known.items() if k not in anew))
                journal = stack.enter_context(JsonlWriter(folder / KNOWN, key="key"))
            _synthesise(config, todo, journal)
    good, target = [j for j in todo if j.error is None], folder if folder is not None else jobs[0].path
    hint = "another text, or rlspeech eval on the model"
    summary = summarise("spoken", "text", jobs, todo, began_s, str(target), hint)
    if folder is not None:
        _manifest(folder, [j for j in jobs if j.error is None])
    if unstopped := sum(j.unstopped for j in good):
        log.warn(f"{unstopped} pieces ran to their limit without a stop: their ends may be babble")
    summary |= {"choices": {j.key: j.choices for j in good}} if config.best_of > 1 else {}
    return summary | {"unstopped": unstopped, "files": [str(j.path) for j in good]}


def _jobs(config: Speak) -> list[_Job]:
    """Every text that was given, each under a key of its own."""
    if not config.inputs:
        raise UserError("nothing to synthesise", "", 'rlspeech speak "some words"')
    if config.prompt_text and not config.prompt:
        raise UserError("prompt_text without a prompt", "it is what is said in that recording", "--prompt voice.wav")
    if config.prompt:
        try:
            load_audio(config.prompt, 16000)
        except AudioError as error:
            what = f"the prompt {config.prompt} cannot be used"
            raise UserError(what, error.reason, "a recording of a few seconds") from error
    jobs = [job for i, given in enumerate(config.inputs) for job in _expand(given, i)]
    taken: set[str] = set()
    for job in jobs:
        if job.key in taken:
            job.key = next(k for n in range(2, len(jobs) + 2) if (k := f"{job.key}_{n}") not in taken)
        taken.add(job.key)
        if config.prompt:
            job.prompt, job.prompt_text, job.voice = str(Path(config.prompt).absolute()), config.prompt_text, None
    if not jobs:
        why = f"no text in {', '.join(config.inputs)}"
        raise UserError("nothing to synthesise", why, "a line a text, or a manifest with texts")
    return jobs


def _expand(given: str, number: int) -> Iterator[_Job]:
    path = Path(given) if len(given) < 1000 and "\n" not in given and "\0" not in given else Path()
    if given == "-" or path.suffix.lower() in LINES:
        name, text = ("line", sys.stdin.read()) if given == "-" else (safe_name(path.stem), read_text(path))
        lines = enumerate(map(str.strip, text.splitlines()), 1)
        yield from (_Job(f"{name}_{n:04d}", line) for n, line in lines if line)
    elif path.is_file() and holds_rows(path):
        for u in read_manifest(path):
            known = {k: getattr(u, k) for k in ("speaker_id", "language", "prompt_filepath", "prompt_text")}
            row = {k: v for k, v in {**known, **u.extra}.items() if v is not None}
            voice, stretch = Path(u.audio_filepath), (u.offset, u.duration)
            yield _Job(u.id, u.text or "", Path(), voice, stretch, u.prompt_filepath, u.prompt_text, row)
    elif path.suffix.lower() in SOUND and path.is_file():
        try_this = "for its voice: --prompt; to write it down: rlspeech transcribe"
        raise UserError(f"{given} is a recording", "a text is wanted", try_this)
    else:
        yield _Job(f"text_{number + 1:04d}", given.strip())


def _places(config: Speak, jobs: Sequence[_Job]) -> Path | None:
    """Give every job its file; returns the folder where there is one."""
    out = Path(config.out) if config.out else Path("speech.wav" if len(jobs) == 1 else "speech")
    if out.suffix.lower() in SOUND:
        if len(jobs) > 1:
            raise UserError(f"{len(jobs)} texts do not fit into {out}", "each is a file of its own", "--out FOLDER")
        jobs[0].path = out
        return None
    if out.is_file():
        why = "several files need a folder; one needs a name that ends in .wav"
        raise UserError(f"{out} is a file", why, "--out FOLDER")
    for job in jobs:
        job.path = out / f"{safe_name(job.key)}.wav"
    return out


def _digest(config: Speak, job: _Job) -> str:
    """What tells one result from another."""
    voice = [job.prompt, job.prompt_text, None if job.voice is None else str(job.voice)]
    chosen = {"best_of", "judge"} if config.best_of > 1 else set[str]()
    settings = config.model_dump(mode="json", include={"model", "seed", "pause_s", "sampling", *chosen})
    facts = {"text": job.text, "voice": voice, **settings}
    return hashlib.sha256(dumps(facts).encode()).hexdigest()[:16]


def _synthesise(config: Speak, jobs: Sequence[_Job], journal: JsonlWriter | None) -> None:
    """Synthesise in batches of pieces, and write each text as soon as its last piece is there."""
    from rlspeech.data.batches import Clip
    from rlspeech.engine import Engine, Watchdog
    from rlspeech.tasks import SYNTHESIS, get_task

    engine, task = Engine(config.device, "fp32", config.seed), get_task(SYNTHESIS)
    model, _ = task.load(config.model, engine.device)
    rate, waiting = task.sample_rate_of(model), list[tuple[_Job, Any, bool]]()
    log.say(f"{log.several(len(jobs), 'text')}, {engine.reason}")
    _check_prompt(config, jobs, model)
    how: dict[str, Any] = {"sampling": config.sampling, "seed": config.seed, "device": str(engine.device)}
    synthesise = task.best_of(model, config.model, config.best_of, config.judge, **how)
    if synthesise.judge:
        log.say(f"{synthesise.judge} chooses the best of {config.best_of} draws")
    with log.progress(len(jobs), "speak", "texts") as bar, Watchdog() as dog:

        def flush() -> None:
            made = one_by_one(synthesise, [clip for _, clip, _ in waiting])
            for (job, clip, last), piece in zip(waiting, made, strict=True):
                job.choices += [choice] if (choice := synthesise.choices.pop(clip.key, None)) else []
                if isinstance(piece, Exception):
                    job.fail(piece)
                else:
                    job.pieces.append(piece.wav)
                    job.unstopped += not piece.finished
                if last:
                    _write(job, rate, config.pause_s)
                    if journal is not None and job.error is None:
                        choices = {"choices": job.choices} if job.choices else {}
                        journal.write({"key": job.key, "of": _digest(config, job), **choices})
                    bar.advance()
            waiting.clear()
            dog.beat()

        for job in jobs:
            voice, prompt = _voice(job, rate), {"prompt_filepath": job.prompt, "prompt_text": job.prompt_text}
            columns = {k: v for k, v in prompt.items() if v is not None}
            alone = task.line(Clip(job.key, voice[:0], voice[:0], rate, "", columns), model)
            pieces = split_text(job.text, model.text_bytes(alone, BYTES_PER_S))
            for i, piece in enumerate(pieces):
                waiting.append((job, Clip(f"{job.key} {i}", voice, voice, rate, piece, columns), i == len(pieces) - 1))
                if len(waiting) >= config.batch:
                    flush()
        if waiting:
            flush()


def _check_prompt(config: Speak, jobs: Sequence[_Job], model: Any) -> None:
    """Tell the user where the model takes only the voice of a prompt."""
    if config.prompt is None:
        return
    longest = model.layout.prompt_s
    seconds = len(load_audio(config.prompt, 16000)) / 16000
    if not config.prompt_text:
        log.say("the prompt lends its voice alone: with --prompt-text the model goes on from what is said in it")
    elif seconds > longest:
        most = f"this model goes on from at most {longest:g} s"
        log.say(f"the prompt lends its voice alone: it lasts {seconds:.1f} s, and {most}")


def _voice(job: _Job, rate: int) -> np.ndarray:
    """The recording of a manifest's row where it has no prompt; empty where there is none or it cannot be read."""
    if job.prompt is None and job.voice is not None:
        try:
            return load_audio(job.voice, rate, *job.stretch)
        except AudioError:
            pass  # the text can be said in any voice
    return np.zeros(0, np.float32)


def _write(job: _Job, rate: int, pause_s: float) -> None:
    pause = np.zeros(int(pause_s * rate), np.float32)
    sound = [p for p in job.pieces if len(p)]
    wav = np.concatenate([x for p in sound for x in (pause, p)][1:]) if sound else pause[:0]
    job.pieces = []
    if not len(wav):
        job.fail("the model returned no speech")
    if job.error is None:
        job.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            save_audio(job.path, wav, rate)
        except (AudioError, OSError) as error:
            job.fail(str(error))
        job.seconds = len(wav) / rate


def _manifest(folder: Path, jobs: Sequence[_Job]) -> None:
    """Write ``manifest.jsonl`` of everything that is there: it can be scored, or recognised."""
    rows = []
    for job in jobs:
        info = sound_info(job.path)
        utt = Utterance(safe_name(job.key), str(job.path.absolute()), round(info.seconds, 4), info.sample_rate)
        utt.text, utt.prompt_filepath, utt.prompt_text = job.text, job.prompt, job.prompt_text
        utt.speaker_id, utt.language = job.row.get("speaker_id"), job.row.get("language")
        utt.extra = {k: v for k, v in job.row.items() if k not in Utterance.field_names()}
        rows.append(utt)
    write_manifest(folder / "manifest.jsonl", rows, {"source": "speak"})


def split_text(text: str, most: int) -> list[str]:
    """Pieces of at most ``most`` bytes where that can be: whole sentences, else parts at commas, else words; a longer word stays whole."""
    pieces = [text.strip()]
    for pattern in ENDS:
        pieces = [part for piece in pieces for part in _packed(piece, pattern, most)]
    return [p for p in pieces if normalise_basic(p)] or pieces[:1]


def _packed(text: str, pattern: str, most: int) -> list[str]:
    if len(text.encode()) <= most:
        return [text]
    found: list[str] = []
    for part in filter(None, (p.strip() for p in re.split(pattern, text))):
        if found and len(f"{found[-1]} {part}".encode()) <= most:
            found[-1] = f"{found[-1]} {part}"
        else:
            found.append(part)
    return found
