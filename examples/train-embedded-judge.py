"""Recordings with labels for the embedded listener, and the embedded sentiment model: the two parts of the embedded judge.

    python examples/train-embedded-judge.py recordings --speech FILES.txt --noise FILES.txt [--rir FILES.txt] --count 8000 --out FOLDER
    python examples/train-embedded-judge.py sentiment [--steps 1500] --out FOLDER
    python examples/train-embedded-judge.py check --speech FILES.txt --noise FILES.txt --listener FOLDER --sentiment FOLDER

The lists hold one path a line. ``recordings`` writes ``manifest.jsonl`` with pairs (degraded, clean) and the columns that
``rlspeech pretrain --task listener`` learns from; ``--part 0/2`` renders every second one into ``manifest-0.jsonl``. ``check`` measures
the chain on ladders and on mixtures. ``train-embedded-judge.sh`` calls all of them.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

RATE = 16000
TALKERS = 60  # other voices to draw from


def read_list(path: str | None) -> list[np.ndarray]:
    """Waveforms of a list of files; unreadable ones are named and left out."""
    from rlspeech.data.audio import AudioError, load_audio

    wavs = []
    for line in Path(path).read_text().splitlines() if path else []:
        try:
            wavs.append(load_audio(line.strip(), RATE))
        except AudioError as error:
            print(f"left out: {line}: {error.reason}")
    return wavs


def varied(noises: list[np.ndarray], count: int, rng: np.random.Generator) -> list[np.ndarray]:
    """More kinds of noise out of a few recordings: other speeds, other colours, two at once, and modulated coloured noise."""
    from scipy.signal import resample_poly

    def coloured(wav: np.ndarray, low_db: float, high_db: float) -> np.ndarray:
        spectrum = np.fft.rfft(wav)
        curve = np.interp(np.linspace(0, 1, len(spectrum)), np.linspace(0, 1, 8), rng.uniform(low_db, high_db, 8))
        return np.fft.irfft(spectrum * 10 ** (curve / 20), len(wav))

    def one_more() -> np.ndarray:
        wav = noises[int(rng.integers(len(noises)))]
        start = int(rng.integers(max(1, len(wav) - 8 * RATE)))
        up, down = ((4, 5), (5, 4), (1, 1), (2, 3), (3, 2), (7, 5))[int(rng.integers(6))]
        wav = coloured(resample_poly(wav[start : start + 8 * RATE], up, down), -14, 8)
        return wav / (np.sqrt(np.mean(wav**2)) + 1e-9)

    out = []
    for _ in range(count):
        wav = one_more()
        if rng.random() < 0.5:
            other = one_more()
            length = max(len(wav), len(other))
            wav = np.resize(wav, length) + rng.uniform(0.3, 1) * np.resize(other, length)
        if rng.random() < 0.2:
            t = np.arange(len(wav)) / RATE
            wav = coloured(rng.standard_normal(len(wav)), -30, 5) * (
                1 + 0.8 * np.sin(2 * np.pi * rng.uniform(0.3, 6) * t)
            )
        out.append((0.5 * wav / np.abs(wav).max()).astype(np.float32))
    return out


def recordings(args: argparse.Namespace) -> None:
    """Render labelled pairs."""
    from rlspeech.data.audio import AudioError, rms_dbfs, save_audio
    from rlspeech.data.degrade import Sources, degrade
    from rlspeech.data.mixing import cut
    from rlspeech.tasks.aids.listener import quality, row_of

    speech, noises, rirs = read_list(args.speech), read_list(args.noise), read_list(args.rir)
    if args.vary:
        noises = varied(noises, args.vary, np.random.default_rng(args.seed))
    out, (part, parts) = Path(args.out), map(int, args.part.split("/"))
    out.mkdir(parents=True, exist_ok=True)
    started, made = time.monotonic(), 0
    with (out / ("manifest.jsonl" if parts == 1 else f"manifest-{part}.jsonl")).open("w") as manifest:
        for number in range(part, args.count, parts):
            rng = np.random.default_rng([args.seed, number])
            clean = cut(speech[int(rng.integers(len(speech)))], int(rng.choice([2, 3, 3, 3, 3, 5]) * RATE), rng)[0]
            sources = Sources(noises, [speech[int(i)] for i in rng.integers(len(speech), size=3)], rirs)
            try:
                if rms_dbfs(clean) < -50:
                    raise AudioError("hardly any speech")
                done = degrade(clean, sources, RATE, rng)
                stars = quality(clean, done.wav)
            except (AudioError, ValueError):
                continue
            files = [f"audio/{number:06d}_{kind}.flac" for kind in ("degraded", "clean")]
            for file, wav in zip(files, (done.wav, clean), strict=True):
                save_audio(out / file, wav, RATE)
            row = {
                "id": f"{number:06d}",
                "audio_filepath": files[0],
                "target_filepath": files[1],
                "duration": len(clean) / RATE,
                "sample_rate": RATE,
                **row_of(done, stars),
            }
            manifest.write(json.dumps(row) + "\n")
            manifest.flush()
            made += 1
            if made % 500 == 0:
                print(f"{made} recordings, {time.monotonic() - started:.0f} s", flush=True)


def outputs(args: argparse.Namespace) -> None:
    """Render labelled outputs of an audio-visual enhancer whose masks are disturbed as exploration disturbs them.

    A judge that has never heard what an enhancer does wrong is the first thing that RL fools. How much of the speech is lost is told by
    sending the clean speech alone through the mask; what is left of the rest is noise, or the other talker.
    """
    import torch

    from rlspeech.config import Exploration
    from rlspeech.data.audio import AudioError, rms_dbfs, save_audio
    from rlspeech.data.batches import Clip, lips_of
    from rlspeech.data.degrade import TRAITS, Degraded, fall, noise_severity
    from rlspeech.data.mixing import MixtureSet
    from rlspeech.models.adapters import Adapted
    from rlspeech.models.avse import si_snr
    from rlspeech.models.hub import load_model
    from rlspeech.tasks.aids.listener import quality, row_of
    from rlspeech.tasks.avse.policy import AvsePolicy

    mixtures, out = MixtureSet.from_recipe(args.recipe, seed=args.seed), Path(args.out)
    models = [load_model(name, "avse")[0] for name in args.model]
    out.mkdir(parents=True, exist_ok=True)
    made, started = 0, time.monotonic()
    with (out / "manifest.jsonl").open("w") as manifest:
        for number in range(args.count):
            rng = np.random.default_rng([args.seed, number])
            model = models[int(rng.integers(len(models)))]
            noise = float(rng.choice([0.0, 0.3, 0.6, 1.0]))
            policy = AvsePolicy(
                Adapted(model, None),
                Exploration(
                    kind="gain",
                    noise=noise,
                    bands=int(rng.choice([1, 4, 8])),
                    segment_s=(None, 0.25)[int(rng.integers(2))],
                ),
            )
            epoch, index = divmod(number, len(mixtures))
            try:
                mixed = mixtures.get(epoch, index, float(rng.choice([2.0, 3.0])))
                lips = (
                    lips_of(mixtures.clean[index], mixed.start_s, len(mixed.noisy) / RATE)
                    if rng.random() < 0.7
                    else None
                )
                rollout = policy.rollout(
                    [Clip(str(number), mixed.noisy, mixed.target, RATE, lips=lips)], group=1, seed=number
                )
                state, wav = rollout.state, rollout.samples[0].wav
                with torch.no_grad():
                    mask = policy.kernel.act(state.old, state.old, state.eps)
                    speech = model.encode(state.batch.target)
                    kept = model.decode(speech[:, None] * mask, len(wav))[0, 0].numpy() / float(state.batch.gain[0])
                stars = quality(mixed.target, wav)
            except (AudioError, ValueError):
                continue
            rest = rms_dbfs(kept) - rms_dbfs(wav - kept)
            lost = float(si_snr(torch.from_numpy(kept), torch.from_numpy(mixed.target)))
            severity = dict.fromkeys(TRAITS, 0.0)
            severity["artefacts"] = fall(lost, 22.0, 0.0)
            severity["talker" if mixed.talker_id else "noise"] = noise_severity(rest)
            files = [f"audio/o{number:06d}_{kind}.flac" for kind in ("degraded", "clean")]
            for file, sound in zip(files, (wav, mixed.target), strict=True):
                save_audio(out / file, sound, RATE)
            row = {
                "id": f"o{number:06d}",
                "audio_filepath": files[0],
                "target_filepath": files[1],
                "duration": len(wav) / RATE,
                "sample_rate": RATE,
                **row_of(Degraded(wav, severity, rms_dbfs(wav)), stars),
            }
            manifest.write(json.dumps(row) + "\n")
            manifest.flush()
            made += 1
            if made % 200 == 0:
                print(f"{made} outputs, {time.monotonic() - started:.0f} s", flush=True)


# ------------------------------------------------------------------------------------------------- sentences of other judges

GOOD = {
    4.9: "excellent superb outstanding perfect flawless pristine exceptional immaculate crystal-clear first-rate top-notch",
    4.5: "great wonderful beautiful impressive fantastic lovely brilliant",
    4.0: "good clean clear nice natural pleasant intelligible smooth crisp solid understandable undistorted comfortable professional "
    "transparent enjoyable legible faithful noiseless",
}
MIDDLE = {
    3.5: "decent fine reasonable satisfactory usable",
    2.6: "mediocre so-so",
    3.0: "fair average acceptable okay moderate passable adequate ordinary ok bearable",
}
BAD = {
    2.0: "poor weak noisy muffled unpleasant unclear harsh dull hollow tinny distorted robotic artificial choppy degraded hissy "
    "crackly boomy echoey reverberant unnatural metallic grainy disturbing fuzzy thin rough watery interrupted "
    "clipped stuttering tiring faint",
    1.45: "bad garbled annoying broken inaudible corrupted lousy",
    1.05: "terrible awful horrible unintelligible unusable unbearable dreadful abysmal incomprehensible horrendous worthless",
}
DEFECTS = (
    "noise;background noise;hiss;hum;static;buzz;crackle;distortion;echo;reverberation;artifacts;artefacts;dropouts;"
    "interruptions;clipping;interference;muffling;glitches;traffic noise;babble;other voices;wind noise;musical noise;reverb;"
    "gaps;breaks;clicks;background chatter;interference from another talker;processing artifacts;disturbance;"
    "degradation;crackling;background sounds;background music"
).split(";")
AMOUNTS = {
    4.8: "no;no audible;without any;without;free of;zero;absolutely no;not any",
    4.4: "hardly any;almost no;virtually no;next to no;negligible;minimal",
    4.1: "very little;barely audible;very slight;very faint",
    3.6: "a little;slight;mild;light;minor;faint;low",
    3.0: "some;moderate;a bit of",
    2.7: "noticeable;audible;obvious;considerable",
    1.9: "a lot of;much;strong;loud;heavy;significant;plenty of;constant;intense",
    1.3: "severe;excessive;overwhelming;extreme;unbearable;terrible;massive",
}
PRESENT = {
    4.7: "not;never;not at all",
    4.3: "barely;hardly;scarcely",
    3.5: "slightly;faintly;only just",
    2.9: "somewhat;moderately",
    2.1: "clearly;very;quite",
    1.5: "strongly;extremely;overwhelmingly;severely",
}
SUBJECTS = (
    "the speech;the voice;the speaker;the recording;the audio;it;the sound;this clip;the talker;the signal;the overall quality;"
    "the audio quality;the sound quality;the speech quality;the quality"
).split(";")
HEARD = {
    4.4: "can be easily understood;can be heard clearly;can be understood without effort;is easily understood;is easy to understand",
    3.9: "can be understood;can be heard;comes through well",
    3.0: "can mostly be understood;can be understood with some effort",
    1.9: "can hardly be understood;is lost in places;can barely be heard;is difficult to make out;sounds far away;is hard to make out",
    1.2: "cannot be understood;can not be understood;is drowned out;cannot be heard;is completely lost;is buried in noise",
}
NEUTRAL = (
    "a man is speaking;a woman is reading a story;the speaker talks about the weather in English;this is a short clip of speech;"
    "the recording lasts a few seconds;one person is talking;it contains a sentence from a book;the accent is american;"
    "here is my assessment;the person speaks calmly;the audio contains a human voice;"
    "in terms of audio quality;someone says a few words;the recording has a female speaker;a male voice talks in a room"
).split(";")
Clause = tuple[str, float]


def one(items: list[str] | tuple[str, ...], rng: np.random.Generator) -> str:
    return items[int(rng.integers(len(items)))]


def pick(table: dict[float, str], rng: np.random.Generator, mark: str = " ") -> Clause:
    value = list(table)[int(rng.integers(len(table)))]
    return one(table[value].split(mark), rng), value


def adjective(rng: np.random.Generator) -> Clause:
    """An adjective with or without an intensifier or a negation, and the stars it stands for."""
    kind = rng.random()
    if kind < 0.15:
        return pick(MIDDLE, rng)
    table, good = (GOOD, True) if kind < 0.55 else (BAD, False)
    word, value = pick(table, rng)
    way, side = rng.random(), value - 3.0
    if way < 0.4:
        return word, value
    if way < 0.6:
        adverbs, factor = (("very", "really", "highly", "truly", "particularly"), 1.35)
        if rng.random() < 0.3:
            adverbs, factor = ("extremely", "exceptionally", "completely", "incredibly"), 1.7
        return f"{one(adverbs, rng)} {word}", float(np.clip(3 + side * factor, 1.0, 5.0))
    if way < 0.75:
        if good:
            return f"{one(('fairly', 'reasonably', 'mostly', 'relatively'), rng)} {word}", 3 + side * 0.65
        if rng.random() < 0.5:
            return f"{one(('slightly', 'a little', 'a bit', 'mildly'), rng)} {word}", 3.3
        return f"{one(('somewhat', 'rather', 'quite', 'fairly'), rng)} {word}", 3 + side * 0.6
    if good:
        if rng.random() < 0.4:
            return f"{one(('hardly', 'barely', 'far from', 'anything but'), rng)} {word}", 1.5
        return (
            f"{one(('not', 'not very', 'not really', 'not at all', 'never', 'no longer'), rng)} {word}",
            2.0 if value < 4.7 else 2.9,
        )
    if rng.random() < 0.5:
        return f"{one(('not at all', 'never', 'hardly', 'not in the least', 'barely'), rng)} {word}", 4.3
    return f"{one(('not', 'not', 'not very', 'not too', 'not particularly'), rng)} {word}", 3.9


def defect(rng: np.random.Generator) -> Clause:
    """A noun phrase such as "no background noise", or several under one negation."""
    amount, value = pick(AMOUNTS, rng, ";")
    names = [one(DEFECTS, rng) for _ in range(1 + int(rng.random() < 0.3))]
    joint = " or " if value > 4.6 and rng.random() < 0.5 else f" and {amount} " if rng.random() < 0.5 else " and "
    return f"{amount} {joint.join(dict.fromkeys(names))}", value


def clause(rng: np.random.Generator) -> Clause:
    """One statement about a recording, and its stars."""
    way = rng.random()
    if way < 0.4:
        return quality_clause(rng)
    if way < 0.6:
        text, value = defect(rng)
        starts = ("there is", "i can hear", "it has", "i hear", "with", "there are", "the recording has", "")
        if text.startswith(("free", "without")):
            starts = ("it is", "", "the speech is")
        return f"{one(starts, rng)} {text}".strip(), value
    if way < 0.7:
        adverb, value = pick(PRESENT, rng, ";")
        state = one(("present", "audible", "noticeable", "disturbing", "intrusive"), rng)
        return f"{one(('', 'the '), rng)}{one(DEFECTS, rng)} {one(('is', 'are'), rng)} {adverb} {state}", value
    if way < 0.8:
        text, value = pick(HEARD, rng, ";")
        why = f" because of the {one(DEFECTS, rng)}" if value < 2.5 and rng.random() < 0.3 else ""
        who = one(("the speech", "the voice", "the speaker", "the talker", "every word", "what is said", "it"), rng)
        return f"{who} {text}{why}", value
    if way < 0.9:
        hard = rng.random() < 0.5
        word = one(("hard", "difficult", "impossible") if hard else ("easy", "pleasant", "comfortable"), rng)
        base = {"hard": 2.0, "difficult": 2.0, "impossible": 1.1}.get(word, 4.1)
        adverb, factor = [("", 1.0), ("very ", 1.5), ("not ", -0.6), ("fairly ", 0.7), ("quite ", 1.0)][
            int(rng.integers(5))
        ]
        verb = one(("understand", "listen to", "follow", "hear"), rng)
        who = one(("it", "the speech", "the speaker"), rng)
        return f"{who} is {adverb}{word} to {verb}", float(np.clip(3 + (base - 3) * factor, 1.0, 5.0))
    if way < 0.95:
        words = [
            ("high", 4.5),
            ("very high", 4.8),
            ("low", 1.8),
            ("very low", 1.3),
            ("medium", 3.0),
            ("moderate", 3.0),
            ("lacking", 1.9),
        ]
        word, value = words[int(rng.integers(len(words)))]
        return (
            f"the {one(('quality', 'clarity', 'intelligibility', 'fidelity', 'audio quality'), rng)} is {word}",
            value,
        )
    stars = float(rng.integers(2, 11)) / 2 if rng.random() < 0.5 else float(np.round(rng.uniform(1, 5), 1))
    number = f"{stars:g}"
    return one(
        (
            f"quality score {number} out of 5",
            f"{number} / 5",
            f"{number}/5",
            f"i rate it {number} out of 5",
            f"{number} stars",
            f"score: {number}",
            f"the mos is {number}",
            f"rating: {number}",
        ),
        rng,
    ), stars


def quality_clause(rng: np.random.Generator) -> Clause:
    """Adjectives as a predicate ("is clear and not noisy") or before a noun ("a clear voice")."""
    (text, value), way = adjective(rng), rng.random()
    if way < 0.6:
        if rng.random() < 0.25:
            second, other = adjective(rng)
            text, value = (
                f"{text} {one(('and', 'and', 'but', 'and sounds', 'and is'), rng)} {second}",
                (value + other) / 2,
            )
        return f"{one(SUBJECTS, rng)} {one(('is', 'sounds', 'is', 'seems'), rng)} {text}", value
    if text.startswith(("not", "never", "no ", "far", "anything")):
        return f"it is {text}", value
    noun = one(
        ("voice", "recording", "sound", "quality recording", "audio", "signal", "speech", "quality", "sound quality"),
        rng,
    )
    return f"{one(('with a', 'it is a', 'a', 'this is a recording with a', 'the audio has'), rng)} {text} {noun}", value


def free_form(rng: np.random.Generator) -> Clause:
    """An opinion of one to five clauses in free words: the mean of its clauses, drawn towards the worst."""
    if rng.random() < 0.2:
        text, value = adjective(rng) if rng.random() < 0.7 else defect(rng)
        return one((text, f"{text} quality" if " " not in text else text, f"overall {text}"), rng), value
    parts = [clause(rng) for _ in range(int(rng.choice([1, 1, 2, 2, 3, 4])))]
    if len(parts) > 1 and rng.random() < 0.6:  # opinions of one recording agree more often than not
        start, sorted_parts = (
            int(rng.integers(7 - len(parts))),
            sorted((clause(rng) for _ in range(6)), key=lambda p: p[1]),
        )
        parts = [sorted_parts[start + int(i)] for i in rng.permutation(len(parts))]
    values = [v for _, v in parts]
    stars = 0.75 * float(np.mean(values)) + 0.25 * min(values)
    texts = [t for t, _ in parts]
    if rng.random() < 0.25:
        texts.insert(int(rng.integers(len(texts) + 1)), one(NEUTRAL, rng))
    text = texts[0]
    for more in texts[1:]:
        text += (
            one((". ", ", ", " and ", "; ", ", but ", ". ", ", with " if not more.startswith("with") else ", "), rng)
            + more
        )
    return text + one((".", "", "!"), rng), stars


def own_words(rows: list[dict[str, float]], rng: np.random.Generator) -> Clause:
    """A sentence in the listener's wording for the labels of a recording, sometimes cut short."""
    from rlspeech.tasks.aids.sentences import describe

    row = rows[int(rng.integers(len(rows)))]
    parts = describe(row, rng).split(". ")
    if rng.random() < 0.2:
        parts = parts[: int(rng.integers(1, len(parts) + 1))]
    return ". ".join(parts), row["quality"]


