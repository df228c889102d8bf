"""``rlspeech prepare dns | voicebank | pairs | mix | folder | demo``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rlspeech.cli.common import ConfigFiles, Debug, Json, Out, Preset, Quiet, Seed, Sets, Shared, run_stage

__all__ = ["app"]

app = typer.Typer(no_args_is_help=True)

Root = Annotated[str, typer.Argument(metavar="FOLDER", help="Where the corpus lies.")]
Workers = Annotated[int | None, typer.Option(help="Processes; none: one a core.")]
Snr = Annotated[tuple[float, float] | None, typer.Option("--snr", metavar="LOW HIGH", help="Range of signal-to-noise ratios in dB.")]
Level = Annotated[tuple[float, float] | None, typer.Option("--level", metavar="LOW HIGH", help="Range of levels in dBFS.")]
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
    clean: Annotated[list[str] | None, typer.Option(metavar="FOLDER", help="Folder with the references, names as in the inputs.")] = None,
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
    _run("pairs", Shared(preset, config, sets, json_mode, quiet, debug), noisy=noisy, clean=clean, workers=workers, out=out, seed=seed)


@app.command(epilog="Example: rlspeech prepare mix --clean speech/ --noise noise/ --rir rooms/ --snr -5 15 --reverb 0.3 --out data/mix")
def mix(
    clean: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of speech; may be repeated.")] = None,
    noise: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of noise; may be repeated.")] = None,
    rir: Annotated[list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of impulse responses; may be repeated.")] = None,
    snr: Snr = None,
    level: Level = None,
    reverb: Reverb = None,
    render: Annotated[int | None, typer.Option(help="Write this many mixtures to disk; 0 mixes on the fly.")] = None,
    render_s: Annotated[float | None, typer.Option(help="Length of rendered mixtures in seconds; 0 keeps whole utterances.")] = None,
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
        render=render,
        render_s=render_s,
        workers=workers,
        out=out,
        seed=seed,
    )


@app.command(epilog="Example: rlspeech prepare folder recordings/ --kind noisy --out data/recordings")
def folder(
    root: Root,
    kind: Annotated[str | None, typer.Option(help="speech, noisy, noise or rir: what the files are held to.")] = None,
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
    """A folder of recordings without references."""
    _run("folder", Shared(preset, config, sets, json_mode, quiet, debug), root=root, kind=kind, workers=workers, out=out, seed=seed)


@app.command(epilog="Example: rlspeech prepare demo --out data/demo")
def demo(
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
    _run("demo", Shared(preset, config, sets, json_mode, quiet, debug), out=out, seed=seed)
