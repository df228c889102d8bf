"""Order, shares, cursor: a run sees every utterance, and after a resume what it would have seen."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from rlspeech.config import Mixing
from rlspeech.data.audio import AudioError, load_audio, save_audio
from rlspeech.data.batches import Clip, PairedClips, batches, hold_back, open_clips, order, seed_of, whole_clips
from rlspeech.data.manifest import write_manifest
from rlspeech.data.mixing import write_recipe
from rlspeech.data.video import LipsError, save_lips
from rlspeech.types import UserError, Utterance

RATE = 16000


class Source:
    """Clips without files: the wave is the utterance's number; some are bad."""

    sample_rate = RATE

    def __init__(self, count: int, bad: tuple[int, ...] = ()) -> None:
        rng = np.random.default_rng(0)
        self.utts = [Utterance(f"u{i}", "", float(rng.uniform(1, 9)), RATE) for i in range(count)]
        self.bad = bad

    def clip(self, epoch: int, index: int, clip_s: float) -> Clip:
        if index in self.bad:
            raise AudioError("unreadable")
        wav = np.full(4, index + 1000 * epoch, np.float32)
        return Clip(self.utts[index].id, wav, wav, RATE)


def _seen(source: Source, count: int, **share: int) -> tuple[list[list[float]], list[int]]:
    """What ``count`` batches of 3 hold, and the cursor after each."""
    rows = list(islice(batches(source, 3, 1.0, seed=5, **share), count))
    return [[float(c.noisy[0]) for c in clips] for clips, _ in rows], [cursor for _, cursor in rows]


@pytest.mark.parametrize("share", [{}, {"rank": 1, "world": 2}])
@pytest.mark.parametrize("bad", [(), (0, 4, 5)])
def test_a_resumed_feed_equals_the_uninterrupted_one(share: dict[str, int], bad: tuple[int, ...]) -> None:
    source = Source(10, bad)
    whole, cursors = _seen(source, 9, **share)
    for stop in (1, 4, 8):
        rest, later = _seen(source, 9 - stop, start=cursors[stop - 1], **share)
        assert rest == whole[stop:] and later == cursors[stop:]


@pytest.mark.parametrize("bad", [(), (1, 2, 8)])
def test_loading_ahead_in_threads_changes_nothing(bad: tuple[int, ...]) -> None:
    assert _seen(Source(10, bad), 9, workers=3) == _seen(Source(10, bad), 9)
    with pytest.raises(UserError, match="utterances"):
        _seen(Source(3, bad=(0, 1, 2)), 1, workers=3)


@pytest.mark.parametrize("bad", [(), (2, 3)])
def test_every_epoch_passes_every_good_utterance_once(bad: tuple[int, ...]) -> None:
    flat, good = sum(_seen(Source(10, bad), 10)[0], []), [i for i in range(10) if i not in bad]
    n = len(good)
    for epoch in range(3):
        assert sorted(flat[n * epoch : n * epoch + n]) == [1000 * epoch + i for i in good]
    assert flat[:n] != [v - 1000 for v in flat[n : 2 * n]]  # shuffled anew


def test_processes_have_disjoint_shares_that_make_up_the_whole() -> None:
    one = sum(_seen(Source(12), 8)[0], [])
    parts = [sum(_seen(Source(12), 4, rank=r, world=2)[0], []) for r in range(2)]
    assert not set(parts[0]) & set(parts[1])
    assert sorted(parts[0] + parts[1]) == sorted(one)


def test_bucketed_order_is_a_permutation_with_little_padding() -> None:
    lengths = np.random.default_rng(1).uniform(1, 10, 997).tolist()

    def padding(sequence: np.ndarray) -> float:
        groups = [np.take(lengths, sequence[i : i + 8]) for i in range(0, len(sequence), 8)]
        return float(sum(len(g) * g.max() - g.sum() for g in groups))

    plain, bucketed = (order(lengths, 0, 0, 8, flag) for flag in (False, True))
    assert sorted(plain) == sorted(bucketed) == list(range(997))
    assert padding(bucketed) < 0.2 * padding(plain)
    assert not np.array_equal(bucketed, order(lengths, 1, 0, 8, True))
    np.testing.assert_array_equal(bucketed, order(lengths, 0, 0, 8, True))
    assert np.corrcoef(np.arange(997), np.take(lengths, bucketed))[0, 1] < 0.3  # batches themselves are shuffled
    walk = [c.key for clips, _ in islice(batches(Source(12), 3, 0.0, seed=5, bucketed=False), 4) for c in clips]
    assert walk == [f"u{i}" for i in order([1.0] * 12, 0, 5, 3, False)]


