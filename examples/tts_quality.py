"""Teach a token-to-text reward what the tokens of a language model are worth: recordings are level 5, what the model writes is less.

    python examples/tts_quality.py --model runs/tts/base --reward runs/tts/reward --data runs/tts/sets/train.jsonl --out runs/tts/reward-q

The network reads tokens, and was trained to read spoilt ones too, so it reads through a policy's slips: its posterior hardly falls where a
listener's does. Its quality head knows noise, low-pass and clipping, which no policy makes. Here it learns from the model's own speech: the
level of a row is how freely its tokens were drawn. The text goes on being learnt from rows that say it well.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from torch.nn.utils.rnn import pad_sequence

from rlspeech.config import Sampling
from rlspeech.data.audio import load_audio
from rlspeech.data.batches import Clip
from rlspeech.data.manifest import read_manifest
from rlspeech.data.text import get_normaliser
from rlspeech.log import progress
from rlspeech.models.codec.lm import load_codec_lm
from rlspeech.models.token_reward import load_token_reward, save_token_reward
from rlspeech.rewards.soft import TEXT
from rlspeech.tasks.tts.task import Tts

DRAWN = {4: 0.4, 3: 0.7, 2: 1.0, 1: 1.3}  # level -> temperature of what the model writes
SMOOTH, BATCH = (
    0.1,
    32,
)  # label smoothing: what an analytic gradient finds at the end of a sure head is no quality (RRPO, arXiv 2512.04552)
READ = 3  # levels from which on the text is learnt


def rows_of(model: Any, data: Path, count: int, seed: int) -> list[tuple[torch.Tensor, str, int]]:
    """Tokens (T_i,), texts and levels: ``count`` recordings, and as many texts as the model says them, a quarter at each temperature."""
    task, written = Tts(), get_normaliser(TEXT)
    rng = np.random.default_rng(seed)
    utts = read_manifest(data)
    utts = [utts[int(i)] for i in rng.choice(len(utts), min(2 * count, len(utts)), replace=False)]
    found: list[tuple[torch.Tensor, str, int]] = []
    with progress(len(utts), "tokens", "rows") as bar:
        recorded, said = utts[: len(utts) // 2], utts[len(utts) // 2 :]
        for part in (recorded[i : i + BATCH] for i in range(0, len(recorded), BATCH)):
            wavs = [load_audio(u.audio_filepath, model.sample_rate) for u in part]
            found += [(ids, written(u.text or ""), 5) for ids, u in zip(model.codec.encode(wavs), part, strict=True)]
            bar.advance(len(part))
        for level, temperature in DRAWN.items():
            some = said[level - 1 :: len(DRAWN)]
            nothing = np.zeros(0, np.float32)
            clips = [Clip(u.id, nothing, nothing, model.sample_rate, u.text) for u in some]
            for s in task.synthesise(model, clips, sampling=Sampling(temperature=temperature), seed=seed, wavs=False):
                if s.tokens is not None and len(s.tokens):
                    found.append((torch.from_numpy(s.tokens).long(), written(s.text or ""), level))
            bar.advance(len(some))
    return found


def main() -> None:
    """Write the reward that knows."""
    parser = argparse.ArgumentParser(description=__doc__)
    for name in ("model", "reward"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--count", type=int, default=4000)
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--lr", type=float, default=5e-4)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.manual_seed(args.seed)
    net, about = load_token_reward(args.reward)
    rows = rows_of(load_codec_lm(args.model)[0], args.data, args.count, args.seed)
    order = torch.randperm(len(rows)).tolist()
    few = max(1, len(rows) // 20)
    held, kept = [rows[i] for i in order[:few]], [rows[i] for i in order[few:]]
    net.train()
    optimizer = torch.optim.AdamW(net.parameters(), args.lr, betas=(0.9, 0.99), weight_decay=0.01)
    with progress(args.steps, "quality", "steps") as bar:
        for step in range(args.steps):
            for group in optimizer.param_groups:
                group["lr"] = args.lr * (1 - step / args.steps)
            batch = [kept[int(i)] for i in torch.randint(len(kept), (min(BATCH, len(kept)),))]
            heard, levels = listen(net, batch)
            loss = cross_entropy(net.pools["quality"](heard), levels, label_smoothing=SMOOTH)
            well = [i for i, row in enumerate(batch) if row[2] >= READ]
            if well:
                ids, mask = net.pieces([batch[i][1] for i in well])
                loss = loss + cross_entropy(
                    net.text_logits(type(heard)(heard.states[well], heard.keep[well]), ids)[mask], ids[mask]
                )
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            bar.advance(1, loss=loss.item())
    net.eval()
    with torch.no_grad():
        heard, levels = listen(net, held)
        expected = (net.pools["quality"](heard).softmax(-1) * torch.arange(1, 6)).sum(1)
        right = {k + 1: round(float(expected[levels == k].mean()), 2) for k in range(5) if bool((levels == k).any())}
    print("expected level of held-out rows by their true one:", right)
    save_token_reward(
        args.out,
        net,
        facts={**about.get("facts", {}), "quality": f"{args.steps} steps on the speech of a language model"},
    )


def listen(net: Any, rows: list[tuple[torch.Tensor, str, int]]) -> tuple[Any, torch.Tensor]:
    """Encoded tokens of some rows, and the classes (n,) of their levels."""
    ids = pad_sequence([r[0] for r in rows], batch_first=True)
    mask = torch.arange(ids.shape[1]) < torch.tensor([len(r[0]) for r in rows])[:, None]
    return net.encode(ids, mask), torch.tensor([r[2] - 1 for r in rows])


if __name__ == "__main__":
    main()
