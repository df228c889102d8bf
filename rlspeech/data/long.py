"""Recordings of any length through a model of limited memory.

An enhancer gets overlapping chunks, which are cross-faded (``apply``). A recogniser gets pieces that end in pauses, read as they are needed
(``cut``, ``stream``): an hour costs the memory of one piece.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlspeech.data.decode import AudioError, open_audio, remember, samples_of
from rlspeech.data.video import LIPS_FPS, frames_at
from rlspeech.parallel import one_by_one

Infer = Callable[..., list[np.ndarray]]
FRAME_S, PAUSE_S = 0.01, 0.2
EARLIEST = 0.4  # of the longest piece: where the search for a pause begins
BLOCK_S = 10.0


def spans(samples: int, size: int, overlap: int, grid: int = 1) -> list[tuple[int, int]]:
    """Cut ``samples`` into stretches of ``size`` that share ``overlap``; the last one is moved back so that it is as long as the rest.

    Every stretch starts at a multiple of ``grid``; the last one is then shorter than the rest by less than it.

    Raises ``ValueError``: an overlap that is not shorter than half a chunk, or chunks that a step of the grid does not fit into.
    """
    step = (size - overlap) // grid * grid
    if not 0 <= overlap * 2 < size or step <= 0:
        raise ValueError(f"an overlap of {overlap} samples does not fit chunks of {size}")
    if samples <= size:
        return [(0, samples)]
    last = -(-(samples - size) // grid) * grid
    starts = [*range(0, samples - size, step), last]
    return [(start, min(start + size, samples)) for start in starts]


def join(parts: Sequence[np.ndarray], where: Sequence[tuple[int, int]], samples: int) -> np.ndarray:
    """Put chunks together, (..., samples) float32; where two or more lie over each other they are faded linearly, weights summing to 1."""
    total = np.zeros((*parts[0].shape[:-1], samples), dtype=np.float32)
    weight = np.zeros(samples, dtype=np.float32)
    for i, (part, (start, end)) in enumerate(zip(parts, where, strict=True)):
        ramp = np.ones(end - start, dtype=np.float32)
        if i > 0:
            n = where[i - 1][1] - start
            ramp[:n] = (np.arange(n, dtype=np.float32) + 0.5) / n
        if i + 1 < len(where):
            n = end - where[i + 1][0]
            ramp[-n or len(ramp) :] *= ((np.arange(n, dtype=np.float32) + 0.5) / max(n, 1))[::-1]
        total[..., start:end] += ramp * part
        weight[start:end] += ramp
    return total / weight


def apply(
    infer: Infer,
    wavs: Sequence[np.ndarray],
    keys: Sequence[str],
    *,
    batch: int,
    size: int,
    overlap: int,
    lips: Sequence[np.ndarray | None] | None = None,
    hop: int = 640,
) -> list[np.ndarray | Exception]:
    """Run ``infer`` over waveforms; a batch that fails is run again one by one.

    Args:
        infer: maps B waveforms and their B keys, and B videos or None where ``lips`` are given, to B waveforms of the same shapes.
        wavs: (T_i,) or (C, T_i) float32 each, any length.
        keys: an id each; chunks of a long one get ids of their own.
        batch: chunks at once.
        size: longest chunk in samples.
        overlap: samples that neighbouring chunks share at least.
        lips: (F_i, H, W) video each, frame 0 at sample 0, or None where there is none. Chunks then start on whole frames, with or without
            a video, and take their frames along; where a video ends before the sound its last frame is held.
        hop: samples of a video frame.

    Returns:
        A waveform or the exception, in order.
    """

    def checked(chunks: list[tuple[Any, ...]]) -> list[np.ndarray | Exception]:
        made = infer(*(list(column) for column in zip(*chunks, strict=True)))
        return [_checked(out, chunk[0]) for out, chunk in zip(made, chunks, strict=True)]

    def shown(video: np.ndarray | None, start: int, end: int) -> np.ndarray | None:
        return None if video is None else frames_at(video, start / hop / LIPS_FPS, (end - start) / hop / LIPS_FPS)

    lengths = [w.shape[-1] for w in wavs]
    cuts = [spans(n, size, overlap, 1 if lips is None else hop) for n in lengths]
    jobs = [(i, c) for i, cut in enumerate(cuts) for c in range(len(cut))]
    jobs.sort(key=lambda job: cuts[job[0]][job[1]][1] - cuts[job[0]][job[1]][0])  # like lengths together: less padding
    done: dict[tuple[int, int], np.ndarray | Exception] = {}
    for at in range(0, len(jobs), batch):
        part = jobs[at : at + batch]
        chunks: list[tuple[Any, ...]] = [
            (wavs[i][..., cuts[i][c][0] : cuts[i][c][1]], keys[i] if len(cuts[i]) == 1 else f"{keys[i]}#{c}")
            for i, c in part
        ]
        if lips is not None:
            chunks = [(*x, shown(lips[i], *cuts[i][c])) for x, (i, c) in zip(chunks, part, strict=True)]
        done.update(zip(part, one_by_one(checked, chunks, raised=()), strict=True))
    results: list[np.ndarray | Exception] = []
    for i, cut in enumerate(cuts):
        got = [done.pop((i, c)) for c in range(len(cut))]
        failed = next((g for g in got if isinstance(g, Exception)), None)
        whole = [g for g in got if isinstance(g, np.ndarray)]
        results.append(join(whole, cut, lengths[i]) if failed is None else failed)
    return results


def _checked(out: np.ndarray, piece: np.ndarray) -> np.ndarray | Exception:
    if out.shape != piece.shape:
        return ValueError(f"the model returned {out.shape} for {piece.shape}")
    return out if np.isfinite(out).all() else ValueError("the model returned NaN or infinite samples")


def pause(wav: np.ndarray, sample_rate: int, low: int, high: int) -> int:
    """The middle of the quietest 0.2 s between samples ``low`` and ``high`` of (T,) float32, the last of several."""
    hop, width = max(1, int(FRAME_S * sample_rate)), round(PAUSE_S / FRAME_S)
    stretch = np.asarray(wav[low:high], dtype=np.float64)
    frames = len(stretch) // hop
    if frames < width + 1:
        return high
    power = ((stretch[: frames * hop] - stretch.mean()).reshape(frames, hop) ** 2).mean(1)
    smooth = np.convolve(power, np.ones(width) / width, "valid")  # of `width` frames from each frame on
    best = len(smooth) - 1 - int(np.argmin(np.round(smooth[::-1], 12)))  # rounding: convolution leaves dust on silence
    return low + int((best + width / 2) * hop)


def cut(wav: np.ndarray, sample_rate: int, max_s: float) -> list[tuple[int, int]]:
    """Where to cut (T,) so that no piece is longer than ``max_s``: (start, end) in samples, without gaps. Short ones stay whole."""
    longest, start, found = max(1, int(max_s * sample_rate)), 0, []
    while len(wav) - start > longest:
        end = pause(wav, sample_rate, start + int(EARLIEST * longest), start + longest)
        found.append((start, end))
        start = end
    return [*found, (start, len(wav))]


def stream(
    path: str | Path, sample_rate: int, max_s: float, offset_s: float = 0.0, duration_s: float | None = None
) -> Iterator[tuple[float, np.ndarray]]:
    """Read a file piece by piece; the pieces are those of ``cut``.

    Args:
        sample_rate, max_s: rate of the pieces in Hz, and the longest in seconds.
        offset_s, duration_s: the stretch of the file, in seconds; None reads to the end.

    Yields:
        where the piece starts, in seconds from ``offset_s``, and (T,) float32.

    Raises:
        AudioError: as ``load_audio``; a file that is damaged in its middle shows it when that is reached.
    """
    longest, start = max(1, int(max_s * sample_rate)), 0
    held = np.zeros(0, dtype=np.float32)
    for block in _blocks(Path(path), sample_rate, offset_s, duration_s):
        held = np.concatenate([held, block])
        while len(held) > longest:
            end = pause(held, sample_rate, int(EARLIEST * longest), longest)
            yield start / sample_rate, held[:end]
            start, held = start + end, held[end:]
    if len(held) == 0 and start == 0:
        raise AudioError("no samples")
    if len(held):
        yield start / sample_rate, held


def _blocks(path: Path, sample_rate: int, offset_s: float, duration_s: float | None) -> Iterator[np.ndarray]:
    """Mono blocks (T,) float32 at ``sample_rate``."""
    import soxr

    with open_audio(path) as file:
        native = file.samplerate
        file.skip(samples_of(offset_s, native))
        left = None if duration_s is None else samples_of(duration_s, native)
        resampler = None
        if native != sample_rate:
            resampler = soxr.ResampleStream(native, sample_rate, 1, dtype="float32", quality="HQ")
        while left is None or left > 0:
            size = int(BLOCK_S * native) if left is None else min(left, int(BLOCK_S * native))
            wav = file.read(size).mean(axis=1)
            if not np.isfinite(wav).all():
                raise AudioError("NaN or infinite samples")
            left = None if left is None else left - len(wav)
            last = len(wav) < size or left == 0
            yield wav if resampler is None else resampler.resample_chunk(wav, last=last)
            if last:
                if len(wav) < size and (remark := file.remark()):
                    remember(path, remark)
                return