def test_held_back_utterances_do_not_depend_on_order() -> None:
    source = PairedClips([Utterance(f"u{i}", "", 1.0, RATE) for i in range(40)], RATE)
    rest, held = hold_back(source, 6)
    names = {u.id for u in held.utts}
    assert len(names) == 6 and not names & {u.id for u in rest.utts} and len(rest.utts) == 34
    source.utts.reverse()
    assert {u.id for u in hold_back(source, 6)[1].utts} == names
    assert len(hold_back(source, 30)[1].utts) == 8  # at most a fifth


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    utts = []
    for i, seconds in enumerate((0.4, 1.0, 0.7)):
        wav = (0.1 * np.random.default_rng(i).standard_normal(int(seconds * RATE))).astype(np.float32)
        noisy, clean = str(tmp_path / f"n{i}.wav"), str(tmp_path / f"c{i}.wav")
        save_audio(noisy, wav, RATE)
        save_audio(clean, wav / 2, RATE)
        utts.append(Utterance(f"p{i}", noisy, seconds, RATE, target_filepath=clean, snr_db=3.0))
    write_manifest(tmp_path / "manifest.jsonl", utts, None)
    return tmp_path


def test_pairs_are_cut_at_the_same_place(pairs: Path) -> None:
    source = open_clips(pairs, RATE)
    clip = source.clip(0, 1, 0.5)
    assert clip.noisy.shape == clip.target.shape == (8000,) and clip.columns["snr_db"] == 3.0
    np.testing.assert_allclose(clip.noisy, 2 * clip.target, atol=1e-4)
    assert not np.array_equal(clip.noisy, source.clip(1, 1, 0.5).noisy)
    assert len(source.clip(0, 0, 0.5).noisy) == 6400  # a shorter one stays as it is
    assert [len(c.noisy) for c in whole_clips(source, 9)] == [6400, 16000, 11200]
    assert [len(c.noisy) for c in whole_clips(source, 9, max_s=0.6)] == [6400, 9600, 9600]


def test_pairs_that_do_not_belong_together(pairs: Path) -> None:
    save_audio(pairs / "c1.wav", np.full(8000, 0.1, np.float32), RATE)
    source = open_clips(pairs, RATE)
    with pytest.raises(AudioError, match=r"differ by 0\.50 s"):
        source.clip(0, 1, 0.0)
    assert [c.key for c in whole_clips(source, 9)] == ["p0", "p2"]  # validation goes on without it
    text = (pairs / "manifest.jsonl").read_text().replace("target_filepath", "other")
    (pairs / "manifest.jsonl").write_text(text)
    with pytest.raises(UserError, match="3 of 3"):
        open_clips(pairs, RATE)


def test_seeds_are_the_same_everywhere() -> None:
    assert seed_of(0, "utt", 3) == 201357680  # a number on disk, not of this process
    assert len({seed_of(s, k) for s in range(10) for k in "abcdefghij"}) == 100


def _ears(path: Path, seed: int, seconds: float = 1.0, ears: int = 2) -> np.ndarray:
    wav = (0.1 * np.random.default_rng(seed).standard_normal((ears, int(seconds * RATE)))).astype(np.float32)
    save_audio(path, wav, RATE)
    return wav


