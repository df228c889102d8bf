"""``rlspeech prepare dns | voicebank | pairs | mix | ladder | folder | avsec4 | lips | demo``; for recognisers see ``prepare_asr``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rlspeech.cli import prepare_asr
from rlspeech.cli.common import ConfigFiles, Debug, Json, Out, Preset, Quiet, Seed, Sets, Shared, run_stage

__all__ = ["app"]

app = typer.Typer(
    no_args_is_help=True,
    epilog="Example: rlspeech prepare demo --out data && rlspeech prepare folder mine/ --out data/mine",
)

Root = Annotated[str, typer.Argument(metavar="FOLDER", help="Where the corpus lies.")]
Workers = Annotated[int | None, typer.Option(help="Processes; none: one a core.")]
Snr = Annotated[
    tuple[float, float] | None, typer.Option("--snr", metavar="LOW HIGH", help="Range of signal-to-noise ratios in dB.")
]
Level = Annotated[
    tuple[float, float] | None, typer.Option("--level", metavar="LOW HIGH", help="Range of levels in dBFS.")
]
Mouths = Annotated[bool | None, typer.Option("--mouths", help="Draw a mouth that follows the speech: synthetic video.")]
Reverb = Annotated[float | None, typer.Option(help="Share of mixtures with an impulse response, 0 to 1.")]


def _run(source: str, shared: Shared, **flags: Any) -> None:
    named = {key.replace("mixing_", "mixing."): value for key, value in flags.items()}
    run_stage(shared, "stages.prepare:Prepare", "stages.prepare:run", {"source": source, **named})


@app.command(epilog="Example: rlspeech prepare dns /data/DNS-Challenge --out data/dns")
def dns(
    root: Root,
    snr: Snr = None,
    level: Level = None,
    reverb: Reverb = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """DNS-Challenge: the flat layout of 2020 and the trees since 2021."""
    _run(
        "dns",
        Shared(preset, config, sets, json_mode, quiet, debug),
        root=root,
        mixing_snr_db=snr,
        mixing_level_dbfs=level,
        mixing_reverb=reverb,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(epilog="Example: rlspeech prepare voicebank /data/VoiceBank-DEMAND --speakers 28 --out data/vb")
def voicebank(
    root: Root,
    speakers: Annotated[str | None, typer.Option(help="28, 56, all or auto.")] = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """VoiceBank-DEMAND, 28 or 56 training speakers."""
    _run(
        "voicebank",
        Shared(preset, config, sets, json_mode, quiet, debug),
        root=root,
        speakers=speakers,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(epilog="Example: rlspeech prepare pairs --noisy noisy/ --clean clean/ --out data/pairs")
def pairs(
    noisy: Annotated[str | None, typer.Option(metavar="FOLDER", help="Folder with the inputs.")] = None,
    clean: Annotated[
        list[str] | None, typer.Option(metavar="FOLDER", help="Folder with the references, names as in the inputs.")
    ] = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Two folders, noisy and clean, paired by name."""
    _run(
        "pairs",
        Shared(preset, config, sets, json_mode, quiet, debug),
        noisy=noisy,
        clean=clean,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(
    epilog="Example: rlspeech prepare mix --clean speech/ --noise noise/ --rir rooms/ --snr -5 15 --reverb 0.3 --out data/mix"
)
def mix(
    clean: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of speech; may be repeated.")
    ] = None,
    noise: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of noise; may be repeated.")
    ] = None,
    rir: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of impulse responses; may be repeated.")
    ] = None,
    snr: Snr = None,
    level: Level = None,
    reverb: Reverb = None,
    talker: Annotated[float | None, typer.Option(help="Share of mixtures with a competing talker, 0 to 1.")] = None,
    mouths: Mouths = None,
    render: Annotated[int | None, typer.Option(help="Write this many mixtures to disk; 0 mixes on the fly.")] = None,
    render_s: Annotated[
        float | None, typer.Option(help="Length of rendered mixtures in seconds; 0 keeps whole utterances.")
    ] = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Clean speech + noise (+ impulse responses): a recipe that mixes on the fly, or mixtures on disk."""
    _run(
        "mix",
        Shared(preset, config, sets, json_mode, quiet, debug),
        clean=clean,
        noise=noise,
        rir=rir,
        mixing_snr_db=snr,
        mixing_level_dbfs=level,
        mixing_reverb=reverb,
        mixing_talker=talker,
        mouths=mouths,
        render=render,
        render_s=render_s,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(
    epilog="Example: rlspeech prepare ladder --clean held-out/ --noise noise/ --utterances 20 --out data/ladder"
)
def ladder(
    clean: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of clean speech; may be repeated.")
    ] = None,
    noise: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of noise; may be repeated.")
    ] = None,
    utterances: Annotated[int | None, typer.Option(help="How many utterances; 0 takes all.")] = None,
    clip_s: Annotated[
        float | None, typer.Option(help="Longest stretch of an utterance in seconds; 0 keeps it whole.")
    ] = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Speech that gets worse in a known order, for the calibration of rewards."""
    _run(
        "ladder",
        Shared(preset, config, sets, json_mode, quiet, debug),
        clean=clean,
        noise=noise,
        render=utterances,
        render_s=clip_s,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(epilog="Example: rlspeech prepare folder recordings/ --kind noisy --out data/recordings")
def folder(
    root: Root,
    kind: Annotated[str | None, typer.Option(help="speech, noisy, noise or rir: what the files are held to.")] = None,
    text: Annotated[
        str | None,
        typer.Option(
            metavar="FILE", help="Transcripts: JSONL, csv, tsv or Kaldi's text; without it x.txt beside x.wav counts."
        ),
    ] = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """A folder of recordings without references, with transcripts where there are any."""
    _run(
        "folder",
        Shared(preset, config, sets, json_mode, quiet, debug),
        root=root,
        kind=kind,
        text=text,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(epilog="Example: rlspeech prepare avsec4 /data/avsec4 --channels mono --out data/avsec4")
def avsec4(
    root: Root,
    channels: Annotated[str | None, typer.Option(help="mono or binaural: which files.")] = None,
    target: Annotated[str | None, typer.Option(help="anechoic or reverberant reference.")] = None,
    given_lips: Annotated[
        bool | None, typer.Option("--given-lips", help="Name the organisers' lip videos where they are.")
    ] = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Audio-visual enhancement challenge: AVSEC-4 as shipped, and AVSEC-1 to 3."""
    _run(
        "avsec4",
        Shared(preset, config, sets, json_mode, quiet, debug),
        root=root,
        channels=channels,
        target=target,
        given_lips=given_lips,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(epilog="Example: rlspeech prepare lips data/avsec4/train.jsonl --crop mouth96 --out data/avsec4-lips")
def lips(
    source: Annotated[
        str, typer.Argument(metavar="MANIFEST|FOLDER", help="Rows with video_filepath, or a folder of videos.")
    ],
    crop: Annotated[
        str | None, typer.Option(help="mouth96 (tracked), centre112 (no detector) or whole96 (videos of mouths).")
    ] = None,
    landmarks: Annotated[
        str | None, typer.Option(metavar="FILE", help="MediaPipe face-landmarker model (.task); needs mediapipe.")
    ] = None,
    keep_faceless: Annotated[
        bool | None,
        typer.Option("--keep-faceless", help="Cut the centre of clips without any face instead of dropping them."),
    ] = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Mouth crops, 25 grey frames a second, and a contact sheet to judge them by."""
    _run(
        "lips",
        Shared(preset, config, sets, json_mode, quiet, debug),
        root=source,
        crop=crop,
        landmarks=landmarks,
        keep_faceless=keep_faceless,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(epilog="Example: rlspeech prepare demo --out data/demo")
def demo(
    mouths: Mouths = None,
    commands: Annotated[
        bool | None, typer.Option("--commands", help="Spoken commands with transcripts, for recognisers.")
    ] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """The corpus that comes with the package: synthetic voices and noises."""
    _run(
        "demo",
        Shared(preset, config, sets, json_mode, quiet, debug),
        mouths=mouths,
        commands=commands,
        out=out,
        seed=seed,
    )


prepare_asr.add_to(app)