def any_labels(count: int, rng: np.random.Generator) -> list[dict[str, float]]:
    """Labels without recordings: severities drawn, quality falling with them."""
    from rlspeech.data.degrade import TRAITS

    rows = []
    for _ in range(count):
        row = {t: float(rng.uniform(0, 1)) if rng.random() < 0.3 else 0.0 for t in TRAITS}
        harm = float(np.sqrt(sum(v * v for v in row.values()))) + rng.normal(0, 0.06)
        rows.append(
            {**row, "quality": float(np.clip(5.0 - 4.2 * harm, 1.0, 5.0)), "level_dbfs": float(rng.uniform(-42, -14))}
        )
    return rows


def soft(stars: float) -> np.ndarray:
    """Stars as a distribution (5,) over the two neighbouring classes, whose expectation they are."""
    out = np.zeros(5, dtype=np.float32)
    low = min(3, int(stars - 1))
    out[low], out[low + 1] = 1 - (stars - 1 - low), stars - 1 - low
    return out


def sentiment(args: argparse.Namespace) -> None:
    """Train the text model: sentences -> 1..5 stars."""
    import torch
    from torch.nn import functional as F
    from transformers import AutoTokenizer, BertConfig, BertForSequenceClassification

    from rlspeech.tasks.aids.listener import labels_of

    torch.set_num_threads(1)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    lines = [line for f in args.labels for line in Path(f).read_text().splitlines()]
    rows = [r for line in lines if (r := labels_of(json.loads(line)))] or any_labels(5000, rng)
    tokenizer = word_pieces([free_form(rng)[0] for _ in range(12000)] + [own_words(rows, rng)[0] for _ in range(2000)])
    names = ["1 star", "2 stars", "3 stars", "4 stars", "5 stars"]
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=384,
        max_position_embeddings=256,
        pad_token_id=tokenizer.pad_token_id,
        id2label=dict(enumerate(names)),
        label2id={name: i for i, name in enumerate(names)},
    )
    model = BertForSequenceClassification(config)
    if args.init:
        tokenizer = AutoTokenizer.from_pretrained(args.init)
        model = BertForSequenceClassification.from_pretrained(args.init)
    optimiser = torch.optim.AdamW(model.train().parameters(), 1e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 1e-3, total_steps=args.steps, pct_start=0.1)
    scale, gaps, started = torch.arange(1.0, 6.0), list[float](), time.monotonic()
    for step in range(args.steps):
        texts, stars = zip(
            *(own_words(rows, rng) if rng.random() < 0.45 else free_form(rng) for _ in range(64)), strict=True
        )
        given = tokenizer(list(texts), return_tensors="pt", padding=True, truncation=True, max_length=256)
        logits = model(**given).logits
        truth = torch.tensor(stars)
        expected = (logits.softmax(-1) * scale).sum(-1)
        loss = (
            F.cross_entropy(logits, torch.from_numpy(np.stack([soft(s) for s in stars])))
            + (expected - truth).square().mean()
        )
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        gaps.append(float((expected.detach() - truth).abs().mean()))
        if step % 100 == 99:
            print(
                f"step {step + 1}: off by {np.mean(gaps[-100:]):.3f} stars, {time.monotonic() - started:.0f} s",
                flush=True,
            )
    save_sentiment(Path(args.out), model.eval(), tokenizer)


