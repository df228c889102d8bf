"""``rlspeech prepare librispeech | kaldi | nemo | lhotse | rl-asr | nonspeech | tts | join``: speech with its transcripts."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from rlspeech.cli.common import ConfigFiles, Debug, Device, Json, Out, Preset, Quiet, Seed, Sets, Shared, run_stage

__all__ = ["add_to"]

Workers = Annotated[int | None, typer.Option(help="Processes; none: one a core.")]


def add_to(app: typer.Typer) -> None:
    """Make these commands part of ``rlspeech prepare``."""
    for function, name, example in (
        (librispeech, "librispeech", "/data/LibriSpeech --split dev-clean --out data/librispeech"),
        (kaldi, "kaldi", "egs/mini/data --out data/mini"),
        (nemo, "nemo", "train_manifest.json --out data/train"),
        (lhotse, "lhotse", "manifests/ --out data/cuts"),
        (rl_asr, "rl-asr", "--data data/train --recogniser embedded --recogniser pocketsphinx --out data/rl-asr"),
        (nonspeech, "nonspeech", "--noise noise/ --clean data/test/test.jsonl --count 40 --out data/nonspeech"),
        (tts, "tts", "/data/LibriTTS/dev-clean --out data/libritts"),
        (join, "join", "data/test:condition=clean data/nonspeech --sample 500 --out data/joined"),
    ):
        app.command(name, epilog=f"Example: rlspeech prepare {name} {example}")(function)


def _source(name: str, shared: Shared, **flags: Any) -> None:
    run_stage(shared, "stages.prepare:Prepare", "stages.prepare:run", {"source": name, **flags})


def librispeech(
    root: Annotated[str, typer.Argument(metavar="FOLDER", help="Where dev-clean, train-clean-100 ... lie.")],
    split: Annotated[
        list[str] | None, typer.Option(help="Which of them; may be repeated. None: all that are there.")
    ] = None,
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """LibriSpeech as unpacked: one manifest a split."""
    _source(
        "librispeech",
        Shared(preset, config, sets, json_mode, quiet, debug),
        root=root,
        splits=split,
        workers=workers,
        out=out,
    )


def kaldi(
    path: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER", help="A data folder (wav.scp, text, segments ...), or one that holds several."
        ),
    ],
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Kaldi data folders; no command of a wav.scp is run."""
    _source("kaldi", Shared(preset, config, sets, json_mode, quiet, debug), root=path, workers=workers, out=out)


def nemo(
    path: Annotated[
        str, typer.Argument(metavar="FILE|FOLDER", help="NeMo manifest (one JSON object a line), or a folder of them.")
    ],
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """NeMo manifests."""
    _source("nemo", Shared(preset, config, sets, json_mode, quiet, debug), root=path, workers=workers, out=out)


def lhotse(
    path: Annotated[
        str,
        typer.Argument(
            metavar="FILE|FOLDER", help="cuts.jsonl(.gz), or a folder of cuts or recordings + supervisions."
        ),
    ],
    workers: Workers = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Lhotse manifests: cuts, or recordings with supervisions."""
    _source("lhotse", Shared(preset, config, sets, json_mode, quiet, debug), root=path, workers=workers, out=out)


def rl_asr(
    data: Annotated[str | None, typer.Option(metavar="MANIFEST", help="Speech with transcripts.")] = None,
    recogniser: Annotated[
        list[str] | None, typer.Option(help="embedded, Hub id, folder, pocketsphinx or module:function; repeat.")
    ] = None,
    hypotheses: Annotated[
        list[str] | None, typer.Option(metavar="FILE", help="JSONL with id and text (or texts); repeat.")
    ] = None,
    rows: Annotated[int | None, typer.Option(help="Of d123, and of the control d0.")] = None,
    band: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Mean pairwise WER of hard cases.")
    ] = None,
    keywords: Annotated[
        str | None, typer.Option(metavar="FILE", help="One keyword a line; none: rare words of the corpus.")
    ] = None,
    normaliser: Annotated[str | None, typer.Option(help="Of texts before they are compared.")] = None,
    language: Annotated[str | None, typer.Option(help="Of rows that do not say theirs.")] = None,
    device: Device = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Data for GRPO: random control, hard cases by disagreement, long repeated speech, short speech, keywords."""
    flags = {
        "data": data,
        "recognisers": recogniser,
        "hypotheses": hypotheses,
        "rows": rows,
        "band": band,
        "keywords": keywords,
        "normaliser": normaliser,
        "language": language,
        "device": device,
        "out": out,
        "seed": seed,
    }
    run_stage(
        Shared(preset, config, sets, json_mode, quiet, debug), "corpora.rl_asr:RlAsr", "stages.prepare:run", flags
    )


def nonspeech(
    noise: Annotated[
        list[str] | None, typer.Option(metavar="PATH", help="Folder or manifest of noise; may be repeated.")
    ] = None,
    clean: Annotated[
        list[str] | None, typer.Option(metavar="MANIFEST", help="Speech with transcripts; may be repeated.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Clips of each condition.")] = None,
    condition: Annotated[
        list[str] | None, typer.Option(help="silence, noise, music, cut or looped; repeat. None: all.")
    ] = None,
    max_s: Annotated[float | None, typer.Option(help="Longest clip in seconds.")] = None,
    preset: Preset = None,
    config: ConfigFiles = None,
    sets: Sets = None,
    out: Out = None,
    seed: Seed = None,
    json_mode: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Sound that tempts a recogniser to invent words: silence, noise, music, cut and looped speech."""
    flags = {
        "noise": noise,
        "clean": clean,
        "count": count,
        "conditions": condition,
        "max_s": max_s,
        "out": out,
        "seed": seed,
    }
    run_stage(
        Shared(preset, config, sets, json_mode, quiet, debug),
        "corpora.nonspeech:Nonspeech",
        "stages.prepare:run",
        flags,
    )


def tts(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="LibriTTS-like folder, manifest, utt|text|wav|text list, or .txt.")
    ],
    prompts: Annotated[
        str | None, typer.Option(metavar="MANIFEST", help="Voices for a .txt of lines: speech with transcripts.")
    ] = None,
    prompt_s: Annotated[
        tuple[float, float] | None, typer.Option(metavar="LOW HIGH", help="Length of prompts in seconds.")
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
    """Texts with voices for the task tts: every row gets its prompt, once and for all."""
    flags = {"root": source, "prompts": prompts, "prompt_s": prompt_s, "workers": workers, "out": out, "seed": seed}
    run_stage(
        Shared(preset, config, sets, json_mode, quiet, debug),
        "corpora.tts_texts:PrepareTts",
        "stages.prepare:run",
        flags,
    )


def join(
    manifests: Annotated[
        list[str], typer.Argument(metavar="MANIFEST[:COLUMN=VALUE]", help="Manifests or folders; columns to set.")
    ],
    sample: Annotated[
        int | None, typer.Option(metavar="N", help="Only this many rows of the result, drawn at random.")
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
    """Several manifests as one; a column may be set for each, as in noisy.jsonl:condition=noisy."""
    flags = {"manifests": manifests, "sample": sample, "out": out, "seed": seed}
    run_stage(Shared(preset, config, sets, json_mode, quiet, debug), "corpora.join:Join", "stages.prepare:run", flags)
