"""Train the two embedded encoders on real speech: the speaker net and the speech (content) net.

    python examples/train-embedded-encoders.py speaker --data DATA [--steps 900] [--out FOLDER]
    python examples/train-embedded-encoders.py speech --data DATA [--steps 900] [--out FOLDER]

DATA is a folder with a ``manifest.jsonl`` whose rows hold ``audio`` (path relative to the folder, 16 kHz mono), ``kind`` (``speech``
or ``noise``), ``corpus`` and ``speaker``. One thread; about ten minutes each. Held out: the speakers of LibriSpeech test-other and
every fifth speaker of speechocean762, and the noise whose path contains ``clearervoice``.

Speaker net: AAM-softmax (margin 0.2, scale 30) over speakers, each at three speeds that count as three speakers, plus the angular
prototypical loss between two crops of 2 s with different noise. Speech net: cluster labels of the *clean* speech's MFCCs (39
dimensions, mean and variance normalised per clip) predicted from the noisy speech, then once more with clusters of its own features.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from rlspeech.data.audio import load_audio, resample, rms_dbfs, to_level
from rlspeech.models.hub import embedded_path
from rlspeech.models.spectra import LogMel
from rlspeech.rewards.encoders import SpeakerNet, SpeechNet, save_embedded

RATE = 16000
HELD_OUT = "LibriSpeech test-other"
TRAIN = ("LibriSpeech train-clean-100", "speechocean762")


class Corpus:
    """Speech by speaker and noise, in memory, split into training and held-out parts."""

    def __init__(self, folder: Path) -> None:
        rows = [json.loads(line) for line in (folder / "manifest.jsonl").open()]
        ocean = sorted({r["speaker"] for r in rows if r["corpus"] == "speechocean762"})[::5]
        self.train: dict[str, list[np.ndarray]] = {}
        self.test: dict[str, dict[str, list[np.ndarray]]] = {HELD_OUT: {}, "speechocean762": {}}
        self.words: list[tuple[str, np.ndarray]] = []
        self.noise: list[np.ndarray] = []
        self.test_noise: list[np.ndarray] = []
        for row in rows:
            path = folder / row["audio"]
            if row["kind"] == "noise":
                wav = load_audio(path, RATE)
                if rms_dbfs(wav) > -70:
                    (self.test_noise if "clearervoice" in row["audio"] else self.noise).append(to_level(wav, -25.0))
            elif row["corpus"] == HELD_OUT or row.get("speaker") in ocean:
                self.test[row["corpus"]].setdefault(row["speaker"], []).append(load_audio(path, RATE))
            elif row["corpus"] in TRAIN and row["speaker"]:
                self.train.setdefault(row["speaker"], []).append(load_audio(path, RATE))
            elif row["corpus"] == "Picovoice wake-word benchmark":
                self.words.append((row["text"], load_audio(path, RATE)))


def crop(wav: np.ndarray, length: int, rng: np.random.Generator) -> np.ndarray:
    """A random stretch, short clips repeated."""
    if len(wav) < length:
        wav = np.tile(wav, -(-length // len(wav)))
    start = int(rng.integers(len(wav) - length + 1))
    return wav[start : start + length]


def coloured(length: int, rng: np.random.Generator) -> np.ndarray:
    """Noise with a random slope between white and brown."""
    spectrum = np.fft.rfft(rng.standard_normal(length))
    spectrum[1:] /= np.arange(1, len(spectrum)) ** rng.uniform(0.0, 1.0)
    spectrum[0] = 0
    return np.fft.irfft(spectrum, length).astype(np.float32)


def add_noise(wav: np.ndarray, noises: list[np.ndarray], snr_db: float, rng: np.random.Generator) -> np.ndarray:
    """Mix one recording of noise, or in a fifth of the cases coloured noise, at an SNR."""
    if not noises or rng.random() < 0.2:
        noise = coloured(len(wav), rng)
    else:
        noise = crop(noises[int(rng.integers(len(noises)))], len(wav), rng)
    power = np.mean(wav**2) / max(float(np.mean(noise**2)), 1e-10)
    return (wav + noise * np.sqrt(power * 10 ** (-snr_db / 10))).astype(np.float32)


def mask_spec(logmel: Tensor, rng: np.random.Generator, times: int, bands: int) -> Tensor:
    """SpecAugment: hide ``times`` stretches of up to 15 frames and ``bands`` of up to 8 filters."""
    logmel = logmel.clone()
    for row in logmel:
        floor = row.mean()
        for _ in range(times):
            start = int(rng.integers(row.shape[1] - 15))
            row[:, start : start + int(rng.integers(1, 16))] = floor
        for _ in range(bands):
            start = int(rng.integers(row.shape[0] - 8))
            row[start : start + int(rng.integers(1, 9))] = floor
    return logmel


def schedule(optimiser: torch.optim.Optimizer, step: int, steps: int, peak: float) -> None:
    """Linear warm-up over 5 %, cosine to a hundredth of the peak."""
    warm = max(1, steps // 20)
    scale = (
        step / warm
        if step < warm
        else 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
    )
    for group in optimiser.param_groups:
        group["lr"] = peak * scale


# ---------------------------------------------------------------------------------------------------------------- speaker


def eer(same: np.ndarray, other: np.ndarray) -> float:
    """Equal error rate of two sets of similarities."""
    thresholds = np.sort(np.concatenate([same, other]))
    miss = np.searchsorted(np.sort(same), thresholds) / len(same)
    alarm = 1 - np.searchsorted(np.sort(other), thresholds) / len(other)
    best = int(np.argmin(np.abs(miss - alarm)))
    return float((miss[best] + alarm[best]) / 2)


@torch.no_grad()
def speaker_report(net: SpeakerNet, corpus: Corpus) -> dict[str, float]:
    """EER between different clips of held-out speakers, clean and against noisy ones, and similarity to the clip's own noisy version."""
    net.eval()
    out: dict[str, float] = {}
    rng = np.random.default_rng(7)
    for name, speakers in corpus.test.items():
        clips = [(s, w) for s, ws in speakers.items() for w in ws]
        clean = torch.cat([net(torch.from_numpy(w[: 8 * RATE])[None]) for _, w in clips])
        ids = np.array([s for s, _ in clips])
        pairs = np.triu(np.ones((len(ids), len(ids)), bool), 1)
        match = ids[:, None] == ids[None]
        for snr in (None, 10.0, 0.0):
            noisy = (
                clean
                if snr is None
                else torch.cat(
                    [
                        net(torch.from_numpy(add_noise(w[: 8 * RATE], corpus.test_noise, snr, rng))[None])
                        for _, w in clips
                    ]
                )
            )
            sims = (noisy @ clean.T).numpy()
            label = "clean" if snr is None else f"{snr:.0f} dB"
            out[f"{name} EER {label}"] = eer(sims[pairs & match], sims[pairs & ~match])
            out[f"{name} own {label}"] = float(np.diag(sims).mean())
        sims = (clean @ clean.T).numpy()
        out[f"{name} same speaker"] = float(sims[pairs & match].mean())
        out[f"{name} other speaker"] = float(sims[pairs & ~match].mean())
    return out