def word_pieces(texts: list[str]):  # type: ignore[no-untyped-def]
    """A lower-case WordPiece tokenizer trained on texts."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    marks = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    inner = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = (
        normalizers.BertNormalizer(lowercase=True),
        pre_tokenizers.BertPreTokenizer(),
    )
    letters = [*map(chr, range(33, 127))]
    trainer = trainers.WordPieceTrainer(
        vocab_size=1500, special_tokens=marks, initial_alphabet=letters, show_progress=False
    )
    inner.train_from_iterator(texts, trainer)
    inner.post_processor = processors.BertProcessing(
        ("[SEP]", inner.token_to_id("[SEP]")), ("[CLS]", inner.token_to_id("[CLS]"))
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
        model_max_length=256,
    )


def save_sentiment(out: Path, model, tokenizer) -> None:  # type: ignore[no-untyped-def]
    """Weights in half precision, to be computed in single, and the tokenizer."""
    model.half().save_pretrained(out)
    tokenizer.save_pretrained(out)
    path = out / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "dtype": "float32"}, indent=2) + "\n")
    (out / "model.safetensors").chmod(0o644)
    print(f"written: {out}, {sum(f.stat().st_size for f in out.iterdir()) / 1e6:.2f} MB")


# ----------------------------------------------------------------------------------------------------------------- figures


def chain(listener: str, feeling: str):  # type: ignore[no-untyped-def]
    """Waveforms -> (texts, stars), with the processor and classes that transformers picks for the folders."""
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from rlspeech.models.listener import load_listener

    torch.set_num_threads(1)
    ear, _ = load_listener(listener)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(feeling),
        AutoModelForSequenceClassification.from_pretrained(feeling).eval(),
    )

    @torch.no_grad()
    def judge(wavs: list[np.ndarray]) -> tuple[list[str], np.ndarray]:
        texts, stars = list[str](), list[np.ndarray]()
        for at in range(0, len(wavs), 16):
            said = ear.generate(wavs[at : at + 16])
            given = tokenizer(said, return_tensors="pt", padding=True, truncation=True)
            stars.append((model(**given).logits.softmax(-1) * torch.arange(1.0, 6.0)).sum(-1).numpy())
            texts += said
        return texts, np.concatenate(stars)

    return judge


def check(args: argparse.Namespace) -> None:
    """Ladders, mixtures and seconds of the chain, on recordings that training did not hear."""
    from scipy.stats import spearmanr

    from rlspeech.data.degrade import ladders
    from rlspeech.data.mixing import crop, cut
    from rlspeech.rewards.dnsmos import Dnsmos
    from rlspeech.rewards.intrusive import PesqWb, si_sdr
    from rlspeech.types import Sample

    judge, rng = chain(args.listener, args.sentiment), np.random.default_rng(args.seed)
    speech, noises = read_list(args.speech), read_list(args.noise)

    def clip(seconds: float) -> tuple[np.ndarray, np.ndarray]:
        while True:
            clean = cut(speech[int(rng.integers(len(speech)))], int(seconds * RATE), rng)[0]
            noise = crop(noises[int(rng.integers(len(noises)))], len(clean), rng)
            if np.std(clean) > 0.005 and np.std(noise) > 0.001:
                return clean, noise

    rungs = [(number, r) for number in range(args.items) for r in ladders(*clip(3.0), RATE, rng)]
    texts, stars = judge([r.wav for _, r in rungs])
    within: dict[str, list[float]] = {}
    for name in dict.fromkeys(r.ladder for _, r in rungs):
        places = [
            [i for i, (n, r) in enumerate(rungs) if n == number and r.ladder == name] for number in range(args.items)
        ]
        for one_ladder in places:
            rho = spearmanr([-rungs[i][1].rung for i in one_ladder], stars[one_ladder]).statistic
            within.setdefault(name, []).append(float(np.nan_to_num(rho)))
        means = [
            stars[[i for i, (_, r) in enumerate(rungs) if r.ladder == name and r.rung == k]].mean() for k in range(7)
        ]
        print(
            f"ladder {name:10s} within {np.mean(within[name]):.3f}  mean stars by rung {' '.join(f'{m:.2f}' for m in means)}"
        )
    pooled = spearmanr([-r.rung for _, r in rungs], stars).statistic
    print(
        f"ladders: within, mean {np.mean([v for vs in within.values() for v in vs]):.3f}; all rungs pooled {pooled:.3f}; "
        f"{len(set(texts))} different texts, {len(set(np.round(stars, 3)))} different scores of {len(texts)}"
    )

    pairs = [clip(4.0) for _ in range(args.mixtures)]
    snrs = rng.permutation(np.linspace(-5, 15, args.mixtures))
    mixed = [c + n * np.std(c) / np.std(n) * 10 ** (-s / 20) for (c, n), s in zip(pairs, snrs, strict=True)]
    mixed = [(m * 0.05 / np.std(m)).astype(np.float32) for m in mixed]
    texts, stars = judge(mixed)
    samples = [Sample(str(i), m, RATE, c) for i, (m, (c, _)) in enumerate(zip(mixed, pairs, strict=True))]
    others = {
        "pesq_wb": [s["pesq_wb"].value for s in PesqWb().compute(samples, ["pesq_wb"])],
        "dnsmos_ovrl": [s["dnsmos_ovrl"].value for s in Dnsmos().compute(samples, ["dnsmos_ovrl"])],
        "snr_db": list(snrs),
        "si_sdr": [si_sdr(c, m) for m, (c, _) in zip(mixed, pairs, strict=True)],
    }
    for name, values in others.items():
        keep = [i for i, v in enumerate(values) if v is not None]
        print(
            f"{len(keep)} mixtures at -5..15 dB: Spearman with {name} {spearmanr([values[i] for i in keep], stars[keep]).statistic:.3f}"
        )
    for i in range(0, len(mixed), max(1, len(mixed) // 6)):
        print(f"  {snrs[i]:5.1f} dB -> {stars[i]:.2f}: {texts[i]}")
    for seconds in (2.0, 5.0):
        wavs = [clip(seconds)[0] for _ in range(16)]
        started = time.process_time()
        judge(wavs)
        print(f"{(time.process_time() - started) / 16:.3f} CPU seconds a clip of {seconds:g} s, in a batch of 16")


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sub = parser.add_subparsers(required=True)
    p = sub.add_parser("recordings")
    for name in ("--speech", "--noise", "--rir"):
        p.add_argument(name, required=name != "--rir")
    p.add_argument("--count", type=int, default=8000)
    p.add_argument("--part", default="0/1")
    p.add_argument(
        "--vary", type=int, default=0, help="this many noises made out of those of the list; 0 takes them as they are"
    )
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", required=True)
    p.set_defaults(run=recordings)
    p = sub.add_parser("outputs")
    p.add_argument("--recipe", required=True, help="mix.json with lips")
    p.add_argument("--model", nargs="+", required=True, help="checkpoints of an audio-visual enhancer")
    p.add_argument("--count", type=int, default=1500)
    p.add_argument("--seed", type=int, default=3)
    p.add_argument("--out", required=True)
    p.set_defaults(run=outputs)
    p = sub.add_parser("sentiment")
    p.add_argument("--init", help="folder of a model to go on from")
    p.add_argument("--labels", nargs="*", default=[], help="manifests with labels; without any they are drawn")
    p.add_argument("--steps", type=int, default=2000)
    p.add_argument("--seed", type=int, default=0)
    p.add_argument("--out", required=True)
    p.set_defaults(run=sentiment)
    p = sub.add_parser("check")
    for name in ("--speech", "--noise", "--listener", "--sentiment"):
        p.add_argument(name, required=True)
    p.add_argument("--items", type=int, default=12, help="recordings that become ladders")
    p.add_argument("--mixtures", type=int, default=60)
    p.add_argument("--seed", type=int, default=7)
    p.set_defaults(run=check)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