def test_both_ears_are_read_at_any_rate(tmp_path: Path) -> None:
    wav = _ears(tmp_path / "b.wav", 0)
    both = load_audio(tmp_path / "b.wav", RATE, channels=2)
    assert both.shape == (2, RATE) and both.dtype == np.float32 and both.flags.c_contiguous
    np.testing.assert_allclose(both, wav, atol=1e-4)
    np.testing.assert_allclose(load_audio(tmp_path / "b.wav", RATE), wav.mean(0), atol=1e-4)
    slow = load_audio(tmp_path / "b.wav", RATE // 2, 0.25, 0.5, channels=2)
    assert slow.shape == (2, 4000)
    left, right = (tmp_path / f"{n}.wav" for n in ("left", "right"))
    for path, ear in zip((left, right), wav, strict=True):
        save_audio(path, ear, RATE)
    for ear, path in zip(slow, (left, right), strict=True):
        # each ear as if it were alone
        np.testing.assert_allclose(ear, load_audio(path, RATE // 2, 0.25, 0.5), atol=1e-4)
    # heard by both
    np.testing.assert_array_equal(load_audio(left, RATE, channels=2), np.stack([load_audio(left, RATE)] * 2))
    _ears(tmp_path / "six.wav", 1, ears=6)
    with pytest.raises(AudioError, match="6 channels"):
        load_audio(tmp_path / "six.wav", RATE, channels=2)
    assert load_audio(tmp_path / "six.wav", RATE).shape == (RATE,)


def test_pairs_with_two_ears(tmp_path: Path) -> None:
    rows = []
    for i, (ears, of_target) in enumerate(((2, 2), (1, 2), (2, 1))):
        noisy, clean = tmp_path / f"n{i}.wav", tmp_path / f"c{i}.wav"
        _ears(noisy, i, ears=ears)
        _ears(clean, 9 + i, 1.0 + 0.01 * i, ears=of_target)  # a little longer is cut
        rows.append(Utterance(f"p{i}", str(noisy), 1.0, RATE, target_filepath=str(clean)))
    write_manifest(tmp_path / "manifest.jsonl", rows, None)
    source, mono = open_clips(tmp_path, RATE, channels=2), open_clips(tmp_path, RATE)
    for i in range(3):
        whole, cut = source.clip(0, i, 0.0), source.clip(5, i, 0.5)
        assert whole.noisy.shape == whole.target.shape == (2, RATE)
        assert cut.noisy.shape == cut.target.shape == (2, RATE // 2)
        # the same stretch, whoever listens
        np.testing.assert_allclose(cut.noisy.mean(0), mono.clip(5, i, 0.5).noisy, atol=1e-6)
        assert np.array_equal(whole.noisy[0], whole.noisy[1]) == (i == 1)
    rest, held = hold_back(source, 0)
    assert rest.clip(0, 0, 0.0).noisy.shape == (2, RATE) and held.utts == []
    _ears(tmp_path / "c0.wav", 9, 0.6)
    with pytest.raises(AudioError, match=r"differ by 0\.40 s"):  # samples are compared, not ears
        source.clip(0, 0, 0.0)
    assert [c.key for c in whole_clips(source, 9)] == ["p1", "p2"]


MARK_S = 1.52  # a click in the sound, a flash in the frame that is shown then: number 38


def _marked(folder: Path, seconds: float = 3.0) -> Utterance:
    wav = (0.01 * np.random.default_rng(0).standard_normal(int(seconds * RATE))).astype(np.float32)
    wav[int((MARK_S + 0.02) * RATE)] = 0.9
    save_audio(folder / "n.flac", wav, RATE)
    frames = np.full((round(seconds * 25), 4, 4), 10, np.uint8)
    frames[round(MARK_S * 25)] = 250
    save_lips(folder / "n.npz", frames)
    sound, lips = str(folder / "n.flac"), str(folder / "n.npz")
    return Utterance("m", sound, seconds, RATE, target_filepath=sound, lips_filepath=lips)


def _gap_s(clip: Clip) -> float | None:
    """How much later the flash is than the click, None where the clip holds not both."""
    assert clip.lips is not None and len(clip.lips) == -(-len(clip.target) * 25 // RATE)
    click, flash = int(np.abs(clip.target).argmax()), int(clip.lips[:, 0, 0].argmax())
    if np.abs(clip.target).max() < 10 * np.abs(clip.target).std() or clip.lips.max() < 200:
        return None
    return (flash + 0.5) / 25 - click / RATE


@pytest.mark.parametrize("kind", ["pairs", "mixtures"])
def test_lips_are_cut_where_the_sound_is_cut(tmp_path: Path, kind: str) -> None:
    utt = _marked(tmp_path)
    if kind == "pairs":
        write_manifest(tmp_path / "manifest.jsonl", [utt], None)
        source = open_clips(tmp_path, RATE)
    else:
        hiss = (0.1 * np.random.default_rng(1).standard_normal(RATE)).astype(np.float32)
        save_audio(tmp_path / "noise.flac", hiss, RATE)
        write_manifest(tmp_path / "clean.jsonl", [utt], None)
        write_manifest(tmp_path / "noise.jsonl", [Utterance("z", str(tmp_path / "noise.flac"), 1.0, RATE)], None)
        source = open_clips(write_recipe(tmp_path, Mixing(), rir=False), RATE)
    gaps = [_gap_s(source.clip(epoch, 0, 1.0)) for epoch in range(40)]
    found = [g for g in gaps if g is not None]
    assert 8 < len(found) < 40  # some stretches hold the mark, some do not
    assert max(abs(g) for g in found) <= 0.0201  # half a frame: clips start anywhere, frames where they are
    assert len({round(g, 4) for g in found}) > 5
    whole = _gap_s(source.clip(0, 0, 0.0))
    assert whole == pytest.approx(0.0, abs=1e-3)


def test_lips_of_a_stretch_of_a_file(tmp_path: Path) -> None:
    utt = _marked(tmp_path)
    utt.offset, utt.duration = 1.2, 1.0
    write_manifest(tmp_path / "manifest.jsonl", [utt], None)
    clip = open_clips(tmp_path, RATE).clip(0, 0, 0.0)
    assert len(clip.noisy) == RATE and _gap_s(clip) == pytest.approx(0.0, abs=1e-3)


def test_lips_that_end_early_are_held_and_bad_ones_cost_their_clip(tmp_path: Path) -> None:
    utt = _marked(tmp_path)
    save_lips(tmp_path / "n.npz", np.arange(20, dtype=np.uint8)[:, None, None] + np.zeros((1, 4, 4), np.uint8))
    plain = Utterance("p", utt.audio_filepath, 3.0, RATE, target_filepath=utt.target_filepath)
    (tmp_path / "bad.npz").write_bytes(b"PK")
    bad = replace(plain, id="b", lips_filepath=str(tmp_path / "bad.npz"))
    source = PairedClips([utt, plain, bad], RATE)
    lips = source.clip(0, 0, 0.0).lips
    assert lips is not None and lips[:, 0, 0].tolist() == [*range(20), *[19] * 55]
    assert source.clip(0, 1, 0.0).lips is None
    with pytest.raises(LipsError, match="crops"):
        source.clip(0, 2, 0.0)
    assert [c.key for c in whole_clips(source, 9)] == ["m", "p"]