def train_speaker(corpus: Corpus, steps: int, seed: int) -> SpeakerNet:
    """AAM-softmax and angular prototypical loss on pairs of noisy crops."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    classes = [
        [resample(w, int(RATE * speed), RATE) for w in clips]
        for clips in corpus.train.values()
        for speed in (1.0, 0.9, 1.1)
    ]
    net = SpeakerNet()
    centres = nn.Parameter(torch.randn(len(classes), net.config["embedding"]))
    temperature = nn.Parameter(torch.tensor(10.0))
    optimiser = torch.optim.AdamW([*net.parameters(), centres, temperature], weight_decay=1e-3)
    print(
        f"{len(classes)} classes from {len(corpus.train)} speakers, {sum(p.numel() for p in net.parameters()):,} parameters",
        flush=True,
    )
    began, speakers, margin, scale = time.monotonic(), 32, 0.2, 30.0
    for step in range(steps):
        schedule(optimiser, step, steps, 2e-3)
        pick = rng.choice(len(classes), speakers, replace=False)
        wavs = []
        for _view in range(2):
            for c in pick:
                wav = crop(classes[c][int(rng.integers(len(classes[c])))], 2 * RATE, rng)
                wavs.append(add_noise(wav, corpus.noise, rng.uniform(0, 25), rng) if rng.random() < 0.6 else wav)
        net.train()
        logmel = net.features(torch.from_numpy(np.stack(wavs)))
        x = net.embed(mask_spec(logmel, rng, 1, 1))
        cosine = x @ F.normalize(centres, dim=-1).T
        label = torch.from_numpy(np.concatenate([pick, pick]))
        theta = cosine.clamp(-0.999, 0.999).acos()
        logits = torch.where(
            F.one_hot(label, len(classes)).bool(), (theta + margin * min(1, 2 * step / steps)).cos(), cosine
        )
        a, b = x.chunk(2)
        proto = F.cross_entropy(temperature.clamp_min(1.0) * a @ b.T, torch.arange(speakers))
        loss = F.cross_entropy(scale * logits, label) + proto
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            right = (cosine.argmax(1) == label).float().mean()
            print(
                f"step {step} loss {loss.item():.3f} pairs {proto.item():.3f} accuracy {right:.2f} {time.monotonic() - began:.0f} s",
                flush=True,
            )
    return net


# ----------------------------------------------------------------------------------------------------------------- speech


def mfcc(logmel: Tensor) -> np.ndarray:
    """(n_mels, L) -> (L, 39): 13 cepstra with two orders of differences, normalised over the clip."""
    from scipy.fft import dct

    cepstra = dct(logmel.numpy(), axis=0, norm="ortho")[:13]
    first = np.gradient(cepstra, axis=1)
    x = np.concatenate([cepstra, first, np.gradient(first, axis=1)]).T
    return ((x - x.mean(0)) / (x.std(0) + 1e-5)).astype(np.float32)


def kmeans(x: np.ndarray, k: int, rng: np.random.Generator, rounds: int = 15) -> np.ndarray:
    """Centres (k, D) of Lloyd's algorithm on at most 60,000 frames."""
    data = torch.from_numpy(x[rng.permutation(len(x))[:60000]])
    centres = data[:k].clone()
    for _ in range(rounds):
        near = torch.cdist(data, centres).argmin(1)
        total = torch.zeros_like(centres).index_add_(0, near, data)
        count = torch.bincount(near, minlength=k)[:, None]
        centres = torch.where(
            count > 0, total / count.clamp_min(1), data[torch.from_numpy(rng.integers(len(data), size=k))]
        )
    return centres.numpy()


