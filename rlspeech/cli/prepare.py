"""The commands below ``rlspeech prepare``: corpora on disk, and sets for recognition and synthesis."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from typer import Argument, Option, Typer

from rlspeech.cli.common import LAYERS, PARTS, STAGE, command, stage

app = Typer(no_args_is_help=True, epilog="Example: rlspeech prepare demo --out data")

OUT, SEEDED = (*LAYERS, "out", "workers", *PARTS), (*LAYERS, "out", "seed", "workers", *PARTS)
ALONE = (*LAYERS, "out", "seed")  # of what one process makes
Root = Annotated[str, Argument(metavar="FOLDER", help="Folder of the corpus.")]
Paths = Annotated[list[str] | None, Option(metavar="PATH")]
Manifest = Annotated[str | None, Option(metavar="MANIFEST")]
File = Annotated[str | None, Option(metavar="FILE")]
Range = tuple[float, float] | None
Snr = Annotated[Range, Option("--snr", metavar="LOW HIGH", help="Range of signal-to-noise ratios in dB.")]
Level = Annotated[Range, Option("--level", metavar="LOW HIGH", help="Range of levels in dBFS.")]
Reverb = Annotated[float | None, Option("--reverb", help="Share of mixtures with an impulse response, 0 to 1.")]
Talker = Annotated[float | None, Option("--talker", help="Share of mixtures with a competing talker, 0 to 1.")]
Mouths = Annotated[bool | None, Option("--mouths")]


def _layout(source: str, options: Mapping[str, Any]) -> None:
    stage("stages.prepare:Prepare", "stages.prepare:run", {**options, "source": source})


@command(app, "rlspeech prepare dns /data/DNS-Challenge --out data/dns", *SEEDED)
def dns(
    root: Root,
    mixing__snr_db: Snr = None,
    mixing__level_dbfs: Level = None,
    mixing__reverb: Reverb = None,
    **shared: Any,
) -> None:
    """DNS-Challenge: the flat layout of 2020 and the trees since 2021."""
    _layout("dns", locals())


@command(app, "rlspeech prepare voicebank /data/VoiceBank-DEMAND --speakers 28 --out data/vb", *SEEDED)
def voicebank(root: Root, speakers: str | None = None, **shared: Any) -> None:
    """VoiceBank-DEMAND, 28 or 56 training speakers."""
    _layout("voicebank", locals())


@command(app, "rlspeech prepare pairs --noisy noisy/ --clean clean/ --out data/pairs", *SEEDED)
def pairs(
    noisy: Annotated[str | None, Option(metavar="FOLDER")] = None,
    clean: Annotated[list[str] | None, Option(metavar="FOLDER")] = None,
    **shared: Any,
) -> None:
    """Two folders, noisy and clean, paired by name."""
    _layout("pairs", locals())


@command(app, "rlspeech prepare mix --clean speech/ --noise noise/ --rir rooms/ --snr -5 15 --out data/mix", *SEEDED)
def mix(
    clean: Paths = None,
    noise: Paths = None,
    rir: Paths = None,
    mixing__snr_db: Snr = None,
    mixing__level_dbfs: Level = None,
    mixing__reverb: Reverb = None,
    mixing__talker: Talker = None,
    mouths: Mouths = None,
    render: int | None = None,
    render_s: float | None = None,
    **shared: Any,
) -> None:
    """Clean speech + noise (+ impulse responses): a recipe that mixes on the fly, or mixtures on disk."""
    _layout("mix", locals())


@command(
    app, "rlspeech prepare ladder --clean held-out/ --noise noise/ --utterances 20 --out data/ladder", *ALONE, "workers"
)
def ladder(
    clean: Paths = None,
    noise: Paths = None,
    render: Annotated[int | None, Option("--utterances")] = None,
    render_s: Annotated[float | None, Option("--clip-s")] = None,
    **shared: Any,
) -> None:
    """Speech that gets worse in a known order, for the calibration of rewards."""
    _layout("ladder", locals())


@command(app, "rlspeech prepare folder recordings/ --kind noisy --out data/recordings", *SEEDED)
def folder(root: Root, kind: str | None = None, text: File = None, **shared: Any) -> None:
    """A folder of recordings without references, with transcripts where there are any."""
    _layout("folder", locals())


@command(app, "rlspeech prepare avsec4 /data/avsec4 --channels mono --out data/avsec4", *SEEDED)
def avsec4(
    root: Root,
    channels: str | None = None,
    target: str | None = None,
    given_lips: Annotated[bool | None, Option("--given-lips")] = None,
    **shared: Any,
) -> None:
    """Audio-visual enhancement challenge: AVSEC-4 as shipped, and AVSEC-1 to 3."""
    _layout("avsec4", locals())


@command(app, "rlspeech prepare lips data/avsec4/train.jsonl --crop mouth96 --out data/avsec4-lips", *SEEDED)
def lips(
    root: Annotated[str, Argument(metavar="MANIFEST|FOLDER", help="Rows with video_filepath, or a folder of videos.")],
    crop: str | None = None,
    landmarks: File = None,
    keep_faceless: Annotated[bool | None, Option("--keep-faceless")] = None,
    **shared: Any,
) -> None:
    """Mouth crops, 25 grey frames a second, and a contact sheet to judge them by."""
    _layout("lips", locals())


@command(app, "rlspeech prepare demo --out data/demo", *ALONE)
def demo(mouths: Mouths = None, commands: Annotated[bool | None, Option("--commands")] = None, **shared: Any) -> None:
    """The corpus that comes with the package: synthetic voices and noises."""
    _layout("demo", locals())


@command(app, "rlspeech prepare librispeech /data/LibriSpeech --split dev-clean --out data/librispeech", *OUT)
def librispeech(
    root: Annotated[str, Argument(metavar="FOLDER", help="Folder with dev-clean, train-clean-100 ...")],
    splits: Annotated[list[str] | None, Option("--split")] = None,
    **shared: Any,
) -> None:
    """LibriSpeech as unpacked: one manifest a split."""
    _layout("librispeech", locals())


@command(app, "rlspeech prepare kaldi egs/mini/data --out data/mini", *OUT)
def kaldi(
    root: Annotated[str, Argument(metavar="FOLDER", help="Data folder (wav.scp, text ...), or a folder of several.")],
    **shared: Any,
) -> None:
    """Kaldi data folders; no command of a wav.scp is run."""
    _layout("kaldi", locals())


@command(app, "rlspeech prepare nemo train_manifest.json --out data/train", *OUT)
def nemo(
    root: Annotated[str, Argument(metavar="FILE|FOLDER", help="NeMo manifest (JSON lines), or a folder of them.")],
    **shared: Any,
) -> None:
    """NeMo manifests."""
    _layout("nemo", locals())


@command(app, "rlspeech prepare lhotse manifests/ --out data/cuts", *OUT)
def lhotse(
    root: Annotated[str, Argument(metavar="FILE|FOLDER", help="Cuts, or a folder of cuts, recordings, supervisions.")],
    **shared: Any,
) -> None:
    """Lhotse manifests: cuts, or recordings with supervisions."""
    _layout("lhotse", locals())


@command(
    app,
    "rlspeech prepare hub user/corpus --split train --text-column sentence --out data/corpus",
    *LAYERS,
    "out",
    "workers",
)
def hub(
    root: Annotated[str, Argument(metavar="NAME|FOLDER|FILE", help="Data set of the Hub (user/name) or parquet here.")],
    splits: Annotated[list[str] | None, Option("--split")] = None,
    subset: str | None = None,
    revision: str | None = None,
    audio_column: str | None = None,
    text_column: str | None = None,
    speaker_column: str | None = None,
    limit: int | None = None,
    **shared: Any,
) -> None:
    """Data sets of the Hugging Face Hub, or parquet that datasets has written."""
    stage("corpora.hub:Hub", "stages.prepare:run", locals())


@command(app, "rlspeech prepare rl-asr --data data/train --recogniser embedded --out data/hard", *STAGE, name="rl-asr")
def rl_asr(
    data: Manifest = None,
    recognisers: Annotated[list[str] | None, Option("--recogniser")] = None,
    hypotheses: Annotated[list[str] | None, Option(metavar="FILE")] = None,
    rows: int | None = None,
    band: Annotated[Range, Option(metavar="LOW HIGH")] = None,
    keywords: File = None,
    normaliser: str | None = None,
    language: str | None = None,
    **shared: Any,
) -> None:
    """Data for GRPO: random control, hard cases by disagreement, long repeated speech, short speech, keywords."""
    stage("corpora.rl_asr:RlAsr", "stages.prepare:run", locals())


@command(app, "rlspeech prepare nonspeech --noise noise/ --clean test.jsonl --count 40 --out data/nonspeech", *ALONE)
def nonspeech(
    noise: Paths = None,
    clean: Annotated[list[str] | None, Option(metavar="MANIFEST")] = None,
    count: int | None = None,
    conditions: Annotated[list[str] | None, Option("--condition")] = None,
    max_s: float | None = None,
    **shared: Any,
) -> None:
    """Sound that tempts a recogniser to invent words: silence, noise, music, cut and looped speech."""
    stage("corpora.nonspeech:Nonspeech", "stages.prepare:run", locals())


@command(app, "rlspeech prepare tts /data/LibriTTS/dev-clean --out data/libritts", *ALONE, "workers")
def tts(
    root: Annotated[str, Argument(metavar="SOURCE")],
    prompts: Manifest = None,
    prompt_s: Annotated[Range, Option(metavar="LOW HIGH")] = None,
    **shared: Any,
) -> None:
    """Texts with voices for synthesis: every row gets a prompt of its own, once and for all."""
    stage("corpora.tts_texts:PrepareTts", "stages.prepare:run", locals())


@command(app, "rlspeech prepare join data/test:condition=clean data/nonspeech --sample 500 --out data/joined", *ALONE)
def join(
    manifests: Annotated[list[str], Argument(metavar="MANIFEST[:COLUMN=VALUE]")],
    sample: Annotated[int | None, Option(metavar="N")] = None,
    **shared: Any,
) -> None:
    """Several manifests as one; a column may be set for each, as in noisy.jsonl:condition=noisy."""
    stage("corpora.join:Join", "stages.prepare:run", locals())