def labels_from(features: list[np.ndarray], k: int, rng: np.random.Generator) -> list[Tensor]:
    """Cluster the frames of all clips and label each."""
    centres = torch.from_numpy(kmeans(np.concatenate(features), k, rng))
    return [torch.cdist(torch.from_numpy(f), centres).argmin(1) for f in features]


def train_speech(corpus: Corpus, steps: int, seed: int) -> SpeechNet:
    """Two rounds of label prediction: clusters of MFCCs, then of the first round's features."""
    rng = np.random.default_rng(seed)
    torch.manual_seed(seed)
    clips = [w for ws in corpus.train.values() for w in ws if len(w) > RATE]
    mel = LogMel(64)
    targets = labels_from([mfcc(mel(torch.from_numpy(w)[None])[0])[::2] for w in clips], 100, rng)
    net = speech_round(SpeechNet(classes=100, layer=3), clips, targets, corpus.noise, steps // 2, rng)
    with torch.no_grad():
        hidden = [net(torch.from_numpy(w)[None])[0].numpy() for w in clips]
    targets = labels_from(hidden, 200, rng)
    net = speech_round(SpeechNet(classes=200), clips, targets, corpus.noise, steps - steps // 2, rng)
    return net


def speech_round(
    net: SpeechNet,
    clips: list[np.ndarray],
    targets: list[Tensor],
    noises: list[np.ndarray],
    steps: int,
    rng: np.random.Generator,
) -> SpeechNet:
    """Predict ``targets`` (one label in 20 ms) from noisy, partly hidden log-mels, then store the feature statistics."""
    optimiser = torch.optim.AdamW(net.parameters(), weight_decay=1e-3)
    began, batch, frames = time.monotonic(), 32, 100
    for step in range(steps):
        schedule(optimiser, step, steps, 2e-3)
        wavs, labels = [], []
        while len(wavs) < batch:
            i = int(rng.integers(len(clips)))
            start = 320 * int(rng.integers(max(1, len(clips[i]) // 320 - frames)))
            wav = clips[i][start : start + 320 * frames]
            if len(wav) < 320 * frames:
                continue
            wavs.append(add_noise(wav, noises, rng.uniform(-2, 25), rng) if rng.random() < 0.7 else wav)
            labels.append(targets[i][start // 320 : start // 320 + frames])
        net.train()
        logits = net.head(net.trunk(mask_spec(net.features(torch.from_numpy(np.stack(wavs))), rng, 2, 1)))[..., :frames]
        loss = F.cross_entropy(logits, torch.stack(labels))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 5.0)
        optimiser.step()
        if step % 50 == 0 or step == steps - 1:
            right = (logits.argmax(1) == torch.stack(labels)).float().mean()
            print(
                f"step {step} loss {loss.item():.3f} accuracy {right:.2f} {time.monotonic() - began:.0f} s", flush=True
            )
    net.eval()
    with torch.no_grad():
        hidden = torch.cat([net.hidden(torch.from_numpy(w)[None])[0] for w in clips[::4]])
        net.mean.copy_(hidden.mean(0))
        net.std.copy_(hidden.std(0) + 1e-3)
    return net


@torch.no_grad()
def speech_report(net: SpeechNet, corpus: Corpus) -> dict[str, float]:
    """SpeechBERTScore precision of held-out speech against its own noisy version, other speech, and words of other speakers."""
    from rlspeech.rewards.encoders import bert_score

    net.eval()
    rng = np.random.default_rng(7)
    clips = [w[: 5 * RATE] for ws in corpus.test[HELD_OUT].values() for w in ws][::2]
    clean = [net(torch.from_numpy(w)[None])[0] for w in clips]
    out: dict[str, float] = {}
    for snr in (20.0, 10.0, 5.0, 0.0, -5.0):
        noisy = [net(torch.from_numpy(add_noise(w, corpus.test_noise, snr, rng))[None])[0] for w in clips]
        out[f"own {snr:.0f} dB"] = float(np.mean([bert_score(n, c)[0] for n, c in zip(noisy, clean, strict=True)]))
    out["other utterance"] = float(np.mean([bert_score(clean[i], clean[i - 1])[0] for i in range(len(clean))]))
    words = [(t, net(torch.from_numpy(w)[None])[0]) for t, w in corpus.words[::3]]
    right = total = 0
    for i in range(0, len(words), 2):
        same = [j for j in range(len(words)) if words[j][0] == words[i][0] and j != i]
        other = [j for j in range(len(words)) if words[j][0] != words[i][0]]
        for a, b in zip(rng.choice(same, 10), rng.choice(other, 10), strict=True):
            near, far = (bert_score(words[k][1], words[i][1])[2] for k in (a, b))
            right, total = right + (near > far), total + 1
    out["same word nearer than another word"] = right / total
    return out


def main() -> None:
    """Train one of the two nets and write its folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["speaker", "speech"])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    corpus = Corpus(args.data)
    folder = args.out or embedded_path("speaker" if args.which == "speaker" else "speech_encoder")
    if args.which == "speaker":
        net: SpeakerNet | SpeechNet = train_speaker(corpus, args.steps, args.seed)
        report = speaker_report(net, corpus)
    else:
        net = train_speech(corpus, args.steps, args.seed)
        report = speech_report(net, corpus)
    save_embedded(folder, net)
    (folder / "report.json").write_text(json.dumps({k: round(v, 4) for k, v in report.items()}, indent=2) + "\n")
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
